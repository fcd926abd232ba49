package history

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// One line a case: what is there is upload/log entries/the build that the label names.
func TestJudgeOfLabelsAndVersions(t *testing.T) {
	inv := func(build uint64, label string, log ...uint64) *Inventory {
		i := &Inventory{Builds: map[string]Build{}, Labels: map[string]string{}, Logs: map[string][]uint64{}}
		if build > 0 {
			i.Builds["s/b"] = Build{Op: build, Size: 100}
		}
		if label != "" {
			i.Labels["s/b"] = label
		}
		if log != nil {
			i.Logs["s/b"] = log
		}
		return i
	}
	f := func(name, words string, inv *Inventory, mark int64, want string) {
		t.Helper()
		got := strings.Join(play(strings.Fields(words)...).Judge(inv, mark), "; ")
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
	}
	f("moved", "put:done move-b:done", inv(1, "b"), Latest, "")
	f("move lost", "put:done move-b:done", inv(1, ""), Latest, "label s/b: is absent")
	f("move not acknowledged yet", "put:done move-b:done", inv(1, ""), 1, "")
	f("move in flight", "put:done move-b:", inv(1, "b"), Latest, "")
	f("move in flight, not done", "put:done move-b:", inv(1, ""), Latest, "")
	f("move that was refused", "put:done move-b:refused", inv(1, "b"), Latest, "nobody moved it")
	f("label of nobody", "put:done", inv(1, "b"), Latest, "nobody sent it")
	f("the old build", "put:done move-b:done move-c:done", inv(1, "b"), Latest, "op 3 was acknowledged after")
	f("the old build before that", "put:done move-b:done move-c:done", inv(1, "b"), 2, "")
	f("moved there and back", "put:done move-b:done move-c:done move-b:done", inv(1, "b"), Latest, "")
	f("deleted label", "put:done move-b:done unlabel:done", inv(1, ""), Latest, "")
	f("deleted label is back", "put:done move-b:done unlabel:done", inv(1, "b"), Latest, "op 3 was acknowledged after")
	f("labelled build lost", "put:done move-b:done delete:done", inv(0, "b"), Latest, "names build s/b, which is absent")
	f("labelled build replaced", "put:done move-b:done put:done", inv(3, "b"), Latest, "upload 3 was sent after every move")
	f("replaced before the move came", "put:done move-b:done &put:done", inv(3, "b"), Latest, "")
	f("replaced before it was moved back", "put:done move-b:done move-c:done put:done move-b:done", inv(4, "b"), Latest, "")
	f("log deleted", "append:done deletelog:done", inv(0, ""), Latest, "")
	f("log deleted, in flight", "append:done deletelog:", inv(0, ""), Latest, "")
	f("log delete refused", "append:done deletelog:refused", inv(0, ""), Latest, "lost entry 1")
	f("log delete not sent yet", "append:done deletelog:done", inv(0, ""), 0, "")
	f("log is back", "append:done deletelog:done", inv(0, "", 1), Latest, "op 2 deleted the log after it")
	f("log is there before the answer", "append:done deletelog:done", inv(0, "", 1), 1, "")
	f("entry after the delete", "append:done deletelog:done append:done", inv(0, "", 3), Latest, "")
	f("entry after the delete is lost", "append:done deletelog:done append:done", inv(0, ""), Latest, "lost entry 3")
	f("entry beside the delete", "deletelog:done &append:done", inv(0, "", 2), Latest, "")
	f("entry beside the delete, gone", "append:done &deletelog:done", inv(0, ""), Latest, "")
	f("log gone before its build", "put:done append:done &delete: &deletelog:", inv(1, ""), Latest, "lost entry 2")
	f("log gone with its build", "put:done append:done &delete: &deletelog:", inv(0, ""), Latest, "")
}

func TestJudgeProtected(t *testing.T) {
	f := func(words, want string) {
		t.Helper()
		h := play(strings.Fields(words)...)
		if got := strings.Join(h.JudgeProtected(), "; "); (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s: got %q, want %q", words, got, want)
		}
	}
	f("put:done move-b:done delete:done", "op 3 was acknowledged")
	f("put:done move-b:done put:done", "op 3 was acknowledged")
	f("put:done move-b:done put:refused", "")
	f("put:done move-b:refused put:done", "")
	f("put:done move-b:done put:", "")
	f("put:done move-b:done &put:done", "")
	f("put:done move-b:done unlabel:done put:done", "")
	f("put:done move-b:done move-c: put:done", "")
	f("put:done move-b:done move-c:refused put:done", "op 4 was acknowledged")
	f("put:done move-b:done move-b:done put:done", "op 4 was acknowledged")
}

func TestSettleOfLabels(t *testing.T) {
	f := func(words string, inv *Inventory, later *Inventory) {
		t.Helper()
		h := play(strings.Fields(words)...)
		h.Settle(inv)
		if v := h.Judge(inv, Latest); v != nil {
			t.Errorf("%s: got %q", words, v)
		}
		if v := h.Judge(later, Latest); v == nil {
			t.Errorf("%s: what was settled changed later unseen", words)
		}
	}
	build := map[string]Build{"s/b": {Op: 1, Size: 100}}
	moved := &Inventory{Builds: build, Labels: map[string]string{"s/b": "b"}}
	none := &Inventory{Builds: build}
	logged := &Inventory{Logs: map[string][]uint64{"s/b": {1}}}
	f("put:done move-b:", moved, none)
	f("put:done move-b:", none, moved)
	f("put:done move-b:done unlabel:", none, moved)
	f("put:done move-b:done unlabel:", moved, none)
	f("append:done deletelog:", logged, &Inventory{})
	f("append:done deletelog:", &Inventory{}, logged)
}

func TestReadLabel(t *testing.T) {
	good := `{"label":"live","build_id":"b42","previous":"b41","changed_at":"2026-01-02T03:04:05.000000006Z","by":"ci","build_etag":"\"e\"","crc32c":"%s"}` + "\n"
	for text, want := range map[string]string{
		strings.Replace(good, "%s", labelSum, 1):      "b42",
		strings.Replace(good, "%s", "00000000", 1):    "",
		strings.Replace(good, "%s", labelSum, 1)[:40]: "",
		"": "",
		strings.Replace(good, "%s", labelSum, 1) + "\n":             "",
		strings.Replace(good, "b42", "b43", 1):                      "",
		strings.TrimSpace(strings.Replace(good, "%s", labelSum, 1)): "",
	} {
		path := filepath.Join(t.TempDir(), "live.json")
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
		if got, err := readLabel(path, "live"); got != want || (err == nil) != (want != "") {
			t.Errorf("%q: got %q, %v", text, got, err)
		}
	}
}

// labelSum is the CRC-32C that the service gives the label of TestReadLabel.
const labelSum = "7359bd27"
