package history

import (
	"strings"
	"testing"
)

// One line a case: what is stored, labelled and pruned, one after the other, and what is left.
func TestJudgePruned(t *testing.T) {
	const site = "s" + prunedSuffix + "/"
	f := func(steps, left, want string) {
		t.Helper()
		h, inv := &History{}, &Inventory{Builds: map[string]Build{}, Labels: map[string]string{}, Logs: map[string][]uint64{}}
		for i, step := range strings.Fields(steps) {
			mark := int64(i)
			label, build, isMove := strings.Cut(step, "=")
			switch {
			case step == "prune":
				h.Finish(h.Begin(Prune, "", 0, mark), Done, mark)
			case isMove:
				h.Finish(h.begin(Op{Kind: Move, Key: site + label, Build: build, StartMark: mark}), Done, mark)
				inv.Labels[site+label] = build
			default:
				key := site + step
				put, entry := h.Begin(Create, key, minBody, mark), h.Begin(Append, key, 0, mark)
				h.Finish(put, Done, mark)
				h.Finish(entry, Done, mark)
				if strings.Contains(left, step) {
					inv.Builds[key], inv.Logs[key] = Build{Op: put.ID, Size: minBody}, []uint64{entry.ID}
				}
			}
		}
		got := strings.Join(h.Judge(inv, Latest), "; ")
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%s, left %s: got %q, want %q", steps, left, got, want)
		}
	}
	f("a b c", "abc", "")
	f("a b c prune", "abc", "")
	f("a b c prune", "bc", "")
	f("a b c d prune prune", "cd", "")
	f("a b c", "bc", "build s-pruned/a: is absent")
	f("a b c", "bc", "log s-pruned/a: lost entry 2")
	f("prune a b c", "bc", "build s-pruned/a: is absent")
	f("a b c prune", "ac", "build s-pruned/b: is absent")
	f("a b c prune", "c", "build s-pruned/b: is absent")
	f("a live=a b c prune", "bc", "names build s-pruned/a, which is absent")
	f("a live=a b c prune live=b", "bc", "build s-pruned/a: is absent")
	f("a live=a b c live=b prune", "bc", "")
}
