package main

import (
	"errors"
	"strings"
	"testing"

	"github.com/golang-jwt/jwt/v5"
)

func TestMasked(t *testing.T) {
	for text, want := range map[string]string{
		"": "", "/sites/s/versions": "/sites/s/versions",
		"pwst_aB-_9":              "pwst_***",
		"x=pwst_a, y=pwst_b":      "x=pwst_***, y=pwst_***",
		"/pwst_a/b":               "/pwst_***/b",
		"pwst_":                   "pwst_",
		"pwst_***":                "pwst_***", // again
		"a-pwst_b":                "a-pwst_***",
		"eyJhb.eyJpc.s_-g":        "eyJ***",
		"eyJhb.eyJpc.":            "eyJ***", // algorithm none
		"eyJhb.eyJpc":             "eyJ***", // cut
		"eyJhb.a.b.c.d":           "eyJ***", // encrypted
		"(eyJhb.eyJpc.sig)":       "(eyJ***)",
		"eyJ***":                  "eyJ***",
		"eyJhb":                   "eyJhb",
		"eyJhb.pdf":               "eyJhb.pdf",
		"eyJhb-pwst_a":            "eyJhb-pwst_***",
		"eyJhb pwst_a":            "eyJhb pwst_***",
		"pwst_a.eyJhb.eyJpc.c d":  "pwst_*** d",
		"eyJhb.eyJpc.pwst_a eyJ.": "eyJ*** eyJ.",
	} {
		if got := masked(text); got != want {
			t.Errorf("%q: %q, want %q", text, got, want)
		}
	}
}

// A client may send a credential anywhere: no line of the service log has it.
func TestNoCredentialIsLogged(t *testing.T) {
	token := newToken()
	key := signingKey{"k", "ES256", p256Key()}
	jsonToken := signJWT(key, nil, jwt.MapClaims{"iss": "https://issuer.example", "sub": "s"})
	for _, secret := range []string{token, jsonToken} {
		for name, start := range map[string]func(*testing.T) *testServer{
			"without an access file": func(t *testing.T) *testServer { return startServer(t, "LOG_LEVEL=debug") },
			"with an access file": func(t *testing.T) *testServer {
				s, _ := startAccess(t, []testRule{{name: "all", token: token, allow: "read write log delete", sites: "*"}, {allow: "read log delete", sites: "*"}})
				return s
			},
			"a store that fails": func(t *testing.T) *testServer {
				s, _ := startBackend(t, unreachable{openTestNFS(t, t.TempDir())})
				return s
			},
			"a store that panics": func(t *testing.T) *testServer {
				at := "list"
				b := &panicky{nfs: openTestNFS(t, t.TempDir())}
				b.at.Store(&at)
				s, _ := startBackend(t, b)
				return s
			},
		} {
			t.Run(name, func(t *testing.T) {
				s := start(t)
				requests := []request{
					{"GET", "/sites/s/versions?key=" + secret, nil, nil},
					{"GET", "/sites/s/artifacts/b?auth=" + secret, nil, nil},
					{"GET", "/sites/" + secret + "/versions", nil, nil},
					{"GET", "/sites/" + strings.ReplaceAll(strings.ReplaceAll(secret, "_", "%5F"), ".", "%2E") + "/versions", nil, nil},
					{"GET", "/sites/s/artifacts/" + secret, nil, nil},
					{"PUT", "/sites/s/artifacts/" + secret, "x", nil},
					{"PUT", "/sites/s/artifacts/" + secret + "%2F", "x", nil},
					{"PUT", "/sites/" + secret + "/artifacts/b", "x", header("Authorization", "Bearer "+secret)},
					{"DELETE", "/sites/s/artifacts/" + secret, nil, nil},
					{"POST", "/sites/" + secret + "/logs", anEntry, nil},
					{"POST", "/sites/s/logs", strings.Replace(anEntry, `"b"`, `"`+secret+`"`, 1), nil},
					{"GET", "/" + secret, nil, nil},
					{"GET", "/sites/s/versions", nil, header("User-Agent", "x "+secret)},
					{"GET", "/sites/s/versions", nil, header("User-Agent", strings.Repeat("a", 200)+secret)}, // it is clipped
					{"GET", "/sites/s/versions", nil, header("X-Request-Id", secret)},
					{"GET", "/sites/s/versions?limit=" + secret, nil, nil},
				}
				for _, r := range requests {
					if _, err := s.try(r); err != nil {
						t.Fatal(err)
					}
				}
				exchangeRaw(t, s.addr, "GET /?key="+secret+" HTTP/1.1\r\nHost: h\r\nno header\r\n\r\n") // malformed
				eventually(t, "all are logged", func() bool { return strings.Count(s.log.String(), `"msg":"request"`) == len(requests)+1 })
				// The random part of a token, and the claims of a JWT: neither may be left of a part.
				part := secret[len(secret)/3:][:12]
				for line := range strings.Lines(s.log.String()) {
					if strings.Contains(line, part) || strings.Contains(line, secret) {
						t.Errorf("logged: %s", line)
					}
				}
			})
		}
	}
}

// Errors quote ids and paths.
func TestErrorsInTheLogAreMasked(t *testing.T) {
	var out lockedBuffer
	newLog(&Config{}, &out).With("a", "pwst_a").Warn("failed", "error", errors.New("no /sites/pwst_b"), "n", 1)
	if got := out.String(); !strings.Contains(got, `"a":"pwst_***","error":"no /sites/pwst_***","n":1`) {
		t.Error(got)
	}
}
