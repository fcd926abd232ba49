package main

import (
	"log/slog"
	"maps"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"

	"pagewright/storage/client"
)

// parseConfig reads the configuration from environ, which has the format of os.Environ.
// Its error is one line that names the variable at fault. An unknown variable that is
// probably meant for the service is an error too. Other programs of an installation use
// envPrefix as well: foreign lists the variables that are probably theirs. Variables that
// Kubernetes makes for a Service (isServiceLink), and those of client commands, are ignored. If a variable of an object
// store is set, STORAGE_BACKEND must be set too: the default is a directory.
func parseConfig(environ []string) (c *Config, foreign []string, err error) {
	c = &Config{}
	vars := env.ToMap(environ)
	maps.DeleteFunc(vars, isServiceLink)
	for _, v := range client.Variables {
		delete(vars, v.Name)
	}
	if _, nameless := vars[envPrefix]; nameless { // the parser would read it as the name of every group
		return nil, nil, badConfig("unknown variable %s; run with -h to list all variables", envPrefix)
	}
	if err := env.ParseWithOptions(c, env.Options{Environment: vars, Prefix: envPrefix}); err != nil {
		return nil, nil, variableError(err, vars)
	}
	var known, unknown []string
	for _, v := range c.variables() {
		known = append(known, v.name)
	}
	for _, name := range slices.Sorted(maps.Keys(vars)) {
		if !strings.HasPrefix(name, envPrefix) || slices.Contains(known, name) {
			continue
		}
		switch nearest, ours := probablyOurs(name, known); {
		case !ours:
			foreign = append(foreign, name)
		case nearest == "":
			unknown = append(unknown, name)
		default:
			unknown = append(unknown, name+" (did you mean "+nearest+"?)")
		}
	}
	if len(unknown) > 0 {
		return nil, nil, badConfig("unknown variable %s; run with -h to list all variables", strings.Join(unknown, ", "))
	}
	if vars[envPrefix+"STORAGE_BACKEND"] == "" {
		for _, v := range (&Config{}).variables() {
			for _, backend := range []string{"s3", "azure", "gcs"} {
				if vars[v.name] != "" && strings.HasPrefix(v.name, envPrefix+strings.ToUpper(backend)+"_") {
					return nil, nil, badConfig("%sSTORAGE_BACKEND must be set (for example, to %s) because %s is set", envPrefix, backend, v.name)
				}
			}
		}
	}
	return c, foreign, c.check()
}

// ourGroups are the groups of variables of the service, including those that later
// versions may have. No other program of an installation uses them.
var ourGroups = []string{"S3_", "NFS_", "AZURE_", "GCS_", "ACCESS_", "TLS_", "DIGEST_", "REQUIRE_", "RETENTION_",
	"PRUNE_", "ADMIN_", "UI_", "MAX_", "MIN_", "TRUSTED_"}

// probablyOurs reports whether an unknown variable is probably meant for the service:
// it is in one of ourGroups, or at most two edits away from a known one. The edits must be
// fewer than half of that one's letters, or HOST would pass for PORT. nearest is the known
// variable with the fewest edits, preferably of the same group; empty if none is near.
func probablyOurs(name string, known []string) (nearest string, ours bool) {
	const maxEdits = 2
	name = strings.ToUpper(strings.TrimPrefix(name, envPrefix))
	group := slices.IndexFunc(ourGroups, func(g string) bool { return strings.HasPrefix(name, g) })
	least, inGroup := 0, false
	for _, k := range known {
		bare := strings.TrimPrefix(k, envPrefix)
		n := edits(name, bare)
		ours = ours || n <= maxEdits && 2*n < len(bare)
		sibling := group >= 0 && strings.HasPrefix(bare, ourGroups[group])
		if nearest == "" || sibling && !inGroup || sibling == inGroup && n < least {
			nearest, least, inGroup = k, n, sibling
		}
	}
	if !ours && !inGroup {
		nearest = ""
	}
	return nearest, ours || group >= 0
}

// edits returns how many letters must be inserted, deleted, replaced, or swapped with
// their neighbour to turn a into b (the optimal string alignment distance).
func edits(a, b string) int {
	d := make([][]int, len(a)+1)
	for i := range d {
		d[i] = make([]int, len(b)+1)
		d[i][0] = i
	}
	for j := range d[0] {
		d[0][j] = j
	}
	for i := 1; i <= len(a); i++ {
		for j := 1; j <= len(b); j++ {
			replace := d[i-1][j-1]
			if a[i-1] != b[j-1] {
				replace++
			}
			d[i][j] = min(d[i-1][j]+1, d[i][j-1]+1, replace)
			if i > 1 && j > 1 && a[i-1] == b[j-2] && a[i-2] == b[j-1] {
				d[i][j] = min(d[i][j], d[i-2][j-2]+1)
			}
		}
	}
	return d[len(a)][len(b)]
}

// isServiceLink reports whether Kubernetes made the variable for a Service in the
// namespace whose name begins with "pagewright": NAME_SERVICE_HOST, NAME_SERVICE_PORT,
// NAME_PORT and so on (kubernetes.io, "Accessing the Service", Environment variables;
// pkg/kubelet/envvars). The value decides too: PAGEWRIGHT_PORT can be a link or ours.
func isServiceLink(name, value string) bool {
	if !strings.HasPrefix(name, envPrefix) {
		return false // there can be thousands, in a large namespace
	}
	const service, protocol = `^` + envPrefix + `([A-Z0-9_]+_)?`, `_(TCP|UDP|SCTP)`
	for _, form := range []struct{ name, value string }{
		{`SERVICE_HOST$`, `^[0-9a-fA-F.:]+$`},
		{`SERVICE_PORT(_[A-Z0-9_]+)?$`, `^[0-9]+$`},
		{`PORT(_[0-9]+` + protocol + `)?$`, `^(tcp|udp|sctp)://`},
		{`PORT_[0-9]+` + protocol + `_PROTO$`, `^(tcp|udp|sctp)$`},
		{`PORT_[0-9]+` + protocol + `_PORT$`, `^[0-9]+$`},
		{`PORT_[0-9]+` + protocol + `_ADDR$`, `^[0-9a-fA-F.:]+$`},
	} {
		if regexp.MustCompile(service+form.name).MatchString(name) && regexp.MustCompile(form.value).MatchString(value) {
			return true
		}
	}
	return false
}

// foreignVariables returns the warning about variables of other programs.
func foreignVariables(names []string) string {
	return "ignoring unknown variables: " + strings.Join(names, ", ")
}

// variableError returns an error that names the variable at fault. The parser's own error
// does not: so each variable is parsed alone.
func variableError(err error, vars map[string]string) error {
	for _, v := range (&Config{}).variables() {
		alone := map[string]string{v.name: vars[v.name]}
		if env.ParseWithOptions(&Config{}, env.Options{Environment: alone, Prefix: envPrefix}) != nil {
			why := "must be " + v.form()
			if v.kind == reflect.TypeFor[addressRanges]() {
				why = new(addressRanges).UnmarshalText([]byte(vars[v.name])).Error()
			}
			return badConfig("%s=%q: %s", v.name, vars[v.name], why)
		}
	}
	return configError{err}
}

// logFormat returns the format of the service log that environ asks for, also if other
// variables are wrong.
func logFormat(environ []string) string {
	if env.ToMap(environ)[envPrefix+"LOG_FORMAT"] == "text" {
		return "text"
	}
	return "json"
}

// variable is one setting as -h and the README show it.
type variable struct {
	name, defaultValue, help string
	kind                     reflect.Type
	url                      bool // may contain credentials: see redactURL
}

// form returns the format of a value.
func (v variable) form() string {
	switch v.kind {
	case reflect.TypeFor[bool]():
		return "true or false"
	case reflect.TypeFor[time.Duration]():
		return "a duration with a unit, for example 30s, 5m or 24h"
	case reflect.TypeFor[byteSize]():
		return byteSizeForm
	case reflect.TypeFor[slog.Level]():
		return "debug, info, warn or error"
	case reflect.TypeFor[uint16]():
		return "a number from 0 to 65535"
	}
	return "a number"
}

// variables lists every setting in the order of the struct.
func (c *Config) variables() []variable {
	var list []variable
	var walk func(t reflect.Type, prefix string)
	walk = func(t reflect.Type, prefix string) {
		for f := range t.Fields() {
			if p, nested := f.Tag.Lookup("envPrefix"); nested {
				walk(f.Type, prefix+p)
				continue
			}
			list = append(list, variable{prefix + f.Tag.Get("env"), f.Tag.Get("envDefault"), f.Tag.Get("help"), f.Type, f.Tag.Get("redact") == "url"})
		}
	}
	walk(reflect.TypeOf(*c), envPrefix)
	return list
}
