package issuer

import (
	"bufio"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"
)

// TestTheServiceWithAProvider goes through the life of a provider: down when the service starts,
// up, new keys, keys withdrawn, down again.
func TestTheServiceWithAProvider(t *testing.T) {
	first := newRSAKey(t, "first")
	p := newProvider(t, first)
	p.start()
	token := p.token("repository=acme/site-a")
	p.stop()
	s := serve(t, p.issuer)

	s.expect("the provider is down at the start", token, "GET", "site-a", 503, "")
	if res := s.send(token, "PUT", "site-a"); res.Header.Get("Retry-After") == "" {
		t.Error("503 without Retry-After")
	}
	p.start()
	s.await("the provider is up", token, 201)

	const invalid, scope = `error="invalid_token"`, `error="insufficient_scope"`
	other := p.token("repository=acme/site-b")
	for _, c := range []struct {
		what, token, method, site string
		status                    int
		challenge                 string
	}{
		{"its own site", token, "PUT", "site-a", 201, ""},
		{"its own site", token, "GET", "site-a", 200, ""},
		{"the site of another repository", token, "PUT", "site-b", 403, scope},
		{"an action that no rule allows", token, "DELETE", "site-a", 403, scope},
		{"another repository on its own site", other, "PUT", "site-b", 201, ""},
		{"a repository that no rule names", p.token("repository=evil/site-a"), "PUT", "site-a", 403, scope},
		{"a star in the repository", p.token("repository=acme/site-*"), "PUT", "site-a", 403, scope},
		{"for another audience", p.token("repository=acme/site-a", "audience=other"), "PUT", "site-a", 401, invalid},
		{"of too long a life", p.token("repository=acme/site-a", "life=2h"), "PUT", "site-a", 401, invalid},
		{"expired", p.token("repository=acme/site-a", "life=-2m"), "PUT", "site-a", 401, invalid},
		{"without a signature", unsigned(t, token), "PUT", "site-a", 401, invalid},
		{"with the claims of another one", claimsOf(token, other), "PUT", "site-b", 401, invalid},
		{"no token", "", "PUT", "site-a", 401, `Bearer realm="pagewright"`},
	} {
		s.expect(c.what, c.token, c.method, c.site, c.status, c.challenge)
	}

	second := newECKey(t, "second")
	p.rotate(second, first)
	s.await("the provider signs with a new key", p.token("repository=acme/site-a"), 201)
	s.expect("the old key is still published", token, "PUT", "site-a", 201, "")

	before := p.fetches.Load()
	began := time.Now()
	s.storm(token)
	// One for the tokens in each 30 s, and one that may have run in the background.
	if n, most := p.fetches.Load()-before, int32(time.Since(began)/(30*time.Second))+2; n > most {
		t.Errorf("a storm of unknown keys caused %d fetches, want at most %d", n, most)
	}

	p.rotate(second)
	forged := withKey(t, token, "absent")
	until(t, "a withdrawn key is refused", func() bool {
		s.send(forged, "PUT", "site-a")
		return s.send(token, "PUT", "site-a").StatusCode == 401
	})

	late := p.token("repository=acme/site-a", "life=10m")
	p.stop()
	until(t, "the provider is down, and that was noticed", func() bool { return s.send(forged, "PUT", "site-a").StatusCode == 503 })
	s.expect("the provider is down, but its keys are known", late, "PUT", "site-a", 201, "")
}

// unsigned returns the token with the algorithm none.
func unsigned(t *testing.T, token string) string {
	_, rest, _ := strings.Cut(token, ".")
	claims, _, _ := strings.Cut(rest, ".")
	return encode(t, map[string]any{"alg": "none", "typ": "JWT"}) + "." + claims + "."
}

// withKey returns the token with another key id.
func withKey(t *testing.T, token, id string) string {
	_, rest, _ := strings.Cut(token, ".")
	return encode(t, map[string]any{"alg": "RS256", "kid": id}) + "." + rest
}

// claimsOf returns the token with the claims of another one.
func claimsOf(token, other string) string {
	parts := strings.Split(token, ".")
	return parts[0] + "." + strings.Split(other, ".")[1] + "." + parts[2]
}

func encode(t *testing.T, header any) string {
	data, err := json.Marshal(header)
	if err != nil {
		t.Fatal(err)
	}
	return base64.RawURLEncoding.EncodeToString(data)
}

// service is the real binary, with the provider in its access file.
type service struct {
	t   *testing.T
	url string
}

func serve(t *testing.T, issuer string) *service {
	dir := t.TempDir()
	file := filepath.Join(dir, "access.json")
	rules := fmt.Sprintf(`{"oidc":[{"name":"op","issuer":%q,"audience":["pagewright"],"algorithms":["RS256","ES256"],
		"rules":[{"claims":{"repository":["acme/site-*"]},"allow":["read","write"],"sites":["site-{1}"]}]}]}`, issuer)
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(binary(t))
	cmd.Env = append(os.Environ(), "PAGEWRIGHT_PORT=0", "PAGEWRIGHT_LISTEN=127.0.0.1", "PAGEWRIGHT_NFS_BASE_PATH="+t.TempDir(), "PAGEWRIGHT_ACCESS_FILE="+file)
	log, err := cmd.StderrPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	address, ended := make(chan string, 1), make(chan struct{})
	t.Cleanup(func() {
		cmd.Process.Kill()
		<-ended
		cmd.Wait()
	})
	go func() {
		defer close(ended)
		for lines := bufio.NewScanner(log); lines.Scan(); {
			var line struct{ Msg, Address string }
			if json.Unmarshal(lines.Bytes(), &line) == nil && line.Msg == "serving" {
				address <- line.Address
			}
		}
	}()
	select {
	case a := <-address:
		return &service{t, "http://" + a}
	case <-ended:
		t.Fatal("the service ended")
	case <-time.After(time.Minute):
		t.Fatal("the service did not start")
	}
	return nil
}

// binary returns the path of the binary: that of STORAGE_BINARY, or one built from this tree.
func binary(t *testing.T) string {
	if bin := os.Getenv("STORAGE_BINARY"); bin != "" {
		return bin
	}
	bin := filepath.Join(t.TempDir(), "service")
	build := exec.Command("go", "build", "-buildvcs=false", "-tags", "disable_grpc_modules,no_s3,no_azure,no_gcs", "-o", bin, ".")
	build.Dir = "../.."
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return bin
}

// send sends a request for the build b of a site. Many goroutines may call it. After an error,
// which fails the test, the status is 0.
func (s *service) send(token, method, site string) *http.Response {
	s.t.Helper()
	r, err := http.NewRequest(method, s.url+"/sites/"+site+"/artifacts/b", strings.NewReader("build"))
	if err != nil {
		panic(err)
	}
	if token != "" {
		r.Header.Set("Authorization", "Bearer "+token)
	}
	res, err := http.DefaultClient.Do(r)
	if err != nil {
		s.t.Error(err)
		return &http.Response{}
	}
	defer res.Body.Close()
	if _, err := io.Copy(io.Discard, res.Body); err != nil {
		s.t.Error(err)
	}
	return res
}

func (s *service) expect(what, token, method, site string, status int, challenge string) {
	s.t.Helper()
	res := s.send(token, method, site)
	if got := res.Header.Get("WWW-Authenticate"); res.StatusCode != status || !strings.Contains(got, challenge) {
		s.t.Errorf("%s: %s of %s: %d %q, want %d %q", what, method, site, res.StatusCode, got, status, challenge)
	}
}

// await sends PUT to site-a until the status comes.
func (s *service) await(what, token string, status int) {
	s.t.Helper()
	until(s.t, what, func() bool { return s.send(token, "PUT", "site-a").StatusCode == status })
}

// storm sends 2,000 tokens with key ids that do not exist.
func (s *service) storm(token string) {
	var all sync.WaitGroup
	for g := range 20 {
		all.Go(func() {
			for i := range 100 {
				if res := s.send(withKey(s.t, token, fmt.Sprint(g, "-", i)), "GET", "site-a"); res.StatusCode != 401 {
					s.t.Errorf("an unknown key: %d", res.StatusCode)
				}
			}
		})
	}
	all.Wait()
}

// until waits for what must happen within the 30 s between two reads of keys.
func until(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for end := time.Now().Add(2 * time.Minute); !ok(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("never happened: ", what)
		}
	}
}
