package main

import (
	"crypto/ecdsa"
	"crypto/ed25519"
	"crypto/elliptic"
	"crypto/rsa"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"math/big"
	"slices"
)

const (
	maxKeys       = 256 // of one issuer
	maxKeysToTry  = 10  // for one token
	minRSABits    = 2048
	maxRSABits    = 8192 // larger ones cost too much per token
	maxRSAExpBits = 31
)

// publicKey is one key of an issuer.
type publicKey struct {
	id        string // kid; may be empty, and more than one key may have it
	algorithm string // the only one that it may be used with; empty: each that fits its kind
	key       any    // *rsa.PublicKey, *ecdsa.PublicKey or ed25519.PublicKey
}

// fits reports whether a token with that algorithm may be verified by the key. HMAC and none
// fit no key.
func (p *publicKey) fits(algorithm string) bool {
	if p.algorithm != "" && p.algorithm != algorithm {
		return false
	}
	switch key := p.key.(type) {
	case *rsa.PublicKey:
		return slices.Contains([]string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512"}, algorithm)
	case *ecdsa.PublicKey:
		return algorithm == "ES256" && key.Curve == elliptic.P256() || algorithm == "ES384" && key.Curve == elliptic.P384()
	case ed25519.PublicKey:
		return algorithm == "EdDSA"
	}
	return false
}

// find returns at most maxKeysToTry keys that fit the algorithm and have that id. An empty id fits every key.
func (s *keySet) find(id, algorithm string) (keys []any) {
	for i := range s.keys {
		if k := &s.keys[i]; (id == "" || k.id == id) && k.fits(algorithm) && len(keys) < maxKeysToTry {
			keys = append(keys, k.key)
		}
	}
	return keys
}

// jsonWebKey has the members of a JSON Web Key that public keys use (RFC 7517, RFC 7518
// chapter 6, RFC 8037).
type jsonWebKey struct {
	Kty    string   `json:"kty"`
	Use    string   `json:"use"`
	KeyOps []string `json:"key_ops"`
	Alg    string   `json:"alg"`
	Kid    string   `json:"kid"`
	N      string   `json:"n"`
	E      string   `json:"e"`
	Crv    string   `json:"crv"`
	X      string   `json:"x"`
	Y      string   `json:"y"`
}

// parseKeySet returns the keys of a JSON Web Key Set that can verify signatures. It leaves out
// those of other kinds, for other uses, that are too weak, or malformed. It fails if no key remains:
// that is more likely a fault of the issuer than its wish.
func parseKeySet(data []byte) (keys []publicKey, err error) {
	var set struct {
		Keys []json.RawMessage `json:"keys"`
	}
	if err := json.Unmarshal(data, &set); err != nil {
		return nil, fmt.Errorf("the key set is not JSON: %w", err)
	}
	if len(set.Keys) > maxKeys {
		return nil, fmt.Errorf("the key set has %d keys, more than %d", len(set.Keys), maxKeys)
	}
	reason := errors.New("it is empty")
	for _, raw := range set.Keys {
		var j jsonWebKey
		if err := json.Unmarshal(raw, &j); err != nil {
			reason = err
			continue
		}
		key, err := j.publicKey()
		if err != nil {
			reason = err
			continue
		}
		keys = append(keys, key)
	}
	if keys == nil {
		return nil, fmt.Errorf("the key set has no usable key: %w", reason)
	}
	return keys, nil
}

func (j *jsonWebKey) publicKey() (publicKey, error) {
	if j.Use != "" && j.Use != "sig" || j.KeyOps != nil && !slices.Contains(j.KeyOps, "verify") {
		return publicKey{}, fmt.Errorf("key %q is not for signatures", j.Kid)
	}
	var key any
	var err error
	switch {
	case j.Kty == "RSA":
		key, err = j.rsa()
	case j.Kty == "EC" && j.Crv == "P-256":
		key, err = j.ec(elliptic.P256())
	case j.Kty == "EC" && j.Crv == "P-384":
		key, err = j.ec(elliptic.P384())
	case j.Kty == "OKP" && j.Crv == "Ed25519":
		key, err = j.ed25519()
	default:
		err = fmt.Errorf("kind %q %q is not supported", j.Kty, j.Crv)
	}
	if err != nil {
		return publicKey{}, fmt.Errorf("key %q: %w", j.Kid, err)
	}
	alg := j.Alg
	if alg == "Ed25519" { // the newer name (RFC 9864)
		alg = "EdDSA"
	}
	return publicKey{j.Kid, alg, key}, nil
}

func (j *jsonWebKey) rsa() (*rsa.PublicKey, error) {
	n, err := base64.RawURLEncoding.DecodeString(j.N)
	if err != nil {
		return nil, err
	}
	e, err := base64.RawURLEncoding.DecodeString(j.E)
	if err != nil {
		return nil, err
	}
	modulus, exponent := new(big.Int).SetBytes(n), new(big.Int).SetBytes(e)
	if bits := modulus.BitLen(); bits < minRSABits || bits > maxRSABits {
		return nil, fmt.Errorf("%d bits, want %d to %d", bits, minRSABits, maxRSABits)
	}
	if exponent.BitLen() > maxRSAExpBits || exponent.Int64() < 3 || exponent.Bit(0) == 0 || modulus.Bit(0) == 0 {
		return nil, errors.New("the numbers are not those of an RSA key")
	}
	return &rsa.PublicKey{N: modulus, E: int(exponent.Int64())}, nil
}

// ec checks that the point is on the curve.
func (j *jsonWebKey) ec(curve elliptic.Curve) (*ecdsa.PublicKey, error) {
	point := []byte{4} // uncompressed (SEC 1, 2.3.3)
	for _, text := range []string{j.X, j.Y} {
		number, err := base64.RawURLEncoding.DecodeString(text)
		if err != nil {
			return nil, err
		}
		if len(number) != (curve.Params().BitSize+7)/8 {
			return nil, errors.New("a coordinate has the wrong length")
		}
		point = append(point, number...)
	}
	return ecdsa.ParseUncompressedPublicKey(curve, point)
}

func (j *jsonWebKey) ed25519() (ed25519.PublicKey, error) {
	x, err := base64.RawURLEncoding.DecodeString(j.X)
	if err != nil {
		return nil, err
	}
	if len(x) != ed25519.PublicKeySize {
		return nil, errors.New("the key has the wrong length")
	}
	return x, nil
}
