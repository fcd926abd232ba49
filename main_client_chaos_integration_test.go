//go:build integration

package main

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

// Pushes and pulls over a proxy that mistreats a third of the requests: what a command reports is
// true, no file is wrong, and no push replaces a build that its user has not seen.
func TestRealStoresClientOverABadLine(t *testing.T) {
	t.Run("directory", func(t *testing.T) { testBadLine(t, startServer(t)) })
	eachStore(t, func(t *testing.T, s *realStore) { testBadLine(t, s.frontDoor(t)) })
}

// badLine is a service behind a hostileProxy.
type badLine struct {
	server  *testServer
	proxy   *hostileProxy
	dir     string // of files
	clients atomic.Int64
	done    [5]atomic.Int64 // transfers by kind
}

func testBadLine(t *testing.T, server *testServer) {
	const seed = 20
	l := &badLine{server: server, proxy: startHostileProxy(t, "http://"+server.addr, seed), dir: t.TempDir()}
	kinds := [...]func(*testing.T, *rand.Rand){l.pushNew, l.pushOver, l.pushTaken, l.pull, l.pullAbsent}
	var g sync.WaitGroup
	var next atomic.Int64
	for w := range uint64(8) {
		r := rand.New(rand.NewPCG(seed, 100+w))
		g.Go(func() {
			for next.Add(1) <= clientTransfers {
				i := []int{0, 0, 0, 1, 1, 2, 3, 3, 3, 4}[r.IntN(10)]
				kinds[i](t, r)
				l.done[i].Add(1)
			}
		})
	}
	g.Wait()
	t.Logf("%d pushes of new builds, %d over builds that another client replaces, %d of ids that are taken, %d pulls, %d of builds that are not there; fates: %v",
		l.done[0].Load(), l.done[1].Load(), l.done[2].Load(), l.done[3].Load(), l.done[4].Load(), l.proxy.fates)
}

// run runs a command of the client.
func (l *badLine) run(t *testing.T, client string, args ...string) (stderr string, status int) {
	log := &lockedBuffer{}
	err := run(t.Context(), args, []string{"PAGEWRIGHT_URL=" + l.proxy.URL + "/" + client}, &bytes.Buffer{}, log)
	if err != nil {
		status = exitStatus(err)
		fmt.Fprintln(log, err)
	}
	return log.String(), status
}

// file makes a file of random size and content.
func (l *badLine) file(t *testing.T, client string, r *rand.Rand) (path string, data []byte) {
	data = make([]byte, 1+r.IntN(1<<r.IntN(clientSizeBits+1)))
	_, _ = rand.NewChaCha8([32]byte([]byte(fmt.Sprintf("%-32d", r.Int64())))).Read(data)
	path = filepath.Join(l.dir, client+".tar.gz")
	if err := os.WriteFile(path, data, 0o600); err != nil {
		t.Error(err)
	}
	return path, data
}

func (l *badLine) client() string { return fmt.Sprint("c", l.clients.Add(1)) }

// stored returns what the service has.
func (l *badLine) stored(t *testing.T, site string) []byte {
	t.Helper()
	return l.server.get(t, 200, "/sites/"+site+"/artifacts/b").body
}

func (l *badLine) pushNew(t *testing.T, r *rand.Rand) {
	client := l.client()
	path, data := l.file(t, client, r)
	args := []string{"push", path, client, "b"}
	if r.IntN(2) == 0 {
		args = append(args, "--create")
	}
	labelled := r.IntN(4) == 0
	if labelled {
		args = append(args, "--label", "live", "--log", "deploy=ok")
	}
	log, status := l.run(t, client, args...)
	if status != 0 || !bytes.Equal(l.stored(t, client), data) {
		t.Errorf("%q of %d bytes: exit status %d:\n%s", args, len(data), status, log)
	}
	if !labelled {
		return
	}
	l.server.get(t, 200, "/sites/"+client+"/labels/live")
	if v := l.server.versions(t, "/sites/"+client+"/versions"); len(v.Versions) != 1 || len(v.Versions[0].Logs) != 1 {
		t.Errorf("%q: the list has %+v", args, v)
	}
}

// pushOver pushes over a build that another client replaces meanwhile.
func (l *badLine) pushOver(t *testing.T, r *rand.Rand) {
	client := l.client()
	path, data := l.file(t, client, r)
	url := "/sites/" + client + "/artifacts/b"
	l.server.put(t, 201, url, "before")
	var began time.Time
	other := []byte("other " + client)
	delay := time.Duration(r.Int64N(int64(2 * time.Second)))
	replaced := make(chan struct{})
	go func() {
		defer close(replaced)
		time.Sleep(delay) // at a random moment of the push
		began = time.Now()
		l.server.put(t, 201, url, other)
	}()
	log, status := l.run(t, client, "push", path, client, "b")
	<-replaced
	now := l.stored(t, client)
	ours := bytes.Equal(now, data)
	seen := l.proxy.lastLook(client)
	switch {
	case !ours && !bytes.Equal(now, other):
		t.Errorf("the build is neither that of the push nor that of the other client:\n%s", log)
	case status != 0 && status != exitConflict, status == exitConflict && ours:
		t.Errorf("a push over a build that was replaced: exit status %d, ours: %t:\n%s", status, ours, log)
	case ours && seen.Before(began):
		t.Errorf("the push replaced a build that was stored %v after its look:\n%s", began.Sub(seen), log)
	}
}

// pushTaken pushes a build under the id of another one.
func (l *badLine) pushTaken(t *testing.T, r *rand.Rand) {
	client := l.client()
	path, _ := l.file(t, client, r)
	l.server.put(t, 201, "/sites/"+client+"/artifacts/b", "other")
	log, status := l.run(t, client, "push", "--create", path, client, "b")
	if status != exitConflict || string(l.stored(t, client)) != "other" {
		t.Errorf("push --create of an id that is taken: exit status %d:\n%s", status, log)
	}
}

func (l *badLine) pull(t *testing.T, r *rand.Rand) {
	client := l.client()
	path, data := l.file(t, client, r)
	l.server.put(t, 201, "/sites/"+client+"/artifacts/b", data)
	log, status := l.run(t, client, "pull", client, "b", "-o", path+".back")
	back, _ := os.ReadFile(path + ".back")
	if status != 0 || !bytes.Equal(back, data) {
		t.Errorf("pull of %d bytes: exit status %d, %d bytes:\n%s", len(data), status, len(back), log)
	}
}

func (l *badLine) pullAbsent(t *testing.T, r *rand.Rand) {
	client := l.client()
	path := filepath.Join(l.dir, client)
	what := []string{"b", "@live"}[r.IntN(2)]
	log, status := l.run(t, client, "pull", client, what, "-o", path)
	if _, err := os.Lstat(path); status != exitAbsent || err == nil {
		t.Errorf("pull of a build that is not there: exit status %d, %v:\n%s", status, err, log)
	}
}
