package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"time"
)

// doctor tries out whether the configured store does what the service relies
// on, and writes a line about each finding: ok, warn (the service works, and
// promises or does less) or FAIL. It fails if there is a FAIL, and leaves nothing
// behind in the store. foreign is that of parseConfig.
func doctor(ctx context.Context, cfg *Config, foreign []string, w io.Writer) error {
	found := make(chan checkResult)
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	check, err := openCheck(ctx, cfg)
	if err != nil {
		return err
	}
	go func() {
		defer close(found)
		tell := func(f checkResult) {
			select {
			case found <- f:
			case <-ctx.Done():
			}
		}
		if len(foreign) > 0 {
			tell(checkResult{what: "variables", err: errors.New(foreignVariables(foreign)), warning: true})
		}
		check(tell)
	}()
	return report(ctx, found, w)
}

// openCheck opens the store and returns what checks it.
func openCheck(ctx context.Context, cfg *Config) (func(tell func(checkResult)), error) {
	log := slog.New(slog.DiscardHandler) // what is wrong is a finding
	if cfg.StorageBackend == "nfs" {
		if err := checkMount(cfg.NFSBasePath, cfg.NFSRequireMount, log); err != nil {
			return nil, fmt.Errorf("PAGEWRIGHT_NFS_BASE_PATH=%q: %w", cfg.NFSBasePath, err)
		}
		n, err := openNFS(cfg.NFSBasePath, log)
		if err != nil {
			return nil, fmt.Errorf("PAGEWRIGHT_NFS_BASE_PATH=%q: %w", cfg.NFSBasePath, err)
		}
		return n.runChecks, nil
	}
	b, err := openBackend(ctx, cfg, log)
	if err != nil {
		return nil, err
	}
	s, ok := b.(*objectStore)
	if !ok {
		return nil, fmt.Errorf("there is no check of %s", cfg.StorageBackend)
	}
	return s.runChecks, nil
}

// report writes what is found, until found is closed.
func report(ctx context.Context, found <-chan checkResult, w io.Writer) error {
	failed := 0
	hung := time.NewTimer(checkTimeout)
	defer hung.Stop()
	for {
		var f checkResult
		var more bool
		select {
		case f, more = <-found:
		case <-ctx.Done():
			return ctx.Err()
		case <-hung.C:
			f, more = checkResult{what: "go on", err: fmt.Errorf("the store has not answered for %s", checkTimeout)}, false
			fmt.Fprintln(w, f)
			failed++
		}
		if !more {
			break
		}
		hung.Reset(checkTimeout)
		if f.err != nil && !f.warning {
			failed++
		}
		if _, err := fmt.Fprintln(w, f); err != nil {
			return err
		}
	}
	if failed > 0 {
		return fmt.Errorf("%d of the checks failed", failed)
	}
	return nil
}

// String is the line of a report.
func (f checkResult) String() string {
	switch {
	case f.err == nil && f.note == "":
		return "ok   " + f.what
	case f.err == nil:
		return "ok   " + f.what + ": " + f.note
	case f.warning:
		return "warn " + f.what + ": " + oneLine(f.err)
	}
	return "FAIL " + f.what + ": " + oneLine(f.err)
}

// oneLine is the text of err, which some SDKs write over many lines.
func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

// runChecks is check, and what follows from it for the service.
func (s *objectStore) runChecks(tell func(checkResult)) {
	findings, refused, err := s.check()
	told := false
	for _, f := range findings {
		told = told || f.err != nil && !f.warning
		tell(f)
	}
	if err != nil {
		if !told {
			tell(checkResult{what: "go on", err: err})
		}
		return
	}
	for _, c := range []struct {
		kind capability
		what string
	}{
		{conditionalPut, "entries of logs are refused with 501"},
		{conditionalParts, "conditional uploads are refused with 501"},
		{conditionalRemove, "conditional deletes are refused with 501"},
	} {
		if refused[c.kind] != nil {
			tell(checkResult{what: c.what, err: errors.New("the store does not honour the condition"), warning: c.kind != conditionalPut})
		}
	}
}
