package main

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"math/big"
	"strings"
	"testing"
)

// TestParseKeySet: which keys of a set are used.
func TestParseKeySet(t *testing.T) {
	b64 := base64.RawURLEncoding.EncodeToString
	bits := func(n uint) string { // an odd number of n bits
		number := new(big.Int).Lsh(big.NewInt(1), n-1)
		return b64(number.SetBit(number, 0, 1).Bytes())
	}
	with := func(key signingKey, changes ...any) map[string]any {
		jwk := jwkOf(key)
		for i := 0; i < len(changes); i += 2 {
			if jwk[changes[i].(string)] = changes[i+1]; changes[i+1] == nil {
				delete(jwk, changes[i].(string))
			}
		}
		return jwk
	}
	rsa2048, p256, p384, ed := signingKey{"r", "", rsaKey()}, signingKey{"e", "", p256Key()}, signingKey{"f", "", p384Key()}, signingKey{"o", "", edKey()}
	p521 := mustMake(ecdsa.GenerateKey(elliptic.P521(), rand.Reader))
	offCurve := b64(make([]byte, 32))
	for _, c := range []struct {
		what string
		jwk  any
		want string // in the error; empty: it is used
	}{
		{"RSA, 2048 bits", with(rsa2048), ``},
		{"P-256", with(p256), ``},
		{"P-384", with(p384), ``},
		{"Ed25519", with(ed), ``},
		{"Ed25519 with the newer name of the algorithm", with(ed, "alg", "Ed25519"), ``},
		{"no use", with(p256, "use", nil), ``},
		{"key_ops for verification", with(p256, "key_ops", []string{"sign", "verify"}), ``},
		{"RSA with certificates", with(rsa2048, "x5c", []string{"garbage"}, "x5t", "x"), ``},
		{"RSA, exponent 3", with(rsa2048, "e", "Aw"), ``},
		{"RSA, 8192 bits", with(rsa2048, "n", bits(8192)), ``},

		{"RSA, 2047 bits", with(rsa2048, "n", bits(2047)), `2047 bits, want 2048 to 8192`},
		{"RSA, 1024 bits", with(rsa2048, "n", bits(1024)), `1024 bits`},
		{"RSA, 2047 bits and leading zeros", with(rsa2048, "n", b64(append(make([]byte, 64), 1))), `1 bits`},
		{"RSA, 8193 bits", with(rsa2048, "n", bits(8193)), `8193 bits`},
		{"RSA without a modulus", with(rsa2048, "n", nil), `0 bits`},
		{"RSA, an even modulus", with(rsa2048, "n", b64(new(big.Int).Lsh(big.NewInt(1), 2047).Bytes())), `not those of an RSA key`},
		{"RSA without an exponent", with(rsa2048, "e", nil), `not those of an RSA key`},
		{"RSA, exponent 1", with(rsa2048, "e", "AQ"), `not those of an RSA key`},
		{"RSA, exponent 4", with(rsa2048, "e", "BA"), `not those of an RSA key`},
		{"RSA, an exponent of 32 bits", with(rsa2048, "e", b64([]byte{0x80, 0, 0, 1})), `not those of an RSA key`},
		{"RSA, a huge exponent", with(rsa2048, "e", bits(4096)), `not those of an RSA key`},
		{"RSA, base64 with padding", with(rsa2048, "e", "Aw=="), `illegal base64`},
		{"P-521", with(signingKey{"x", "", p521}), `kind "EC" "P-521" is not supported`},
		{"P-256 not on the curve", with(p256, "y", offCurve), `point`},
		{"P-256, a coordinate too short", with(p256, "x", "AQ"), `wrong length`},
		{"P-256, a coordinate too long", with(p256, "x", b64(make([]byte, 33))), `wrong length`},
		{"P-256 as P-384", with(p256, "crv", "P-384"), `wrong length`},
		{"P-256 without y", with(p256, "y", nil), `wrong length`},
		{"Ed25519, too short", with(ed, "x", "AQ"), `wrong length`},
		{"X25519", with(ed, "crv", "X25519"), `is not supported`},
		{"Ed448", with(ed, "crv", "Ed448"), `is not supported`},
		{"a symmetric key", map[string]any{"kty": "oct", "k": "c2VjcmV0", "kid": "s"}, `kind "oct" "" is not supported`},
		{"a key of no kind", with(p256, "kty", nil), `is not supported`},
		{"for encryption", with(rsa2048, "use", "enc"), `not for signatures`},
		{"key_ops for signing", with(p256, "key_ops", []string{"sign"}), `not for signatures`},
		{"empty key_ops", with(p256, "key_ops", []string{}), `not for signatures`},
		{"a number as kid", with(p256, "kid", 1), `cannot unmarshal number`},
		{"a string", "key", `cannot unmarshal string`},
		{"an array", []any{}, `cannot unmarshal array`},
	} {
		// Beside a good key a bad one is left out, and does no harm.
		for _, beside := range []bool{false, true} {
			all := []any{c.jwk}
			if beside {
				all = append(all, with(signingKey{"good", "", p256Key()}))
			}
			keys, err := parseKeySet(mustMake(json.Marshal(map[string]any{"keys": all})))
			want := 1
			if beside && c.want == "" {
				want = 2
			}
			switch {
			case c.want != "" && !beside:
				if err == nil || !strings.Contains(err.Error(), "no usable key: ") || !strings.Contains(err.Error(), c.want) {
					t.Errorf("%s: %v, %v, want %q", c.what, keys, err, c.want)
				}
			case err != nil || len(keys) != want:
				t.Errorf("%s: %v, %v, want %d keys", c.what, keys, err, want)
			}
		}
	}
}

// TestParseKeySetWhole: which documents are key sets.
func TestParseKeySetWhole(t *testing.T) {
	many := func(n int) string {
		keys := make([]signingKey, n)
		for i := range keys {
			keys[i] = signingKey{fmt.Sprint(i), "", edKey()}
		}
		return string(keySetOf(keys...))
	}
	for _, c := range []struct{ document, want string }{
		{``, `not JSON`},
		{`<html>`, `not JSON`},
		{`null`, `it is empty`},
		{`{}`, `it is empty`},
		{`{"keys":null}`, `it is empty`},
		{`{"keys":[]}`, `it is empty`},
		{`{"keys":{}}`, `not JSON`},
		{`{"keys":[null]}`, `is not supported`},
		{`{"keys":[` + strings.Repeat(`[`, 20000), `not JSON`},
		{many(256) + "{}", `not JSON`},
		{many(256), ``},
		{many(257), `257 keys, more than 256`},
	} {
		keys, err := parseKeySet([]byte(c.document))
		if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
			t.Errorf("%.40s: %d keys, %v, want %q", c.document, len(keys), err, c.want)
		}
	}
}

// TestKeysFit: each kind of key fits its algorithms and no other, and only the one that it names.
func TestKeysFit(t *testing.T) {
	algorithms := strings.Fields("RS256 RS384 RS512 PS256 PS384 PS512 ES256 ES384 ES512 EdDSA HS256 HS384 HS512 none None NONE")
	for _, c := range []struct {
		key  signingKey
		want string
	}{
		{signingKey{"k", "", rsaKey()}, "RS256 RS384 RS512 PS256 PS384 PS512"},
		{signingKey{"k", "", p256Key()}, "ES256"},
		{signingKey{"k", "", p384Key()}, "ES384"},
		{signingKey{"k", "", edKey()}, "EdDSA"},
		{signingKey{"k", "RS256", rsaKey()}, "RS256"},
		{signingKey{"k", "PS512", rsaKey()}, "PS512"},
		{signingKey{"k", "ES256", p256Key()}, "ES256"},
		{signingKey{"k", "Ed25519", edKey()}, "EdDSA"},
		{signingKey{"k", "HS256", rsaKey()}, ""},
		{signingKey{"k", "none", rsaKey()}, ""},
		{signingKey{"k", "ES384", p256Key()}, ""},
		{signingKey{"k", "RSA-OAEP", rsaKey()}, ""},
	} {
		keys, err := parseKeySet(keySetOf(c.key))
		if err != nil {
			t.Fatal(err)
		}
		var fit []string
		for _, algorithm := range append(algorithms, c.key.alg) {
			if keys[0].fits(algorithm) && !strings.Contains(" "+strings.Join(fit, " ")+" ", " "+algorithm+" ") {
				fit = append(fit, algorithm)
			}
		}
		if got := strings.Join(fit, " "); got != c.want {
			t.Errorf("%T %q fits %q, want %q", c.key.private, c.key.alg, got, c.want)
		}
	}
}

// TestFindKeys: keys are found by id, all of them if the token has none, and only so many.
func TestFindKeys(t *testing.T) {
	var set keySet
	for _, id := range []string{"a", "a", "b", "", "b"} {
		set.keys = append(set.keys, publicKey{id, "", edKey().Public()})
	}
	for range 20 {
		set.keys = append(set.keys, publicKey{"many", "", edKey().Public()})
	}
	set.keys = append(set.keys, publicKey{"a", "", rsaKey().Public()})
	for _, c := range []struct {
		id, algorithm string
		want          int
	}{
		{"a", "EdDSA", 2}, {"a", "RS256", 1}, {"b", "EdDSA", 2}, {"c", "EdDSA", 0}, {"A", "EdDSA", 0}, {"b", "RS256", 0},
		{"many", "EdDSA", maxKeysToTry}, {"", "EdDSA", maxKeysToTry}, {"", "RS256", 1}, {"", "ES256", 0},
	} {
		if got := len(set.find(c.id, c.algorithm)); got != c.want {
			t.Errorf("%q %s: %d keys, want %d", c.id, c.algorithm, got, c.want)
		}
	}
}

// FuzzKeySet: whatever a set has, the keys that are used are strong and whole.
func FuzzKeySet(f *testing.F) {
	f.Add(keySetOf(signingKey{"r", "RS256", rsaKey()}, signingKey{"e", "ES256", p256Key()}))
	f.Add(keySetOf(signingKey{"f", "", p384Key()}, signingKey{"o", "", edKey()}))
	f.Add([]byte(`{"keys":[{"kty":"oct","k":"AA"},{"kty":"RSA","n":"AQ","e":"AQAB"},{"kty":"EC","crv":"P-256","x":"","y":""}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		keys, err := parseKeySet(data)
		if (err == nil) != (len(keys) > 0) || len(keys) > maxKeys {
			t.Fatal(len(keys), err)
		}
		for _, k := range keys {
			switch key := k.key.(type) {
			case *rsa.PublicKey:
				if key.N.BitLen() < 2048 || key.E < 3 || key.E%2 == 0 {
					t.Error(key)
				}
			case *ecdsa.PublicKey:
				if _, err := key.ECDH(); err != nil || key.Curve != elliptic.P256() && key.Curve != elliptic.P384() {
					t.Error(key, err)
				}
			case ed25519.PublicKey:
				if len(key) != 32 {
					t.Error(key)
				}
			default:
				t.Errorf("%T", key)
			}
		}
	})
}
