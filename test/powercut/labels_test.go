//go:build integration || torture

package powercut

import (
	"net/http"
	"slices"
	"strings"
	"testing"

	"pagewright/storage/test/history"
	"pagewright/storage/test/vm"
)

const labelFaults = "labels and versions that are not durable"

// Each fault of labelFaults is that of one label, or of one site, so that one run shows them
// all: with each, a violation must begin.
var (
	labelNotSynced = vm.Replace("nfs_labels.go", `if _, err := temp.seal(); err != nil {`, `if l.Name == "content" {
		if err := errors.Join(temp.finish(), temp.closeSealed()); err != nil {
			return err
		}
	} else if _, err := temp.seal(); err != nil {`)
	labelDirNotSynced = vm.Replace("nfs_labels.go", `return temp.syncDir()`, `if l.Name == "directory" {
		return nil
	}
	return temp.syncDir()`)
	unlabelNotSynced = vm.Replace("nfs_labels.go", `	return n.disk.syncDir(dir)
}`, `	if label == "deleted" {
		return nil
	}
	return n.disk.syncDir(dir)
}`)
	artifactsNotSynced = vm.Replace("nfs_delete.go", `if err := d.syncArtifacts(); err != nil {`, `if err := error(nil); err != nil {`)
	logsNotSynced      = vm.Replace("nfs_delete.go", `return n.disk.syncDir(d.logs)`, `return nil`)
	labelsNotPlanned   = vm.Replace("prune_plan.go", `		s.there[b.ID] = b.HasArtifact
		return keepLabel`, `		s.there[b.ID] = b.HasArtifact`)
	lastNotKept   = vm.Replace("prune_plan.go", `case s.good <= s.rule.keepLast:`, `case s.good < s.rule.keepLast:`)
	labelsNotSeen = vm.Replace("nfs_artifact_write.go", `c.protected = n.checkUnlabelled(c)`, `c.protected = nil`)

	faultsOfLabels = vm.Variant{Name: labelFaults, Broken: true,
		Edits: []vm.Edit{labelNotSynced, labelDirNotSynced, unlabelNotSynced, artifactsNotSynced, logsNotSynced, labelsNotSeen, labelsNotPlanned, lastNotKept}}

	shownByLabels = []string{"label labels/content: is damaged", "label labels/directory: ", "label labels/deleted: ",
		"build versions/a: ", "log versions/b: ", "label labels/kept: names build labels/kept, which is absent",
		"label some-pruned/live: names build some-pruned/a, which is absent", "build some-pruned/c: is absent"}
)

// notShown returns the faults that no violation shows.
func notShown(faults, violations []string) []string {
	return slices.DeleteFunc(slices.Clone(faults), func(fault string) bool {
		return slices.ContainsFunc(violations, func(v string) bool { return strings.Contains(v, ": "+fault) })
	})
}

// writeLabels has one client change labels and delete versions, one request after the other, and
// gives the moment of each acknowledgement.
func (r *recording) writeLabels(t *testing.T) []point {
	t.Helper()
	var points []point
	ctx, d := t.Context(), r.driver
	must := func(what string, status int, want ...int) {
		t.Helper()
		if !slices.Contains(want, status) {
			t.Fatalf("%s: status %d\n%s", what, status, r.machine.ServiceLog(ctx, port))
		}
		points = r.acknowledged(points)
	}
	for _, build := range []string{"a", "b", "kept"} {
		must("put", d.Do(ctx, history.Put, "labels/"+build, 20_000), http.StatusCreated)
	}
	for _, label := range []string{"content", "directory", "deleted"} {
		must("create a label", d.Move(ctx, "labels/"+label, "a"), http.StatusCreated)
		must("move a label", d.Move(ctx, "labels/"+label, "b"), http.StatusOK)
	}
	must("label again", d.Move(ctx, "labels/directory", "b"), http.StatusOK)
	must("delete a label", d.Do(ctx, history.Unlabel, "labels/deleted", 0), http.StatusNoContent)
	must("delete the build of no label", d.Do(ctx, history.DeleteVersion, "labels/a", 0), http.StatusNoContent)
	for _, build := range []string{"a", "c"} {
		must("put", d.Do(ctx, history.Put, "versions/"+build, 20_000), http.StatusCreated)
	}
	for _, build := range []string{"b", "c"} {
		must("append", d.Do(ctx, history.Append, "versions/"+build, 0), http.StatusCreated)
	}
	for _, build := range []string{"a", "b", "c"} {
		must("delete a version", d.Do(ctx, history.DeleteVersion, "versions/"+build, 0), http.StatusNoContent)
	}
	for _, build := range []string{"a", "b", "c", "d"} {
		must("put", d.Do(ctx, history.Create, "some-pruned/"+build, 20_000), http.StatusCreated)
	}
	must("label", d.Move(ctx, "some-pruned/live", "a"), http.StatusCreated)
	if err := prune(ctx, r.machine, d, func() {}, ""); err != nil {
		t.Fatal(err)
	}
	points = r.acknowledged(points)
	must("label", d.Move(ctx, "labels/kept", "kept"), http.StatusCreated)
	for _, kind := range []history.Kind{history.Put, history.Delete, history.DeleteVersion} {
		// The variant does it.
		must("change a labelled build", d.Do(ctx, kind, "labels/kept", 20_000), http.StatusConflict, http.StatusCreated, http.StatusNoContent)
	}
	return points
}
