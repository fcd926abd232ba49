package main

import (
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/pprof"
)

// serveProfiles serves Go's profiler on an address of its own until the process
// ends: the one HTTP server here that is not fasthttp's, since the profiler is
// the standard library's.
func serveProfiles(address string, log *slog.Logger) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return fmt.Errorf("%sPPROF_LISTEN=%s: %w", envPrefix, address, err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	log.Warn("serving profiles: nobody else may reach this address", "address", l.Addr().String())
	server := http.Server{Handler: mux, ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelWarn)}
	go func() { log.Error("the profiler has stopped", "error", server.Serve(l)) }()
	return nil
}
