//go:build integration || torture

package nfs

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pagewright/storage/test/history"
	"pagewright/storage/test/vm"
)

// Under ordinary reads and lists of two services, a build and its log are always
// somewhere on the server, and every client sees them: while one service
// replaces the build and appends to the log.
func TestBuildAndLogAreNeverAbsentOnNFS(t *testing.T) {
	for _, v := range replacing {
		t.Run(strings.ReplaceAll(v.Name, " ", "_"), func(t *testing.T) {
			program := service
			if v.Broken {
				program = v.BuildFor(t)
			}
			began := time.Now()
			n := protocols[0].connect(t, 2, map[string]string{vm.ServicePath: program})
			looks, reads, violations := n.absences(t, n.serve(t))
			gone := looks[0].Gone + looks[1].Gone
			table.Add("replaced "+fmt.Sprint(absentWrites)+" times under reads: "+v.Name, "NFSv4.2",
				fmt.Sprintf("build: %d looks, name missing in %d (%d times), nothing there in %d; log: %d, %d (%d), %d; %d reads", looks[0].Looks, looks[0].Absent,
					looks[0].Left, looks[0].Gone, looks[1].Looks, looks[1].Absent, looks[1].Left, looks[1].Gone, reads),
				gone+len(violations), time.Since(began).Round(time.Second))
			if looks[0].Left == 0 || looks[1].Left == 0 || reads == 0 {
				t.Errorf("%+v, %d reads: too little to tell", looks, reads)
			}
			switch {
			case v.Broken && gone == 0:
				t.Error("not caught: the proof proves nothing")
			case !v.Broken:
				if gone > 0 {
					t.Errorf("neither the file nor its replacement was there: %+v", looks)
				}
				failAll(t, violations)
			}
		})
	}
}

// looks is what "guest watch" saw of a file.
type looks struct{ Looks, Absent, Gone, Left int }

// absences replaces and reads, and gives what the server saw meanwhile, the
// number of reads and what was wrong with them.
func (n *network) absences(t *testing.T, drivers []*history.Driver) (seen []looks, reads int64, violations []string) {
	t.Helper()
	const least = 1000 // the size of the first build; each is longer by one
	var mu sync.Mutex
	fault := func(format string, args ...any) {
		mu.Lock()
		defer mu.Unlock()
		violations = append(violations, fmt.Sprintf(format, args...))
	}
	d := drivers[0]
	write := func(i int) {
		for _, kind := range []history.Kind{history.Put, history.Append} {
			if status := d.Do(t.Context(), kind, hotKey, least+i); status != 201 {
				fault("write %d: status %d", i, status)
			}
		}
	}
	write(0)
	keepOpen(t, n.clients[0], hotFile)
	keepOpen(t, n.clients[0], hotLog)
	out := make(chan string)
	go func() {
		text, err := n.server.Run(t.Context(), "guest watch "+hotFile+" "+hotLog)
		if err != nil {
			text = err.Error()
		}
		out <- text
	}()
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	var g sync.WaitGroup
	var done, judged atomic.Int64 // the last write that was acknowledged
	for i, d := range drivers {
		g.Go(func() {
			for ctx.Err() == nil {
				want := done.Load()
				if _, size, err := d.Fetch(t.Context(), hotSite, hotBuild); err != nil || size < least+want {
					fault("service %d: a download of %d bytes, %v; write %d was acknowledged", i, size, err, want)
				}
				want = done.Load()
				if l, err := d.Listed(t.Context(), hotSite); err != nil || int64(l[hotBuild]) < want+1 {
					fault("service %d: a list with %d entries, %v; write %d was acknowledged", i, l[hotBuild], err, want)
				}
				judged.Add(2)
			}
		})
	}
	for i := 1; i <= absentWrites; i++ {
		write(i)
		done.Store(int64(i))
	}
	stop()
	g.Wait()
	for _, m := range append(n.clients, n.server) {
		run(t, m, "touch /tmp/stop")
	}
	text := <-out
	if err := json.Unmarshal([]byte(text), &seen); err != nil || len(seen) != 2 {
		t.Fatalf("guest watch: %v: %s", err, text)
	}
	return seen, judged.Load(), violations
}
