package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// watched is a fileWatch over two files in dir, whose load fails for content that begins
// with "bad".
type watched struct {
	fileWatch
	dir    string
	loads  []string // what load got
	events []string // what event got
}

func newWatched(t *testing.T) *watched {
	t.Helper()
	w := &watched{dir: t.TempDir()}
	w.paths = []string{filepath.Join(w.dir, "a"), filepath.Join(w.dir, "b")}
	w.max = 10
	w.load = func(contents [][]byte) error {
		w.loads = append(w.loads, fmt.Sprintf("%s", contents))
		for _, data := range contents {
			if strings.HasPrefix(string(data), "bad") {
				return errors.New(string(data))
			}
		}
		return nil
	}
	w.event = func(err error) {
		if err == nil {
			w.events = append(w.events, "loaded")
			return
		}
		w.events = append(w.events, strings.ReplaceAll(err.Error(), w.dir, ""))
	}
	return w
}

// A file is loaded when its content is new, however it was replaced. An error is reported
// once, and nothing else is in use meanwhile.
func TestFileWatch(t *testing.T) {
	w := newWatched(t)
	put := func(name, text string) func() error {
		return func() error { return os.WriteFile(filepath.Join(w.dir, name), []byte(text), 0o600) }
	}
	all := func(steps ...func() error) func() error {
		return func() error {
			for _, step := range steps {
				if err := step(); err != nil {
					return err
				}
			}
			return nil
		}
	}
	remove := func() error { return os.RemoveAll(filepath.Join(w.dir, "a")) }
	at := time.Unix(1_000_000_000, 0)
	for _, c := range []struct {
		what   string
		change func() error
		load   string // the load that the check causes; empty: none
		event  string // the event; empty: none
		fails  bool
	}{
		{"no file yet", func() error { return nil }, "", "stat /a: no such file or directory", true},
		{"still none", func() error { return nil }, "", "", true},
		{"one of two", put("a", "1"), "", "stat /b: no such file or directory", true},
		{"both", put("b", "1"), "[1 1]", "loaded", false},
		{"nothing new", func() error { return nil }, "", "", false},
		{"the same content again", put("a", "1"), "", "", false},
		{"another time only", func() error { return os.Chtimes(w.paths[0], at, at) }, "", "", false},
		{"an edit that keeps size and time", all(put("a", "2"), func() error { return os.Chtimes(w.paths[0], at, at) }), "[2 1]", "loaded", false},
		{"a rename", all(put("a.new", "3"), func() error { return os.Rename(w.paths[0]+".new", w.paths[0]) }), "[3 1]", "loaded", false},
		{"the files swapped", all(put("a", "1"), put("b", "3")), "[1 3]", "loaded", false},
		{"a byte moved from one to the other", all(put("a", "12"), put("b", "3")), "[12 3]", "loaded", false},
		{"and back", all(put("a", "1"), put("b", "23")), "[1 23]", "loaded", false},
		{"bad", put("a", "bad 1"), "[bad 1 23]", "bad 1", true},
		{"still bad", put("a", "bad 1"), "", "", true},
		{"bad in another way", put("a", "bad 2"), "[bad 2 23]", "bad 2", true},
		{"missing after bad", remove, "", "stat /a: no such file or directory", true},
		{"bad again", put("a", "bad 2"), "", "bad 2", true},
		{"what was good before", put("a", "1"), "[1 23]", "loaded", false},
		{"missing", remove, "", "stat /a: no such file or directory", true},
		{"back as it was", put("a", "1"), "", "loaded", false},
		{"empty", put("a", ""), "", "/a: the file is empty", true},
		{"too large", put("a", "12345678901"), "", "/a: larger than 10 bytes", true},
		{"as large as it may be", put("a", "1234567890"), "[1234567890 23]", "loaded", false},
		{"a directory", all(remove, func() error { return os.Mkdir(w.paths[0], 0o700) }), "", "/a: not a regular file", true},
		{"a FIFO", all(remove, func() error { return unix.Mkfifo(w.paths[0], 0o600) }), "", "", true},
		{"a link to itself", all(remove, func() error { return os.Symlink("a", w.paths[0]) }), "", "stat /a: too many levels of symbolic links", true},
		{"a link", all(remove, put("target", "4"), func() error { return os.Symlink("target", w.paths[0]) }), "[4 23]", "loaded", false},
		{"its target", put("target", "5"), "[5 23]", "loaded", false},
	} {
		w.loads, w.events = nil, nil
		if err := c.change(); err != nil {
			t.Fatal(err)
		}
		before := w.loadedAt.Load()
		err := w.check()
		if (err != nil) != c.fails || w.failing.Load() != c.fails {
			t.Errorf("%s: %v, failing is %v", c.what, err, w.failing.Load())
		}
		if want := slices.DeleteFunc([]string{c.load}, func(s string) bool { return s == "" }); !slices.Equal(w.loads, want) {
			t.Errorf("%s: loaded %q, want %q", c.what, w.loads, want)
		}
		if want := slices.DeleteFunc([]string{c.event}, func(s string) bool { return s == "" }); !slices.Equal(w.events, want) {
			t.Errorf("%s: events %q, want %q", c.what, w.events, want)
		}
		if now := w.loadedAt.Load(); now < before || c.load == "" && now != before || c.load != "" && !c.fails && now == 0 {
			t.Errorf("%s: loaded at %d, before %d", c.what, now, before)
		}
	}
}

// A signal makes all files be checked at once, until the context ends.
func TestWatchFilesOnSignal(t *testing.T) {
	one, two := newWatched(t), newWatched(t)
	loaded := make(chan error)
	for _, w := range []*watched{one, two} {
		for _, path := range w.paths {
			if err := os.WriteFile(path, []byte("1"), 0o600); err != nil {
				t.Fatal(err)
			}
		}
		w.event = func(err error) { loaded <- err }
	}
	again, ended := make(chan os.Signal), make(chan struct{})
	ctx, cancel := context.WithCancel(t.Context())
	go func() {
		defer close(ended)
		watchFiles(ctx, again, []*fileWatch{&one.fileWatch, &two.fileWatch})
	}()
	for i := range 3 {
		for _, w := range []*watched{one, two} {
			switchFile(t, w.paths[0], fmt.Append(nil, i))
		}
		again <- syscall.SIGHUP
		for range 2 {
			select {
			case err := <-loaded:
				if err != nil {
					t.Error(err)
				}
			case <-time.After(time.Minute):
				t.Fatal("a file was not loaded")
			}
		}
	}
	cancel()
	<-ended
}
