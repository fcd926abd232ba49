package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

const (
	verifyCommand = "verify"
	verifyUsage   = "[--site GLOB]... [--since AGE] [--rate RATE] [--fill] [--resume] [--json] [-v] [--textfile FILE]"
	verifyDetails = `Reads the builds of the store that the variables name, and compares each with the digest
that the store keeps. The service may run meanwhile. It prints a line for each finding, and
a summary. Results of builds:

  ok       the bytes have the digest
  corrupt  they do not, or they cannot be read
  changed  the digest is that of another file or object, and the bytes differ. A tool or a
           person replaced the build, or a version of the service without digests, or an
           upload that was not acknowledged because of a crash. If only the time differs,
           as after a restore, the build is ok, and the digest is bound to it again
  unknown  no digest is kept; the build is not read
  filled   no digest was kept; --fill read the build and keeps its digest now
  skipped  the store did not return it, it was replaced again and again, or its digest could
           not be kept because it was locked or the store was busy

  damaged_digest
           something is kept as its digest, but cannot be read. The build is not read, and
           --fill keeps no other digest

Damaged logs and foreign files are reported too. Lines about the progress go to standard
error.

  --site GLOB      only these sites; * is any run of characters. May be repeated
  --since AGE      only builds that were uploaded since: 24h, 30d, 2w
  --rate RATE      read at most so many bytes per second, with a unit: 50MiB/s; 0 or none is no limit
  --fill           keep the digests that are missing. That takes the bytes as they are: it
                   cannot tell whether they are those that were uploaded
  --resume         continue the latest run if it was stopped and had the same --site, --since
                   and --fill; otherwise start from the beginning
  --json           print findings and the summary as JSON, an object a line
  -v               also list builds that are unknown or filled
  --textfile FILE  write metrics for the textfile collector of Prometheus' node exporter

Run it as the user of the service: otherwise the service could not replace the files that it
makes. SIGTERM and SIGINT stop it. The store keeps the state of the latest run, unless
PAGEWRIGHT_READ_ONLY is true. PAGEWRIGHT_DIGEST does not matter.

Exits with 0 if all is ok or unknown, with 4 if something is corrupt or changed or a digest or a
log is damaged, otherwise with 7 if it was stopped or skipped something, with 3 if there is no such
site, or none at all, and with 1 if it could not begin, or could not write its output. If only
the textfile could not be written, 4 wins over 1.

Examples:
  pagewright-storage verify --rate 50MiB/s --resume
  pagewright-storage verify --site 'shop-*' --since 2d --json`
)

// verifyArgs are the arguments of "verify".
type verifyArgs struct {
	options               verifyOptions
	rate                  byteSize // bytes per second; 0: no limit
	resume, json, verbose bool
	textfile              string
}

// parseVerifyArgs returns the arguments.
func parseVerifyArgs(args []string) (a verifyArgs, err error) {
	flags := flag.NewFlagSet(verifyCommand, flag.ContinueOnError)
	flags.Func("site", "", func(glob string) error {
		a.options.Sites = append(a.options.Sites, glob)
		return checkSiteGlob(glob)
	})
	flags.Func("since", "", func(text string) (err error) {
		age, err := parseAge(text)
		a.options.Since = verifyAge(age)
		return err
	})
	flags.Func("rate", "", func(text string) error { return parseRate(text, &a.rate) })
	flags.BoolVar(&a.options.Fill, "fill", false, "")
	flags.BoolVar(&a.resume, "resume", false, "")
	flags.BoolVar(&a.json, "json", false, "")
	flags.BoolVar(&a.verbose, "v", false, "")
	flags.StringVar(&a.textfile, "textfile", "", "")
	others, err := parseFlags(flags, args)
	switch {
	case err != nil:
	case len(others) > 0:
		err = usageError("%s: unexpected argument %q", verifyCommand, others[0])
	case a.textfile != "" && a.options.partial():
		err = usageError("%s: --textfile describes the whole store: it cannot be used with --site or --since", verifyCommand)
	}
	slices.Sort(a.options.Sites)
	a.options.Sites = slices.Compact(a.options.Sites)
	return a, err
}

// parseAge parses a duration, or a number of days or weeks.
func parseAge(text string) (time.Duration, error) {
	const day = 24 * time.Hour
	for suffix, unit := range map[string]time.Duration{"d": day, "w": 7 * day} {
		if number, ok := strings.CutSuffix(text, suffix); ok {
			if n, err := strconv.Atoi(number); err == nil && n > 0 && n <= 100*366 {
				return time.Duration(n) * unit, nil
			}
		}
	}
	age, err := time.ParseDuration(text)
	if err != nil || age <= 0 {
		return 0, errors.New("must be an age, such as 24h, 30d or 2w")
	}
	return age, nil
}

// parseRate parses bytes per second.
func parseRate(text string, rate *byteSize) error {
	if text == "none" {
		*rate = 0
		return nil
	}
	number := strings.TrimSuffix(text, "/s")
	_, bare := strconv.ParseFloat(number, 64)
	if rate.UnmarshalText([]byte(number)) != nil || bare == nil && *rate > 0 {
		return errors.New("must be a number of bytes per second with a unit, such as 50MiB/s, or none")
	}
	return nil
}

// verify is the command "verify".
func verify(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	a, err := parseVerifyArgs(args)
	if err != nil {
		return err
	}
	cfg, _, err := parseConfig(environ)
	if err != nil {
		return err
	}
	if a.options.Fill && cfg.ReadOnly {
		return usageError("--fill writes to the store, but PAGEWRIGHT_READ_ONLY is true")
	}
	_, _ = memlimit.Set() // as in serve
	report := &verifyReport{commandOutput: commandOutput{stdout: stdout, stderr: stderr, terminal: isTerminal(stderr, environ)}, json: a.json, verbose: a.verbose}
	v, err := openVerifier(ctx, cfg, a, report)
	if err != nil {
		return err
	}
	if err := checkMaintainable(v.store, verifyCommand, v.readOnly); err != nil {
		return err
	}
	return a.run(ctx, v)
}

// checkMaintainable returns an error if the store is most likely not the one that is meant, or if
// files that the command creates in it would be in the way of the service.
func checkMaintainable(store SiteLister, command string, readOnly bool) error {
	if s, ok := store.(ownedStore); ok && !readOnly {
		if err := s.checkOwner(); err != nil {
			return commandError{exitDenied, command + ": " + err.Error()}
		}
	}
	sites, err := store.ListSites("", "", 1, nil)
	if err == nil && len(sites) == 0 {
		return commandError{exitAbsent, command + ": the store has no sites; do the variables name the store of the service?"}
	}
	return nil // the command itself reports an error of the store
}

// ownedStore is a store whose files belong to the user of the service.
type ownedStore interface {
	// checkOwner fails if the service could not replace files that this process creates.
	checkOwner() error
}

// run runs v, and reports its result.
func (a verifyArgs) run(ctx context.Context, v *verifier) error {
	resumed, err := v.begin(a.resume, time.Now())
	if err != nil {
		return err
	}
	if a.resume {
		v.report.resuming(resumed)
	}
	err = runVerifier(ctx, v)
	state := v.ended(err)
	var textfileErr error
	if a.textfile != "" { // first: the output may fail
		if textfileErr = writeTextfile(a.textfile, &state); textfileErr != nil {
			fmt.Fprintf(v.report, "verify: --textfile: %s\n", oneLine(textfileErr))
		}
	}
	if !errors.Is(err, errVerifyHangs) { // then the output may hang too
		if err := v.report.summary(state, resumed); err != nil {
			return err
		}
	}
	if textfileErr != nil && !state.Counts.bad() {
		return commandError{status: exitFailure}
	}
	return verifyResult(&state, err)
}

// openVerifier opens the store, with digests whatever PAGEWRIGHT_DIGEST is.
func openVerifier(ctx context.Context, cfg *Config, a verifyArgs, report *verifyReport) (*verifier, error) {
	if cfg.Digest == digestOff {
		cfg.Digest = digestClient
	}
	log := slog.New(slog.NewTextHandler(report, &slog.HandlerOptions{Level: slog.LevelWarn}))
	// A verify that is stopped still keeps its state.
	backend, err := openBackend(context.WithoutCancel(ctx), cfg, log)
	if err != nil {
		return nil, err
	}
	store, ok := backend.(verifiable)
	if !ok {
		return nil, errors.New("verify does not support this backend")
	}
	v := newVerifier(store, a.options, int64(a.rate), report)
	v.readOnly = cfg.ReadOnly
	if slices.ContainsFunc(a.options.Sites, func(glob string) bool { return strings.Contains(glob, "*") }) {
		v.matches = func(site string) bool {
			return slices.ContainsFunc(a.options.Sites, func(glob string) bool { return globMatch(glob, site) })
		}
	}
	return v, nil
}

// errVerifyHangs: the store did not respond for a while after a signal.
var errVerifyHangs = errors.New("stopped while the store does not respond; --resume continues from at most 10 s before")

// runVerifier runs v and shows its progress. It does not wait for a store that hangs.
func runVerifier(ctx context.Context, v *verifier) error {
	watching, endWatching := context.WithCancel(ctx)
	watched, done := make(chan struct{}), make(chan error, 1)
	go func() {
		defer close(watched)
		v.showProgress(watching)
	}()
	go func() { done <- v.run(ctx) }()
	var err error
	select {
	case err = <-done:
	case <-ctx.Done():
		select {
		case err = <-done:
		case <-time.After(v.stopWait):
			err = errVerifyHangs
		}
	}
	endWatching()
	<-watched
	return err
}

// verifyResult returns the error of a run that has ended. The summary, if there is one, says
// the rest.
func verifyResult(s *verifyState, err error) error {
	text := ""
	if errors.Is(err, errVerifyHangs) { // there is no summary
		text = "verify: " + err.Error()
	}
	switch {
	case errors.Is(err, errVerifyOutput):
		return err
	case s.Counts.bad():
		return commandError{exitCorrupt, text}
	case err != nil, s.Counts.Skipped > 0:
		return commandError{exitIncomplete, text}
	case len(s.Options.Sites) > 0 && s.Counts.Sites == 0:
		return commandError{exitAbsent, "verify: no site matches --site " + strings.Join(s.Options.Sites, " --site ")}
	}
	return nil
}

// writeTextfile replaces the textfile at path.
func writeTextfile(path string, s *verifyState) error {
	old, err := readSmallFile(path, 1<<20)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, errEmptyFile) {
		return err
	}
	return replaceFile(path, verifyTextfile(s, old))
}

// isTerminal reports whether w is a terminal on which a line can be rewritten. Other character
// devices pass as well: on /dev/null it makes no difference.
func isTerminal(w io.Writer, environ []string) bool {
	f, ok := w.(*os.File)
	if !ok || slices.Contains(environ, "TERM=dumb") {
		return false
	}
	info, err := f.Stat()
	return err == nil && info.Mode()&fs.ModeCharDevice != 0
}
