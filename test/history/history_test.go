package history

import (
	"bytes"
	"math/rand/v2"
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
// that. The mark of the n-th word is n.
func play(words ...string) *History {
	h := &History{began: time.Now()}
	for i, w := range words {
		w, beside := strings.CutPrefix(w, "&")
		name, outcome, _ := strings.Cut(w, ":")
		op := h.Begin(map[string]Kind{"put": Put, "create": Create, "delete": Delete, "append": Append}[name], "s/b", 100, int64(i))
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
