package main

import (
	"errors"
	"fmt"
	"net/netip"
	"net/url"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

const defaultMaxLifetime = time.Hour // of JWTs

var (
	// jwtAlgorithms are those that an entry for an issuer may name. None of them is symmetric: a
	// key to verify is never a key to sign.
	jwtAlgorithms        = []string{"RS256", "RS384", "RS512", "PS256", "PS384", "PS512", "ES256", "ES384", "EdDSA"}
	defaultJWTAlgorithms = []string{"RS256", "ES256"}
)

func checkActions(place string, names []string) (allow action, err error) {
	if len(names) == 0 {
		return 0, fmt.Errorf("%s: missing or empty; allowed: %s", place, strings.Join(actionNames[:], ", "))
	}
	for i, name := range names {
		bit := slices.Index(actionNames[:], name)
		if bit < 0 {
			return 0, fmt.Errorf("%s[%d]: unknown action %s; allowed: %s", place, i, shown(name), strings.Join(actionNames[:], ", "))
		}
		allow |= 1 << bit
	}
	if allow&actionWrite != 0 {
		allow |= actionCreate
	}
	return allow, nil
}

// checkTime returns a time (RFC 3339). nil is the zero time.
func checkTime(place string, text *string) (at time.Time, err error) {
	if text == nil {
		return at, nil
	}
	at, err = time.Parse(time.RFC3339, *text)
	// Parse takes an hour of one digit and a comma too.
	if err != nil || at.IsZero() || (*text)[13] != ':' || strings.Contains(*text, ",") {
		return at, fmt.Errorf("%s: %s is not a time as 2027-01-31T00:00:00Z (RFC 3339)", place, shown(*text))
	}
	return at, nil
}

// checkURL checks that a URL is https, or http on loopback. The error never shows a password.
func checkURL(place, text string) error {
	u, err := url.Parse(text)
	switch {
	case text == "":
		return fmt.Errorf("%s: missing or empty", place)
	case err != nil && strings.Contains(text, "@"), err == nil && u.User != nil:
		return fmt.Errorf("%s: a URL here must not contain a user name or password", place)
	case err != nil || u.Hostname() == "" || u.Fragment != "":
		return fmt.Errorf("%s: %s is not an https URL", place, shown(text))
	case u.Scheme == "https" || u.Scheme == "http" && isLoopback(u.Hostname()):
		return nil
	case u.Scheme == "http":
		return fmt.Errorf("%s: %s must be https; http is allowed only on loopback (localhost, 127.0.0.0/8, ::1)", place, shown(text))
	}
	return fmt.Errorf("%s: %s is not an https URL", place, shown(text))
}

func isLoopback(host string) bool {
	ip, err := netip.ParseAddr(host)
	return host == "localhost" || err == nil && ip.IsLoopback()
}

func checkPath(place, path string) error {
	if path != "" && !filepath.IsAbs(path) {
		return fmt.Errorf("%s: %s is not an absolute path", place, shown(path))
	}
	if strings.Contains(path, "\x00") {
		return fmt.Errorf("%s: %s contains a zero byte", place, shown(path))
	}
	return nil
}

// checkAlgorithms returns the algorithms of an entry. nil is the default; an empty list is not.
func checkAlgorithms(place string, names []string) ([]string, error) {
	if names == nil {
		return defaultJWTAlgorithms, nil
	}
	if len(names) == 0 {
		return nil, fmt.Errorf("%s: empty; leave it out for %s", place, strings.Join(defaultJWTAlgorithms, " and "))
	}
	for i, name := range names {
		if !slices.Contains(jwtAlgorithms, name) {
			return nil, fmt.Errorf("%s[%d]: %s is not allowed; allowed: %s", place, i, shown(name), strings.Join(jwtAlgorithms, ", "))
		}
	}
	return names, nil
}

func checkLifetime(place string, text *string) (time.Duration, error) {
	if text == nil {
		return defaultMaxLifetime, nil
	}
	d, err := time.ParseDuration(*text)
	if err != nil || d <= 0 {
		return 0, fmt.Errorf("%s: %s is not a duration above zero as 15m or 1h", place, shown(*text))
	}
	return d, nil
}

// claimPath returns the names of the members that lead to a claim: its name, or those of a JSON
// Pointer (RFC 6901), which begins with a slash.
func claimPath(name string) ([]string, error) {
	if name == "" {
		return nil, errors.New("the name of a claim is empty")
	}
	if name[0] != '/' {
		return []string{name}, nil
	}
	path := strings.Split(name[1:], "/")
	for i, part := range path {
		escapes := strings.Count(part, "~0") + strings.Count(part, "~1")
		if escapes != strings.Count(part, "~") {
			return nil, errors.New("not a JSON Pointer: ~ must be followed by 0 or 1 (RFC 6901)")
		}
		path[i] = strings.ReplaceAll(strings.ReplaceAll(part, "~1", "/"), "~0", "~")
	}
	return path, nil
}

// shownSecret returns only the beginning of what may be a password.
func shownSecret(s string) string {
	if len(s) > 8 {
		s = s[:4] + "…"
	}
	return shown(s)
}
