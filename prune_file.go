package main

import (
	"fmt"
	"log/slog"
	"sync/atomic"
)

// retentionRules are the rules of the retention file, which is reloaded.
type retentionRules struct {
	log     *slog.Logger
	watch   *fileWatch
	current atomic.Pointer[retention] // never nil
}

// openRetention loads the retention file. It fails if the file cannot be used. Later the rules
// stay in force while the file cannot be used.
func openRetention(path string, log *slog.Logger) (*retentionRules, error) {
	r := &retentionRules{log: log}
	r.watch = &fileWatch{paths: []string{path}, max: maxRetentionFile, load: r.load, event: r.loaded}
	if err := r.watch.check(); err != nil {
		return nil, retentionFileError(path, err)
	}
	return r, nil
}

// readRetention reads a retention file once.
func readRetention(path string) (*retention, error) {
	data, err := readSmallFile(path, maxRetentionFile)
	if err != nil {
		return nil, retentionFileError(path, err)
	}
	rules, err := parseRetention(data)
	if err != nil {
		return nil, retentionFileError(path, err)
	}
	return rules, nil
}

func retentionFileError(path string, err error) error {
	return fmt.Errorf("PAGEWRIGHT_RETENTION_FILE=%s: %w", path, err)
}

// load makes the content of the file the rules in force.
func (r *retentionRules) load(contents [][]byte) error {
	rules, err := parseRetention(contents[0])
	if err == nil {
		r.current.Store(rules)
	}
	return err
}

// loaded logs what a check of the file found.
func (r *retentionRules) loaded(err error) {
	switch rules := r.current.Load(); {
	case err == nil:
		r.log.Info("retention file loaded", "path", r.watch.paths[0], "rules", len(rules.rules))
	case rules != nil: // at the start openRetention returns the error
		r.log.Error("retention file not loaded; the previous rules stay in force", "path", r.watch.paths[0], "error", err.Error())
	}
}
