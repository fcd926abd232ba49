package main

import (
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
)

func TestParseEnvFile(t *testing.T) {
	for _, c := range []struct {
		name, text string
		want       []string
		err        string
	}{
		{"nothing", "", nil, ""},
		{"comments and space", "# a\n ; b\n\n  A=1  \n\tB=2\r\n", []string{"A=1", "B=2"}, ""},
		{"a byte order mark", "\ufeffA=1", []string{"A=1"}, ""},
		{"no value", "A=\nB=\"\"\nC=''", []string{"A=", "B=", "C="}, ""},
		{"= and # in a value", "A=k=v;x#y #z", []string{"A=k=v;x#y #z"}, ""},
		{"quotes", `A="a b" ` + "\n" + `B='c "d" $e\\'`, []string{"A=a b", `B=c "d" $e\\`}, ""},
		{"escapes", `A="\"\\\$\` + "`" + `\n"`, []string{`A="\$` + "`" + `\n`}, ""},
		{"a backslash without quotes", `A=a\b`, []string{`A=a\b`}, ""},
		{"a quote inside", `A=a"b"`, []string{`A=a"b"`}, ""},
		{"an open quote", "X=1\nA=\"b", nil, "line 2, A: the closing quote is missing"},
		{"an escaped end", `A="b\"`, nil, "line 1, A: the closing quote is missing"},
		{"text after a quote", `A="b" # c`, nil, "line 1, A: something follows"},
		{"no =", "A", nil, "line 1 has no ="},
		{"export", "export A=1", nil, "line 1 does not begin with the name"},
		{"no name", "=secret", nil, "line 1 does not begin with the name"},
		{"a number", "1A=1", nil, "line 1 does not begin with the name"},
		{"twice", "A=1\n\nA=1", nil, "line 3 sets A again, after line 1"},
		{"NUL", "A=\x00", nil, "not a text file"},
		{"not UTF-8", "A=\xff", nil, "not a text file"},
	} {
		got, err := parseEnvFile([]byte(c.text))
		if c.err == "" && (err != nil || !slices.Equal(got, c.want)) {
			t.Errorf("%s: %q, %v; want %q", c.name, got, err, c.want)
		}
		if c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err) || strings.Contains(err.Error(), "secret")) {
			t.Errorf("%s: %v, want %q", c.name, err, c.err)
		}
	}
}

// TestEnvironOfAStore: a store gets its own credentials, all of them or those of the process.
func TestEnvironOfAStore(t *testing.T) {
	was := []string{"PATH=/bin", "PAGEWRIGHT_PORT=1", "AWS_ACCESS_KEY_ID=old", "AWS_SESSION_TOKEN=old", "AZURE_CLIENT_ID=old", "GOOGLE_X=old", "HTTPS_PROXY=p"}
	for _, c := range []struct{ environ, want string }{
		{"", "PATH=/bin AWS_ACCESS_KEY_ID=old AWS_SESSION_TOKEN=old AZURE_CLIENT_ID=old GOOGLE_X=old HTTPS_PROXY=p"},
		{"AWS_ACCESS_KEY_ID=new", "PATH=/bin AZURE_CLIENT_ID=old GOOGLE_X=old HTTPS_PROXY=p AWS_ACCESS_KEY_ID=new"},
		{"PAGEWRIGHT_S3_BUCKET=b PATH=/new AZURE_TENANT_ID=new", "AWS_ACCESS_KEY_ID=old AWS_SESSION_TOKEN=old GOOGLE_X=old HTTPS_PROXY=p PAGEWRIGHT_S3_BUCKET=b PATH=/new AZURE_TENANT_ID=new"},
	} {
		if got := strings.Join(storeEnviron(was, strings.Fields(c.environ)), " "); got != c.want {
			t.Errorf("%s: %s, want %s", c.environ, got, c.want)
		}
	}
	t.Setenv("AWS_SESSION_TOKEN", "old")
	fails, err := errors.New("fails"), error(nil)
	err = withEnviron([]string{"AWS_ACCESS_KEY_ID=new"}, func() error {
		_, there := os.LookupEnv("AWS_SESSION_TOKEN")
		if there || os.Getenv("AWS_ACCESS_KEY_ID") != "new" || os.Getenv("PATH") == "" {
			t.Errorf("the environment is %q", os.Environ())
		}
		return fails
	})
	if _, there := os.LookupEnv("AWS_ACCESS_KEY_ID"); err != fails || there || os.Getenv("AWS_SESSION_TOKEN") != "old" {
		t.Errorf("%v; afterwards the environment is %q", err, os.Environ())
	}
}
