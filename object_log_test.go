package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// readBucket calls onRead whenever an object is read.
type readBucket struct {
	*memBucket
	onRead func(key string)
}

func (b readBucket) get(ctx context.Context, key, etag string, offset, length int64) (io.ReadCloser, objectInfo, error) {
	body, info, err := b.memBucket.get(ctx, key, etag, offset, length)
	if err != nil {
		return nil, info, err
	}
	if strings.HasPrefix(key, checksDir) {
		return body, info, nil
	}
	watched := readerFunc(func(p []byte) (int, error) { b.onRead(key); return body.Read(p) })
	return struct {
		io.Reader
		io.Closer
	}{watched, body}, info, nil
}

// openReads returns a store that calls onRead whenever a log is read.
func openReads(t *testing.T, onRead func(key string)) *objectStore {
	t.Helper()
	b := newObjectStore(readBucket{newMemBucket(), onRead}, "", quiet())
	if err := b.requireCapability(conditionalPut); err != nil {
		t.Fatal(err)
	}
	return b
}

func fresh(id, build string) LogEntry {
	e := entry(id, build, testTime)
	e.Fresh = true
	return e
}

// The memory for a log is acquired before the log is read, charged to the client that
// appends, and released however the append ends. A full log is never held in memory.
func TestAppendTakesItsMemoryFirst(t *testing.T) {
	large := bigLog(t, maxLogSize-1)
	damaged := bytes.Clone(large)
	damaged[len(damaged)/2] = 0
	full := bigLog(t, maxLogSize)
	for _, c := range []struct {
		name  string
		old   []byte
		entry LogEntry
		want  error
		least int64 // bytes of the budget in use while the log is read; -1: it is not read
		most  int64
	}{
		{"small", bigLog(t, 70_000), entry("new", "b", testTime), nil, 4 * 70_000, 5 * 70_000},
		{"large", large, entry("new", "b", testTime), nil, maxLogSize, maxLogSize + 8<<20},
		{"there already", large, bigEntry(7), nil, maxLogSize, maxLogSize + 8<<20},
		{"damaged", damaged, entry("new", "b", testTime), ErrDamaged, maxLogSize, maxLogSize + 8<<20},
		{"full", full, entry("new", "b", testTime), ErrLogFull, 1 << 20, 6 << 20},
		{"full, there already", full, bigEntry(7), nil, 1 << 20, 6 << 20},
		{"full, another there", full, entry("big-7", "b", testTime), ErrKeyReused, 1 << 20, 6 << 20},
		{"full and a fresh id", full, fresh("new", "b"), ErrLogFull, -1, -1},
		{"too large", make([]byte, maxLogRead+1), fresh("new", "b"), ErrLogFull, -1, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			var b *objectStore
			held := int64(-1)
			b = openReads(t, func(string) {
				held = b.memory.inUse()
				if h := b.memory.heldBy("c"); h != held {
					t.Errorf("%d of %d bytes are the client's", h, held)
				}
			})
			plantLog(t, b, "s", "b", c.old)
			c.entry.Client = "c"
			wantError(t, b.WriteLog("s", c.entry), c.want)
			if held < c.least || held > c.most {
				t.Errorf("%d bytes are in use while it is read, not %d to %d", held, c.least, c.most)
			}
			if n := b.memory.inUse(); n != 0 {
				t.Errorf("%d bytes are still in use", n)
			}
		})
	}
}

// The memory that an append acquires suffices for the new log.
func TestRoomForEntries(t *testing.T) {
	odd := entry("\x01\"\\", "b", testTime)
	odd.Action, odd.Status = "\x00\x1f\u2028<&>\xff", "é\n"
	odd.Metadata = []byte(`{ "x": "<\u00e9>" }`)
	for _, entries := range [][]LogEntry{{odd}, {entry("1", "b", testTime), odd, odd}, {entry("", "", testTime)}} {
		for _, old := range [][]byte{nil, bigLog(t, 70_000)} {
			_, tail, err := growLog(old, entries, make([]error, len(entries)), false)
			if room := roomFor(entries, int64(len(old))); err != nil || int64(len(tail)) > room {
				t.Errorf("%d bytes are added, where there is room for %d: %v", len(tail), room, err)
			}
		}
	}
	many := make([]LogEntry, 300)
	for i := range many {
		many[i] = entry(fmt.Sprint(i), "b", testTime)
		many[i].Metadata = []byte(entryOf(maxEntrySize))
	}
	if room := roomFor(many, 0); room > maxLogSize+2*maxEntrySize {
		t.Errorf("for 300 entries of 1 MiB there is room for %d bytes, where most are refused", room)
	}
}

// Many concurrent appends to large logs stay within the memory limit, and all succeed.
func TestAppendsTogether(t *testing.T) {
	const logs, limit = 12, 4 << 20
	var b *objectStore
	var peak atomic.Int64
	b = openReads(t, func(string) {
		if n := b.memory.inUse(); n > peak.Load() {
			peak.Store(n)
		}
	})
	b.memory = newBudget(limit, time.Minute)
	for i := range logs {
		plantLog(t, b, "s", fmt.Sprint("b", i), bigLog(t, 300_000))
	}
	var g sync.WaitGroup
	for i := range logs {
		g.Go(func() { mustLog(t, b, "s", entry("new", fmt.Sprint("b", i), testTime)) })
	}
	g.Wait()
	if n := peak.Load(); n < 4*300_000 || n > limit || b.memory.inUse() != 0 {
		t.Errorf("%d bytes were in use at most, of %d, and %d still are", n, limit, b.memory.inUse())
	}
}

// An append that gets no memory in time fails, without reading or writing the log.
func TestAppendWaitsForMemory(t *testing.T) {
	read := false
	b := openReads(t, func(string) { read = true })
	old := bigLog(t, 70_000)
	plantLog(t, b, "s", "b", old)
	b.memory = newBudget(logMemory, 20*time.Millisecond)
	all := mustTake(t, b.memory, "other", logMemory)
	wantError(t, b.WriteLog("s", entry("new", "b", testTime)), ErrBusy)
	if got := b.bucket.(readBucket).objects[b.logsPrefix("s")+"b"+logSuffix].data; read || !bytes.Equal(got, old) {
		t.Errorf("the log was read: %v; it has %d bytes, and had %d", read, len(got), len(old))
	}
	all.release()
	mustLog(t, b, "s", entry("new", "b", testTime))
}

// An entry whose write succeeded but whose reply was lost is found, although it filled the
// log, and although its id is fresh.
func TestLostReplyOfTheLastEntry(t *testing.T) {
	m := newMemBucket()
	b := openMem(m)
	if err := b.requireCapability(conditionalPut); err != nil {
		t.Fatal(err)
	}
	plantLog(t, b, "s", "b", bigLog(t, maxLogSize-1))
	last := fresh("last", "b")
	last.Metadata = []byte(entryOf(maxEntrySize))
	lost := false
	m.fault = func(op, _ string) (bool, error) {
		if op != "put" || lost {
			return false, nil
		}
		lost = true
		return true, fmt.Errorf("%w: no answer", ErrUnavailable)
	}
	mustLog(t, b, "s", last)
	wantError(t, b.WriteLog("s", fresh("another", "b")), ErrLogFull)
}

// A write is retried if its result is unknown or a concurrent writer was faster. Then an
// entry with our ID and our content is taken for ours.
func TestKeyReusedWhileAnotherWrites(t *testing.T) {
	mine, other := entry("k", "b", testTime), entry("k", "b", testTime)
	other.Status = "failed"
	lost := fmt.Errorf("%w: no answer", ErrUnavailable)
	for _, c := range []struct {
		name   string
		other  *LogEntry // written to the log just before our write
		stored bool      // our write is done
		err    error     // of our write
		want   error
		kept   LogEntry
	}{
		{"the reply is lost", nil, true, lost, nil, mine},
		{"the write is lost", nil, false, lost, nil, mine},
		{"the same entry is faster", &mine, false, nil, nil, mine},
		{"another entry is faster", &other, false, nil, ErrKeyReused, other},
		{"another entry is faster and the write is lost", &other, false, lost, ErrKeyReused, other},
	} {
		for _, old := range [][]byte{nil, bigLog(t, 70_000)} {
			t.Run(fmt.Sprint(c.name, "/", len(old)), func(t *testing.T) {
				m := newMemBucket()
				b, second := openMem(m), openMem(m)
				for _, s := range []*objectStore{b, second} {
					if err := s.requireCapability(conditionalPut); err != nil {
						t.Fatal(err)
					}
				}
				if old != nil {
					plantLog(t, b, "s", "b", old)
				}
				m.fault = func(op, _ string) (bool, error) {
					if op != "put" {
						return false, nil
					}
					m.fault = nil
					if c.other != nil {
						m.mu.Unlock()
						err := second.WriteLog("s", *c.other)
						m.mu.Lock()
						if err != nil {
							t.Error(err)
						}
					}
					return c.stored, c.err
				}
				wantError(t, b.WriteLog("s", mine), c.want)
				logs := versionOf(t, b, "s", "b").Logs
				if last := logs[len(logs)-1]; last.ID != "k" || last.Status != c.kept.Status || len(logs) > 2 {
					t.Errorf("the last of %d entries is %+v", len(logs), last)
				}
			})
		}
	}
}

// An append that is retried after a lost reply finds its own entry, also if its ID is fresh,
// and also if the entry filled the log.
func TestFreshEntryIsFoundAfterALostReply(t *testing.T) {
	for _, size := range []int{0, maxLogSize - 1} {
		m := newMemBucket()
		b, site := openMem(m), newSite()
		if size > 0 {
			plantLog(t, b, site, "b", bigLog(t, size))
		}
		if err := b.requireCapability(conditionalPut); err != nil {
			t.Fatal(err)
		}
		lost := false
		m.fault = func(op, _ string) (bool, error) {
			if op == "put" && !lost {
				lost = true
				return true, fmt.Errorf("%w: the reply is lost", ErrUnavailable)
			}
			return false, nil
		}
		e := entry("mine", "b", time.Now())
		e.Fresh = true
		mustLog(t, b, site, e)
		count := 0
		for _, e := range versionOf(t, b, site, "b").Logs {
			if e.ID == "mine" {
				count++
			}
		}
		if count != 1 || !lost {
			t.Errorf("a log of %d bytes: the log has it %d times", size, count)
		}
	}
}
