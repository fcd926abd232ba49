package main

import (
	"crypto/sha256"
	"regexp"
	"strings"
	"testing"
)

// knownToken is of 32 bytes of zero.
const knownToken = "pwst_AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA0DofJ8"

func TestNewToken(t *testing.T) {
	form := regexp.MustCompile(`^pwst_[A-Za-z0-9_-]{43}[0-9A-Za-z]{6}$`)
	seen := map[string]bool{}
	for range 1000 {
		token := newToken()
		sum, ok := tokenHash(token)
		if !form.MatchString(token) || !ok || sum != sha256.Sum256([]byte(token)) || seen[token] {
			t.Fatalf("newToken() = %q; tokenHash: %x, %v", token, sum, ok)
		}
		seen[token] = true
	}
}

func TestTokenHash(t *testing.T) {
	random := strings.TrimPrefix(knownToken, tokenPrefix)[:tokenRandom]
	withSum := func(random string) string { return tokenPrefix + random + checksumOf([]byte(random)) }
	for _, c := range []struct {
		what, token string
		ok          bool
	}{
		{"a token", knownToken, true},
		{"another", withSum("_-" + random[2:]), true},
		{"empty", "", false},
		{"the prefix", tokenPrefix, false},
		{"no prefix", knownToken[len(tokenPrefix):], false},
		{"another prefix", "pwsx_" + knownToken[len(tokenPrefix):], false},
		{"upper case", strings.ToUpper(knownToken), false},
		{"cut", knownToken[:len(knownToken)-1], false},
		{"longer", knownToken + "A", false},
		{"a newline", knownToken + "\n", false},
		{"a space in front", " " + knownToken, false},
		{"another checksum", knownToken[:len(knownToken)-1] + "Z", false},
		{"another random part", strings.Replace(knownToken, "_A", "_B", 1), false},
		{"a character outside base64url", withSum("." + random[1:]), false},
		{"base64 of the standard alphabet", withSum("+/" + random[2:]), false},
		{"a character of two bytes", withSum("ü" + random[2:]), false},
		{"a quote", withSum(`"` + random[1:]), false},
	} {
		sum, ok := tokenHash(c.token)
		if ok != c.ok || ok && sum != sha256.Sum256([]byte(c.token)) || !ok && sum != [sha256.Size]byte{} {
			t.Errorf("%s: tokenHash(%q) = %x, %v", c.what, c.token, sum, ok)
		}
	}
}

// FuzzToken: no text but tokens is accepted, and no token with one byte changed.
func FuzzToken(f *testing.F) {
	form := regexp.MustCompile(`\A` + tokenPrefix + `[A-Za-z0-9_-]{43}[0-9A-Za-z]{6}\z`)
	f.Add(knownToken, 7, byte('x'))
	f.Add("pwst_", 0, byte(0))
	f.Fuzz(func(t *testing.T, token string, at int, c byte) {
		sum, ok := tokenHash(token)
		if ok && (!form.MatchString(token) || sum != sha256.Sum256([]byte(token))) {
			t.Errorf("tokenHash(%q) = %x, true", token, sum)
		}
		if !ok {
			return
		}
		changed := []byte(token)
		at = int(uint(at) % uint(len(changed)))
		changed[at] = c
		if _, ok := tokenHash(string(changed)); ok && string(changed) != token {
			t.Errorf("tokenHash(%q) is ok, as is %q", changed, token)
		}
	})
}
