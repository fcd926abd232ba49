// Command pagewright-storage stores and serves the versioned builds of web
// sites, and the log of what happened to each build.
package main

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"strconv"
	"syscall"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/valyala/fasthttp"

	"pagewright/storage/client"
)

func main() {
	if isServe(os.Args[1:]) {
		// Do this first: until then SIGHUP ends the process. run listens to it later.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGHUP)
	}
	setThreads()
	ctx, end := context.WithCancel(context.Background())
	endOnSignal(end, isServe(os.Args[1:]))
	if err := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr); err != nil {
		reportFailure(os.Stderr, os.Args[1:], os.Environ(), err)
		os.Exit(exitStatus(err))
	}
}

// endOnSignal calls end when SIGTERM or SIGINT arrives, or SIGHUP if the process does not serve
// and was not started with it ignored (nohup(1)). A second signal ends the process
// at once. The default action would not do that: process 1 of a container has none.
func endOnSignal(end func(), serves bool) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	if !serves && !signal.Ignored(syscall.SIGHUP) {
		signal.Notify(signals, syscall.SIGHUP)
	}
	go func() {
		<-signals
		end()
		second := (<-signals).(syscall.Signal)
		os.Exit(128 + int(second))
	}()
}

// The exit statuses of all commands, besides 0.
const (
	exitFailure    = 1
	exitUsage      = 2 // a wrong argument; Go itself ends a program that crashes with 2
	exitAbsent     = 3
	exitCorrupt    = 4 // bytes do not have their digest, or a log is damaged
	exitDenied     = 5
	exitConflict   = 6  // the condition does not hold
	exitIncomplete = 7  // something was not done, or skipped
	exitConfig     = 78 // EX_CONFIG of sysexits.h: no restart helps (RestartPreventExitStatus= of systemd)
)

// commandError is an error that has an exit status of its own. Without a text nothing is
// reported: the command has printed why.
type commandError struct {
	status int
	text   string
}

func (e commandError) Error() string { return e.text }

func usageError(format string, args ...any) error {
	return commandError{exitUsage, fmt.Sprintf(format, args...) + "; run with -h for usage"}
}

func exitStatus(err error) int {
	if errors.As(err, new(configError)) {
		return exitConfig
	}
	if e, ok := errors.AsType[commandError](err); ok {
		return e.status
	}
	if e, ok := errors.AsType[*client.Error](err); ok {
		return e.Status
	}
	return exitFailure
}

// reportFailure writes why the program ends: for serve a line of the service log, in the
// format that environ asks for, otherwise plain text.
func reportFailure(w io.Writer, args, environ []string, err error) {
	if err.Error() == "" { // the command has printed why
		return
	}
	queue := newLogQueue(w) // a write may block if nobody reads w
	defer queue.close(logCloseWait)
	line := lines{queue, otherLine}
	if !isServe(args) {
		fmt.Fprintf(line, "pagewright-storage: %v\n", err)
		return
	}
	what := "cannot start"
	if errors.As(err, new(servingError)) {
		what = "stopped with an error"
	}
	log := slog.New(lineHandler(&Config{LogFormat: logFormat(environ)}, line))
	log.Error(what, "error", err, "exit_status", exitStatus(err), "version", version)
}

// servingError is an error after the start.
type servingError struct{ error }

// Unwrap returns the cause.
func (e servingError) Unwrap() error { return e.error }

// run is the whole program: everything it needs is passed in. It returns when
// ctx ends and the service has shut down.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	name, rest, help, err := parseArgs(args)
	switch {
	case err != nil:
		return err
	case help:
		return printHelp(stdout, name)
	case name == "version":
		_, err := fmt.Fprintln(stdout, version)
		return err
	case name == tokenNewCommand:
		return tokenNew(rest, stdout, time.Now())
	case name == accessCheckCommand:
		log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
		return accessCheck(rest, environ, os.Stdin, stdout, log)
	case name == verifyCommand:
		return verify(ctx, rest, environ, stdout, stderr)
	case name == pruneCommand:
		return prune(ctx, rest, environ, stdout, stderr)
	case name == copyCommand:
		return copySites(ctx, rest, environ, stdout, stderr)
	case isClientCommand(name):
		return client.Run(ctx, name, rest, client.IO{Environ: environ, Stdin: os.Stdin, Stdout: stdout, Stderr: stderr, Version: version})
	}
	hangUp := make(chan os.Signal, 1)
	if name == serveCommand {
		// Without this Go ends the process when a write to stderr fails with EPIPE. The
		// channel is never read.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
		signal.Notify(hangUp, syscall.SIGHUP)
	}
	cfg, foreign, err := parseConfig(environ)
	if err != nil {
		return err
	}
	switch name {
	case "healthcheck":
		return healthcheck(cfg)
	case "config":
		if err := cfg.print(stdout, environ, foreign); err != nil {
			return err
		}
		if err := checkFiles(cfg); err != nil {
			return err
		}
		return cfg.checkStore()
	case "doctor":
		if err := checkFiles(cfg); err != nil {
			return err
		}
		store, err := openBackend(ctx, cfg, slog.New(slog.DiscardHandler)) // the checks report what is wrong
		if err != nil {
			return err
		}
		return doctor(ctx, store, foreign, stdout)
	}
	lines := newLogQueue(stderr)
	defer lines.close(logCloseWait)
	log := newBufferedLog(cfg, lines)
	if len(foreign) > 0 {
		log.Warn(foreignVariables(foreign))
	}
	return serve(ctx, cfg, hangUp, log)
}

// setThreads lets Go run on twice as many threads as the container has CPUs at the start,
// unless GOMAXPROCS is set. A thread that waits in fsync(2) counts as running until
// the runtime notices, up to 10 ms later: with one thread for each CPU, a few slow
// disk calls leave none for other requests (bench/NOTES.md).
func setThreads() {
	if os.Getenv("GOMAXPROCS") == "" {
		runtime.GOMAXPROCS(2 * runtime.GOMAXPROCS(0))
	}
}

// serve opens the store and serves it until ctx ends.
func serve(ctx context.Context, cfg *Config, hangUp <-chan os.Signal, log *slog.Logger) error {
	// The garbage collector works harder close to the container's limit, at which the
	// kernel would kill the process.
	if _, err := memlimit.Set(); err != nil {
		log.Warn("cannot set GOMEMLIMIT from the container's memory limit", "error", err)
	}
	if cfg.PprofListen != "" {
		if err := serveProfiles(cfg.PprofListen, log); err != nil {
			return listenError(err)
		}
	}
	files, err := openFiles(cfg, log)
	if err != nil {
		return err
	}
	if files.access != nil {
		defer files.access.close()
	}
	go reload(ctx, hangUp, files.watches, log)
	backend, err := openBackend(ctx, cfg, log)
	if err != nil {
		return err
	}
	startJobs(ctx, backend, cfg)
	s := newService(cfg, backend, log)
	s.tls = files.tls
	s.useAccess(files.access)
	stopPrune, err := s.startPrune(ctx, files.retention)
	if err != nil {
		return err
	}
	defer stopPrune()
	go s.watchStore(ctx, s.probeInterval())
	stopAdmin, err := s.serveAdmin()
	if err != nil {
		return listenError(err)
	}
	defer stopAdmin() // last, since /ready and /metrics report the shutdown
	l, err := s.listen()
	if err != nil {
		return listenError(err)
	}
	files.warn(cfg, log)
	log.Info("serving", startAttrs(cfg, l)...)
	if err := s.serve(ctx, l); err != nil {
		return servingError{err}
	}
	return nil
}

// startAttrs returns the members of the line "serving" of the service log: the program, the
// store and the limits.
func startAttrs(cfg *Config, l *listener) []any {
	attrs := []any{"address", l.Addr().String(), "version", version, "go", runtime.Version(),
		"gomaxprocs", runtime.GOMAXPROCS(0)}
	if limit := debug.SetMemoryLimit(-1); limit < math.MaxInt64 {
		attrs = append(attrs, "memory_limit", limit)
	}
	attrs = append(append(attrs, cfg.storeAttrs()...), "append_only", cfg.AppendOnly, "read_only", cfg.ReadOnly, "connections", l.max)
	return append(append(attrs, cfg.tlsAttrs()...), cfg.limitAttrs()...)
}

// listenError marks an error that a restart cannot fix: a port below 1024 needs a
// capability. An address that is in use, or that the host does not have, may become usable.
func listenError(err error) error {
	if errors.Is(err, syscall.EACCES) {
		return configError{err}
	}
	return err
}

// service is a server with the API that it serves.
type service struct {
	*server
	*api
}

func newService(cfg *Config, backend Backend, log *slog.Logger) *service {
	m := newServiceMetrics()
	s := newServer(cfg, log, m)
	a := newAPI(cfg, backend, log, m, s.stopping.Load)
	s.handler, s.admin, s.inStore = a.handler(a.routes(), noSuchAPIPath), a.handler(a.adminRoutes(), noSuchPath), a.limits.inStore()
	return &service{s, a}
}

// healthcheck asks the service that runs with the same configuration for its health, for
// containers without a shell.
func healthcheck(cfg *Config) error {
	address, scheme := healthAddress(cfg), "http"
	if cfg.TLS.on() && cfg.AdminListen == "" {
		scheme = "https"
	}
	url := scheme + "://" + address + "/health"
	client := fasthttp.Client{
		MaxIdemponentCallAttempts: 1,
		// The certificate is for the names that clients use, not for this address. That is no
		// risk here: the request has no secret, and goes to this host.
		TLSConfig: &tls.Config{InsecureSkipVerify: true},
		// The client's default dialer supports only IPv4, and no zone.
		Dial: func(string) (net.Conn, error) { return net.DialTimeout("tcp", address, healthTimeout) },
	}
	status, _, err := client.GetTimeout(nil, scheme+"://localhost/health", healthTimeout)
	if err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	if status != fasthttp.StatusOK {
		return fmt.Errorf("%s: status %d", url, status)
	}
	return nil
}

const healthTimeout = 3 * time.Second

// healthAddress returns the address at which the service serves /health to this host: the
// admin address if there is one.
func healthAddress(cfg *Config) string {
	host, port := cfg.Listen, cfg.Port
	if cfg.AdminListen != "" {
		admin := netip.MustParseAddrPort(cfg.AdminListen)
		host, port = admin.Addr().String(), admin.Port()
	}
	if addr, err := netip.ParseAddr(host); err != nil || addr.Unmap().IsUnspecified() {
		host = "127.0.0.1" // a socket for :: takes IPv4 as well
	}
	return net.JoinHostPort(host, strconv.Itoa(int(port)))
}
