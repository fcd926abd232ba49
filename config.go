package main

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/dustin/go-humanize"
)

// envPrefix begins the name of every variable of the service.
const envPrefix = "PAGEWRIGHT_"

// Config is every setting of the service, each from the environment variable in
// its env tag behind envPrefix. The help tag is what -h prints, and a test compares the
// tables of docs/configuration.md with this struct.
type Config struct {
	Listen         string `env:"LISTEN" envDefault:"" help:"IP address to listen on; empty means all addresses"`
	Port           uint16 `env:"PORT" envDefault:"8080" help:"TCP port; 0 picks a free port and logs it"`
	StorageBackend string `env:"STORAGE_BACKEND" envDefault:"nfs" help:"nfs (any directory), s3, azure or gcs"`

	NFSBasePath     string        `env:"NFS_BASE_PATH" envDefault:"/nfs" help:"nfs: directory of the store; it must exist"`
	NFSRequireMount bool          `env:"NFS_REQUIRE_MOUNT" envDefault:"false" help:"nfs: refuse to start if the base path is not a mount point"`
	TempMaxAge      time.Duration `env:"TEMP_MAX_AGE" envDefault:"24h" help:"nfs: age at which files left by a crash are removed; must be longer than any upload or download takes"`

	ReadOnly   bool `env:"READ_ONLY" envDefault:"false" help:"serve reads only, for a restore or a move: changes are refused (503), and the service itself writes nothing to the store"`
	AppendOnly bool `env:"APPEND_ONLY" envDefault:"false" help:"refuse to replace a build (409) or delete one (403)"`

	AccessFile string `env:"ACCESS_FILE" help:"file that says who may do what; it is reloaded when it changes; empty means that anyone who reaches the service may do everything"`

	RetentionFile string        `env:"RETENTION_FILE" help:"file that says which old builds prune removes; it is reloaded when it changes; empty means that nothing is ever removed"`
	PruneInterval time.Duration `env:"PRUNE_INTERVAL" envDefault:"0s" help:"how often the service itself removes what the retention file does not keep, in one replica at a time; at least 1m; 0 means never: then only the command prune does"`

	Digest        string `env:"DIGEST" envDefault:"client" help:"client, always or off: whether the SHA-256 of an upload is computed, and kept: if the client sent a digest (RFC 9530), always or never; with off, digests are also not checked and not sent"`
	RequireDigest bool   `env:"REQUIRE_DIGEST" envDefault:"false" help:"refuse uploads (400) that have neither Repr-Digest nor Content-Digest with a sha-256 or sha-512"`

	BuildCacheControl string `env:"BUILD_CACHE_CONTROL" help:"Cache-Control header of builds in an append-only store, for example \"private, max-age=31536000, immutable\", or with public instead of private if anyone may read all builds; empty means no-cache"`

	MinFreeSpace     byteSize `env:"MIN_FREE_SPACE" envDefault:"32MiB" help:"nfs: free space reserved for logs and deletes; an upload that would use it gets 507; 0 disables"`
	DownloadRedirect bool     `env:"DOWNLOAD_REDIRECT" envDefault:"false" help:"s3, azure, gcs: redirect GET requests for builds to a signed URL of the store (307); with ?redirect=false the service sends the bytes itself"`

	MaxArtifactSize byteSize `env:"MAX_ARTIFACT_SIZE" envDefault:"0" help:"largest build that is accepted, for example 500MB or 20GiB; 0 means no limit"`
	MaxUploads      int      `env:"MAX_UPLOADS" envDefault:"512" help:"maximum number of concurrent uploads; further ones get 503"`

	UploadMemory byteSize `env:"UPLOAD_MEMORY" envDefault:"256MiB" help:"s3, azure, gcs: memory for the parts of all uploads; an upload waits up to 30s for it, then gets 503; at least 8 times the part size"`

	MaxConnsPerIP int `env:"MAX_CONNS_PER_IP" envDefault:"0" help:"maximum number of open connections per client address; further ones get 429; 0 means no limit; does not apply to PAGEWRIGHT_TRUSTED_PROXIES; use 0 behind other load balancers"`

	TrustedProxies      addressRanges `env:"TRUSTED_PROXIES" help:"addresses and CIDR ranges of the proxies in front of the service, separated by commas; on connections from them, PAGEWRIGHT_CLIENT_ADDRESS_HEADER gives the client address for the service log; empty means none"`
	ClientAddressHeader string        `env:"CLIENT_ADDRESS_HEADER" help:"X-Forwarded-For or Forwarded: the header in which the trusted proxies give the client address; other headers are ignored; required with PAGEWRIGHT_TRUSTED_PROXIES"`

	TLS tlsConfig `envPrefix:"TLS_"`

	StallTimeout  time.Duration `env:"STALL_TIMEOUT" envDefault:"30s" help:"a client that sends or receives less than 4 KiB of a body within this time is disconnected"`
	MinUploadRate byteSize      `env:"MIN_UPLOAD_RATE" envDefault:"1KiB" help:"minimum number of bytes per second of an upload, averaged over the past minute; 0 means no minimum"`
	HeaderTimeout time.Duration `env:"HEADER_TIMEOUT" envDefault:"10s" help:"time within which the request header must arrive"`
	IdleTimeout   time.Duration `env:"IDLE_TIMEOUT" envDefault:"120s" help:"time after which an idle connection is closed"`
	ShutdownDelay time.Duration `env:"SHUTDOWN_DELAY" envDefault:"0s" help:"time after SIGTERM during which /ready fails and everything else is still served, so that load balancers notice"`
	ShutdownGrace time.Duration `env:"SHUTDOWN_GRACE" envDefault:"25s" help:"time for requests in flight to finish, after SIGTERM and the delay"`

	S3    s3Config    `envPrefix:"S3_"`
	Azure azureConfig `envPrefix:"AZURE_"`
	GCS   gcsConfig   `envPrefix:"GCS_"`

	LogLevel  slog.Level `env:"LOG_LEVEL" envDefault:"info" help:"debug, info, warn or error"`
	LogFormat string     `env:"LOG_FORMAT" envDefault:"json" help:"json or text"`
	AccessLog bool       `env:"ACCESS_LOG" envDefault:"true" help:"log a line for each request"`

	AccessLogSample int    `env:"ACCESS_LOG_SAMPLE" envDefault:"1" help:"log 1 in N requests; those that fail with 5xx are always logged"`
	AdminListen     string `env:"ADMIN_LISTEN" help:"separate address and port for /health, /ready and /metrics, for example 0.0.0.0:9090; API clients cannot exhaust its connections, and /metrics is served only there; empty means that the API address serves all three"`
	PprofListen     string `env:"PPROF_LISTEN" help:"address and port for Go's pprof, for example 127.0.0.1:6060; do not expose it; empty means off"`
}

// Values of PAGEWRIGHT_DIGEST.
const (
	digestClient = "client"
	digestAlways = "always"
	digestOff    = "off"
)

const (
	headerForwardedFor = "X-Forwarded-For"
	headerForwarded    = "Forwarded" // RFC 7239
)

// configError is an error of the settings or the arguments: the program fails again until
// they are changed. An error that may pass by itself is not a configError: a mount that is
// not there yet, an address in use, a network that is down.
type configError struct{ error }

// Unwrap returns the cause.
func (e configError) Unwrap() error { return e.error }

// badConfig formats a configError as fmt.Errorf does.
func badConfig(format string, args ...any) error {
	return configError{fmt.Errorf(format, args...)}
}

// fileError marks an error of a file that the start needs, if a restart cannot help. A file
// that is missing may come, when its volume or Secret is mounted: so its error is not a
// configError, like that of a missing store. Neither wrong content nor a mode changes by itself.
func fileError(err error) error {
	if errors.As(err, new(*fs.PathError)) && !errors.Is(err, fs.ErrPermission) {
		return err
	}
	return configError{err}
}

// check refuses values that have the right type but make no sense.
func (c *Config) check() error {
	bad := func(name string, value any, why string) error {
		return badConfig("%s%s=%v: %s", envPrefix, name, value, why)
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
		return bad("LISTEN", c.Listen, "must be an IP address, without a port and not a host name; the port is PAGEWRIGHT_PORT")
	case !slices.Contains([]string{"nfs", "s3", "azure", "gcs"}, c.StorageBackend):
		return bad("STORAGE_BACKEND", c.StorageBackend, "must be nfs, s3, azure or gcs")
	case c.StorageBackend == "nfs" && c.NFSBasePath == "":
		return bad("NFS_BASE_PATH", "", "must be set to a directory")
	case c.StorageBackend == "nfs" && c.DownloadRedirect:
		return bad("DOWNLOAD_REDIRECT", true, "the nfs backend cannot redirect: a directory has no URLs")
	case c.BuildCacheControl != "" && !isCacheControl(c.BuildCacheControl):
		return bad("BUILD_CACHE_CONTROL", strconv.Quote(c.BuildCacheControl), `must be a Cache-Control value, for example "private, max-age=31536000, immutable"`)
	case c.BuildCacheControl != "" && !c.AppendOnly:
		return bad("BUILD_CACHE_CONTROL", c.BuildCacheControl, "requires PAGEWRIGHT_APPEND_ONLY=true: caches must revalidate builds that can be replaced")
	case c.PruneInterval != 0 && c.PruneInterval < time.Minute:
		return bad("PRUNE_INTERVAL", c.PruneInterval, "must be at least 1m, or 0")
	case c.PruneInterval != 0 && c.RetentionFile == "":
		return badConfig("%sRETENTION_FILE must be set because %sPRUNE_INTERVAL is set: it says what is removed", envPrefix, envPrefix)
	case c.PruneInterval != 0 && c.AppendOnly:
		return badConfig("%sPRUNE_INTERVAL cannot be set with %sAPPEND_ONLY=true: an append-only store deletes nothing", envPrefix, envPrefix)
	case !slices.Contains([]string{digestClient, digestAlways, digestOff}, c.Digest):
		return bad("DIGEST", strconv.Quote(c.Digest), "must be client, always or off")
	case c.RequireDigest && c.Digest == digestOff:
		return badConfig("%sREQUIRE_DIGEST=true needs %sDIGEST=client or always: with off no digest is checked", envPrefix, envPrefix)
	case c.MaxUploads < 1 || c.MaxUploads > maxConnections:
		return bad("MAX_UPLOADS", c.MaxUploads, fmt.Sprintf("must be from 1 to %d", maxConnections))
	case c.MaxConnsPerIP < 0:
		return bad("MAX_CONNS_PER_IP", c.MaxConnsPerIP, "must not be negative")
	case len(c.TrustedProxies) > 0 && c.ClientAddressHeader == "":
		return badConfig("%sCLIENT_ADDRESS_HEADER must be set (to X-Forwarded-For or Forwarded) because %sTRUSTED_PROXIES is set", envPrefix, envPrefix)
	case len(c.TrustedProxies) == 0 && c.ClientAddressHeader != "":
		return badConfig("%sTRUSTED_PROXIES must be set because %sCLIENT_ADDRESS_HEADER is set: clients can send that header too", envPrefix, envPrefix)
	case c.ClientAddressHeader != "" && c.ClientAddressHeader != headerForwardedFor && c.ClientAddressHeader != headerForwarded:
		return bad("CLIENT_ADDRESS_HEADER", strconv.Quote(c.ClientAddressHeader), "must be X-Forwarded-For or Forwarded")
	case c.AccessLogSample < 1:
		return bad("ACCESS_LOG_SAMPLE", c.AccessLogSample, "must be at least 1")
	case c.AdminListen != "" && !isAddress(c.AdminListen):
		return bad("ADMIN_LISTEN", c.AdminListen, "must be an IP address and a port, for example 127.0.0.1:9090")
	case c.AdminListen != "" && c.serves(netip.MustParseAddrPort(c.AdminListen)):
		return bad("ADMIN_LISTEN", c.AdminListen, "must differ from the address of the API")
	case c.PprofListen != "" && !isAddress(c.PprofListen):
		return bad("PPROF_LISTEN", c.PprofListen, "must be an IP address and a port, for example 127.0.0.1:6060")
	case c.LogFormat != "json" && c.LogFormat != "text":
		return bad("LOG_FORMAT", c.LogFormat, "must be json or text")
	}
	return c.checkTLS()
}

// isCacheControl reports whether s is a valid Cache-Control value: directives with an
// optional argument, separated by commas (RFC 9111, section 5.2).
func isCacheControl(s string) bool {
	const (
		token     = "[!#$%&'*+.^_`|~0-9A-Za-z-]+"
		directive = token + `(=(` + token + `|"[\t !#-\[\]-~]*"))?`
	)
	return regexp.MustCompile(`^[\t ]*` + directive + `([\t ]*,[\t ]*` + directive + `)*[\t ]*$`).MatchString(s)
}

// isShared reports whether a Cache-Control value lets caches serve one client's response to
// other clients although its request had credentials (RFC 9111, section 3.5).
func isShared(cacheControl string) bool {
	quoted := regexp.MustCompile(`"[^"]*"`)
	for directive := range strings.SplitSeq(strings.ToLower(quoted.ReplaceAllString(cacheControl, "")), ",") {
		name, _, _ := strings.Cut(strings.TrimSpace(directive), "=")
		if name == "public" || name == "s-maxage" || name == "must-revalidate" {
			return true
		}
	}
	return false
}

// buildCaching returns the Cache-Control header of builds.
func (c *Config) buildCaching() string {
	return cmp.Or(c.BuildCacheControl, "no-cache")
}

// serves reports whether the API is served at address.
func (c *Config) serves(address netip.AddrPort) bool {
	listen, err := netip.ParseAddr(c.Listen)
	all := err != nil || listen.IsUnspecified() || address.Addr().IsUnspecified()
	return c.Port != 0 && address.Port() == c.Port && (all || address.Addr().Unmap() == listen.Unmap())
}

// onLoopback reports whether only this host can reach the API.
func (c *Config) onLoopback() bool {
	listen, err := netip.ParseAddr(c.Listen)
	return err == nil && listen.Unmap().IsLoopback()
}

func isAddress(s string) bool {
	_, err := netip.ParseAddrPort(s)
	return err == nil
}

// byteSize is a number of bytes, parsed from 1048576, 500MB, 500 MB or 20GiB.
type byteSize int64

const byteSizeForm = "a number of bytes, for example 1048576, 500MB or 20GiB"

// UnmarshalText implements encoding.TextUnmarshaler.
func (b *byteSize) UnmarshalText(text []byte) error {
	n, err := humanize.ParseBytes(string(text))
	if err != nil || n > 1<<62 {
		return errors.New("must be " + byteSizeForm)
	}
	*b = byteSize(n)
	return nil
}

// maxConnections bounds the open connections, and so the threads that a hung mount can
// block. The Go runtime ends a process that has 10,000 threads.
const maxConnections = 8192

// version is set by the linker.
var version = "dev"
