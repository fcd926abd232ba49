package history

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

const (
	prunedSuffix = "-pruned" // of the sites from which prune removes builds
	keptByPrune  = 2         // the newest builds of such a site
)

// Retention is the retention file of a Driver: prune keeps the newest builds of the sites that
// MixPruned writes to, and all young builds of all others.
var Retention = fmt.Sprintf(`{"grace": "0h", "max_delete_percent": 100, "rules": [
	{"sites": ["*%s"], "keep_last": %d, "labels": "optional"},
	{"sites": ["*"], "keep_within": "1w", "labels": "optional"}]}`, prunedSuffix, keptByPrune)

// Prune notes that prune runs until run returns, and returns its error. It must have ended then.
func (d *Driver) Prune(run func() error) error {
	op := d.History.Begin(Prune, "", 0, d.mark())
	err := run()
	d.History.Finish(op, Done, d.mark())
	return err
}

// FillPruned gives prune something to remove: it stores builds in the sites of MixPruned.
func (d *Driver) FillPruned(ctx context.Context, prefix string, sites int) {
	for i := range sites * 4 * keptByPrune {
		id, _, _, _ := d.History.Count()
		d.Do(ctx, Create, fmt.Sprintf("%s-%d%s/build-%d", prefix, i%sites, prunedSuffix, id), minBody)
	}
}

// MixPruned is the load on sites that are pruned meanwhile, with one worker for each, until ctx
// ends: builds with logs, which nobody but prune deletes, and labels of recent ones.
func (d *Driver) MixPruned(ctx context.Context, prefix string, workers int, seed uint64) {
	var wg sync.WaitGroup
	for w := range workers {
		rng := rand.New(rand.NewPCG(seed, uint64(w)))
		wg.Go(func() { d.mixPruned(ctx, rng, fmt.Sprintf("%s-%d%s/", prefix, w, prunedSuffix)) })
	}
	wg.Wait()
}

func (d *Driver) mixPruned(ctx context.Context, rng *rand.Rand, site string) {
	for ctx.Err() == nil {
		id, _, _, _ := d.History.Count() // grows with each request: no build is sent twice
		build := fmt.Sprintf("build-%d", id)
		if d.Do(ctx, Create, site+build, someSize(rng)) != http.StatusCreated {
			select { // the service may be away: do not spin
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
			continue
		}
		if rng.IntN(2) == 0 {
			d.Do(ctx, Append, site+build, 0)
		}
		if rng.IntN(4) == 0 {
			d.Move(ctx, site+fmt.Sprintf("label-%d", rng.IntN(8)), build)
		}
	}
}

// Pruned returns how many acknowledged builds of the sites that are pruned are not in inv.
func (h *History) Pruned(inv *Inventory) (n int) {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, op := range h.ops {
		if _, there := inv.Builds[op.Key]; op.Kind == Create && op.Outcome == Done && isPruned(op.Key) && !there {
			n++
		}
	}
	return n
}

// isPruned reports whether prune may remove the build of a key.
func isPruned(key string) bool {
	site, _, _ := strings.Cut(key, "/")
	return strings.HasSuffix(site, prunedSuffix)
}

// prunes returns, as deletes of the kind, the runs of prune that may have removed what uploads
// stored: inv has enough newer builds of the site, and no label named the build all the time.
func (h *History) prunes(kind Kind, key string, uploads []*Op, moves map[string][]*Op, inv *Inventory) []*Op {
	site, build, _ := strings.Cut(key, "/")
	newer := 0
	for other, found := range inv.Builds {
		if strings.HasPrefix(other, site+"/") && other != key && h.mayBeNewer(found, uploads) {
			newer++
		}
	}
	if !isPruned(key) || newer < keptByPrune {
		return nil
	}
	var deletes []*Op
	for _, run := range h.ops {
		if run.Kind == Prune && !isProtected(site, build, moves, run) {
			del := *run
			del.Kind, del.Key, del.Outcome = kind, key, Unknown
			deletes = append(deletes, &del)
		}
	}
	return deletes
}

// mayBeNewer reports whether found may have been stored after each of uploads.
func (h *History) mayBeNewer(found Build, uploads []*Op) bool {
	if found.Op == 0 || found.Op > uint64(len(h.ops)) {
		return false
	}
	stored := h.ops[found.Op-1]
	return !slices.ContainsFunc(uploads, func(u *Op) bool { return stored.End < u.Start })
}

// isProtected reports whether a label of the site named the build as long as run ran.
func isProtected(site, build string, moves map[string][]*Op, run *Op) bool {
	for label, ops := range moves {
		if !strings.HasPrefix(label, site+"/") {
			continue
		}
		for _, m := range ops {
			movedAway := func(o *Op) bool {
				return o.Outcome != Refused && o.Build != build && o.End > m.Start && o.Start < run.End
			}
			if m.Kind == Move && m.Build == build && m.Outcome == Done && m.End < run.Start && !slices.ContainsFunc(ops, movedAway) {
				return true
			}
		}
	}
	return false
}
