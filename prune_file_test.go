package main

import (
	"errors"
	"log/slog"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// TestRetentionFileReloads: what is wrong with the file leaves the rules as they were.
func TestRetentionFileReloads(t *testing.T) {
	path := filepath.Join(t.TempDir(), "retention.json")
	file := func(rules string) []byte { return []byte(`{"rules":[` + rules + `]}`) }
	switchFile(t, path, file(`{"sites":["a"],"keep_last":1}`))
	log := &lockedBuffer{}
	r, err := openRetention(path, slog.New(slog.NewJSONHandler(log, nil)))
	noError(t, err)
	for _, c := range []struct {
		name   string
		change func()
		sites  string // of the first rule, in force
		logged string
	}{
		{"another", func() { switchFile(t, path, file(`{"sites":["b"],"keep_last":1}`)) }, "b", `"msg":"retention file loaded"`},
		{"a bad one", func() { switchFile(t, path, file(`{"sites":["c"]}`)) }, "b", `"msg":"retention file not loaded; the previous rules stay in force"`},
		{"none", func() { noError(t, os.Remove(path)) }, "b", "no such file"},
		{"a good one", func() { switchFile(t, path, file(`{"sites":["d"],"keep_last":1}`)) }, "d", `"msg":"retention file loaded"`},
	} {
		before := len(log.String())
		c.change()
		_ = r.watch.check()
		if got := r.current.Load().rules[0].sites[0]; got != c.sites || !strings.Contains(log.String()[before:], c.logged) || r.watch.failing.Load() != (c.sites == "b" && c.name != "another") {
			t.Errorf("%s: the rule of %s is in force; %s", c.name, got, log.String()[before:])
		}
	}
}

// TestServiceWithRetention: the file is checked at the start, also by config and doctor, and the
// metrics are there from then on.
func TestServiceWithRetention(t *testing.T) {
	good, bad := retentionFileOf(t, keepTwo), retentionFileOf(t, `{"sites":["*"]}`)
	for _, c := range []struct {
		vars   string
		status int
		want   string
	}{
		{"RETENTION_FILE=" + bad, exitConfig, `PAGEWRIGHT_RETENTION_FILE=` + bad + `: rules[0] "*": keep_last or keep_within is missing`},
		{"RETENTION_FILE=" + bad + "x", exitFailure, "no such file"},
		{"PRUNE_INTERVAL=1h", exitConfig, "PAGEWRIGHT_RETENTION_FILE must be set"},
		{"PRUNE_INTERVAL=59s RETENTION_FILE=" + good, exitConfig, "PAGEWRIGHT_PRUNE_INTERVAL=59s: must be at least 1m"},
		{"PRUNE_INTERVAL=-1h RETENTION_FILE=" + good, exitConfig, "must be at least 1m"},
		{"PRUNE_INTERVAL=1h APPEND_ONLY=true RETENTION_FILE=" + good, exitConfig, "PAGEWRIGHT_APPEND_ONLY=true"},
	} {
		for _, command := range []string{"config", "doctor", "serve"} {
			_, err := runWith([]string{command}, append(strings.Fields(c.vars), "NFS_BASE_PATH="+t.TempDir(), "PORT=0", "LISTEN=127.0.0.1")...)
			if err == nil || exitStatus(err) != c.status || !strings.Contains(err.Error(), c.want) {
				t.Errorf("%s with %s: %v", command, c.vars, err)
			}
		}
	}
	isMetric := func(values map[string]float64, name string) bool { _, there := values[name]; return there }
	const loaded, runs = `pagewright_reload_successful{file="retention"}`, `pagewright_prune_runs_total{result="ok"}`
	for _, c := range []struct {
		vars         []string
		loaded, runs bool
	}{
		{nil, false, false},
		{[]string{"RETENTION_FILE=" + good}, true, false},
		{[]string{"RETENTION_FILE=" + good, "PRUNE_INTERVAL=1h"}, true, true},
		{[]string{"RETENTION_FILE=" + good, "PRUNE_INTERVAL=1h", "READ_ONLY=true"}, true, false},
	} {
		s := startServer(t, c.vars...)
		if values := scrape(t, s); isMetric(values, loaded) != c.loaded || isMetric(values, runs) != c.runs || c.loaded && values[loaded] != 1 {
			t.Errorf("%v: %v, %v", c.vars, isMetric(values, loaded), isMetric(values, runs))
		}
		if err := s.stop(); err != nil && !errors.Is(err, http.ErrServerClosed) {
			t.Errorf("%v: %v", c.vars, err)
		}
	}
}
