package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"
)

// runChecks tries out whether the file system does what this package relies on, in
// a directory of its own that is gone when it returns, and tells each finding
// as soon as it has it. It blocks for as long as the file system does.
func (n *nfs) runChecks(tell func(checkResult)) {
	c := &diskCheck{n: n, tell: tell}
	for _, step := range []struct {
		what string
		do   func() (note string, err error)
	}{
		{"mount", c.mount},
		{"make a directory", c.makeDir},
		{"write a file, fsync and close it", c.write},
		{"file times", c.times},
		{"rename it over an existing file", c.rename},
		{foldsCaseCheck, c.foldsCase},
		{"fsync of a directory", c.syncDir},
		{"read the file back", c.read},
		{"link does not replace a file", c.link},
		{"locks of two descriptors exclude each other", c.lock},
		{"compare the clocks", c.clock},
		{"no logs in the format of the original API", c.logs},
	} {
		note, err := step.do()
		tell(checkResult{what: step.what, err: err, note: note, warning: isWeak(err)})
		if c.dir == nil && c.names != nil && err != nil {
			break // nothing can be written
		}
	}
	if err := c.clean(); err != nil {
		tell(checkResult{what: "remove the test files", err: err})
	}
}

// The names in the directory of a check, all of them in checkNames.
const (
	checkName   = "one"
	checkLinked = "two"
	checkFolded = "ONE" // never made: it is checkName where the file system ignores case
)

// checkNames are the files that a check makes in its directory.
var checkNames = []string{checkName, checkLinked, lockName}

// diskCheck is one check in progress.
type diskCheck struct {
	n      *nfs
	tell   func(checkResult)
	parent *os.File // where the directory of the check is
	names  []string // of the directory, from the base on
	dir    *os.File
	data   []byte
	coarse bool // the file system keeps times in large steps
}

func (c *diskCheck) mount() (string, error) {
	m, err := mountOf(c.n.base)
	if err != nil {
		return "", err
	}
	for _, w := range m.warnings() {
		c.tell(checkResult{what: "mount option", err: w, warning: !w.noLocks})
	}
	return fmt.Sprintf("%s on %s (%s, %s)", m.FSType, m.Mountpoint, m.Options, m.VFSOptions), nil
}

// makeDir makes the directory of the check where those of sites are made.
func (c *diskCheck) makeDir() (_ string, err error) {
	c.names = []string{sitesDir, tempPrefix + rand.Text()}
	c.parent, err = c.n.disk.openDir(filepath.Join(c.n.base, sitesDir))
	if errors.Is(err, fs.ErrNotExist) {
		c.names = c.names[1:]
		c.parent, err = c.n.disk.openDir(c.n.base)
	}
	if err != nil {
		return "", err
	}
	name := c.names[len(c.names)-1]
	c.dir, err = c.n.disk.makeDir(c.parent, name, filepath.Join(c.parent.Name(), name))
	return "", err
}

// sealed is a file of data under a temporary name. The caller discards it.
func (c *diskCheck) sealed(data []byte) (*tempFile, error) {
	t, err := c.n.disk.createTemp(c.dir)
	if err != nil {
		return nil, err
	}
	if _, err = t.Write(data); err == nil {
		_, err = t.seal()
	}
	if err != nil {
		t.discard()
		return nil, err
	}
	return t, nil
}

func (c *diskCheck) write() (string, error) {
	start := time.Now()
	t, err := c.sealed([]byte("the file that is replaced"))
	if err != nil {
		return "", err
	}
	defer t.discard()
	c.coarse = t.coarse
	took := time.Since(start).Round(100 * time.Microsecond)
	return "in " + took.String(), t.replace(checkName)
}

func (c *diskCheck) times() (string, error) {
	if c.coarse {
		return "", warning{fmt.Errorf("the file system stores times in steps of %s or more: small builds are not cached in memory, "+
			"and a build that replaces another within one step gets a later time", fineTime)}
	}
	return "finer than " + fineTime.String(), nil
}

func (c *diskCheck) rename() (string, error) {
	c.data = []byte(rand.Text())
	t, err := c.sealed(c.data)
	if err != nil {
		return "", err
	}
	defer t.discard()
	return "", t.replace(checkName)
}

// foldsCase looks for the file under its name in capital letters.
func (c *diskCheck) foldsCase() (string, error) {
	_, _, err := readFile(c.dir, checkFolded, 1<<10)
	return "", judgeCaseCheck(err)
}

func (c *diskCheck) syncDir() (string, error) {
	if err := c.n.disk.syncDir(c.dir); err != nil {
		return "", err
	}
	if c.n.disk.noDirSync.Load() {
		return "", fmt.Errorf("%w: an acknowledged write may be lost in a power cut", ErrUnsupported)
	}
	return "", nil
}

func (c *diskCheck) read() (string, error) {
	got, _, err := readFile(c.dir, checkName, 1<<10)
	if err == nil && !bytes.Equal(got, c.data) {
		err = fmt.Errorf("%d bytes read back differ from what was written", len(got))
	}
	return "", err
}

func (c *diskCheck) link() (string, error) {
	t, err := c.sealed([]byte("another"))
	if err != nil {
		return "", err
	}
	defer t.discard()
	switch err := t.create(checkName); {
	case err == nil:
		return "", errors.New("link replaced an existing file: several concurrent create-only uploads would succeed")
	case !errors.Is(err, fs.ErrExist):
		return "", err
	}
	return "", t.create(checkLinked)
}

func (c *diskCheck) lock() (string, error) {
	var files [2]*os.File
	for i := range files {
		f, err := c.n.disk.openLockFile(c.n.base, os.O_RDWR, c.names...)
		if err != nil {
			return "", err
		}
		defer f.Close()
		files[i] = f
	}
	return "", lockWorks(files[0], files[1])
}

func (c *diskCheck) clock() (string, error) {
	at, err := c.n.disk.clock(c.dir)
	if err != nil {
		return "", err
	}
	return directoryClock(time.Since(at))
}

// directoryClock is the clockFinding of a directory, where the service dates
// files by the store's clock.
func directoryClock(skew time.Duration) (note string, err error) {
	note, err = judgeClockCheck(skew, "builds and log entries get the store's time; correct the clock of this host")
	if err != nil {
		err = warning{err}
	}
	return note, err
}

// warning is what a check found that the service can work with.
type warning struct{ error }

// isWeak reports whether the service works in spite of err.
func isWeak(err error) bool {
	var w warning
	return errors.Is(err, ErrUnsupported) || errors.As(err, &w)
}

// clean removes what the check made.
func (c *diskCheck) clean() error {
	if c.parent == nil {
		return nil
	}
	defer c.parent.Close()
	if c.dir == nil {
		return nil
	}
	defer c.dir.Close()
	var errs []error
	for _, name := range checkNames {
		errs = append(errs, c.n.disk.remove(c.dir, name))
	}
	errs = append(errs, c.n.disk.removeDir(c.parent, c.names[len(c.names)-1]))
	return errors.Join(errs...)
}
