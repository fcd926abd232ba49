//go:build integration || torture

// Package soak loads the real binary with a mixture of everything, kills it
// at random, and judges every answer against a model of what it promised.
package soak

import (
	"crypto/sha256"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"sync"
)

// absent is the size of a build that is not there.
const absent = -1

// write is an upload or a delete, from the moment in which it was begun. No two
// uploads have the same size, so that the size alone tells which one it is.
type write struct {
	size   int64 // absent: a delete
	begun  int64 // by the model's own clock
	ended  int64 // by the client's view; 0: in flight
	failed bool  // not acknowledged: it was made or it was not
}

// model knows what may be seen. The rule for each build: once a write was
// acknowledged, nothing that had ended before it began is seen by anybody who
// looks afterwards. An upload that was not acknowledged may be seen, whole, or
// not. Nothing else is ever seen.
type model struct {
	mu      sync.Mutex
	clock   int64
	sizes   int64 // uploads so far
	builds  map[string]*build
	looks   map[*look]struct{}
	entries map[string]*logEntries
}

type build struct {
	live []*write // what may be seen by somebody who begins to look now
}

// logEntries is what is known of the log of a build.
type logEntries struct {
	begun map[string]bool // sent, by id
	acked map[string]bool
	seen  map[string]bool // by a list that has ended: never again absent
}

// look is one view of builds: what may be in it grows while it lasts.
type look struct {
	site string
	may  map[string]map[int64]bool // build: sizes
	must map[string][]string       // build: ids of entries acknowledged or seen before
}

func newModel() *model {
	return &model{builds: map[string]*build{}, looks: map[*look]struct{}{}, entries: map[string]*logEntries{}}
}

func (m *model) build(key string) *build {
	b := m.builds[key]
	if b == nil {
		b = &build{live: []*write{{size: absent, ended: 1}}}
		m.builds[key] = b
	}
	return b
}

// newSize gives an upload of roughly n bytes a size of its own.
func (m *model) newSize(n int64) int64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.sizes++
	return n/(1<<20)<<20 + m.sizes
}

// begin is called before a write is sent.
func (m *model) begin(key string, size int64) *write {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock++
	w := &write{size: size, begun: m.clock}
	b := m.build(key)
	b.live = append(b.live, w)
	for l := range m.looks {
		if may, ok := l.may[key]; ok {
			may[size] = true
		}
	}
	return w
}

// refused is called when a write was answered with a refusal that says that
// nothing was changed.
func (m *model) refused(key string, w *write) {
	m.mu.Lock()
	defer m.mu.Unlock()
	b := m.build(key)
	for i := range b.live {
		if b.live[i] == w {
			b.live = append(b.live[:i], b.live[i+1:]...)
			return
		}
	}
}

// end is called when a write was acknowledged, or when it is known that it will
// never be.
func (m *model) end(key string, w *write, acked bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.clock++
	w.ended, w.failed = m.clock, !acked
	if !acked {
		return
	}
	b := m.build(key)
	live := b.live[:0]
	for _, o := range b.live {
		if o == w || o.ended == 0 || o.ended > w.begun {
			live = append(live, o)
		}
	}
	b.live = live
}

// watch begins to look at the builds named by keys.
func (m *model) watch(keys ...string) *look {
	m.mu.Lock()
	defer m.mu.Unlock()
	l := &look{may: map[string]map[int64]bool{}, must: map[string][]string{}}
	for _, key := range keys {
		may := map[int64]bool{}
		for _, w := range m.build(key).live {
			may[w.size] = true
		}
		l.may[key] = may
		if e := m.entries[key]; e != nil {
			for id := range e.begun {
				if e.acked[id] || e.seen[id] {
					l.must[key] = append(l.must[key], id)
				}
			}
		}
	}
	m.looks[l] = struct{}{}
	return l
}

// done ends a look. After it l is the caller's alone.
func (m *model) done(l *look) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.looks, l)
}

// saw judges what was seen of one build.
func (l *look) saw(key string, size int64) error {
	if !l.may[key][size] {
		return fmt.Errorf("%s: saw %d bytes (-1: no build), which nobody can have seen; possible were %v", key, size, l.may[key])
	}
	return nil
}

// beginEntry is called before an entry is sent.
func (m *model) beginEntry(key, id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entries[key]
	if e == nil {
		e = &logEntries{map[string]bool{}, map[string]bool{}, map[string]bool{}}
		m.entries[key] = e
	}
	e.begun[id] = true
}

func (m *model) ackEntry(key, id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.entries[key].acked[id] = true
}

// sawEntries judges the log of one build as a look that is done saw it.
func (m *model) sawEntries(l *look, key string, ids []string) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.entries[key]
	there := map[string]bool{}
	for _, id := range ids {
		if e == nil || !e.begun[id] {
			return fmt.Errorf("%s: entry %q was never sent", key, id)
		}
		if there[id] {
			return fmt.Errorf("%s: entry %q is there twice", key, id)
		}
		there[id] = true
		e.seen[id] = true
	}
	for _, id := range l.must[key] {
		if !there[id] {
			return fmt.Errorf("%s: entry %q is lost (%d are there)", key, id, len(ids))
		}
	}
	return nil
}

// body is the content of an upload: size bytes that follow from the build and
// the size, so that anybody who knows these can tell it.
func body(key string, size int64) io.Reader {
	seed := sha256.Sum256(binary.BigEndian.AppendUint64([]byte(key), uint64(size)))
	return io.LimitReader(rand.NewChaCha8(seed), size)
}

// check reads r up to its end and compares it with body(key, size).
func check(r io.Reader, key string, size int64) error {
	want := body(key, size)
	a, b := make([]byte, 64<<10), make([]byte, 64<<10)
	for {
		n, err := io.ReadFull(r, a)
		k, _ := io.ReadFull(want, b)
		ended := err == io.EOF || err == io.ErrUnexpectedEOF
		if string(a[:n]) != string(b[:min(n, k)]) || ended && n != k {
			return fmt.Errorf("%s: other bytes than the upload of %d bytes sent", key, size)
		}
		if ended {
			return nil
		}
		if err != nil {
			return err
		}
	}
}
