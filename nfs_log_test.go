package main

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"hash/maphash"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"
)

var testTime = time.Date(2026, 1, 2, 3, 4, 5, 678901234, time.UTC)

// logPath creates the directory of the logs of site s and returns the path of the log of
// b.
func logPath(t testing.TB, base string) string {
	t.Helper()
	dir := filepath.Join(base, sitesDir, "s", logsDir)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "b"+logSuffix)
}

func TestLogLayout(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	e := entry("1", "b", testTime)
	e.Metadata = json.RawMessage("{ \"n\":12345678901234567890,\n\t\"s\":\"<&>\" }")
	mustLog(t, n, "s", e)
	mustLog(t, n, "s", entry("2<", "b", testTime))
	wantContent(t, logPath(t, base), `[
{"id":"1","build_id":"b","action":"deploy","status":"ok","timestamp":"2026-01-02T03:04:05.678901234Z","metadata":{ "n":12345678901234567890,
	"s":"<&>" }},
{"id":"2<","build_id":"b","action":"deploy","status":"ok","timestamp":"2026-01-02T03:04:05.678901234Z"}
]
`)
	wantFiles(t, filepath.Dir(logPath(t, base)), "b"+logSuffix)
}

func TestMetadataIsKeptByteForByte(t *testing.T) {
	n := openTestNFS(t, t.TempDir())
	all := []string{
		`{}`, `{ }`, "{\n}", `{"z":1,"a":2,"z":3}`, `{"n":123456789012345678901234567890.10e-5}`,
		`{"s":"</script>\u2028 \ud83d\ude00 é 😀 \/"}`, "{\"\u2028\":\"<>&\"}", `{"o":[ 1 , {"a":null} ]}`,
	}
	for i, m := range all {
		e := entry(strconv.Itoa(i), "b", testTime)
		e.Metadata = json.RawMessage(m)
		mustLog(t, n, "s", e)
	}
	for i, e := range versionOf(t, n, "s", "b").Logs {
		if string(e.Metadata) != all[i] {
			t.Errorf("%q came back as %q", all[i], e.Metadata)
		}
	}
}

// No metadata can damage the log or add another entry.
func TestBadMetadataIsRefused(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	mustLog(t, n, "s", entry("1", "b", testTime))
	before, err := os.ReadFile(logPath(t, base))
	if err != nil {
		t.Fatal(err)
	}
	deep := strings.Repeat(`{"a":`, 9999) + "1" + strings.Repeat("}", 9999)
	if !json.Valid([]byte(deep)) {
		t.Fatal("valid alone, and too deep in a log, is what this is about")
	}
	for _, m := range []string{`{`, `{}}`, `{}},{"id":"x"`, `{},"id":"x"`, ` `, "{\"a\":\"\xff\"}", deep} {
		e := entry("2", "b", testTime)
		e.Metadata = json.RawMessage(m)
		if err := n.WriteLog("s", e); err == nil {
			t.Errorf("%.40q was taken", m)
		}
	}
	large := entry("2", "b", testTime)
	large.Metadata = json.RawMessage(`{"x":"` + strings.Repeat("x", maxScanned) + `"}`)
	if err := n.WriteLog("s", large); err == nil {
		t.Error("an entry that is too large to be read was taken")
	}
	if err := n.WriteLog("s", entry("3", "b", time.Time{})); err == nil {
		t.Error("an entry without a time was taken")
	}
	wantContent(t, logPath(t, base), string(before))
}

func TestParseLog(t *testing.T) {
	const e = `{"id":"1","build_id":"b","action":"a","status":"s","timestamp":"2026-01-02T03:04:05Z"}`
	f := func(log string, entries int) {
		t.Helper()
		got, err := parseLog([]byte(log))
		if entries < 0 {
			wantError(t, err, ErrDamaged)
		} else if err != nil || len(got) != entries {
			t.Errorf("%q has %d entries, %v", log, len(got), err)
		}
	}
	f("["+e+"]", 1)
	f("["+e+","+e+"]", 2)
	f(" \t\r\n[\n"+e+" , "+e+"\n]\n\n", 2)
	f(`[{"timestamp":"2026-01-02T03:04:05+01:00","other":[1]}]`, 1)
	for _, damaged := range []string{
		"", " ", "[]", "null", "{}", "1", e, "[" + e, e + "]", "[" + e + ",]", "[" + e + "]]", "[" + e + "]x", "[" + e + "][" + e + "]",
		"[null]", "[1]", "[{}]", `[{"id":1,"timestamp":"2026-01-02T03:04:05Z"}]`, `[{"timestamp":"yesterday"}]`, `[{"timestamp":"0001-01-01T00:00:00Z"}]`,
		"[" + e + "]\x00", "\ufeff[" + e + "]", strings.Replace("["+e+"]", `"a"`, "\"\xff\"", 1), "\x00\x00\x00",
	} {
		f(damaged, -1)
	}
}

func TestDamagedLogIsLeftAlone(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	path := logPath(t, base)
	for _, damaged := range []string{"", "[", "[]", "{}", "\x00\x00", `[{"id":"1","timestamp":"2026-01-02T03:04:05Z"}`} {
		if err := os.WriteFile(path, []byte(damaged), 0o644); err != nil {
			t.Fatal(err)
		}
		wantError(t, n.WriteLog("s", entry("1", "b", testTime)), ErrDamaged)
		wantContent(t, path, damaged)
	}
	wantFiles(t, filepath.Dir(path), "b"+logSuffix)
}

// A log that this process wrote may be changed later, and the change need not show in its
// size or its times.
func TestVerifiedLogIsDamaged(t *testing.T) {
	for _, damage := range [][2]string{{`[`, "\x00"}, {`{"id":"a"`, `{"id": a"`}, {`"a"`, "\"\xff\""}, {"]\n", "]]"}, {"\n]\n", "\n"}} {
		base := t.TempDir()
		n := openTestNFS(t, base)
		mustLog(t, n, "s", entry("a", "b", testTime))
		mustLog(t, n, "s", entry("b", "b", testTime))
		path := logPath(t, base)
		sound, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if !n.verified.has(path, maphash.Bytes(n.verified.seed, sound)) {
			t.Error("what was written is not known")
		}
		st, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		damaged := strings.Replace(string(sound), damage[0], damage[1], 1)
		if damaged == string(sound) {
			t.Fatalf("%q is not in the log", damage[0])
		}
		if err := errors.Join(os.WriteFile(path, []byte(damaged), 0o644), os.Chtimes(path, st.ModTime(), st.ModTime())); err != nil {
			t.Fatal(err)
		}
		for _, id := range []string{"a", "b", "c"} {
			wantError(t, n.WriteLog("s", entry(id, "b", testTime)), ErrDamaged)
		}
		wantContent(t, path, damaged)
	}
}

// appendLog returns the log old with entries appended. old is empty or a log that
// parseLog accepts.
func appendLog(old []byte, entries []LogEntry) ([]byte, error) {
	log := bytes.Clone(old[:bytes.LastIndexByte(old, '}')+1])
	for i := range entries {
		line, err := encodeEntry(entries[i])
		if err != nil {
			return nil, err
		}
		if len(log) == 0 {
			log = append(log, "[\n"...)
		} else {
			log = append(log, ",\n"...)
		}
		log = append(log, line...)
	}
	return append(log, "\n]\n"...), nil
}

// bigEntry returns entry i of a bigLog.
func bigEntry(i int) LogEntry {
	e := entry(fmt.Sprint("big-", i), "b", testTime)
	e.Metadata = json.RawMessage(`{"x":"` + strings.Repeat("x", 64<<10) + `"}`)
	return e
}

// bigLog returns a log of about size bytes with entries big-0, big-1 ... They get their metadata
// after they were encoded, which takes long with the race detector.
func bigLog(t testing.TB, size int) []byte {
	t.Helper()
	metadata := []byte(bigEntry(0).Metadata)
	mark := []byte(`{"x":"@"}`)
	var entries []LogEntry
	for i := range size / (64<<10 + 200) {
		e := bigEntry(i)
		e.Metadata = mark
		entries = append(entries, e)
	}
	log, err := appendLog(nil, entries)
	if err != nil {
		t.Fatal(err)
	}
	n := len(log) + len(entries)*(len(metadata)-len(mark))
	return bytes.ReplaceAll(append(log, spaces(max(0, size-n))...), mark, metadata)
}

func TestFullLog(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	path := logPath(t, base)
	f := func(size int, e LogEntry, want error) {
		t.Helper()
		before := bigLog(t, size)
		if err := os.WriteFile(path, before, 0o644); err != nil {
			t.Fatal(err)
		}
		wantError(t, n.WriteLog("s", e), want)
		after, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		if added := !bytes.Equal(before, after); added != (want == nil && e.ID == "new") {
			t.Errorf("a log of %d bytes: entry %q was added: %v", size, e.ID, added)
		}
	}
	f(maxLogSize-1, entry("new", "b", testTime), nil)
	f(maxLogSize, entry("new", "b", testTime), ErrLogFull)
	f(maxLogSize, bigEntry(7), nil) // it is there
	f(maxLogSize, entry("big-7", "b", testTime), ErrKeyReused)
	f(maxLogSize+1<<20, entry("new", "b", testTime), ErrLogFull)
	if err := os.Truncate(path, maxLogRead+1); err != nil {
		t.Fatal(err)
	}
	wantError(t, n.WriteLog("s", entry("new", "b", testTime)), ErrLogFull)
}

// Each entry that shares a write gets its own result, whether or not the log had to be
// parsed.
func TestGrowLog(t *testing.T) {
	big := bigLog(t, maxLogSize-100)
	if _, err := parseLog(big); err != nil {
		t.Fatal(err)
	}
	f := func(sound, holds bool) {
		t.Helper()
		bad := entry("bad", "b", testTime)
		bad.Metadata = json.RawMessage("{")
		old := bytes.Clone(big)
		entries := []LogEntry{bad, entry("a", "b", testTime), entry("a", "b", testTime), entry("c", "b", testTime)}
		if holds {
			entries = append(entries, bigEntry(3), entry("big-3", "b", testTime))
		}
		errs := make([]error, len(entries))
		head, tail, err := growLog(old, entries, errs, sound)
		if err != nil {
			t.Fatal(err)
		}
		if errs[0] == nil || errs[1] != nil || errs[2] != nil || !errors.Is(errs[3], ErrLogFull) || holds && (errs[4] != nil || !errors.Is(errs[5], ErrKeyReused)) {
			t.Errorf("the results are %v", errs)
		}
		// To parse all of it takes long: head must be the old entries, and tail end any log.
		end, found := bytes.CutPrefix(big, head)
		if !found || string(bytes.TrimSpace(end)) != "]" {
			t.Errorf("of a log of %d bytes, the first %d are not all entries", len(big), len(head))
		}
		now, err := parseLog(append([]byte(`[{"id":"first","timestamp":"2026-01-02T03:04:05Z"}`), tail...))
		if err != nil || len(now) != 2 || now[1].ID != "a" {
			t.Errorf("%d entries are added, %v", len(now)-1, err)
		}
	}
	f(false, false)
	f(false, true)
	f(true, false)
	f(true, true)
}

// Entries that share a write are compared with each other. If the write fails, none of
// them is reported to be in the log.
func TestKeyReusedInOneWrite(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	batch := func() (entries []LogEntry) {
		for _, e := range sameID("k", "b") {
			entries = append(entries, e.LogEntry)
		}
		return entries
	}
	n.remote = true
	n.disk.linking = func() { // the first write of the log: another host is faster
		n.disk.linking = nil
		if err := os.WriteFile(logPath(t, base), wideLog(t, 0, 0), 0o644); err != nil {
			t.Error(err)
		}
	}
	for i, err := range n.appendLog("s", "b", batch()) {
		if !errors.Is(err, ErrUnavailable) {
			t.Errorf("entry %d: %v, where nothing was written", i, err)
		}
	}
	n.remote = false
	errs := n.appendLog("s", "b", batch())
	for i, e := range sameID("k", "b") {
		if e.same != (errs[i] == nil) || !e.same && !errors.Is(errs[i], ErrKeyReused) {
			t.Errorf("entry %d, which is the same: %v: %v", i, e.same, errs[i])
		}
	}
	if v := versionOf(t, n, "s", "b"); !slices.Equal(idsOf(v.Logs), []string{"first", "last", "k"}) {
		t.Errorf("the log has %v", idsOf(v.Logs))
	}
}

// Every id is found, wherever the log is split into pieces.
func TestIDSearch(t *testing.T) {
	f := func(log, id string, want bool) {
		t.Helper()
		if _, err := parseLog([]byte(log)); err != nil {
			t.Fatal(err)
		}
		for size := 1; size <= len(log); size++ {
			search := newIDSearch(knownIDs{"o": {}, id: {}})
			for p := range slices.Chunk([]byte(log), size) {
				search.add(p)
			}
			if search.mayContain != want {
				t.Errorf("%q in pieces of %d may hold %q: %v", log, size, id, search.mayContain)
				return
			}
		}
	}
	plain := `[{"id":"1-a","build_id":"b","metadata":{"k":"x, y"},"timestamp":"2026-01-02T03:04:05Z"}]`
	spaced := strings.ReplaceAll(plain, `:"`, ` : "`)
	for _, id := range []string{"1-a", "x, y", "id"} {
		f(plain, id, true)
		f(spaced, id, true)
	}
	for _, id := range []string{"1", "-a", "1-A", "1-ab", ":", ",", `1-a"`, `"1-a`, `\`} {
		f(plain, id, false)
	}
	f(strings.Replace(plain, "1-a", `1\u002da`, 1), "1-a", true)
	f(strings.Replace(plain, "1-a", `1\"a`, 1), `1"a`, true)
	f(strings.Replace(plain, `"id":"1-a",`, "", 1), "", true)
	f(strings.Replace(plain, "x, y", `\\`, 1), "2", true) // not known without parsing
}

// Waiting entries of one build share a write.
func TestEntriesShareWrites(t *testing.T) {
	base := t.TempDir()
	n := openTestNFS(t, base)
	mustLog(t, n, "s", entry("first", "b", testTime))
	lock, err := n.lockBuild("s", logsDir, "b", true) // keeps the next write waiting
	if err != nil {
		t.Fatal(err)
	}
	const writers = 50
	var g sync.WaitGroup
	write := func(i int) {
		if err := n.WriteLog("s", entry(fmt.Sprint(i%40), "b", testTime)); err != nil {
			t.Error(err)
		}
	}
	// queued tells how many entries wait, with the write that waits for the
	// lock or for the next, and how many of them for the next.
	queued := func() (all, next int) {
		n.appends.mu.Lock()
		defer n.appends.mu.Unlock()
		q := n.appends.queues["s/b"]
		if q == nil {
			return 0, 0
		}
		if q.next != nil {
			next = len(q.next.items)
		}
		return q.users, next
	}
	g.Go(func() { write(0) })
	eventually(t, "one write waits for the lock", func() bool { all, next := queued(); return all == 1 && next == 0 })
	for i := 1; i < writers; i++ {
		g.Go(func() { write(i) })
	}
	eventually(t, "all others share the next", func() bool { all, next := queued(); return all == writers && next == writers-1 })
	lock.release()
	g.Wait()
	if v := versionOf(t, n, "s", "b"); len(v.Logs) != 41 {
		t.Errorf("the log has %d entries", len(v.Logs))
	}
	if len(n.appends.queues) != 0 {
		t.Error("a queue stays behind")
	}
}

// appendEnv makes this test binary one of the processes of TestProcessesAppend. Its value
// is base, name, number of entries and number of concurrent writers.
const appendEnv = "TEST_APPEND"

func TestProcessesAppend(t *testing.T) {
	if args := os.Getenv(appendEnv); args != "" {
		appendAsProcess(t, strings.Split(args, "\n"))
		return
	}
	const processes, each = 8, 50
	for _, atOnce := range []int{1, 10} {
		t.Run(fmt.Sprint(atOnce, " at once"), func(t *testing.T) {
			base := t.TempDir()
			var g sync.WaitGroup
			for p := range processes {
				g.Go(func() {
					cmd := exec.Command(os.Args[0], "-test.run=^TestProcessesAppend$")
					cmd.Env = append(os.Environ(), fmt.Sprintf("%s=%s\n%d\n%d\n%d", appendEnv, base, p, each, atOnce))
					if out, err := cmd.CombinedOutput(); err != nil {
						t.Errorf("process %d: %v\n%s", p, err, out)
					}
				})
			}
			g.Wait()
			v := versionOf(t, openTestNFS(t, base), "s", "b")
			if v == nil {
				t.Fatal("nothing was written")
			}
			seen := map[string]bool{}
			for _, e := range v.Logs {
				seen[e.ID] = true
			}
			if len(v.Logs) != processes*each || len(seen) != processes*each {
				t.Errorf("%d entries, %d of them different", len(v.Logs), len(seen))
			}
			wantFiles(t, filepath.Join(base, sitesDir, "s", logsDir), "b"+logSuffix)
			t.Logf("%d processes x %d entries, %d at once in each: %d entries", processes, each, atOnce, len(v.Logs))
		})
	}
}

func appendAsProcess(t *testing.T, args []string) {
	n := openTestNFS(t, args[0])
	each, _ := strconv.Atoi(args[2])
	atOnce, _ := strconv.Atoi(args[3])
	var g sync.WaitGroup
	for w := range atOnce {
		g.Go(func() {
			for i := w; i < each; i += atOnce {
				e := entry(fmt.Sprint(args[1], "-", i), "b", time.Now())
				err := n.WriteLog("s", e)
				// Under so many writers a lock may not be free in time: 503, and the
				// client tries again.
				for try := 0; try < 20 && (errors.Is(err, ErrUnavailable) || errors.Is(err, ErrBusy)); try++ {
					err = n.WriteLog("s", e)
				}
				if err != nil {
					t.Error(err)
				}
			}
		})
	}
	g.Wait()
}

// A log that can be read can be appended to. Then it has its old entries and the new one.
func FuzzLogFile(f *testing.F) {
	f.Add([]byte(`[{"id":"1","build_id":"b","action":"a","status":"s","timestamp":"2026-01-02T03:04:05Z"}]`), []byte(`{"a":1}`))
	f.Add([]byte("[\n{\"timestamp\":\"2026-01-02T03:04:05Z\",\"metadata\":null}\n]\n"), []byte(`{ }`))
	f.Add([]byte(`[{"timestamp":"2026-01-02T03:04:05+14:00"} , {"id":"x","TIMESTAMP":"2026-01-02T03:04:05Z"} ] `), []byte(`{}},{`))
	f.Add([]byte(`[]`), []byte(nil))
	f.Fuzz(func(t *testing.T, log, metadata []byte) {
		was, err := parseLog(log)
		if err != nil {
			if !errors.Is(err, ErrDamaged) {
				t.Fatal(err)
			}
			return
		}
		for i := range was {
			for size := 1; size < 200; size += size/2 + 1 {
				search := newIDSearch(knownIDs{was[i].ID: {}})
				for p := range slices.Chunk(log, size) {
					search.add(p)
				}
				if !search.mayContain {
					t.Fatalf("entry %d is overlooked in pieces of %d bytes: %+v", i, size, was[i])
				}
			}
		}
		e := entry("a new one", "b", testTime)
		e.Metadata = metadata
		for _, sound := range []bool{false, true} {
			errs := make([]error, 1)
			head, tail, err := growLog(log, []LogEntry{e}, errs, sound)
			if err != nil {
				t.Fatal(err)
			}
			if errs[0] != nil || len(tail) == 0 {
				return
			}
			now, err := parseLog(append(bytes.Clone(head), tail...))
			if err != nil || len(now) != len(was)+1 {
				t.Fatalf("%d entries became %d, %v", len(was), len(now), err)
			}
			for i := range was {
				a, b := was[i], now[i]
				if a.ID != b.ID || a.Action != b.Action || !a.Timestamp.Equal(b.Timestamp) || !bytes.Equal(a.Metadata, b.Metadata) {
					t.Fatalf("entry %d was %+v and is %+v", i, a, b)
				}
			}
			if got := now[len(was)]; got.ID != e.ID || !bytes.Equal(got.Metadata, e.Metadata) {
				t.Fatalf("added was %+v and is %+v", e, got)
			}
		}
	})
}
