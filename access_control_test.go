package main

import (
	"context"
	"encoding/hex"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// testRule is a rule of an access file: of a token if it has a name, otherwise of anonymous
// clients.
type testRule struct {
	name, token  string
	allow, sites string // separated by spaces
	expires      string
}

// accessJSON returns the access file with rules.
func accessJSON(t testing.TB, rules ...testRule) []byte {
	t.Helper()
	file := map[string][]any{}
	for _, r := range rules {
		entry := map[string]any{"allow": strings.Fields(r.allow), "sites": strings.Fields(r.sites)}
		if r.name == "" {
			file["anonymous"] = append(file["anonymous"], entry)
			continue
		}
		sum, ok := tokenHash(r.token)
		if !ok {
			t.Fatal("not a token")
		}
		entry["name"], entry["sha256"] = r.name, []string{hex.EncodeToString(sum[:])}
		if r.expires != "" {
			entry["expires"] = r.expires
		}
		file["tokens"] = append(file["tokens"], entry)
	}
	data, err := json.Marshal(file)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// writeAccess writes an access file, and returns its path.
func writeAccess(t testing.TB, rules ...testRule) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "access.json")
	switchFile(t, path, accessJSON(t, rules...))
	return path
}

// switchFile replaces a file in one step.
func switchFile(t testing.TB, path string, data []byte) {
	t.Helper()
	if err := os.WriteFile(path+".new", data, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// A bad file never replaces the rules in force, and is logged once.
func TestAccessFileIsReloaded(t *testing.T) {
	var lines lockedBuffer
	log := slog.New(slog.NewJSONHandler(&lines, nil))
	one, two := newToken(), newToken()
	path := writeAccess(t, testRule{name: "one", token: one, allow: "read", sites: "s"})
	a, err := openAccess(path, false, log)
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	good := accessJSON(t, testRule{name: "two", token: two, allow: "read", sites: "s"}, testRule{allow: "read", sites: "public-*"})
	for _, c := range []struct {
		what    string
		change  func()
		known   string // the name of the token that is known
		failing bool
		logged  string // a new line has it; empty: there is no new line
	}{
		{"nothing", func() {}, "one", false, ""},
		{"no JSON", func() { switchFile(t, path, []byte("{")) }, "one", true, `"level":"ERROR","msg":"access file not loaded`},
		{"still no JSON", func() {}, "one", true, ""},
		{"missing", func() { os.Remove(path) }, "one", true, "no such file"},
		{"empty", func() { switchFile(t, path, nil) }, "one", true, "empty"},
		{"too large", func() { switchFile(t, path, []byte(strings.Repeat(" ", maxAccessFile)+"{}")) }, "one", true, "larger than 1048576 bytes"},
		{"other rules", func() { switchFile(t, path, good) }, "two", false,
			`"level":"INFO","msg":"access file loaded","path":"` + path + `","tokens":1,"oidc":0,"certificates":0,"anonymous":1`},
		{"missing again", func() { os.Remove(path) }, "two", true, "no such file"},
		{"back", func() { switchFile(t, path, good) }, "two", false, "access file loaded"},
	} {
		before := lines.String()
		c.change()
		if err := a.watch.check(); (err != nil) != c.failing || a.watch.failing.Load() != c.failing {
			t.Errorf("%s: %v, failing is %v", c.what, err, a.watch.failing.Load())
		}
		for name, token := range map[string]string{"one": one, "two": two} {
			who, err := a.identify(a.policy.Load(), token, time.Now())
			if known := err == nil && who.name == name; known != (c.known == name) {
				t.Errorf("%s: the token %s: %v, %v", c.what, name, who, err)
			}
		}
		added := strings.TrimPrefix(lines.String(), before)
		if c.logged == "" && added != "" || !strings.Contains(added, c.logged) || strings.Count(added, "\n") > 1 {
			t.Errorf("%s: logged %q, want %q", c.what, added, c.logged)
		}
	}
}

// A service does not start without the access file that it is configured with, and config
// and doctor say why.
func TestBadAccessFileStopsTheStart(t *testing.T) {
	dir := t.TempDir()
	bad := filepath.Join(dir, "bad.json")
	switchFile(t, bad, []byte(`{"tokens":[{"name":"a"}]}`))
	for _, c := range []struct {
		path, want string
		exit       int
	}{
		{filepath.Join(dir, "none.json"), "no such file", exitFailure}, // it may come
		{dir, "not a regular file", exitConfig},
		{bad, "tokens[0]", exitConfig},
	} {
		for _, command := range []string{"serve", "config", "doctor"} {
			var out, lines lockedBuffer
			ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second) // if it starts it must end
			err := run(ctx, []string{command}, []string{"PAGEWRIGHT_PORT=0", "PAGEWRIGHT_NFS_BASE_PATH=" + dir, "PAGEWRIGHT_ACCESS_FILE=" + c.path}, &out, &lines)
			cancel()
			if err == nil || exitStatus(err) != c.exit || !strings.Contains(err.Error(), "PAGEWRIGHT_ACCESS_FILE="+c.path) || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s with %s: %v, want exit status %d and %q", command, c.path, err, c.exit, c.want)
			}
		}
	}
}

// The start says once what access control does not protect.
func TestAccessWarnings(t *testing.T) {
	file := "ACCESS_FILE=" + writeAccess(t, testRule{allow: "read", sites: "*"})
	path := writeAccess(t)
	switchFile(t, path, []byte(`{"certificates":[{"name":"a","san":["a"],"allow":["read"],"sites":["s"]}]}`))
	certificates := []string{"ACCESS_FILE=" + path, "LISTEN=127.0.0.1"}
	caching := func(value string) []string {
		return []string{file, "LISTEN=127.0.0.1", "APPEND_ONLY=true", "BUILD_CACHE_CONTROL=" + value}
	}
	ca, dir := newTestCA(t, "ca"), newTLSDir(t)
	dir.write(ca.issue("server"))
	withoutCA := []string{"TLS_CERT=" + dir.cert, "TLS_KEY=" + dir.key}
	dir.writeCAs(ca)
	withCA := append(dir.vars(), "ADMIN_LISTEN=127.0.0.1:1")
	const (
		off, reach, proved = "access control is off", "anyone who can reach this service", "anyone with a client certificate"
		clear              = "credentials are sent in clear"
		unused, shared     = "no client can use the certificates", "shared caches may serve builds"
	)
	proxies := []string{"TRUSTED_PROXIES=10.0.0.0/8", "CLIENT_ADDRESS_HEADER=Forwarded"}
	for _, c := range []struct {
		vars []string
		want string
	}{
		{nil, reach},
		{[]string{"LISTEN=127.0.0.1"}, reach},
		{withCA, reach},
		{append(withCA, "TLS_CLIENT_AUTH=require"), proved},
		{certificates, unused},
		{append(withoutCA, certificates...), unused},
		{append(withCA, certificates...), ""},
		{caching("Public, max-age=1"), shared},
		{caching("max-age=1, s-maxage=2"), shared},
		{caching("max-age=1,must-revalidate"), shared},
		{caching(`private="public, x", max-age=1`), ""},
		{caching("private, max-age=1, immutable"), ""},
		{[]string{"APPEND_ONLY=true", "BUILD_CACHE_CONTROL=public"}, reach},
		{[]string{file}, clear},
		{[]string{file, "LISTEN=0.0.0.0"}, clear},
		{[]string{file, "LISTEN=127.0.0.1"}, ""},
		{[]string{file, "LISTEN=::1"}, ""},
		{append(proxies, file), ""},
	} {
		cfg := &Config{}
		environ := []string{}
		for _, v := range c.vars {
			environ = append(environ, envPrefix+v)
		}
		cfg, _, err := parseConfig(environ)
		if err != nil {
			t.Fatal(err)
		}
		var lines lockedBuffer
		files, err := openFiles(cfg, slog.New(slog.NewTextHandler(&lines, nil)))
		if err != nil {
			t.Fatal(err)
		}
		files.warn(cfg, slog.New(slog.NewTextHandler(&lines, nil)))
		if files.access != nil {
			files.access.close()
		}
		warned := 0
		for _, text := range []string{off, clear, unused, shared} {
			if strings.Contains(lines.String(), "level=WARN msg=\""+text) {
				warned++
			}
		}
		if c.want == "" && warned > 0 || c.want != "" && (warned != 1 || !strings.Contains(lines.String(), c.want)) {
			t.Errorf("%v: logged %s; want %q", c.vars, lines.String(), c.want)
		}
	}
}

// A reload that adds entries for certificates warns too if no client can use them.
func TestUnusedCertificatesAfterAReload(t *testing.T) {
	var lines lockedBuffer
	path := writeAccess(t, testRule{allow: "read", sites: "s"})
	a, err := openAccess(path, true, slog.New(slog.NewTextHandler(&lines, nil)))
	if err != nil {
		t.Fatal(err)
	}
	defer a.close()
	switchFile(t, path, []byte(`{"certificates":[{"name":"a","san":["a"],"allow":["read"],"sites":["s"]}]}`))
	if err := a.watch.check(); err != nil || !strings.Contains(lines.String(), "no client can use the certificates") {
		t.Errorf("%v, %s", err, lines.String())
	}
}
