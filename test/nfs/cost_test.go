//go:build torture

package nfs

import (
	"bufio"
	"context"
	"fmt"
	"maps"
	"net/http"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"pagewright/storage/test/vm"
)

// What each operation costs on the mount: in requests to the server, by their
// kinds, and in time. The time is that of an emulated machine and only good for
// a comparison.
func TestCostOnNFS(t *testing.T) {
	spent := map[string]map[string]map[string]int{} // requests by variant, operation and kind
	for _, v := range []vm.Variant{plainRename, asItIs} {
		t.Run(strings.ReplaceAll(v.Name, " ", "_"), func(t *testing.T) {
			program := service
			if v.Broken {
				program = v.BuildFor(t)
			}
			n := protocols[0].connect(t, 1, map[string]string{vm.ServicePath: program})
			spent[v.Name] = n.costs(t, v.Name)
		})
	}
	if t.Failed() {
		return
	}
	f := func(op, kind string, want func(before, now int) bool) {
		t.Helper()
		if before, now := spent[plainRename.Name][op][kind], spent[asItIs.Name][op][kind]; !want(before, now) {
			t.Errorf("%s: %d times %s, before %d", op, now, kind, before)
		}
	}
	for _, op := range []string{"GET", "GET of an absent site", "GET of an absent build", "delete"} {
		if before, now := total(spent[plainRename.Name][op]), total(spent[asItIs.Name][op]); now >= before+costRounds {
			t.Errorf("%s: %d requests in %d rounds, before %d", op, now, costRounds, before)
		}
	}
	f("create", "LINK", func(before, now int) bool { return before == 0 && now == costRounds })
	f("replace", "RENAME", func(before, now int) bool { return before == costRounds && now == 3*costRounds })
	// With the one of the client's own: of the name, and then of the file that is removed.
	f("replace, while it is downloaded", "RENAME", func(before, now int) bool { return before == 2*costRounds && now == 4*costRounds })
}

// total leaves out what the probe of the store sends, at any time.
func total(kinds map[string]int) (n int) {
	for kind, count := range kinds {
		if kind != "STATFS" {
			n += count
		}
	}
	return n
}

// costs measures every operation and gives the requests of each, by their kinds.
func (n *network) costs(t *testing.T, variant string) map[string]map[string]int {
	t.Helper()
	c := n.clients[0]
	run(t, c, "%s", smallBuffers)
	host := startService(t, c)
	small, large := strings.Repeat("x", 1000), strings.Repeat("x", hotSize)
	// want sends a request and wants the status. A # in the path is the number of
	// the round.
	want := func(status int, method, path, body string) func(i int) {
		return func(i int) {
			path := strings.ReplaceAll(path, "#", fmt.Sprint(i))
			if r := ask(t, method, host+path, body); r.status != status {
				t.Fatalf("%s %s: %d %s", method, path, r.status, r.body)
			}
		}
	}
	put := func(name, body string) func(i int) { return want(201, "PUT", "/sites/cost/artifacts/"+name, body) }
	var hangUp context.CancelFunc = func() {}
	download := func(int) {
		hangUp()
		ctx, cancel := context.WithCancel(t.Context())
		began := make(chan struct{})
		gone := make(chan struct{})
		go func() {
			defer close(gone)
			hold(ctx, t, host, "/sites/cost/artifacts/large", began)
		}()
		<-began
		hangUp = func() { cancel(); <-gone }
	}
	none := func(int) {}
	entry := `{"build_id":"b","action":"deploy","status":"ok"}`
	put("b", small)(0)
	put("large", large)(0)
	want(201, "POST", "/sites/cost/logs", entry)(0)
	spent := map[string]map[string]int{}
	for _, op := range []struct {
		name        string
		prepare, do func(i int)
	}{
		{"create", none, put("new-#", small)},
		{"replace", none, put("b", small)},
		{"replace, 1 MiB", none, put("large", large)},
		{"replace, while it is downloaded", download, put("large", large)},
		{"delete", none, want(204, "DELETE", "/sites/cost/artifacts/new-#", "")},
		{"append", none, want(201, "POST", "/sites/cost/logs", entry)},
		{"GET", none, want(200, "GET", "/sites/cost/artifacts/b", "")},
		{"GET of an absent build", none, want(404, "GET", "/sites/cost/artifacts/absent-#", "")},
		{"GET of an absent site", none, want(404, "GET", "/sites/absent-#/artifacts/b", "")},
	} {
		kinds, took := map[string]int{}, []time.Duration{}
		for i := range costRounds {
			op.prepare(i)
			before := n.requests(t)
			began := time.Now()
			op.do(i)
			took = append(took, time.Since(began))
			for kind, count := range n.requests(t) {
				kinds[kind] += count - before[kind]
			}
		}
		hangUp()
		all, text := 0, ""
		for _, kind := range slices.Sorted(maps.Keys(kinds)) {
			if count := kinds[kind]; count > 0 {
				all += count
				text += fmt.Sprintf(", %s %.1f", kind, float64(count)/costRounds)
			}
		}
		slices.Sort(took)
		spent[op.name] = kinds
		table.Add("cost: "+op.name, variant, fmt.Sprintf("%.1f requests%s", float64(all)/costRounds, text), "",
			fmt.Sprintf("median %s", took[len(took)/2].Round(100*time.Microsecond)))
	}
	return spent
}

// requests is how many requests of each kind the client has sent to the server
// about the mount (mountstats of nfs-utils reads the same).
func (n *network) requests(t *testing.T) map[string]int {
	t.Helper()
	counts, ours := map[string]int{}, false
	for s := bufio.NewScanner(strings.NewReader(run(t, n.clients[0], "cat /proc/self/mountstats"))); s.Scan(); {
		line := s.Text()
		if strings.HasPrefix(line, "device ") {
			ours = strings.Contains(line, " mounted on "+mount+" ")
		}
		kind, rest, ok := strings.Cut(strings.TrimSpace(line), ": ")
		fields := strings.Fields(rest)
		if !ours || !ok || len(fields) < 8 || strings.ToUpper(kind) != kind {
			continue
		}
		if count, err := strconv.Atoi(fields[0]); err == nil {
			counts[kind] = count
		}
	}
	if len(counts) == 0 {
		t.Fatal("no counts of requests")
	}
	return counts
}

// hold begins a download and takes nothing of its body until ctx ends.
func hold(ctx context.Context, t *testing.T, url, path string, began chan<- struct{}) {
	client := http.Client{Transport: &http.Transport{DisableKeepAlives: true, DialContext: slowDialer.DialContext}}
	defer close(began)
	req, err := http.NewRequestWithContext(ctx, "GET", url+path, nil)
	if err != nil {
		t.Error(err)
		return
	}
	resp, err := client.Do(req)
	if err != nil {
		t.Error(err)
		return
	}
	began <- struct{}{}
	<-ctx.Done()
	resp.Body.Close()
}
