package main

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"hash/crc32"
	"strings"
)

// A token is tokenPrefix, 256 random bits in base64url and a checksum, so that secret scanners
// find it, and tell it from text that only looks like one:
//
//	pwst_[A-Za-z0-9_-]{43}[0-9A-Za-z]{6}
//
// The checksum is the CRC-32 (IEEE) of the 43 characters in base62, as in GitHub's tokens.
const (
	tokenRandom   = 43 // characters: base64url of 32 bytes
	tokenChecksum = 6  // characters: the largest CRC-32 is less than 62^6
	tokenLen      = len(tokenPrefix) + tokenRandom + tokenChecksum
)

// newToken returns a new token.
func newToken() string {
	var bits [32]byte
	_, _ = rand.Read(bits[:]) // never fails
	random := base64.RawURLEncoding.EncodeToString(bits[:])
	return tokenPrefix + random + checksumOf([]byte(random))
}

// tokenHash returns the SHA-256 of a token, which the access file has. ok reports whether the
// text has the form of a token and the right checksum; most typing errors and cut tokens do not.
func tokenHash(token string) (sum [sha256.Size]byte, ok bool) {
	if !strings.HasPrefix(token, tokenPrefix) || len(token) != tokenLen {
		return sum, false
	}
	text := []byte(token)
	random, checksum := text[len(tokenPrefix):][:tokenRandom], text[len(tokenPrefix)+tokenRandom:]
	if string(checksum) != checksumOf(random) || !isBase64URL(random) {
		return sum, false
	}
	return sha256.Sum256(text), true
}

// checksumOf returns the checksum of the random part of a token.
func checksumOf(random []byte) string {
	const digits = "0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz"
	var text [tokenChecksum]byte
	rest := crc32.ChecksumIEEE(random)
	for i := range text {
		text[len(text)-1-i] = digits[rest%62]
		rest /= 62
	}
	return string(text[:])
}

func isBase64URL(s []byte) bool {
	for _, c := range s {
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '-', c == '_':
		default:
			return false
		}
	}
	return true
}
