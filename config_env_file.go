package main

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"unicode/utf8"
)

// variableName is what a line may begin with, before the "=".
var variableName = regexp.MustCompile(`^[A-Za-z_][A-Za-z0-9_]*$`)

// parseEnvFile returns the variables of lines of the form NAME=VALUE. Lines that are empty, or
// begin with # or ;, are skipped, and so is space around a line. A value may be in quotes.
// Between double quotes a backslash stands before a double quote, a backslash, a dollar or a
// backquote; anywhere else it is part of the value.
func parseEnvFile(data []byte) (environ []string, err error) {
	if !utf8.Valid(data) || bytes.IndexByte(data, 0) >= 0 {
		return nil, errors.New("is not a text file in UTF-8")
	}
	lines := map[string]int{} // of each name
	n := 0
	for line := range strings.Lines(strings.TrimPrefix(string(data), "\ufeff")) {
		n++
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		name, value, ok := strings.Cut(line, "=")
		switch {
		case !ok:
			return nil, fmt.Errorf("line %d has no =; a line is NAME=VALUE", n)
		case !variableName.MatchString(name):
			return nil, fmt.Errorf("line %d does not begin with the name of a variable and =", n)
		case lines[name] != 0:
			return nil, fmt.Errorf("line %d sets %s again, after line %d", n, name, lines[name])
		}
		lines[name] = n
		if value, err = unquoteValue(value); err != nil {
			return nil, fmt.Errorf("line %d, %s: %w", n, name, err)
		}
		environ = append(environ, name+"="+value)
	}
	return environ, nil
}

// unquoteValue removes the quotes around a value.
func unquoteValue(value string) (string, error) {
	if value == "" || value[0] != '"' && value[0] != '\'' {
		return value, nil
	}
	var b strings.Builder
	for i := 1; i < len(value); i++ {
		switch c := value[i]; {
		case c == value[0] && i == len(value)-1:
			return b.String(), nil
		case c == value[0]:
			return "", errors.New("something follows the closing quote")
		case c == '\\' && value[0] == '"' && i+1 < len(value) && strings.IndexByte("\"\\$`", value[i+1]) >= 0:
			i++
			b.WriteByte(value[i])
		default:
			b.WriteByte(c)
		}
	}
	return "", errors.New("the closing quote is missing")
}

// sdkGroups are the beginnings of the names of variables that the libraries of object stores
// read themselves.
var sdkGroups = []string{"AWS_", "AZURE_", "GOOGLE_", "STORAGE_EMULATOR_", "IDENTITY_", "MSI_"}

// withEnviron calls do while the environment of this process is that of a store: of each group of
// variables that environ has one of, it has only those of environ. The libraries of object stores
// read their variables when they are opened, and two stores may need different ones. Nothing else
// may use the environment meanwhile.
func withEnviron(environ []string, do func() error) error {
	was := os.Environ()
	defer func() { setEnviron(was) }()
	setEnviron(storeEnviron(was, environ))
	return do()
}

// storeEnviron returns the variables for a store that environ describes: those, and of was what
// is in no group that environ has one of. The group of the service itself comes from environ only.
func storeEnviron(was, environ []string) []string {
	hides := func(name string) bool {
		return strings.HasPrefix(name, envPrefix) || slices.ContainsFunc(environ, func(variable string) bool {
			own, _, _ := strings.Cut(variable, "=")
			return own == name || slices.ContainsFunc(sdkGroups, func(group string) bool {
				return strings.HasPrefix(own, group) && strings.HasPrefix(name, group)
			})
		})
	}
	var all []string
	for _, variable := range was {
		if name, _, _ := strings.Cut(variable, "="); !hides(name) {
			all = append(all, variable)
		}
	}
	return append(all, environ...)
}

func setEnviron(environ []string) {
	os.Clearenv()
	for _, variable := range environ {
		name, value, _ := strings.Cut(variable, "=")
		_ = os.Setenv(name, value) // the names and values of an environment, or of parseEnvFile
	}
}
