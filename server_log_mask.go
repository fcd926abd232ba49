package main

import (
	"log/slog"
	"net/url"
	"strings"
)

// masked returns s without the credentials in it: tokens of this service, and what looks
// like a JWT, base64url with dots of which the first part begins with {" (RFC 7519, section
// 3.1). Of a JWT that was cut, two parts are enough. Clients put credentials into URLs.
func masked(s string) string {
	if !mayHoldCredential(s) {
		return s
	}
	var b strings.Builder
	for i := indexCredential(s); i >= 0; i = indexCredential(s) {
		b.WriteString(s[:i])
		run := s[i:][:credentialEnd(s[i:])]
		s = s[i+len(run):]
		token := strings.Index(run, tokenPrefix)
		switch {
		case isJWT(run):
			run = jwtStart + mask
		case token >= 0 && len(run) > token+len(tokenPrefix): // else it is masked already
			run = run[:token] + tokenPrefix + mask
		}
		b.WriteString(run)
	}
	b.WriteString(s)
	return b.String()
}

// isJWT reports whether s looks like a JWT, or the beginning of one.
func isJWT(s string) bool {
	_, rest, dot := strings.Cut(s, ".")
	return dot && strings.HasPrefix(s, jwtStart) && (strings.Contains(rest, ".") || strings.HasPrefix(rest, jwtStart))
}

const (
	jwtStart = "eyJ" // {" in base64
	mask     = "***"
)

func mayHoldCredential(s string) bool {
	return strings.Contains(s, tokenPrefix) || strings.Contains(s, jwtStart)
}

// indexCredential returns where the first token or JWT may begin, or -1.
func indexCredential(s string) int {
	i, j := strings.Index(s, tokenPrefix), strings.Index(s, jwtStart)
	if i < 0 || j >= 0 && j < i {
		return j
	}
	return i
}

// credentialEnd returns how many of the first bytes of s a token or JWT can have.
func credentialEnd(s string) int {
	for i := range len(s) {
		if c := s[i]; !isAlphanumeric(c) && c != '-' && c != '_' && c != '.' {
			return i
		}
	}
	return len(s)
}

// maskedTarget is masked for a request target. One with an encoded credential is returned
// decoded.
func maskedTarget(target string) string {
	if strings.IndexByte(target, '%') >= 0 {
		if decoded, err := url.PathUnescape(target); err == nil && mayHoldCredential(decoded) {
			return masked(decoded)
		}
	}
	return masked(target)
}

// maskedAttr is masked for the attributes of a line: their texts may quote requests. It is a
// ReplaceAttr of slog.HandlerOptions.
func maskedAttr(_ []string, a slog.Attr) slog.Attr {
	text := ""
	switch a.Value.Kind() {
	case slog.KindString:
		text = a.Value.String()
	case slog.KindAny:
		if err, ok := a.Value.Any().(error); ok {
			text = err.Error()
		}
	}
	if mayHoldCredential(text) {
		a.Value = slog.StringValue(masked(text))
	}
	return a
}
