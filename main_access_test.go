package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// newTestToken runs "token new" and returns the token and its entry.
func newTestToken(t *testing.T, args ...string) (token, entry string) {
	t.Helper()
	out, err := runWith(append([]string{"token", "new"}, args...))
	lines := strings.Split(out, "\n")
	if err != nil || len(lines) != 3 || lines[2] != "" {
		t.Fatalf("token new %q printed %q, %v; want two lines", args, out, err)
	}
	return lines[0], lines[1]
}

// writeAccessFile writes an access file with these entries of tokens, and with builds of
// public-* open to all.
func writeAccessFile(t *testing.T, entries ...string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "access.json")
	text := `{"tokens":[` + strings.Join(entries, ",") + `],"anonymous":[{"allow":["read"],"sites":["public-*"]}]}`
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return path
}

// TestTokenNew: the entry works for the token that is printed, and holds no secret.
func TestTokenNew(t *testing.T) {
	token, entry := newTestToken(t, "--name", "ci-shop", "--allow", "create, log", "--sites=shop-*,blog", "--expires", "90d")
	if !strings.HasPrefix(token, "pwst_") || len(token) != 54 || strings.Contains(entry, token[5:]) {
		t.Errorf("the token is %q, the entry %s", token, entry)
	}
	var e struct {
		Name         string
		SHA256       []string
		Allow, Sites []string
		Expires      time.Time
	}
	if err := json.Unmarshal([]byte(entry), &e); err != nil {
		t.Fatal(err)
	}
	if e.Name != "ci-shop" || len(e.SHA256) != 1 || strings.Join(e.Allow, " ") != "create log" || strings.Join(e.Sites, " ") != "shop-* blog" {
		t.Errorf("the entry is %s", entry)
	}
	if days := time.Until(e.Expires).Hours() / 24; days < 89 || days > 91 {
		t.Errorf("it expires %v", e.Expires)
	}
	policy, err := parseAccessFile([]byte(`{"tokens":[`+entry+`]}`), time.Now())
	if err != nil {
		t.Fatal(err)
	}
	if who, err := policy.token(token, time.Now()); err != nil || who.name != "ci-shop" || policy.allows(who, actionCreate, "blog") == nil {
		t.Errorf("the token is %v, %v", who, err)
	}
	if other, _ := newTestToken(t, "--name", "ci-shop", "--allow", "read", "--sites", "*"); other == token {
		t.Error("the same token twice")
	}
}

func TestTokenNewRefuses(t *testing.T) {
	good := []string{"--name", "n", "--allow", "read", "--sites", "*"}
	for _, c := range []struct {
		args []string
		want string
	}{
		{nil, "name"},
		{good[2:], "name"},
		{[]string{"--name", "n", "--sites", "*"}, "allow"},
		{good[:4], "sites"},
		{[]string{"--name", "n", "--allow", "read,fly", "--sites", "*"}, "fly"},
		{[]string{"--name", "n", "--allow", "read", "--sites", "a/b"}, "a/b"},
		{append(good, "--sites"), "sites"},
		{append(good, "--until", "90d"), "until"},
		{append(good, "now"), `unexpected argument "now"`},
		{append(good, "--expires", "soon"), `"soon"`},
		{append(good, "--expires", "d"), `"d"`},
		{append(good, "--expires", "-1d"), `"-1d"`},
		{append(good, "--expires", "0h"), `"0h"`},
		{append(good, "--expires", "2020-01-01T00:00:00Z"), "from now"},
		{append(good, "--expires", "9999999d"), "9999"},
	} {
		out, err := runWith(append([]string{"token", "new"}, c.args...))
		if err == nil || exitStatus(err) != exitUsage || !strings.Contains(err.Error(), c.want) || out != "" {
			t.Errorf("token new %q: %v (%q), want an error with %q", c.args, err, out, c.want)
		}
	}
}

func TestParseExpiry(t *testing.T) {
	now := time.Date(2026, 12, 1, 10, 0, 0, 5e8, time.FixedZone("", 3600))
	for text, want := range map[string]string{
		"90d":                       "2027-03-01T09:00:00Z",
		"36h":                       "2026-12-02T21:00:00Z",
		"2027-01-31T00:00:00Z":      "2027-01-31T00:00:00Z",
		"2027-01-31T00:00:00+01:00": "2027-01-30T23:00:00Z",
	} {
		if got, err := parseExpiry(text, now); err != nil || got.Format(time.RFC3339Nano) != want {
			t.Errorf("%s: %v, %v, want %s", text, got, err, want)
		}
	}
	if got, err := parseExpiry("", now); got != nil || err != nil {
		t.Errorf("empty: %v, %v", got, err)
	}
}

// TestAccessCheck runs the program as an operator does: the token comes from standard input.
func TestAccessCheck(t *testing.T) {
	token, entry := newTestToken(t, "--name", "ci-shop", "--allow", "create,log", "--sites", "shop-*")
	whole, wholeEntry := newTestToken(t, "--name", "ops", "--allow", "admin,read,delete", "--sites", "*")
	unknown, _ := newTestToken(t, "--name", "x", "--allow", "read", "--sites", "*")
	file := writeAccessFile(t, entry, wholeEntry)
	bad := filepath.Join(t.TempDir(), "bad.json")
	writeFileText(t, bad, `{"tokens":[{"name":"x"}]}`)
	for _, c := range []struct {
		name, stdin string
		args        []string
		status      int
		want        []string // in the output
	}{
		{"the file alone", "", []string{file}, 0, []string{"is valid"}},
		{"the file of the variable", "", nil, 0, []string{file, "is valid"}},
		{"allowed", token, []string{file, "--action", "create", "--site", "shop-1", "--token", "-"}, 0, []string{`allowed: token "ci-shop"`, `tokens[0] "ci-shop"`}},
		{"flags first", token, []string{"--action=log", "--site=shop-1", "--token=-", file}, 0, []string{"allowed"}},
		{"on the command line", "", []string{file, "--action", "log", "--site", "shop-1", "--token", token}, 0, []string{"allowed"}},
		{"another action", token, []string{file, "--action", "delete", "--site", "shop-1", "--token", "-"}, 5, []string{"denied", `tokens[0] "ci-shop" (create, log on shop-*): not this action`, "anonymous[0] (read on public-*): not on this site"}},
		{"create does not allow write", token, []string{file, "--action", "write", "--site", "shop-1", "--token", "-"}, 5, []string{"denied", "not this action"}},
		{"another site", token, []string{file, "--action", "create", "--site", "blog", "--token", "-"}, 5, []string{"denied", `tokens[0] "ci-shop" (create, log on shop-*): not on this site`}},
		{"anonymous", "", []string{file, "--action", "read", "--site", "public-1"}, 0, []string{"allowed: an anonymous client", "anonymous[0]"}},
		{"anonymous rights of a token", token, []string{file, "--action", "read", "--site", "public-1", "--token", "-"}, 0, []string{"anonymous[0]"}},
		{"anonymous, another site", "", []string{file, "--action", "read", "--site", "shop-1"}, 5, []string{"denied: an anonymous client"}},
		{"all sites", whole, []string{file, "--action", "admin", "--token", "-"}, 0, []string{`tokens[1] "ops"`}},
		{"all sites, denied", token, []string{file, "--action", "admin", "--token", "-"}, 5, []string{"denied", "all sites"}},
		{"a token that is not in the file", unknown, []string{file, "--action", "read", "--site", "public-1", "--token", "-"}, 5, []string{"denied (unknown)"}},
		{"not a token", "secret", []string{file, "--action", "read", "--site", "public-1", "--token", "-"}, 5, []string{"denied (malformed)"}},
		{"not a JWT", "secret", []string{file, "--action", "read", "--site", "public-1", "--jwt", "-"}, 5, []string{"denied ("}},
		{"a bad file", "", []string{bad}, 78, []string{bad, "tokens[0]"}},
		{"a bad file and an action", "", []string{bad, "--action", "read", "--site", "a"}, 78, []string{bad, "tokens[0]"}},
		{"no such file", "", []string{bad + ".none"}, 78, []string{"no such file"}},
		{"an empty token", "\n", []string{file, "--action", "read", "--site", "public-1", "--token", "-"}, 2, []string{"is empty"}},
		{"an empty variable", "", []string{file, "--action", "read", "--site", "public-1", "--token", ""}, 2, []string{"is empty"}},
		{"an unknown action", "", []string{file, "--action", "fly", "--site", "a"}, 2, []string{"fly", "read, create, write"}},
		{"two actions", "", []string{file, "--action", "read,write", "--site", "a"}, 2, []string{"read,write"}},
		{"no site", "", []string{file, "--action", "read"}, 2, []string{"--site is missing"}},
		{"a glob as site", "", []string{file, "--action", "read", "--site", "shop-*"}, 2, []string{"shop-*", "not a glob"}},
		{"no action", token, []string{file, "--token", "-"}, 2, []string{"--action is missing"}},
		{"two credentials", token, []string{file, "--action", "read", "--site", "a", "--token", "-", "--jwt", "-"}, 2, []string{"only one"}},
		{"an unknown flag", "", []string{file, "--tokne", "x"}, 2, []string{"tokne"}},
		{"no certificate", "", []string{file, "--action", "read", "--site", "a", "--cert", bad}, 2, []string{"PEM"}},
		{"a secret as an argument", "", []string{file, token}, 2, []string{"one FILE"}},
	} {
		cmd := exec.Command(os.Args[0], append([]string{"access", "check"}, c.args...)...)
		cmd.Env = append(os.Environ(), childVariable+"=main", "PAGEWRIGHT_ACCESS_FILE="+file)
		cmd.Stdin = strings.NewReader(c.stdin + "\n")
		var out bytes.Buffer
		cmd.Stdout, cmd.Stderr = &out, &out
		if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
			t.Fatal(err)
		}
		if got := cmd.ProcessState.ExitCode(); got != c.status {
			t.Errorf("%s: exit status %d, want %d: %s", c.name, got, c.status, &out)
		}
		for _, want := range c.want {
			if !strings.Contains(out.String(), want) {
				t.Errorf("%s: %q lacks %q", c.name, &out, want)
			}
		}
		if strings.Contains(out.String(), token) || strings.Contains(out.String(), unknown) {
			t.Errorf("%s: the output has the token: %s", c.name, &out)
		}
	}
}

func writeFileText(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
