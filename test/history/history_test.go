package history

import (
	"bytes"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

func TestBodyIsIdentifiedWholeOnly(t *testing.T) {
	for _, size := range []int{0, 16, 17, 23, 24, 25, 4096, 100_001} {
		body := Body(7, size)
		op, n, err := Identify(bytes.NewReader(body))
		if err != nil || op != 7 || n != int64(len(body)) {
			t.Fatalf("size %d: got %d, %d, %v", size, op, n, err)
		}
		for range 50 {
			bad := bytes.Clone(body)
			bad[rand.IntN(len(bad))] ^= 1
			if got, n, err := Identify(bytes.NewReader(bad)); err == nil && got == 7 && n == int64(len(body)) {
				t.Fatalf("size %d: a flipped bit was not seen", size)
			}
		}
		if _, _, err := Identify(bytes.NewReader(body[:rand.IntN(len(body))])); err == nil {
			t.Fatalf("size %d: a cut was not seen", size)
		}
		if _, _, err := Identify(bytes.NewReader(append(body, 0))); err == nil {
			t.Fatalf("size %d: a byte too many was not seen", size)
		}
	}
}

// play makes a history out of words as "put1:done", one after the other, each
// beginning after the one before ended; "&" before a word has it begin before
// that. The mark of the n-th word is n. The builds are all s/b, and so is the label, which
// "move-b" moves to it.
func play(words ...string) *History {
	h := &History{began: time.Now()}
	for i, w := range words {
		w, beside := strings.CutPrefix(w, "&")
		name, outcome, _ := strings.Cut(w, ":")
		name, build, _ := strings.Cut(name, "-")
		op := h.Begin(map[string]Kind{"put": Put, "create": Create, "delete": Delete, "append": Append,
			"deletelog": DeleteLog, "move": Move, "unlabel": Unlabel}[name], "s/b", 100, int64(i))
		op.Build = build
		op.Start, op.End = time.Duration(10*i), forever
		if beside {
			op.Start -= 10
		}
		if o := map[string]Outcome{"done": Done, "refused": Refused}[outcome]; o != Unknown {
			op.Outcome, op.End, op.EndMark = o, time.Duration(10*i+5), int64(i+1)
		}
	}
	return h
}

func TestJudge(t *testing.T) {
	build := func(op uint64) *Inventory { return &Inventory{Builds: map[string]Build{"s/b": {Op: op, Size: 100}}} }
	torn := &Inventory{Builds: map[string]Build{"s/b": {Fault: "is torn"}}}
	log := func(ops ...uint64) *Inventory { return &Inventory{Logs: map[string][]uint64{"s/b": ops}} }
	none := &Inventory{}
	f := func(name string, h *History, inv *Inventory, mark int64, want string) {
		t.Helper()
		got := strings.Join(h.Judge(inv, mark), "; ")
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	f("acknowledged is there", play("put:done"), build(1), Latest, "")
	f("acknowledged is lost", play("put:done"), none, Latest, "absent")
	f("not yet acknowledged may be absent", play("put:done"), none, 0, "")
	f("in flight may be there", play("put:done"), build(1), 0, "")
	f("torn", play("put:"), torn, Latest, "torn")
	f("unknown may be absent", play("put:"), none, Latest, "")
	f("unknown may be there", play("put:"), build(1), Latest, "")
	f("refused must not be there", play("create:refused"), build(1), Latest, "refused")
	f("not sent yet", play("put:done", "put:done"), build(2), 0, "not sent yet")
	f("nobody sent it", &History{}, build(1), Latest, "nobody")
	f("the old one after the new was acknowledged", play("put:done", "put:done"), build(1), Latest, "acknowledged after")
	f("the old one before that", play("put:done", "put:done"), build(1), 1, "")
	f("the old one while the new is unknown", play("put:done", "put:"), build(1), Latest, "")
	f("either of two at once", play("put:done", "&put:done"), build(1), Latest, "")
	f("an unknown one may come late", play("put:", "put:done"), build(1), Latest, "")
	f("deleted is absent", play("put:done", "delete:done"), none, Latest, "")
	f("deleted is back", play("put:done", "delete:done"), build(1), Latest, "acknowledged after")
	f("a delete in flight", play("put:done", "delete:"), none, Latest, "")
	f("put again after a delete", play("put:done", "delete:done", "put:done"), none, Latest, "absent")
	f("delete and put at once", play("put:done", "delete:done", "&put:done"), none, Latest, "")
	f("log whole", play("append:done", "append:done"), log(1, 2), Latest, "")
	f("log entry lost", play("append:done", "append:done"), log(2), Latest, "lost entry 1")
	f("log lost", play("append:done"), none, Latest, "lost entry 1")
	f("log entry twice", play("append:done"), log(1, 1), Latest, "twice")
	f("log out of order", play("append:done", "append:done"), log(2, 1), Latest, "before")
	f("log in any order if at once", play("append:done", "&append:done"), log(2, 1), Latest, "")
	f("log entry of nobody", play("append:done"), log(1, 9), Latest, "not sent here")
	f("log unknown may be there", play("append:done", "append:"), log(1, 2), Latest, "")
	f("log before the acknowledgement", play("append:done", "append:done"), log(1), 1, "")
}

func TestSettle(t *testing.T) {
	h := play("put:done", "put:", "append:")
	inv := &Inventory{Builds: map[string]Build{"s/b": {Op: 1, Size: 100}}}
	h.Settle(inv)
	if v := h.Judge(inv, Latest); v != nil {
		t.Fatalf("got %q", v)
	}
	if v := h.Judge(&Inventory{Builds: map[string]Build{"s/b": {Op: 2, Size: 100}}}, Latest); v == nil {
		t.Fatal("an upload that was settled as not done came back unseen")
	}
	h = play("put:done", "put:", "append:")
	inv = &Inventory{Builds: map[string]Build{"s/b": {Op: 2, Size: 100}}, Logs: map[string][]uint64{"s/b": {3}}}
	h.Settle(inv)
	if v := h.Judge(&Inventory{Builds: map[string]Build{"s/b": {Op: 2, Size: 100}}}, Latest); len(v) != 1 {
		t.Fatalf("an entry that was settled as done and is lost: got %q", v)
	}
}

func TestJudgeCreates(t *testing.T) {
	if v := play("create:done", "&create:done").JudgeCreates(); len(v) != 1 {
		t.Fatalf("got %q", v)
	}
	if v := play("create:done", "&create:refused").JudgeCreates(); v != nil {
		t.Fatalf("got %q", v)
	}
}

// A replacement stands for the file that is missing, and for nothing beside it.
func TestScanOfReplacements(t *testing.T) {
	entry := `[{"id":"i","build_id":"b","action":"deploy","status":"success","timestamp":"2026-01-02T03:04:05Z","metadata":{"op":%d}}]`
	f := func(name string, files map[string]string, want Inventory) {
		t.Helper()
		base := t.TempDir()
		for path, data := range files {
			path = filepath.Join(base, "sites/s", path)
			if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(data), 0o644)); err != nil {
				t.Fatal(err)
			}
		}
		got, err := Scan(base)
		if err != nil {
			t.Fatal(err)
		}
		if got.Builds["s/b"].Op != want.Builds["s/b"].Op || len(got.Builds) != len(want.Builds) ||
			!slices.Equal(got.Logs["s/b"], want.Logs["s/b"]) || len(got.Logs) != len(want.Logs) ||
			got.Temps != want.Temps || got.Placed != want.Placed || got.Silly != want.Silly || len(got.Faults) != len(want.Faults) {
			t.Errorf("%s: got %+v, want %+v", name, got, want)
		}
	}
	body := func(op uint64) string { return string(Body(op, 100)) }
	log := func(op int) string { return fmt.Sprintf(entry, op) }
	builds := map[string]Build{"s/b": {Op: 2}}
	f("build", map[string]string{"artifacts/.new-b.tar.gz": body(2)}, Inventory{Builds: builds, Placed: 1})
	f("beside the build", map[string]string{"artifacts/.new-b.tar.gz": "torn", "artifacts/b.tar.gz": body(2)}, Inventory{Builds: builds, Temps: 1})
	f("old build", map[string]string{"artifacts/.old-b.tar.gz": body(2)}, Inventory{Builds: builds, Placed: 1})
	f("new and old build", map[string]string{"artifacts/.new-b.tar.gz": body(2), "artifacts/.old-b.tar.gz": "torn"}, Inventory{Builds: builds, Placed: 1, Temps: 1})
	f("removed build", map[string]string{"artifacts/.out-b.tar.gz": body(2)}, Inventory{Builds: builds, Placed: 1})
	f("old and removed build", map[string]string{"artifacts/.old-b.tar.gz": body(2), "artifacts/.out-b.tar.gz": "torn"}, Inventory{Builds: builds, Placed: 1, Temps: 1})
	f("old beside the build", map[string]string{"artifacts/.old-b.tar.gz": "torn", "artifacts/b.tar.gz": body(2)}, Inventory{Builds: builds, Temps: 1})
	f("log", map[string]string{"logs/.new-b.json": log(3)}, Inventory{Logs: map[string][]uint64{"s/b": {3}}, Placed: 1})
	f("beside the log", map[string]string{"logs/.new-b.json": "[", "logs/b.json": log(3)}, Inventory{Logs: map[string][]uint64{"s/b": {3}}, Temps: 1})
	f("torn", map[string]string{"artifacts/.new-b.tar.gz": "torn"}, Inventory{Builds: map[string]Build{"s/b": {}}, Placed: 1})
	f("of no kind", map[string]string{"artifacts/.new-b": "x"}, Inventory{Placed: 1, Faults: []string{"x"}})
	f("kept by a client", map[string]string{"artifacts/.nfs0000000000000001000000ff": "x"}, Inventory{Silly: 1})
}

func TestJudgeDigest(t *testing.T) {
	for _, c := range []struct {
		history string // the upload 2 is hashed
		found   uint64
		digest  string
		want    string
	}{
		{"put:done put:done", 2, right, ""},
		{"put:done put:done", 2, none, "acknowledged digest is none"},
		{"put:done put:done", 2, stale, "acknowledged digest is stale"},
		{"put:done put:done", 2, wrong, "of other bytes"},
		{"put:done put", 2, none, ""},
		{"put:done put", 2, stale, ""},
		{"put:done put", 2, wrong, "of other bytes"},
		{"put:done put:done put", 2, stale, ""}, // the third may have begun
		{"put:done &put:done", 2, stale, ""},
		{"put:done", 1, none, ""},
		{"put:done", 1, stale, ""},
		{"put:done", 1, right, "nobody sent"},
		{"put:done", 1, wrong, "of other bytes"},
	} {
		inv := &Inventory{Builds: map[string]Build{"s/b": {Op: c.found, Size: 100, Digest: c.digest}}}
		got := strings.Join(play(strings.Fields(c.history)...).Judge(inv, Latest), "; ")
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s, %s: got %q, want %q", c.history, c.digest, got, c.want)
		}
	}
}
