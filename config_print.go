package main

import (
	"fmt"
	"io"
	"runtime"
	"slices"
	"strconv"
	"strings"

	"github.com/caarlos0/env/v11"
)

// redacted takes the place of what may be a secret.
const redacted = "REDACTED"

// print writes the settings in effect, one a line: NAME=value, with a comment behind those
// that are not set. A secret is redacted. Comments name other variables that matter.
// foreign is the result of parseConfig.
func (c *Config) print(w io.Writer, environ, foreign []string) error {
	var b strings.Builder
	fmt.Fprintf(&b, "# pagewright-storage %s, %s, %s/%s\n", version, runtime.Version(), runtime.GOOS, runtime.GOARCH)
	vars := env.ToMap(environ)
	for _, v := range c.variables() {
		value, mark := vars[v.name], ""
		if value == "" || isServiceLink(v.name, value) {
			value, mark = v.defaultValue, "  # default"
		}
		if v.url {
			value = redactURL(value)
		}
		if strings.TrimSpace(value) != value || strings.ContainsFunc(value, func(r rune) bool { return !strconv.IsPrint(r) }) {
			value = strconv.Quote(value)
		}
		fmt.Fprintf(&b, "%s=%s%s\n", v.name, value, mark)
	}
	if prefix := sdkPrefixes[c.StorageBackend]; prefix != "" {
		var set []string
		for name, value := range vars {
			if strings.HasPrefix(name, prefix) && value != "" {
				set = append(set, name)
			}
		}
		slices.Sort(set)
		if set == nil {
			set = []string{"none"}
		}
		fmt.Fprintf(&b, "# variables of the %s SDK that are set: %s\n", c.StorageBackend, strings.Join(set, ", "))
	}
	if len(foreign) > 0 {
		fmt.Fprintf(&b, "# %s\n", foreignVariables(foreign))
	}
	_, err := io.WriteString(w, b.String())
	return err
}

// sdkPrefixes are the prefixes of the variables from which the SDK of a backend reads
// credentials and other settings.
var sdkPrefixes = map[string]string{"s3": "AWS_", "azure": "AZURE_", "gcs": "GOOGLE_"}

// storeAttrs returns the settings that say where the store is, for the service log, without
// secrets.
func (c *Config) storeAttrs() []any {
	attrs := []any{"backend", c.StorageBackend}
	add := func(name, value string) {
		if value != "" {
			attrs = append(attrs, name, value)
		}
	}
	switch c.StorageBackend {
	case "nfs":
		add("path", c.NFSBasePath)
	case "s3":
		add("bucket", c.S3.Bucket)
		add("endpoint", redactURL(c.S3.Endpoint))
		add("region", c.S3.Region)
		add("prefix", c.S3.Prefix)
	case "azure":
		add("container", c.Azure.Container)
		add("endpoint", redactURL(c.Azure.AccountURL))
		add("prefix", c.Azure.Prefix)
	case "gcs":
		add("bucket", c.GCS.Bucket)
		add("prefix", c.GCS.Prefix)
	}
	return attrs
}

// limitAttrs returns the limits for the service log. 0 means no limit.
func (c *Config) limitAttrs() []any {
	attrs := []any{"max_artifact_size", int64(c.MaxArtifactSize), "max_uploads", c.MaxUploads, "max_conns_per_ip", c.MaxConnsPerIP}
	if c.StorageBackend == "nfs" {
		return append(attrs, "min_free_space", int64(c.MinFreeSpace))
	}
	return append(attrs, "upload_memory", int64(c.UploadMemory))
}

// redactURL hides the user, the password and the query of a URL: some stores accept
// credentials there. A password may contain any character, so that everything up to the
// last @ is hidden.
func redactURL(s string) string {
	scheme, rest, found := strings.Cut(s, "://")
	if !found {
		scheme, rest = "", s
	} else {
		scheme += "://"
	}
	if i := strings.LastIndexByte(rest, '@'); i >= 0 {
		rest = redacted + rest[i:]
	}
	if i := strings.IndexAny(rest, "?#"); i >= 0 {
		rest = rest[:i+1] + redacted
	}
	return scheme + rest
}
