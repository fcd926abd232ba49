// Command pagewright-storage stores and serves the versioned builds of web
// sites, and the log of what happened to each build.
package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"runtime"
	"strconv"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
	"github.com/valyala/fasthttp"
)

func main() {
	setThreads()
	ctx, end := context.WithCancel(context.Background())
	endOnSignal(end)
	if err := run(ctx, os.Args[1:], os.Environ(), os.Stdout, os.Stderr); err != nil {
		last := newLogQueue(os.Stderr) // a write may block if nobody reads stderr
		last.add(otherLine, fmt.Appendf(nil, "pagewright-storage: %v\n", err))
		last.close(logCloseWait)
		os.Exit(1)
	}
}

// endOnSignal calls end when SIGTERM or SIGINT arrives. A second signal ends the process
// at once. The default action would not do that: process 1 of a container has none.
func endOnSignal(end func()) {
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, syscall.SIGTERM, syscall.SIGINT)
	go func() {
		<-signals
		end()
		second := (<-signals).(syscall.Signal)
		os.Exit(128 + int(second))
	}()
}

// run is the whole program: everything it needs is passed in. It returns when
// ctx ends and the service has shut down.
func run(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	command := "serve"
	if len(args) > 0 {
		command = args[0]
	}
	switch command {
	case "-help", "--help", "help":
		command = "-h"
	case "-version", "--version":
		command = "version"
	case "-h", "version", "serve", "healthcheck", "doctor":
	default:
		return fmt.Errorf("unknown command %s; run with -h to list all commands", command)
	}
	if len(args) > 1 {
		return fmt.Errorf("%s takes no arguments, got %q; run with -h for usage", args[0], args[1])
	}
	switch command {
	case "-h":
		return printHelp(stdout)
	case "version":
		_, err := fmt.Fprintln(stdout, version)
		return err
	}
	hangUp := make(chan os.Signal, 1)
	if command == "serve" {
		// Without this Go ends the process when a write to stderr fails with EPIPE. The
		// channel is never read.
		signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
		signal.Notify(hangUp, syscall.SIGHUP)
	}
	cfg, foreign, err := parseConfig(environ)
	if err != nil {
		return err
	}
	switch command {
	case "healthcheck":
		return healthcheck(cfg)
	case "doctor":
		store, err := openBackend(ctx, cfg, slog.New(slog.DiscardHandler)) // the checks report what is wrong
		if err != nil {
			return err
		}
		return doctor(ctx, store, foreign, stdout)
	}
	lines := newLogQueue(stderr)
	defer lines.close(logCloseWait)
	log := newBufferedLog(cfg, lines)
	go reload(ctx, hangUp, log)
	if len(foreign) > 0 {
		log.Warn(foreignVariables(foreign))
	}
	return serve(ctx, cfg, log)
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

// reload reloads files at each SIGHUP, until ctx ends. So far the service has no such files.
func reload(ctx context.Context, hangUp <-chan os.Signal, log *slog.Logger) {
	for {
		select {
		case <-hangUp:
			log.Info("SIGHUP ignored: there are no files to reload")
		case <-ctx.Done():
			return
		}
	}
}

// serve opens the store and serves it until ctx ends.
func serve(ctx context.Context, cfg *Config, log *slog.Logger) error {
	// The garbage collector works harder close to the container's limit, at which the
	// kernel would kill the process.
	if _, err := memlimit.Set(); err != nil {
		log.Warn("cannot set GOMEMLIMIT from the container's memory limit", "error", err)
	}
	if cfg.PprofListen != "" {
		if err := serveProfiles(cfg.PprofListen, log); err != nil {
			return err
		}
	}
	backend, err := openBackend(ctx, cfg, log)
	if err != nil {
		return err
	}
	startJobs(ctx, backend, cfg)
	s := newService(cfg, backend, log)
	stopAdmin, err := s.serveAdmin()
	if err != nil {
		return err
	}
	defer stopAdmin() // last, since /ready and /metrics report the shutdown
	l, err := s.listen()
	if err != nil {
		return err
	}
	log.Info("serving", "address", l.Addr().String(), "backend", cfg.StorageBackend, "version", version)
	return s.serve(ctx, l)
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
	host, port := cfg.Listen, cfg.Port
	if cfg.AdminListen != "" {
		admin := netip.MustParseAddrPort(cfg.AdminListen)
		host, port = admin.Addr().String(), admin.Port()
	}
	if ip := net.ParseIP(host); ip == nil || ip.IsUnspecified() {
		host = "127.0.0.1"
	}
	url := "http://" + net.JoinHostPort(host, strconv.Itoa(int(port))) + "/health"
	client := fasthttp.Client{MaxIdemponentCallAttempts: 1}
	status, _, err := client.GetTimeout(nil, url, 3*time.Second)
	if err != nil {
		return fmt.Errorf("%s: %w", url, err)
	}
	if status != fasthttp.StatusOK {
		return fmt.Errorf("%s: status %d", url, status)
	}
	return nil
}

func printHelp(w io.Writer) error {
	t := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	fmt.Fprint(t, `pagewright-storage stores and serves the versioned builds of web sites.

Commands:
  serve	serve the API (the default)
  healthcheck	check the health of the running service; exit with 0 if healthy, else 1
  doctor	test whether the store supports what the service needs; exit with 0 if so, else 1
  version	print the version
  -h	print this help

Environment variables:
`)
	for _, v := range (&Config{}).variables() {
		value := v.defaultValue
		if value != "" {
			value = "(" + value + ")"
		}
		fmt.Fprintf(t, "  %s\t%s\t%s\n", v.name, value, v.help)
	}
	return t.Flush()
}
