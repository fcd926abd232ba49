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
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/KimMachineGun/automemlimit/memlimit"
)

const (
	copyCommand = "copy"
	copyUsage   = "--from-env FILE --to-env FILE [--site GLOB]... [--since AGE] [--rate RATE] [--replace] [--dry-run] [--json]"
	copyDetails = `Copies the builds, digests, logs and labels of one store to another, to move to it or as a backup.
Each store is described by a file with the variables of the service, as docker --env-file and
systemd EnvironmentFile= read them: NAME=VALUE lines, # comments. The variables of the libraries,
such as AWS_ACCESS_KEY_ID, belong into the file too. Of those that begin with AWS_, AZURE_ or
GOOGLE_, a store uses those in its file, or if there are none, those of the environment.

Of each site the oldest build comes first, and before its log; to a directory several are copied at
once, and their lines come as they end. Entries keep their ids and times. Builds keep their times in
a directory; an object store dates them by their arrival. Labels come last. Nothing is deleted. A
build that the target has is compared, by the digest if both keep it, otherwise by reading it, and
never replaced without --replace. After a site is copied, both sides are listed again and compared.
Run it again after a stop of any kind, or to copy what is new: it copies what is missing. Both
services may run meanwhile. What a line begins with:

  copied    the build was not in the target
  replaced  the target had other bytes under its id (--replace)
  appended  the entries were not in the log of the target
  moved     the label names the build in the target now
  conflict  the target has other bytes or another entry under the same id, or the build has a
            label there, which must be moved first; nothing is changed. --replace replaces no
            entries
  missing   the label is not moved: the target does not have the build
  corrupt   the bytes do not have the digest that the source keeps, or a log is damaged; nothing is
            copied
  gone      the build was deleted in the source meanwhile
  failed    a store failed, or the build changed each time that it was copied

With --dry-run: copy, replace, append, move, and compare (it must be read). Lines about the
progress go to standard error.

  --from-env FILE  the source; it is not changed
  --to-env FILE    the target
  --site GLOB      only these sites; * is any run of characters. May be repeated
  --since AGE      leave out builds that arrived in the source earlier: 24h, 7d, 2w. Those that a
                   label names are copied, and the logs of those that the target has
  --rate RATE      read at most so many bytes per second, with a unit: 50MB; 0 or none is no limit
  --replace        replace builds of the target that have other bytes
  --dry-run        print what would be done, and change nothing
  --json           print all this and the summary as JSON, an object a line

Run it as the user of the service if the target is a directory, which must exist. What killed runs
left there is removed after PAGEWRIGHT_TEMP_MAX_AGE. SIGTERM, SIGINT and SIGHUP stop it.

Exits with 4 if something is corrupt, otherwise with 6 if there is a conflict, otherwise with 7 if
it was stopped, something failed or a label is missing; with 5 if a store denied access, or belongs
to another user; with 3 if there is no such site, or none at all; with 78 if a file of
variables is missing or invalid.

Examples:
  pagewright-storage copy --from-env nfs.env --to-env s3.env --dry-run
  pagewright-storage copy --from-env s3.env --to-env backup.env --since 2d --rate 50MB`
)

// copyArgs are the arguments of "copy".
type copyArgs struct {
	from, to string // paths of files of variables
	options  copyOptions
	rate     byteSize // bytes per second; 0: no limit
	json     bool

	tempMaxAge time.Duration // of the target; set by open
}

func parseCopyArgs(args []string) (a copyArgs, err error) {
	flags := flag.NewFlagSet(copyCommand, flag.ContinueOnError)
	flags.StringVar(&a.from, "from-env", "", "")
	flags.StringVar(&a.to, "to-env", "", "")
	flags.Func("site", "", func(glob string) error {
		a.options.Sites = append(a.options.Sites, glob)
		return checkSiteGlob(glob)
	})
	flags.Func("since", "", func(text string) (err error) {
		a.options.Since, err = parseAge(text)
		return err
	})
	flags.Func("rate", "", func(text string) error { return parseRate(text, &a.rate) })
	flags.BoolVar(&a.options.Replace, "replace", false, "")
	flags.BoolVar(&a.options.DryRun, "dry-run", false, "")
	flags.BoolVar(&a.json, "json", false, "")
	others, err := parseFlags(flags, args)
	switch {
	case err != nil:
	case len(others) > 0:
		err = usageError("%s: unexpected argument %q", copyCommand, others[0])
	case a.from == "":
		err = usageError("%s: --from-env is missing: the file with the variables of the source", copyCommand)
	case a.to == "":
		err = usageError("%s: --to-env is missing: the file with the variables of the target", copyCommand)
	}
	return a, err
}

// matches reports whether a site is one of those that the arguments select.
func (a *copyArgs) matches(site string) bool {
	return len(a.options.Sites) == 0 || slices.ContainsFunc(a.options.Sites, func(glob string) bool { return globMatch(glob, site) })
}

// copySites is the command "copy".
func copySites(ctx context.Context, args, environ []string, stdout, stderr io.Writer) error {
	a, err := parseCopyArgs(args)
	if err != nil {
		return err
	}
	// Without this Go ends the process when a write to standard output fails with EPIPE. The channel
	// is never read.
	signal.Notify(make(chan os.Signal, 1), syscall.SIGPIPE)
	report := &copyReport{commandOutput: commandOutput{stdout: stdout, stderr: stderr, terminal: isTerminal(stderr, environ)}, json: a.json}
	from, to, err := a.open(ctx, report)
	if err != nil {
		return err
	}
	_, _ = memlimit.Set() // as in serve
	if err := checkMaintainable(from, copyCommand+": --from-env", true); err != nil {
		return err
	}
	if s, ok := to.(ownedStore); ok && !a.options.DryRun {
		if err := s.checkOwner(); err != nil {
			return commandError{exitDenied, "copy: --to-env: " + err.Error()}
		}
	}
	c := newCopyRun(from, to, a.options, int64(a.rate), report)
	c.matches = a.matches
	watching, end := context.WithCancel(ctx)
	watched := make(chan struct{})
	go func() {
		defer close(watched)
		c.showProgress(watching)
	}()
	var sweeping sync.WaitGroup
	sweeping.Go(func() { a.sweep(ctx, to, report) })
	err = c.run(ctx)
	sweeping.Wait()
	end()
	<-watched
	if errors.Is(err, errCopyOutput) {
		return err
	}
	if err := report.summary(c, err); err != nil {
		return err
	}
	return a.result(report.now(), err)
}

// sweep removes what runs that were killed left in the target, as the service does.
func (a *copyArgs) sweep(ctx context.Context, to copyable, report io.Writer) {
	n, ok := to.(*nfs)
	if !ok || a.options.DryRun {
		return
	}
	removed, err := n.sweepOnce(ctx, a.tempMaxAge)
	if removed > 0 {
		fmt.Fprintf(report, "copy: removed %s left by crashes from the target\n", counted(int64(removed), "file"))
	}
	if err != nil && ctx.Err() == nil && !errors.Is(err, ErrDenied) { // the run itself is denied too
		fmt.Fprintf(report, "copy: cannot remove all files left by crashes from the target: %v\n", err)
	}
}

// result returns the error of a run that has ended with err. The summary says the rest.
func (a *copyArgs) result(n copyCounts, err error) error {
	text := ""
	if err != nil && !errors.Is(err, errCopyInterrupted) {
		text = "copy: " + err.Error()
	}
	switch {
	case errors.Is(err, ErrDenied):
		return commandError{exitDenied, text}
	case n.Corrupt > 0:
		return commandError{exitCorrupt, text}
	case n.Conflicts > 0:
		return commandError{exitConflict, text}
	case err != nil, n.Failed+n.Missing > 0:
		return commandError{exitIncomplete, text}
	case n.Sites == 0:
		return commandError{exitAbsent, "copy: no site matches --site " + strings.Join(a.options.Sites, " --site ")}
	}
	return nil
}

// maxEnvFile is the size in bytes of the largest file of variables that is read.
const maxEnvFile = 1 << 20

// describedStore is a store that a file of variables describes.
type describedStore struct {
	what    string // the option and the file
	environ []string
	cfg     *Config
}

// open opens both stores.
func (a *copyArgs) open(ctx context.Context, report *copyReport) (from, to copyable, err error) {
	source, err := describeStore("--from-env", a.from, report)
	if err != nil {
		return nil, nil, err
	}
	target, err := describeStore("--to-env", a.to, report)
	switch {
	case err != nil:
		return nil, nil, err
	case source.place() == target.place():
		return nil, nil, badConfig("--from-env and --to-env describe the same store")
	case target.isInside(source):
		return nil, nil, badConfig("the directory of --to-env is inside the directory of --from-env")
	case a.options.DryRun:
		target.cfg.ReadOnly = true
	case target.cfg.ReadOnly:
		return nil, nil, badConfig("%s: copy writes to this store, but PAGEWRIGHT_READ_ONLY is true", target.what)
	case a.options.Replace && target.cfg.AppendOnly:
		return nil, nil, badConfig("%s: --replace replaces builds of this store, but PAGEWRIGHT_APPEND_ONLY is true", target.what)
	}
	source.cfg.ReadOnly = true
	if from, err = source.open(ctx, report); err != nil {
		return nil, nil, err
	}
	a.tempMaxAge = target.cfg.TempMaxAge
	to, err = target.open(ctx, report)
	return from, to, err
}

// describeStore reads a file of variables.
func describeStore(option, path string, report io.Writer) (*describedStore, error) {
	d := &describedStore{what: fmt.Sprintf("%s %q", option, path)}
	f, err := os.Open(path) // not readSmallFile: it may be a pipe, so that secrets need no file
	if err != nil {
		return nil, badConfig("%s: %w", d.what, withoutPath(err))
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, maxEnvFile+1))
	if err == nil && len(data) > maxEnvFile {
		err = fmt.Errorf("larger than %d bytes", maxEnvFile)
	}
	if err == nil {
		d.environ, err = parseEnvFile(data)
	}
	var foreign []string
	if err == nil {
		d.cfg, foreign, err = parseConfig(d.environ)
	}
	if err != nil {
		return nil, badConfig("%s: %w", d.what, withoutPath(err))
	}
	if len(foreign) > 0 {
		fmt.Fprintf(report, "copy: %s: %s\n", d.what, foreignVariables(foreign))
	}
	return d, nil
}

// withoutPath returns an error of a file without its path, which stands before it.
func withoutPath(err error) error {
	if e, ok := errors.AsType[*fs.PathError](err); ok {
		return fmt.Errorf("cannot %s: %w", e.Op, e.Err)
	}
	return err
}

// place returns what tells stores apart. Two places may be one store all the same.
func (d *describedStore) place() string {
	c := d.cfg
	switch c.StorageBackend {
	case "s3":
		return fmt.Sprintf("s3 %q %q %q", c.S3.Endpoint, c.S3.Bucket, keyPrefix(c.S3.Prefix))
	case "azure":
		return fmt.Sprintf("azure %q %q %q %q", c.Azure.AccountURL, c.Azure.Container, keyPrefix(c.Azure.Prefix), environValue(d.environ, azureConnection))
	case "gcs":
		return fmt.Sprintf("gcs %q %q %q", environValue(d.environ, "STORAGE_EMULATOR_HOST"), c.GCS.Bucket, keyPrefix(c.GCS.Prefix))
	}
	return fmt.Sprintf("nfs %q", d.dir())
}

// dir returns the directory of a store in a directory.
func (d *describedStore) dir() string {
	path, err := filepath.EvalSymlinks(d.cfg.NFSBasePath)
	if err == nil {
		path, err = filepath.Abs(path)
	}
	if err != nil { // opening it says why
		path = d.cfg.NFSBasePath
	}
	return path
}

// isInside reports whether both stores are directories, d inside other.
func (d *describedStore) isInside(other *describedStore) bool {
	if d.cfg.StorageBackend != "nfs" || other.cfg.StorageBackend != "nfs" {
		return false
	}
	path, err := filepath.Rel(other.dir(), d.dir())
	return err == nil && filepath.IsLocal(path)
}

// open opens the store, with digests whatever PAGEWRIGHT_DIGEST is. A run that is stopped ends its
// calls of the store.
func (d *describedStore) open(ctx context.Context, report io.Writer) (store copyable, err error) {
	if d.cfg.Digest == digestOff {
		d.cfg.Digest = digestClient
	}
	log := slog.New(slog.NewTextHandler(report, &slog.HandlerOptions{Level: slog.LevelWarn}))
	err = withEnviron(d.environ, func() error {
		backend, err := openBackend(context.WithoutCancel(ctx), d.cfg, log)
		if err != nil {
			return err
		}
		var ok bool
		if store, ok = backend.(copyable); !ok {
			return errors.New("copy does not support this backend")
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", d.what, err)
	}
	return store, nil
}

// environValue returns the value of a variable, or an empty string.
func environValue(environ []string, name string) string {
	for _, variable := range environ {
		if value, ok := strings.CutPrefix(variable, name+"="); ok {
			return value
		}
	}
	return ""
}
