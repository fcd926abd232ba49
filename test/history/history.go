// Package history records the requests of clients to a store and the responses,
// and judges whether what is found in the store later is consistent with them.
package history

import (
	"fmt"
	"math"
	"slices"
	"sync"
	"time"
)

// Kind is what an Op asks for.
type Kind int

const (
	Put    Kind = iota // upload, over what is there
	Create             // upload, unless something is there
	Delete
	Append    // of a log entry
	DeleteLog // the log of a build: a part of DeleteVersion
	Move      // of a label
	Unlabel
	Prune // a run of prune, of all sites

	DeleteVersion // the Delete and the DeleteLog of one request
)

// Outcome is what the response says.
type Outcome int

const (
	Unknown Outcome = iota // nothing, or a failure that says neither yes nor no
	Done                   // acknowledged
	Refused                // it was not done and never will be
)

// Op is one request. Marks count along with the durable state of the store, for
// a judge of its past states; where there is no such count they are 0.
type Op struct {
	ID      uint64 // from 1, unique in its history
	Kind    Kind
	Key     string // site/build, or site/label
	Size    int
	Build   string // that a Move names
	Outcome Outcome

	Start, End         time.Duration // since the history began; End is forever while unknown
	StartMark, EndMark int64
	settled            bool // found to be done, but never acknowledged
}

const forever = time.Duration(math.MaxInt64)

// Latest is the mark of the store as it is now.
const Latest = int64(math.MaxInt64)

// History is safe for concurrent use. The zero value is an empty one.
type History struct {
	mu    sync.Mutex
	began time.Time
	ops   []*Op
}

// Begin notes that a request is about to be sent.
func (h *History) Begin(kind Kind, key string, size int, mark int64) *Op {
	return h.begin(Op{Kind: kind, Key: key, Size: size, StartMark: mark})
}

func (h *History) begin(begun Op) *Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.began.IsZero() {
		h.began = time.Now()
	}
	op := &begun
	op.ID, op.Start, op.End = uint64(len(h.ops))+1, time.Since(h.began), forever
	h.ops = append(h.ops, op)
	return op
}

// Finish records the response.
func (h *History) Finish(op *Op, outcome Outcome, mark int64) {
	h.mu.Lock()
	defer h.mu.Unlock()
	op.Outcome = outcome
	if outcome != Unknown {
		op.End, op.EndMark = time.Since(h.began), mark
	}
}

func (h *History) unknownAppends() []*Op {
	h.mu.Lock()
	defer h.mu.Unlock()
	var ops []*Op
	for _, op := range h.ops {
		if op.Kind == Append && op.Outcome == Unknown {
			ops = append(ops, op)
		}
	}
	return ops
}

// Count returns how many requests there are of each outcome.
func (h *History) Count() (all, done, refused, unknown int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, op := range h.ops {
		if op.Kind == Prune {
			continue
		}
		all++
		switch op.Outcome {
		case Done:
			done++
		case Refused:
			refused++
		default:
			unknown++
		}
	}
	return all, done, refused, unknown
}

// Judge returns how inv, the store as it was made durable at the given mark,
// breaks the promise: what was acknowledged by then is there whole, once, and
// what was not is there whole or not at all. It returns nil if it keeps it.
func (h *History) Judge(inv *Inventory, mark int64) []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	violations := slices.Concat(inv.Faults, inv.Front)
	uploads, appends, moves := h.byKey(Put, Create, Delete), h.byKey(Append, DeleteLog), h.byKey(Move, Unlabel)
	for key := range inv.Builds {
		if uploads[key] == nil {
			violations = append(violations, fmt.Sprintf("build %s: nobody sent it", key))
		}
	}
	for key := range inv.Logs {
		if appends[key] == nil {
			violations = append(violations, fmt.Sprintf("log %s: nobody sent it", key))
		}
	}
	for key, ops := range appends {
		appends[key] = append(ops, h.prunes(DeleteLog, key, uploads[key], moves, inv)...)
	}
	for key, ops := range uploads {
		uploads[key] = append(ops, h.prunes(Delete, key, ops, moves, inv)...)
	}
	for key, ops := range uploads {
		found, there := inv.Builds[key]
		if v := judgeBuild(ops, found, there, mark); v != "" {
			violations = append(violations, fmt.Sprintf("build %s: %s", key, v))
		}
	}
	for key, ops := range appends {
		for _, v := range judgeLog(ops, inv.Logs[key], uploadOf(inv.Builds[key], uploads[key]), mark) {
			violations = append(violations, fmt.Sprintf("log %s: %s", key, v))
		}
	}
	for key := range inv.Labels {
		if moves[key] == nil {
			violations = append(violations, fmt.Sprintf("label %s: nobody sent it", key))
		}
	}
	for key, ops := range moves {
		build, there := inv.Labels[key]
		if v := judgeLabel(ops, build, there, mark); v != "" {
			violations = append(violations, fmt.Sprintf("label %s: %s", key, v))
		}
		if !there {
			continue
		}
		buildKey := buildOfLabel(key, build)
		if v := judgeLabelled(ops, build, inv.Builds, uploads, buildKey); v != "" {
			violations = append(violations, fmt.Sprintf("label %s: names build %s, %s", key, buildKey, v))
		}
	}
	slices.Sort(violations)
	return violations
}

// byKey returns the ops of some kinds, by their key.
func (h *History) byKey(kinds ...Kind) map[string][]*Op {
	found := map[string][]*Op{}
	for _, op := range h.ops {
		if slices.Contains(kinds, op.Kind) {
			found[op.Key] = append(found[op.Key], op)
		}
	}
	return found
}

// hashed reports whether the client sends the digest of the upload: it does for every other one.
func (op *Op) hashed() bool { return op.Kind <= Create && op.ID%2 == 0 }

// possible reports whether op may have been done by mark, certain whether it was.
func (op *Op) possible(mark int64) bool { return op.Outcome != Refused && op.StartMark <= mark }
func (op *Op) certain(mark int64) bool  { return op.Outcome == Done && op.EndMark <= mark }

// overtaken returns an op that was begun after op had ended, and was
// acknowledged by mark, so that op's effect cannot be what is found.
func overtaken(op *Op, ops []*Op, mark int64) *Op {
	for _, other := range ops {
		if other != op && other.certain(mark) && (op == nil || op.End < other.Start) {
			return other
		}
	}
	return nil
}

// judgeBuild is the judgement of a register that is written whole: what is
// found must be the effect of an op that may have been done and that no
// acknowledged op came wholly after.
func judgeBuild(ops []*Op, found Build, there bool, mark int64) string {
	if there && found.Op == 0 {
		return found.Fault
	}
	if there {
		i := slices.IndexFunc(ops, func(op *Op) bool { return op.ID == found.Op })
		switch {
		case i < 0:
			return fmt.Sprintf("holds upload %d, which was not sent here", found.Op)
		case ops[i].Kind == Delete || found.Size != int64(max(ops[i].Size, minBody)):
			return fmt.Sprintf("holds upload %d with %d bytes, which is not what was sent", found.Op, found.Size)
		case !ops[i].possible(mark):
			return fmt.Sprintf("holds upload %d, which was refused or not sent yet", found.Op)
		}
		if by := overtaken(ops[i], ops, mark); by != nil {
			return fmt.Sprintf("holds upload %d, but op %d was acknowledged after it", found.Op, by.ID)
		}
		return judgeDigest(ops[i], ops, found.Digest, mark)
	}
	if lost := lostBut(Delete, ops, mark); lost != nil {
		return fmt.Sprintf("is absent, but upload %d was acknowledged", lost.ID)
	}
	return ""
}

// lostBut returns an acknowledged op whose effect is missing, unless an op of the kind removes
// may have undone it.
func lostBut(removes Kind, ops []*Op, mark int64) *Op {
	lost := overtaken(nil, ops, mark)
	for _, op := range ops {
		if lost != nil && op.Kind == removes && op.possible(mark) && overtaken(op, ops, mark) == nil {
			return nil
		}
	}
	return lost
}

// judgeDigest: the digest of what is found is never wrong, and that of an acknowledged upload
// is there, unless another one may have been at work meanwhile.
func judgeDigest(op *Op, ops []*Op, digest string, mark int64) string {
	alone := func(other *Op) bool { return other == op || !other.possible(mark) || other.End < op.Start }
	switch {
	case digest == wrong:
		return fmt.Sprintf("holds upload %d, and a digest of other bytes that is bound to it", op.ID)
	case digest == right && !op.hashed():
		return fmt.Sprintf("holds upload %d with a digest that nobody sent", op.ID)
	case (digest == none || digest == stale) && op.hashed() && !op.settled && op.certain(mark) && !slices.ContainsFunc(ops, func(o *Op) bool { return !alone(o) }):
		return fmt.Sprintf("holds upload %d, whose acknowledged digest is %s", op.ID, digest)
	}
	return ""
}

// judgeLog: every acknowledged entry once, no entry twice, none that was not
// sent, and those that followed each other in their order.
// A delete of the log takes all that was acknowledged before it began, and may take what was
// sent until it ended. It takes nothing as long as upload, the build that is there, precedes it:
// the log goes last.
func judgeLog(ops []*Op, found []uint64, upload *Op, mark int64) []string {
	var violations []string
	byID, count := map[uint64]*Op{}, map[uint64]int{}
	for _, op := range ops {
		byID[op.ID] = op
	}
	var latest *Op // of those seen, the one that was begun last
	for _, id := range found {
		count[id]++
		op := byID[id]
		if op == nil || op.Kind != Append || !op.possible(mark) {
			violations = append(violations, fmt.Sprintf("holds entry %d, which was not sent here, or was refused", id))
			continue
		}
		for _, by := range ops {
			if by.Kind == DeleteLog && by.certain(mark) && op.End < by.Start {
				violations = append(violations, fmt.Sprintf("holds entry %d, but op %d deleted the log after it", id, by.ID))
				break
			}
		}
		switch {
		case count[id] == 2:
			violations = append(violations, fmt.Sprintf("holds entry %d twice", id))
		case latest != nil && op.End < latest.Start:
			violations = append(violations, fmt.Sprintf("holds entry %d before %d, which followed it", latest.ID, id))
		}
		if latest == nil || op.Start > latest.Start {
			latest = op
		}
	}
	for _, op := range ops {
		mayTake := func(d *Op) bool {
			return d.Kind == DeleteLog && d.possible(mark) && d.End >= op.Start && (upload == nil || upload.End >= d.Start)
		}
		if op.Kind == Append && op.certain(mark) && count[op.ID] == 0 && !slices.ContainsFunc(ops, mayTake) {
			violations = append(violations, fmt.Sprintf("lost entry %d, which was acknowledged", op.ID))
		}
	}
	return violations
}

// JudgeCreates returns the builds that were created more than once though
// nobody deleted them.
func (h *History) JudgeCreates() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	created, deleted := map[string]int{}, map[string]bool{}
	for _, op := range h.ops {
		if op.Kind == Create && op.Outcome == Done {
			created[op.Key]++
		}
		if op.Kind == Delete {
			deleted[op.Key] = true
		}
	}
	var violations []string
	for key, n := range created {
		if n > 1 && !deleted[key] {
			violations = append(violations, fmt.Sprintf("build %s: created %d times", key, n))
		}
	}
	slices.Sort(violations)
	return violations
}

// Settle takes inv as the truth about what was not known: after it no request
// of before is in flight, so what is not there now must never come, and what is
// there must stay. Only for a store that was judged and that no client uses.
func (h *History) Settle(inv *Inventory) {
	h.mu.Lock()
	defer h.mu.Unlock()
	now := time.Since(h.began)
	for _, op := range h.ops {
		if op.Outcome != Unknown {
			continue
		}
		there := false
		switch op.Kind {
		case Append:
			there = slices.Contains(inv.Logs[op.Key], op.ID)
		case DeleteLog:
			there = !slices.ContainsFunc(inv.Logs[op.Key], func(id uint64) bool { return h.ops[id-1].End < op.Start })
		case Move:
			there = inv.Labels[op.Key] == op.Build
		case Unlabel:
			_, present := inv.Labels[op.Key]
			there = !present
		case Delete:
			_, present := inv.Builds[op.Key]
			there = !present
		default:
			there = inv.Builds[op.Key].Op == op.ID
		}
		op.Outcome, op.End, op.EndMark = Refused, now, Latest-1
		if there {
			op.Outcome, op.settled = Done, true
		}
	}
}
