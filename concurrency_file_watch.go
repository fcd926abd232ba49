package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// fileWatchEvery is how often watched files are read.
const fileWatchEvery = 5 * time.Second

// fileWatch reloads files when their content changes. It reads them at each check, so that it
// notices every kind of replacement: an edit, a rename, the link ..data that Kubernetes switches.
// It is safe for concurrent use.
type fileWatch struct {
	paths []string
	max   int64                         // bytes of the largest file that is read
	load  func(contents [][]byte) error // uses the content; after an error all stays as it was
	event func(err error)               // called when a load succeeded, and once for each new error

	loadedAt atomic.Int64 // Unix time in seconds of the latest successful load
	failing  atomic.Bool  // the files as they are now are not in use

	mu    sync.Mutex
	tried [sha256.Size]byte // content of the latest load
	err   error             // of the latest load
	said  string            // the error that event got last; empty: none since the latest success
}

// check reads the files, and loads them if their content is not that of the latest check. It
// returns why the content is not in use.
func (w *fileWatch) check() error {
	w.mu.Lock()
	defer w.mu.Unlock()
	contents, sum, err := w.read()
	loaded := false
	if err == nil {
		if sum != w.tried {
			w.tried, w.err = sum, w.load(contents)
			loaded = w.err == nil
		}
		err = w.err
	}
	w.failing.Store(err != nil)
	if loaded {
		w.loadedAt.Store(time.Now().Unix())
	}
	recovered := err == nil && w.said != ""
	switch {
	case loaded, recovered:
		w.said = ""
		w.event(nil)
	case err != nil && err.Error() != w.said:
		w.said = err.Error()
		w.event(err)
	}
	return err
}

// read returns the contents, and a hash of all of them.
func (w *fileWatch) read() (contents [][]byte, sum [sha256.Size]byte, err error) {
	h := sha256.New()
	for _, path := range w.paths {
		data, err := readSmallFile(path, w.max)
		if err != nil {
			return nil, sum, err
		}
		one := sha256.Sum256(data)
		h.Write(one[:])
		contents = append(contents, data)
	}
	return contents, [sha256.Size]byte(h.Sum(nil)), nil
}

// watchFiles checks every fileWatchEvery and whenever again has a value, until ctx ends.
func watchFiles(ctx context.Context, again <-chan os.Signal, watches []*fileWatch) {
	tick := time.NewTicker(fileWatchEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-again:
		case <-tick.C:
		}
		for _, w := range watches {
			_ = w.check() // event gets the error
		}
	}
}

// readSmallFile returns the content of a regular file of at most limit bytes.
func readSmallFile(path string, limit int64) ([]byte, error) {
	// A FIFO would block in open(2) until it has a writer.
	if st, err := os.Stat(path); err != nil {
		return nil, err
	} else if !st.Mode().IsRegular() {
		return nil, fmt.Errorf("%s: not a regular file", path)
	}
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data, err := io.ReadAll(io.LimitReader(f, limit+1))
	switch {
	case err != nil:
		return nil, err
	case int64(len(data)) > limit:
		return nil, fmt.Errorf("%s: larger than %d bytes", path, limit)
	case len(data) == 0:
		return nil, fmt.Errorf("%s: %w", path, errEmptyFile)
	}
	return data, nil
}

var errEmptyFile = errors.New("the file is empty")
