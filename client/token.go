package client

import (
	"context"
	"io"
	"os"
	"strings"
	"syscall"
)

// maxToken is the size of the largest file that can have a token.
const maxToken = 64 << 10

// tokenSource returns the token for an attempt.
type tokenSource func(ctx context.Context) (string, error)

// newTokenSource returns where the token comes from; nil if no token is set.
func newTokenSource(c *call, s *service) (tokenSource, error) {
	token, file := c.env("PAGEWRIGHT_TOKEN"), c.env("PAGEWRIGHT_TOKEN_FILE")
	switch system := c.text("oidc"); {
	case system != "" && system != "github":
		return nil, usagef("--oidc: unknown system %q: want github", system)
	case system != "":
		return newGitHubToken(c, s)
	case token != "" && file != "":
		return nil, configf("PAGEWRIGHT_TOKEN and PAGEWRIGHT_TOKEN_FILE are both set: set one")
	case token != "":
		token, err := checkToken("PAGEWRIGHT_TOKEN", token)
		return func(context.Context) (string, error) { return token, nil }, err
	case file != "":
		source := func(context.Context) (string, error) { return tokenFromFile(file) }
		_, err := source(context.Background()) // say early what is wrong
		return source, err
	}
	return nil, nil
}

// tokenFromFile reads the file again for each attempt: Kubernetes replaces it while a command runs.
// A pipe would block, and has its bytes only once.
func tokenFromFile(file string) (string, error) {
	f, err := os.OpenFile(file, os.O_RDONLY|syscall.O_NONBLOCK, 0)
	if err != nil {
		return "", configf("PAGEWRIGHT_TOKEN_FILE: %v", err)
	}
	defer f.Close()
	if info, err := f.Stat(); err != nil || !info.Mode().IsRegular() {
		return "", configf("PAGEWRIGHT_TOKEN_FILE: %q is not a regular file", file)
	}
	text, err := io.ReadAll(io.LimitReader(f, maxToken+1))
	switch {
	case err != nil:
		return "", configf("PAGEWRIGHT_TOKEN_FILE: %v", err)
	case len(text) > maxToken:
		return "", configf("PAGEWRIGHT_TOKEN_FILE: %q is larger than %d KiB", file, maxToken>>10)
	}
	return checkToken("PAGEWRIGHT_TOKEN_FILE", string(text))
}

// checkToken returns the token without white space at its ends. The error does not repeat it.
func checkToken(name, token string) (string, error) {
	token = strings.TrimSpace(token)
	if strings.ContainsAny(token, "\r\n") {
		return "", configf("%s: there is more than one line: want the token alone", name)
	}
	switch i := strings.IndexFunc(token, func(r rune) bool { return r <= ' ' || r > '~' }); {
	case token == "":
		return "", configf("%s: the token is empty", name)
	case i >= 0:
		return "", configf("%s: the token has a character that no token has, at position %d", name, i+1)
	}
	return token, nil
}
