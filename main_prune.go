package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"strings"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

const (
	pruneCommand = "prune"
	pruneUsage   = "[--site GLOB]... [--apply] [--force] [--json]"
	pruneDetails = `Prints which builds of the store PAGEWRIGHT_RETENTION_FILE keeps, which it does not keep, and
why. Removes the latter if --apply is given: each with its log, and only if both still are what
was printed, and the build has no label. The service may run meanwhile. What a line of a build
begins with:

  keep      the build is kept
  remove    it would be removed: run with --apply
  removed   it was removed
  changed   it was not removed: it was replaced or deleted, or its log has grown, meanwhile
  labelled  it was not removed: it got a label meanwhile
  failed    it was not removed: the store failed

A site is skipped, and nothing of it is removed, if

  no_label            it has no label, unless its rule has "labels": "optional"
  max_delete_percent  the rules remove more of its builds than the file allows
  unreadable_log      the status of a build is not known, because its log is damaged
  missing_build       a label names a build that is not there
  unreadable_label    a label is damaged, or cannot be read
  incomplete_list     its builds could not be listed

  --site GLOB  only these sites; * is any run of characters. May be repeated
  --apply      remove the builds; otherwise nothing changes
  --force      do not skip sites because of max_delete_percent or unreadable_log. Builds whose
               status is not known are kept
  --json       print builds, sites and the summary as JSON, an object a line

Run it as the user of the service. SIGTERM and SIGINT stop it. A run that was stopped or killed
needs no repair: the next one goes on. With --apply and without --site the store keeps the
result, and PAGEWRIGHT_PRUNE_INTERVAL counts from that run.

Exits with 7 if a site was skipped for any reason but no_label, if a build could not be removed,
or if it was stopped; with 5 if the store denied access, or belongs to another user; with 3 if
a --site without * names no site, or the store has none at all; with 78 if the file is missing or invalid, or with --apply
if PAGEWRIGHT_APPEND_ONLY is true: an append-only store deletes nothing.

Examples:
  pagewright-storage prune --site 'shop-*'
  pagewright-storage prune --apply`
)

// pruneArgs are the arguments of "prune".
type pruneArgs struct {
	sites              []string // globs; empty: all
	apply, force, json bool

	matched map[string]bool // the globs of sites that matched a site
}

func parsePruneArgs(args []string) (a pruneArgs, err error) {
	a.matched = map[string]bool{}
	flags := flag.NewFlagSet(pruneCommand, flag.ContinueOnError)
	flags.Func("site", "", func(glob string) error {
		a.sites = append(a.sites, glob)
		return checkSiteGlob(glob)
	})
	flags.BoolVar(&a.apply, "apply", false, "")
	flags.BoolVar(&a.force, "force", false, "")
	flags.BoolVar(&a.json, "json", false, "")
	others, err := parseFlags(flags, args)
	if err == nil && len(others) > 0 {
		err = usageError("%s: unexpected argument %q", pruneCommand, others[0])
	}
	return a, err
}

// matches reports whether a site is one of those that the arguments select.
func (a *pruneArgs) matches(site string) bool {
	selected := len(a.sites) == 0
	for _, glob := range a.sites {
		if globMatch(glob, site) {
			selected, a.matched[glob] = true, true
		}
	}
	return selected
}

// checkMatched reports the globs that matched no site. It returns an error if one of them names a
// site, without a wildcard.
func (a *pruneArgs) checkMatched(stderr io.Writer) (err error) {
	for _, glob := range a.sites {
		if a.matched[glob] {
			continue
		}
		fmt.Fprintf(stderr, "prune: no site matches --site %s\n", glob)
		if !strings.Contains(glob, "*") {
			err = commandError{status: exitAbsent}
		}
	}
	return err
}

// prune is the command "prune".
func prune(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	a, err := parsePruneArgs(args)
	if err != nil {
		return err
	}
	cfg, _, err := parseConfig(environ)
	if err != nil {
		return err
	}
	switch {
	case cfg.RetentionFile == "":
		return badConfig("PAGEWRIGHT_RETENTION_FILE is not set: it says which builds are kept")
	case a.apply && cfg.AppendOnly:
		return badConfig("prune --apply removes builds, but PAGEWRIGHT_APPEND_ONLY is true")
	case a.apply && cfg.ReadOnly:
		return badConfig("prune --apply removes builds, but PAGEWRIGHT_READ_ONLY is true")
	}
	rules, err := readRetention(cfg.RetentionFile)
	if err != nil {
		return configError{err} // also if the file is missing: nobody waits for it, as the service does
	}
	_, _ = memlimit.Set() // as in serve
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: slog.LevelWarn}))
	// A prune that is stopped finishes its batch.
	backend, err := openBackend(context.WithoutCancel(ctx), cfg, log)
	if err != nil {
		return err
	}
	store, ok := backend.(prunable)
	if !ok {
		return errors.New("prune does not support this backend")
	}
	if err := checkMaintainable(store, pruneCommand, !a.apply); err != nil {
		return err
	}
	output := &pruneOutput{stdout, a.json, a.apply}
	p := newPruner(store, rules, output)
	p.matches, p.apply, p.force = a.matches, a.apply, a.force
	err = p.run(ctx)
	if errors.Is(err, errPruneOutput) {
		return err
	}
	a.keep(p, stderr)
	if err := output.summary(&p.state); err != nil {
		return fmt.Errorf("%w: %w", errPruneOutput, err)
	}
	return a.result(p, err, stderr)
}

// keep keeps the result of a whole run in the store.
func (a *pruneArgs) keep(p *pruner, stderr io.Writer) {
	keeper, ok := p.store.(StatusKeeper)
	if !ok || !a.apply || len(a.sites) > 0 {
		return
	}
	latest, err := readPruneState(keeper)
	if err == nil {
		state := latest.next(p.state)
		err = state.write(keeper)
	}
	if err != nil {
		fmt.Fprintf(stderr, "prune: %s\n", oneLine(err))
	}
}

// result returns the error of a run that has ended with err. The summary says the rest.
func (a *pruneArgs) result(p *pruner, err error, stderr io.Writer) error {
	var absent error
	if p.state.Complete {
		absent = a.checkMatched(stderr)
	}
	switch {
	case errors.Is(err, ErrUnsupported):
		return commandError{exitFailure, "prune: the store ignores conditions of deletes, so no build can be removed safely; doctor says more"}
	case errors.Is(err, ErrDenied):
		return commandError{status: exitDenied}
	case p.result(err) != pruneOK:
		return commandError{status: exitIncomplete}
	}
	return absent
}
