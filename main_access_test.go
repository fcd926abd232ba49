package main

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"math/big"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"github.com/golang-jwt/jwt/v5"
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
	policy, err := parseAccessFile([]byte(`{"tokens":[` + entry + `]}`))
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
		{nil, "--name is missing"},
		{good[2:], "--name is missing"},
		{[]string{"--name", "n", "--sites", "*"}, "--allow is missing"},
		{good[:4], "--sites is missing"},
		{[]string{"--name", "n", "--allow", ",", "--sites", "*"}, "--allow: "},
		{[]string{"--name", "n", "--allow", "read,fly", "--sites", "*"}, `--allow[1]: unknown action "fly"`},
		{[]string{"--name", "n", "--allow", "read", "--sites", "a/b"}, "--sites[0]: "},
		{[]string{"--name", "a\nb", "--allow", "read", "--sites", "*"}, "--name: "},
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

// checkAccessAs runs "access check" in a process of its own, and returns all that it printed.
func checkAccessAs(t *testing.T, file, stdin string, args ...string) (out string, status int) {
	t.Helper()
	cmd := exec.Command(os.Args[0], append([]string{"access", "check"}, args...)...)
	cmd.Env = append(os.Environ(), childVariable+"=main", "PAGEWRIGHT_ACCESS_FILE="+file)
	cmd.Stdin = strings.NewReader(stdin + "\n")
	var b bytes.Buffer
	cmd.Stdout, cmd.Stderr = &b, &b
	if err := cmd.Run(); err != nil && cmd.ProcessState == nil {
		t.Fatal(err)
	}
	return b.String(), cmd.ProcessState.ExitCode()
}

// TestAccessCheck runs the program as an operator does: the token comes from standard input.
func TestAccessCheck(t *testing.T) {
	token, entry := newTestToken(t, "--name", "ci-shop", "--allow", "create,log", "--sites", "shop-*")
	whole, wholeEntry := newTestToken(t, "--name", "ops", "--allow", "admin,read,delete", "--sites", "*")
	unknown, _ := newTestToken(t, "--name", "x", "--allow", "read", "--sites", "*")
	file := writeAccessFile(t, entry, wholeEntry)
	expired, expiredEntry := newTestToken(t, "--name", "old", "--allow", "read", "--sites", "*", "--expires", "1h")
	expiredEntry = regexp.MustCompile(`"expires":".*?"`).ReplaceAllString(expiredEntry, `"expires":"2020-01-02T03:04:05Z"`)
	oldFile := writeAccessFile(t, entry, expiredEntry)
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
		{"a token that has expired", expired, []string{oldFile, "--action", "read", "--site", "a", "--token", "-"}, 5,
			[]string{"denied (expired): the token has expired\n", "tokens[1] \"old\" expired at 2020-01-02T03:04:05Z\n"}},
		{"a JWT as a token", "a.b.c", []string{file, "--action", "read", "--site", "a", "--token", "-"}, 2, []string{"use --jwt"}},
		{"a token as a JWT", token, []string{file, "--action", "read", "--site", "a", "--jwt", "-"}, 2, []string{"use --token"}},
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
		out, status := checkAccessAs(t, file, c.stdin, c.args...)
		if status != c.status {
			t.Errorf("%s: exit status %d, want %d: %s", c.name, status, c.status, out)
		}
		for _, want := range c.want {
			if !strings.Contains(out, want) {
				t.Errorf("%s: %q lacks %q", c.name, out, want)
			}
		}
		if c.status == exitDenied && strings.Contains(out, "pagewright-storage:") {
			t.Errorf("%s: the reason is there twice: %s", c.name, out)
		}
		if strings.Contains(out, token) || strings.Contains(out, unknown) || strings.Contains(out, "a.b.c") {
			t.Errorf("%s: the output has the token: %s", c.name, out)
		}
	}
}

// TestAccessCheckListsExpiry: "access check" of a file lists the tokens that have expired or soon
// will, the first to expire first.
func TestAccessCheckListsExpiry(t *testing.T) {
	now := time.Now()
	entry := func(name string, after time.Duration) string {
		_, entry := newTestToken(t, "--name", name, "--allow", "read", "--sites", "*", "--expires", "1h")
		return regexp.MustCompile(`"expires":".*?"`).ReplaceAllString(entry, `"expires":"`+now.Add(after).UTC().Format(time.RFC3339)+`"`)
	}
	_, never := newTestToken(t, "--name", "never", "--allow", "read", "--sites", "*")
	const day = 24 * time.Hour
	file := writeAccessFile(t, entry("later", 15*day), never, entry("soon", 13*day), entry("old", -300*day))
	at := func(after time.Duration) string { return now.Add(after).UTC().Format(time.RFC3339) }
	want := file + " is valid\n  tokens[3] \"old\" expired at " + at(-300*day) + "\n  tokens[2] \"soon\" expires at " + at(13*day) + "\n"
	if out, status := checkAccessAs(t, file, ""); out != want || status != 0 {
		t.Errorf("%d, %q, want %q", status, out, want)
	}
}

func writeFileText(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

// TestAccessCheckJWT: a JWT is verified with the keys that its issuer serves now.
func TestAccessCheckJWT(t *testing.T) {
	key := signingKey{"k1", "ES256", p256Key()}
	issuer := startIssuer(t, key)
	file := filepath.Join(t.TempDir(), "access.json")
	writeFileText(t, file, `{"oidc":[{"name":"ci","issuer":"`+issuer.URL+`","audience":["pagewright"],"rules":[
		{"claims":{"repository":["acme/site-*"]},"allow":["create"],"sites":["site-{1}"]},
		{"claims":{"ref":["refs/heads/main","v*"]},"allow":["create"],"sites":["main"]}]}]}`)
	signed := func(key signingKey, repository string, expires time.Duration) string {
		now := time.Now()
		return signJWT(key, nil, jwt.MapClaims{"iss": issuer.URL, "aud": "pagewright", "sub": "job", "repository": repository,
			"iat": now.Add(-time.Hour).Unix(), "exp": now.Add(expires).Unix()})
	}
	changed := func(name string, value any) string {
		claims := jwt.MapClaims{"iss": issuer.URL, "aud": "pagewright", "sub": "job", "repository": "acme/site-a", "exp": time.Now().Add(time.Minute).Unix()}
		claims[name] = value
		return signJWT(key, nil, claims)
	}
	good := signed(key, "acme/site-a", time.Minute)
	for _, c := range []struct {
		name, jwt, site string
		status          int
		want            string
	}{
		{"allowed", good, "site-a", 0, `allowed: oidc "ci:job"`},
		{"another site", good, "site-b", 5, `create on site-a): not on this site`},
		{"another repository", signed(key, "evil/site-a", time.Minute), "site-a", 5, "no rule allows it\n" +
			"  oidc[0] \"ci\" rules[0]: claim repository is \"evil/site-a\", the rule has \"acme/site-*\"\n" +
			"  oidc[0] \"ci\" rules[1]: claim ref is missing, the rule has \"refs/heads/main\", \"v*\"\n"},
		{"another branch", changed("ref", "refs/heads/dev"), "main", 5, `oidc[0] "ci" rules[1]: claim ref is "refs/heads/dev", the rule has "refs/heads/main", "v*"` + "\n"},
		{"a value that is no part of an id", signed(key, "acme/site-a/b", time.Minute), "site-a", 5, `oidc[0] "ci" rules[0]: {1} would be "a/b", which cannot be in the id of a site`},
		{"another audience", changed("aud", []string{"x", "y"}), "site-a", 5, "denied (invalid): the token is not for this audience\n  the audience of the token is \"x\", \"y\", oidc[0] \"ci\" has \"pagewright\"\n"},
		{"another issuer", changed("iss", "https://x.example"), "site-a", 5, `the issuer of the token is "https://x.example", the file has "` + issuer.URL + "\"\n"},
		{"expired", signed(key, "acme/site-a", -2*time.Minute), "site-a", 5, "denied (expired)"},
		{"of another key", signed(signingKey{"k1", "ES256", mustMake(ecdsa.GenerateKey(elliptic.P256(), rand.Reader))}, "acme/site-a", time.Minute), "site-a", 5, "denied (invalid)"},
	} {
		out, status := checkAccessAs(t, file, c.jwt, "--action", "create", "--site", c.site, "--jwt", "-")
		if status != c.status || !strings.Contains(out, c.want) || strings.Contains(out, c.jwt) {
			t.Errorf("%s: exit status %d, want %d with %q: %s", c.name, status, c.status, c.want, out)
		}
	}
	issuer.Close()
	out, status := checkAccessAs(t, file, good, "--action", "create", "--site", "site-a", "--jwt", "-")
	if status != exitFailure || !strings.Contains(out, "cannot be read") || !strings.Contains(out, "connection refused") {
		t.Errorf("the issuer is down: exit status %d, %s", status, out)
	}
}

// TestAccessCheckCertificate: a certificate has the rights of the entries for its names.
func TestAccessCheckCertificate(t *testing.T) {
	dir := t.TempDir()
	file := filepath.Join(dir, "access.json")
	writeFileText(t, file, `{"certificates":[{"name":"edge","san":["spiffe://acme/web-*"],"allow":["read"],"sites":["{1}"]}]}`)
	issue := func(name, uri string, until time.Time) string {
		key := p256Key()
		cert := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: until, URIs: []*url.URL{mustMake(url.Parse(uri))}}
		der := mustMake(x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key))
		path := filepath.Join(dir, name)
		writeFileText(t, path, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})))
		return path
	}
	good := issue("good.crt", "spiffe://acme/web-shop", time.Now().Add(time.Hour))
	for _, c := range []struct {
		name, cert, site string
		status           int
		want             string
	}{
		{"allowed", good, "shop", 0, `allowed: certificate "edge", read on site shop`},
		{"the chain", good, "shop", 0, "\n  the chain of the certificate is not verified\n"},
		{"the chain, denied", good, "blog", 5, "\n  the chain of the certificate is not verified\n"},
		{"another site", good, "blog", 5, "not on this site"},
		{"another name", issue("other.crt", "spiffe://evil/web-shop", time.Now().Add(time.Hour)), "shop", 5, `no entry of "certificates" fits`},
		{"expired", issue("old.crt", "spiffe://acme/web-shop", time.Now().Add(-time.Hour)), "shop", 5, `no entry of "certificates" fits`},
	} {
		out, status := checkAccessAs(t, file, "", "--action", "read", "--site", c.site, "--cert", c.cert)
		if status != c.status || !strings.Contains(out, c.want) {
			t.Errorf("%s: exit status %d, want %d with %q: %s", c.name, status, c.status, c.want, out)
		}
	}
}
