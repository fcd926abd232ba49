//go:build (integration || torture) && linux && amd64

package faults

import (
	"encoding/json"
	"net/http"
)

const (
	label   = "/labels/live"
	version = "/versions/build"
)

// ofLabels are the operations on labels, and those that look at them.
var ofLabels = []operation{
	{
		name: "move a label", success: 200, repeat: 200,
		prepare: func(b *bench) { b.putBuilds(); b.mustMove("other") },
		do:      func(b *bench) int { return b.move("build") },
		after:   func(b *bench) bool { return b.names("other", "build") },
	},
	{
		name: "create a label", success: 201, repeat: 200,
		prepare: func(b *bench) { b.putBuilds(); b.must(204, "DELETE", label, nil) },
		do:      func(b *bench) int { return b.move("build") },
		after:   func(b *bench) bool { return b.names("", "build") },
	},
	{
		name: "first label of a site", fresh: true, success: 201, repeat: 200,
		prepare: func(b *bench) { b.must(201, "PUT", artifact, b.version(1)) },
		do:      func(b *bench) int { return b.move("build") },
		after:   func(b *bench) bool { return b.names("", "build") },
	},
	{
		name: "delete a label", success: 204, repeat: 204,
		prepare: func(b *bench) { b.putBuilds(); b.mustMove("build") },
		do:      func(b *bench) int { return b.send("DELETE", label, nil) },
		after:   func(b *bench) bool { return b.names("build", "") },
	},
	{
		name: "delete a labelled build", refused: true, success: 409, repeat: 409,
		prepare: func(b *bench) { b.putBuilds(); b.mustMove("other"); b.mustMove("build") }, // it is not in the cache
		do:      func(b *bench) int { return b.send("DELETE", artifact, nil) },
		after:   isKept,
	},
	{
		name: "delete a labelled version", refused: true, success: 409, repeat: 409,
		prepare: func(b *bench) { b.putBuilds(); b.mustMove("other"); b.mustMove("build") }, // it is not in the cache
		do:      func(b *bench) int { return b.send("DELETE", version, nil) },
		after:   isKept,
	},
	{
		name: "replace a labelled build", refused: true, size: smallSize, success: 409, repeat: 409,
		prepare: func(b *bench) { b.putBuilds(); b.mustMove("other"); b.mustMove("build") }, // it is not in the cache
		do:      func(b *bench) int { return b.send("PUT", artifact, b.version(2)) },
		after:   isKept,
	},
	{
		name: "delete a version", digest: true, size: smallSize, success: 204, repeat: 204,
		prepare: func(b *bench) {
			b.putHashed(1)
			b.must(201, "POST", "/logs", entry(1), "Idempotency-Key", "first")
		},
		do:    func(b *bench) int { return b.send("DELETE", version, nil) },
		after: isGone,
	},
	{
		name: "delete a log without a build", digest: true, success: 204, repeat: 204,
		prepare: func(b *bench) {
			b.must(204, "DELETE", artifact, nil)
			b.must(201, "POST", "/logs", entry(1), "Idempotency-Key", "first")
		},
		do:    func(b *bench) int { return b.send("DELETE", version, nil) },
		after: isGone,
	},
}

// putBuilds stores the builds that the label names, once: a labelled build cannot be replaced.
func (b *bench) putBuilds() {
	if b.serial == 1 {
		b.must(201, "PUT", artifact, b.version(1))
		b.must(201, "PUT", "/artifacts/other", b.version(1))
	}
}

func (b *bench) move(build string) int {
	return b.send("PUT", label, []byte(`{"build_id":"`+build+`"}`))
}

func (b *bench) mustMove(build string) {
	b.t.Helper()
	if got := b.move(build); got != 200 && got != 201 {
		b.t.Fatalf("move a label without a fault: %d", got)
	}
}

// names compares the build that the label names with both states, "" for no label. The build
// must be there.
func (b *bench) names(before, after string) bool {
	b.t.Helper()
	status, data, _ := b.exchange("GET", label, nil)
	var l struct {
		BuildID string `json:"build_id"`
	}
	if status != http.StatusOK && status != http.StatusNotFound || status == http.StatusOK && json.Unmarshal(data, &l) != nil {
		b.t.Errorf("the label: status %d, %q", status, data)
	}
	if l.BuildID != before && l.BuildID != after {
		b.t.Errorf("the label names %q, want %q or %q", l.BuildID, before, after)
	}
	if l.BuildID != "" {
		if status, _, header := b.exchange("GET", label+"/artifact", nil); status != http.StatusOK || header.Get("Content-Location") != "/sites/"+b.site+"/artifacts/"+l.BuildID {
			b.t.Errorf("the build of the label: status %d, %q", status, header.Get("Content-Location"))
		}
	}
	return l.BuildID == after
}

// isKept fails unless the labelled build is there.
func isKept(b *bench) bool {
	b.t.Helper()
	return b.sees(b.version(1), b.version(1)) && b.names("build", "build")
}

// isGone reports whether nothing is left of the build. Its log goes last.
func isGone(b *bench) bool {
	b.t.Helper()
	status, _, _ := b.exchange("GET", artifact, nil)
	listStatus, data, _ := b.exchange("GET", "/versions", nil)
	var list struct {
		Versions []struct {
			BuildID string            `json:"build_id"`
			Logs    []json.RawMessage `json:"logs"`
		}
	}
	if err := json.Unmarshal(data, &list); listStatus != http.StatusOK || err != nil {
		b.t.Fatalf("list: %d, %v", listStatus, err)
	}
	listed, logged := false, false
	for _, v := range list.Versions {
		if v.BuildID == "build" {
			listed, logged = true, len(v.Logs) > 0
		}
	}
	if status == http.StatusOK && !logged {
		b.t.Errorf("the build is there, and its log is gone")
	}
	return status == http.StatusNotFound && !listed
}
