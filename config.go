package main

import (
	"cmp"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/caarlos0/env/v11"
	"github.com/dustin/go-humanize"
)

// envPrefix begins the name of every variable of the service.
const envPrefix = "PAGEWRIGHT_"

// Config is every setting of the service, each from the environment variable in
// its env tag behind envPrefix. The help tag is what -h prints, and the README's
// table is checked against this struct by a test.
type Config struct {
	Listen         string `env:"LISTEN" envDefault:"" help:"address to listen on; empty: every address of the host"`
	Port           uint16 `env:"PORT" envDefault:"8080" help:"TCP port; 0: any free one, told in the log"`
	StorageBackend string `env:"STORAGE_BACKEND" envDefault:"nfs" help:"nfs (any directory), s3, azure or gcs"`

	NFSBasePath     string        `env:"NFS_BASE_PATH" envDefault:"/nfs" help:"nfs: the directory of the store; it must exist"`
	NFSRequireMount bool          `env:"NFS_REQUIRE_MOUNT" envDefault:"false" help:"nfs: refuse a base path that is not a mount point"`
	TempMaxAge      time.Duration `env:"TEMP_MAX_AGE" envDefault:"24h" help:"nfs: age at which a file left by a crash is removed; longer than any upload or download lasts"`

	AppendOnly bool `env:"APPEND_ONLY" envDefault:"false" help:"never replace a build (409) nor delete one (403)"`

	BuildCacheControl string `env:"BUILD_CACHE_CONTROL" help:"Cache-Control of builds in an append-only store, as public, max-age=31536000, immutable; empty: no-cache"`

	MinFreeSpace     byteSize `env:"MIN_FREE_SPACE" envDefault:"32MiB" help:"nfs: bytes kept free for logs and deletes; an upload that would touch them is answered 507; 0: none"`
	DownloadRedirect bool     `env:"DOWNLOAD_REDIRECT" envDefault:"false" help:"s3, azure, gcs: answer GET of a build with 307 and a signed URL of the store; ?redirect=false asks for the bytes all the same"`

	MaxArtifactSize byteSize `env:"MAX_ARTIFACT_SIZE" envDefault:"0" help:"largest artifact, as 500MB or 20GiB; 0: no limit"`
	MaxUploads      int      `env:"MAX_UPLOADS" envDefault:"512" help:"uploads at once; more are answered 503"`

	UploadMemory byteSize `env:"UPLOAD_MEMORY" envDefault:"256MiB" help:"s3, azure, gcs: memory in which the parts of all uploads are held; uploads wait for it, and are answered 503 after 30s; at least 8 times the size of a part"`

	MaxConnsPerIP int `env:"MAX_CONNS_PER_IP" envDefault:"0" help:"connections of one client address at once; more are answered 429; 0: no limit, as behind a load balancer"`

	StallTimeout  time.Duration `env:"STALL_TIMEOUT" envDefault:"30s" help:"time in which a client must move at least 4 KiB of a body"`
	MinUploadRate byteSize      `env:"MIN_UPLOAD_RATE" envDefault:"1KiB" help:"bytes a second that a client must send on average over the last minute of a body; 0: no minimum"`
	HeaderTimeout time.Duration `env:"HEADER_TIMEOUT" envDefault:"10s" help:"time in which the header of a request must arrive"`
	IdleTimeout   time.Duration `env:"IDLE_TIMEOUT" envDefault:"120s" help:"time after which an idle connection is closed"`
	ShutdownDelay time.Duration `env:"SHUTDOWN_DELAY" envDefault:"0s" help:"time after SIGTERM in which /ready fails and all else is still served, for load balancers to notice"`
	ShutdownGrace time.Duration `env:"SHUTDOWN_GRACE" envDefault:"25s" help:"time that requests in flight have to finish after SIGTERM"`

	S3    s3Config    `envPrefix:"S3_"`
	Azure azureConfig `envPrefix:"AZURE_"`
	GCS   gcsConfig   `envPrefix:"GCS_"`

	LogLevel  slog.Level `env:"LOG_LEVEL" envDefault:"info" help:"debug, info, warn or error"`
	LogFormat string     `env:"LOG_FORMAT" envDefault:"json" help:"json or text"`
	AccessLog bool       `env:"ACCESS_LOG" envDefault:"true" help:"a log line for each request"`

	AccessLogSample int    `env:"ACCESS_LOG_SAMPLE" envDefault:"1" help:"log one of so many requests; those that fail with a 5xx are always logged"`
	AdminListen     string `env:"ADMIN_LISTEN" help:"address and port of /health, /ready and /metrics, as 0.0.0.0:9090: they answer there whatever clients of the API do, and /metrics only there; empty: no such address"`
	PprofListen     string `env:"PPROF_LISTEN" help:"address and port of Go's profiler, as 127.0.0.1:6060; empty: off. Never to be reached from outside"`
}

// parseConfig reads the configuration out of environ, which is as os.Environ
// gives it. It fails with one line that names the variable at fault, also for an
// unknown variable that is probably meant for the service. Other programs of an
// installation use envPrefix too: foreign are the names of what is probably theirs.
// The variables that Kubernetes makes for a Service (isServiceLink) are left out. With
// a variable of an object store, the backend must be set: it would be a directory otherwise.
func parseConfig(environ []string) (c *Config, foreign []string, err error) {
	c = &Config{}
	vars := env.ToMap(environ)
	maps.DeleteFunc(vars, isServiceLink)
	if _, nameless := vars[envPrefix]; nameless { // the parser would take it for the name of each group
		return nil, nil, fmt.Errorf("%s: no such variable; -h lists them all", envPrefix)
	}
	if err := env.ParseWithOptions(c, env.Options{Environment: vars, Prefix: envPrefix}); err != nil {
		return nil, nil, configError(err, vars)
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
			unknown = append(unknown, name+" (the nearest is "+nearest+")")
		}
	}
	if len(unknown) > 0 {
		return nil, nil, fmt.Errorf("%s: no such variable; -h lists them all", strings.Join(unknown, ", "))
	}
	if vars[envPrefix+"STORAGE_BACKEND"] == "" {
		for _, v := range (&Config{}).variables() {
			for _, backend := range []string{"s3", "azure", "gcs"} {
				if vars[v.name] != "" && strings.HasPrefix(v.name, envPrefix+strings.ToUpper(backend)+"_") {
					return nil, nil, fmt.Errorf("%sSTORAGE_BACKEND: must be set, to %s or another, since %s is", envPrefix, backend, v.name)
				}
			}
		}
	}
	return c, foreign, c.check()
}

// ourGroups are the groups of variables of the service, with those that later
// versions may have: no other program of an installation has any use for them.
var ourGroups = []string{"S3_", "NFS_", "AZURE_", "GCS_", "ACCESS_", "TLS_", "DIGEST_", "REQUIRE_", "RETENTION_",
	"PRUNE_", "ADMIN_", "UI_", "MAX_", "MIN_"}

// probablyOurs reports whether an unknown variable is probably meant for the service:
// it is in one of ourGroups, or at most two edits from a known one, and fewer than half
// of that one's letters, or HOST would be taken for PORT. nearest is the known variable
// that has the fewest edits, one of its group if there is one; it is empty if none is near.
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

// edits is how many letters must be inserted, deleted, replaced, or swapped with the
// next one, to make b of a (the optimal string alignment distance).
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

// isServiceLink reports whether a variable is one of those that
// Kubernetes makes for each Service in a namespace, one whose name begins with
// "pagewright": NAME_SERVICE_HOST, NAME_SERVICE_PORT, NAME_PORT and so on
// (kubernetes.io, "Accessing the Service", Environment variables; pkg/kubelet/envvars).
// The value is looked at too: PAGEWRIGHT_PORT is a link or ours.
func isServiceLink(name, value string) bool {
	if !strings.HasPrefix(name, envPrefix) {
		return false // as thousands can be, in a large namespace
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

// foreignVariables is the warning about variables that are not the service's.
func foreignVariables(names []string) string {
	return "no variables of this service, and ignored: " + strings.Join(names, ", ")
}

// configError names the variable at fault, which the parser's own error leaves
// out: it is the one that fails alone too.
func configError(err error, vars map[string]string) error {
	for _, v := range (&Config{}).variables() {
		alone := map[string]string{v.name: vars[v.name]}
		if env.ParseWithOptions(&Config{}, env.Options{Environment: alone, Prefix: envPrefix}) != nil {
			return fmt.Errorf("%s=%q: must be %s", v.name, vars[v.name], v.form())
		}
	}
	return err
}

// check refuses values that are of the right type and wrong all the same.
func (c *Config) check() error {
	bad := func(name string, value any, why string) error {
		return fmt.Errorf("%s%s=%v: %s", envPrefix, name, value, why)
	}
	for _, d := range []struct {
		name  string
		value time.Duration
		min   time.Duration
	}{
		{"STALL_TIMEOUT", c.StallTimeout, time.Second},
		{"HEADER_TIMEOUT", c.HeaderTimeout, time.Second},
		{"IDLE_TIMEOUT", c.IdleTimeout, time.Second},
		{"SHUTDOWN_DELAY", c.ShutdownDelay, 0},
		{"SHUTDOWN_GRACE", c.ShutdownGrace, 0},
		{"TEMP_MAX_AGE", c.TempMaxAge, time.Minute},
	} {
		if d.value < d.min {
			return bad(d.name, d.value, "must be at least "+d.min.String())
		}
	}
	switch {
	case c.Listen != "" && net.ParseIP(c.Listen) == nil:
		return bad("LISTEN", c.Listen, "must be an IP address")
	case !slices.Contains([]string{"nfs", "s3", "azure", "gcs"}, c.StorageBackend):
		return bad("STORAGE_BACKEND", c.StorageBackend, "must be nfs, s3, azure or gcs")
	case c.StorageBackend == "nfs" && c.NFSBasePath == "":
		return bad("NFS_BASE_PATH", "", "must name a directory")
	case c.StorageBackend == "nfs" && c.DownloadRedirect:
		return bad("DOWNLOAD_REDIRECT", true, "a directory has no URLs to redirect to")
	case c.BuildCacheControl != "" && !isCacheControl(c.BuildCacheControl):
		return bad("BUILD_CACHE_CONTROL", strconv.Quote(c.BuildCacheControl), "must be a value of Cache-Control, as public, max-age=31536000, immutable")
	case c.BuildCacheControl != "" && !c.AppendOnly:
		return bad("BUILD_CACHE_CONTROL", c.BuildCacheControl, "needs PAGEWRIGHT_APPEND_ONLY=true: a build that can be replaced must not be taken from a cache unasked")
	case c.MaxUploads < 1 || c.MaxUploads > maxConnections:
		return bad("MAX_UPLOADS", c.MaxUploads, fmt.Sprintf("must be from 1 to %d", maxConnections))
	case c.MaxConnsPerIP < 0:
		return bad("MAX_CONNS_PER_IP", c.MaxConnsPerIP, "must not be negative")
	case c.AccessLogSample < 1:
		return bad("ACCESS_LOG_SAMPLE", c.AccessLogSample, "must be at least 1")
	case c.AdminListen != "" && !isAddress(c.AdminListen):
		return bad("ADMIN_LISTEN", c.AdminListen, "must be an IP address and a port, as 127.0.0.1:9090")
	case c.AdminListen != "" && c.serves(netip.MustParseAddrPort(c.AdminListen)):
		return bad("ADMIN_LISTEN", c.AdminListen, "must not be an address of the API")
	case c.PprofListen != "" && !isAddress(c.PprofListen):
		return bad("PPROF_LISTEN", c.PprofListen, "must be an IP address and a port, as 127.0.0.1:6060")
	case c.LogFormat != "json" && c.LogFormat != "text":
		return bad("LOG_FORMAT", c.LogFormat, "must be json or text")
	}
	return nil
}

// isCacheControl reports whether s is a value of Cache-Control: directives with an
// optional argument, separated by commas (RFC 9111, section 5.2).
func isCacheControl(s string) bool {
	const (
		token     = "[!#$%&'*+.^_`|~0-9A-Za-z-]+"
		directive = token + `(=(` + token + `|"[\t !#-\[\]-~]*"))?`
	)
	return regexp.MustCompile(`^[\t ]*` + directive + `([\t ]*,[\t ]*` + directive + `)*[\t ]*$`).MatchString(s)
}

// buildCaching is the Cache-Control of builds.
func (c *Config) buildCaching() string {
	return cmp.Or(c.BuildCacheControl, "no-cache")
}

// serves reports whether the API is served at address.
func (c *Config) serves(address netip.AddrPort) bool {
	listen, err := netip.ParseAddr(c.Listen)
	all := err != nil || listen.IsUnspecified() || address.Addr().IsUnspecified()
	return c.Port != 0 && address.Port() == c.Port && (all || address.Addr().Unmap() == listen.Unmap())
}

func isAddress(s string) bool {
	_, err := netip.ParseAddrPort(s)
	return err == nil
}

// variable is one setting as it is documented.
type variable struct {
	name, defaultValue, help string
	kind                     reflect.Type
}

// form says how a value is written.
func (v variable) form() string {
	switch v.kind {
	case reflect.TypeFor[bool]():
		return "true or false"
	case reflect.TypeFor[time.Duration]():
		return "a duration with its unit, as 30s, 5m or 24h"
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
			list = append(list, variable{prefix + f.Tag.Get("env"), f.Tag.Get("envDefault"), f.Tag.Get("help"), f.Type})
		}
	}
	walk(reflect.TypeOf(*c), envPrefix)
	return list
}

// byteSize is a number of bytes, written as 1048576, 500MB, 500 MB or 20GiB.
type byteSize int64

const byteSizeForm = "a number of bytes, as 1048576, 500MB or 20GiB"

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *byteSize) UnmarshalText(text []byte) error {
	n, err := humanize.ParseBytes(string(text))
	if err != nil || n > 1<<62 {
		return errors.New("must be " + byteSizeForm)
	}
	*b = byteSize(n)
	return nil
}

// maxConnections bounds the connections, and with them the threads that a
// hung mount can block: Go ends a process at 10,000 of them.
const maxConnections = 8192

// version is stamped by the linker.
var version = "dev"
