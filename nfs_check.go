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

// diskStep is one step of the checks.
type diskStep struct {
	what string
	do   func() (note string, err error)
}

// runChecks implements checker. It works in a temporary directory, which it removes. It
// creates nothing if the service is read-only.
func (n *nfs) runChecks(report func(checkResult)) {
	c := &diskCheck{n: n, report: report}
	if n.readOnly {
		c.run([]diskStep{{"mount", c.mount}, {"read the directory of the sites", c.readSites}, {logsCheck, c.logs}})
		report(writesSkipped)
		return
	}
	c.run([]diskStep{
		{"mount", c.mount},
		{"make a directory", c.makeDir},
		{"write a file, fsync and close it", c.write},
		{"timestamp resolution", c.times},
		{"rename a file over an existing one", c.rename},
		{foldsCaseCheck, c.foldsCase},
		{"fsync a directory", c.syncDir},
		{"read the file back", c.read},
		{"link does not replace a file", c.link},
		{"locks on two descriptors exclude each other", c.lock},
		{"compare the clocks", c.clock},
		{logsCheck, c.logs},
	})
	if err := c.clean(); err != nil {
		report(checkResult{what: "remove the test files", err: err})
	}
}

const logsCheck = "no logs in the original API's format"

// run takes the steps and reports the result of each.
func (c *diskCheck) run(steps []diskStep) {
	for _, step := range steps {
		note, err := step.do()
		c.report(checkResult{what: step.what, err: err, note: note, warning: isWeak(err)})
		if c.dir == nil && c.names != nil && err != nil {
			break // without the directory no further check can run
		}
	}
}

// The files in the directory of a check. checkNames lists them.
const (
	checkName   = "one"
	checkLinked = "two"
	checkFolded = "ONE" // never created; the same file as checkName if the file system ignores case
)

// checkNames are the files that a check may create in its directory.
var checkNames = []string{checkName, checkLinked, lockName}

// diskCheck is one run of the checks.
type diskCheck struct {
	n      *nfs
	report func(checkResult)
	parent *os.File // the parent of dir
	names  []string // the path of dir below the base
	dir    *os.File // the directory of the check; nil: not created
	data   []byte   // the content of checkName
	coarse bool     // timestamps are coarser than fineTime
}

func (c *diskCheck) mount() (string, error) {
	m, err := mountOf(c.n.base)
	if err != nil {
		return "", err
	}
	for _, w := range m.warnings() {
		c.report(checkResult{what: w.of, err: w, warning: !w.noLocks})
	}
	return fmt.Sprintf("%s on %s (%s, %s)", m.FSType, m.Mountpoint, m.Options, m.VFSOptions), nil
}

// readSites reads the directory of the sites.
func (c *diskCheck) readSites() (string, error) {
	dir, err := c.n.openRoot()
	if err != nil {
		return "", err
	}
	defer dir.Close()
	return "", eachName(dir, func(string) error { return nil })
}

// makeDir creates the directory of the check next to the directories of the sites.
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

// sealed returns a sealed temporary file that contains data. The caller discards it.
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
		return "", warning{fmt.Errorf("the timestamp resolution is %s or coarser: small builds are not cached in memory, "+
			"digests are lost when the store is copied, and a build that replaces another within that interval gets a later timestamp", fineTime)}
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

// foldsCase looks for checkName under its name in capital letters.
func (c *diskCheck) foldsCase() (string, error) {
	_, _, err := readFile(c.dir, checkFolded, 1<<10)
	return "", judgeCaseCheck(err)
}

func (c *diskCheck) syncDir() (string, error) {
	if err := c.n.disk.syncDir(c.dir); err != nil {
		return "", err
	}
	if c.n.disk.noDirSync.Load() {
		return "", fmt.Errorf("%w: a power failure may lose acknowledged writes", ErrUnsupported)
	}
	return "", nil
}

func (c *diskCheck) read() (string, error) {
	got, _, err := readFile(c.dir, checkName, 1<<10)
	if err == nil && !bytes.Equal(got, c.data) {
		err = fmt.Errorf("the %d bytes read back are not what was written", len(got))
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
		return "", errors.New("link replaced an existing file: concurrent create-only uploads of one build would all succeed")
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

// directoryClock is judgeClockCheck for a directory. There a difference is only a warning,
// because the service sets the times of files by the store's clock.
func directoryClock(skew time.Duration) (note string, err error) {
	note, err = judgeClockCheck(skew, "builds and log entries get the store's time; correct the clock of this host")
	if err != nil {
		err = warning{err}
	}
	return note, err
}

// warning is the error of a check that does not keep the service from working.
type warning struct{ error }

// isWeak reports whether the service works in spite of err, but promises less.
func isWeak(err error) bool {
	var w warning
	return errors.Is(err, ErrUnsupported) || errors.As(err, &w)
}

// clean removes everything that the check created.
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
