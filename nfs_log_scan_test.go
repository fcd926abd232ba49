package main

import (
	"bytes"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"os"
	"runtime"
	"strings"
	"testing"
)

// wideLog returns a log with the entries "first" and "last". The id of the last one begins at byte
// idAt, or right after the first entry if idAt is 0. space is the number of spaces before and after
// the final bracket.
func wideLog(t testing.TB, idAt, space int) []byte {
	t.Helper()
	e := entry("first", "b", testTime)
	line := func(id string) string {
		e.ID = id
		b, err := encodeEntry(e)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	head := "[" + line("first") + ","
	head += strings.Repeat(" ", max(0, idAt-len(head)-len(`{"id":"`)))
	gap := strings.Repeat(" ", space)
	return []byte(head + line("last") + gap + "]" + gap)
}

// A new entry follows those of the log, which do not change, whatever the layout and the size of
// the log. An entry that is in the log is not added again, also if it spans two of the pieces in
// which the log is read.
func TestAppendToAnyLog(t *testing.T) {
	for name, log := range map[string][]byte{
		"small":                            wideLog(t, 0, 0),
		"one piece":                        wideLog(t, logPiece-200, 0),
		"space at the end":                 wideLog(t, 0, 3*logPiece),
		"space between entries":            wideLog(t, 5*logPiece, 2),
		"more space than an entry may be":  wideLog(t, maxScanned+logPiece, maxScanned+logPiece),
		"id before a boundary":             wideLog(t, logPiece-len(`last"`), 0),
		"id behind a boundary":             wideLog(t, logPiece, 0),
		"id on a boundary":                 wideLog(t, logPiece-2, 0),
		"quote before a boundary":          wideLog(t, logPiece-4, 0),
		"id on the second boundary":        wideLog(t, 2*logPiece-2, 1),
		"end before a boundary":            wideLog(t, logPiece-lastLen(t), 1),
		"end on a boundary":                wideLog(t, logPiece-lastLen(t)+1, 1),
		"end behind a boundary":            wideLog(t, logPiece-lastLen(t)+2, 0),
		"only space behind the boundaries": wideLog(t, logPiece-lastLen(t), 2*logPiece),
	} {
		t.Run(name, func(t *testing.T) {
			if _, err := parseLog(log); err != nil {
				t.Fatal(err)
			}
			base := t.TempDir()
			path := logPath(t, base)
			if err := os.WriteFile(path, log, 0o644); err != nil {
				t.Fatal(err)
			}
			n := openTestNFS(t, base)
			n.disk.ownClock = true // or entries could get the time of a server
			want := log
			add := func(id string, fresh, there bool) {
				t.Helper()
				e := entry(id, "b", testTime)
				e.Fresh = fresh
				mustLog(t, n, "s", e)
				if !there {
					var err error
					if want, err = appendLog(want, []LogEntry{e}); err != nil {
						t.Fatal(err)
					}
				}
				got, err := os.ReadFile(path)
				if err != nil || !bytes.Equal(got, want) {
					t.Fatalf("after %q there are %d bytes and not the %d that were expected: %v", id, len(got), len(want), err)
				}
				if known := n.verified.has(path, maphash.Bytes(n.verified.seed, got)); known != (id != "last") { // nothing was written by then
					t.Errorf("after %q the log is known to be sound: %v", id, known)
				}
			}
			add("last", false, true) // the log is not known
			add("new", false, false)
			for _, id := range []string{"first", "last", "new"} { // the log is known
				e := entry(id, "b", testTime)
				mustLog(t, n, "s", e)
			}
			add("newer", true, false)
			add("new", false, true)
		})
	}
}

// lastLen returns the number of bytes of a wideLog from the first byte of the last id, which is
// not counted, to the end of its entry.
func lastLen(t testing.TB) int {
	log := wideLog(t, 0, 0)
	return len(log) - 1 - bytes.LastIndex(log, []byte(`last"`))
}

// A large log is closed before it is replaced: an NFS client keeps an open file under another
// name.
func TestReplacedLogIsClosed(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	path := logPath(t, base)
	if err := os.WriteFile(path, bigLog(t, 5*logPiece), 0o644); err != nil {
		t.Fatal(err)
	}
	renames := 0
	n.disk.renamed = func() {
		renames++
		if got := openOn(t, path); got != 0 {
			t.Errorf("it is open %d times", got)
		}
	}
	mustLog(t, n, "s", entry("new", "b", testTime))
	if renames != 1 {
		t.Errorf("%d renames", renames)
	}
}

// The memory of an append does not grow with the log.
func TestAppendHoldsNoLog(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	const size = 15 << 20
	if err := os.WriteFile(logPath(t, base), bigLog(t, size), 0o644); err != nil {
		t.Fatal(err)
	}
	mustLog(t, n, "s", entry("0", "b", testTime)) // reads it once: what was decoded is garbage
	for i, fresh := range []bool{false, true} {
		e := entry(fmt.Sprint(i+1), "b", testTime)
		e.Fresh = fresh
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		mustLog(t, n, "s", e)
		runtime.ReadMemStats(&after)
		if got := after.TotalAlloc - before.TotalAlloc; got > size/8 {
			t.Errorf("fresh %v: %d bytes were allocated", fresh, got)
		}
	}
}

// A log that was not written by this process is parsed in pieces.
func TestLargeDamagedLogIsLeftAlone(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	path := logPath(t, base)
	good := bigLog(t, 5*logPiece)
	for i, damaged := range [][]byte{
		good[:len(good)/2],
		append(bytes.Clone(good), ']'),
		bytes.Replace(good, []byte("xx"), []byte("x\xff"), 1),
		bytes.Replace(good, []byte("},\n"), []byte("}\n\n"), 1),
	} {
		if err := os.WriteFile(path, damaged, 0o644); err != nil {
			t.Fatal(err)
		}
		for _, fresh := range []bool{false, true} {
			e := entry("new", "b", testTime)
			e.Fresh = fresh
			if err := n.WriteLog("s", e); !errors.Is(err, ErrDamaged) {
				t.Errorf("damage %d, fresh %v: %v", i, fresh, err)
			}
		}
		if got, _ := os.ReadFile(path); !bytes.Equal(got, damaged) {
			t.Errorf("damage %d: the log changed", i)
		}
	}
}

// A full log is not parsed unless it may contain the id.
func TestFullLogIsOnlySearched(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	log := bytes.Repeat([]byte("x"), maxLogSize)
	copy(log[logPiece-5:], `"there"`)
	if err := os.WriteFile(logPath(t, base), log, 0o644); err != nil {
		t.Fatal(err)
	}
	fresh := entry("there", "b", testTime)
	fresh.Fresh = true
	wantError(t, n.WriteLog("s", fresh), ErrLogFull)
	wantError(t, n.WriteLog("s", entry("other", "b", testTime)), ErrLogFull)
	wantError(t, n.WriteLog("s", entry("there", "b", testTime)), ErrLogFull)
}

// An error of the store while a log is read ends the append.
func TestLogThatIsCutWhileItIsRead(t *testing.T) {
	base := t.TempDir()
	path := logPath(t, base)
	if err := os.WriteFile(path, bigLog(t, 5*logPiece), 0o644); err != nil {
		t.Fatal(err)
	}
	n := openTestNFS(t, base)
	dir, err := n.disk.openDir(n.sitePath("s", logsDir))
	if err != nil {
		t.Fatal(err)
	}
	defer dir.Close()
	old, err := n.openLog(dir, "b"+logSuffix)
	if err != nil {
		t.Fatal(err)
	}
	defer old.close()
	if err := os.Truncate(path, 4*logPiece-1); err != nil {
		t.Fatal(err)
	}
	known := func(uint64) bool { return true }
	wantError(t, old.scan(knownIDs{}, n.verified.seed, known), io.ErrUnexpectedEOF)
	temp, err := n.disk.createTemp(dir)
	if err != nil {
		t.Fatal(err)
	}
	defer temp.discard()
	old.head = old.size
	wantError(t, old.copyTo(temp, []byte("tail")), io.ErrUnexpectedEOF)
}

// growLog appends entries to the log old in memory, and returns the part of old that stays
// and what follows it. verified says that the log was written by this process.
func growLog(old []byte, entries []LogEntry, errs []error, verified bool) (head, tail []byte, err error) {
	l := &oldLog{data: old, size: int64(len(old))}
	if err := l.scan(idsOfAll(entries), maphash.MakeSeed(), func(uint64) bool { return verified }); err != nil {
		return nil, nil, err
	}
	tail = l.grow(entries, errs)
	return old[:l.head], tail, nil
}
