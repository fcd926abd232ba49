//go:build integration

package main

import (
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"sync/atomic"
	"testing"
)

// TestRealStoresLabelRaces races over two services on each kind of store. The replies of the
// services are lost sometimes, and those of the store to the first of them.
func TestRealStoresLabelRaces(t *testing.T) {
	eachDigestStore(t, func(t *testing.T, d *digestRig) {
		through, dropped := "", &atomic.Int64{}
		if d.server != nil {
			through, dropped = lossyProxy(t, d.server.url(), 9)
		}
		d.setenv(t)
		services := []*storeServer{d.replicaThrough(t, through), d.replica(t)}
		r := &labelRaces{environ: d.environ(""), prune: pruneHere, gap: d.server != nil}
		for _, s := range services {
			r.replicas = append(r.replicas, s.url)
		}
		for _, mix := range raceMixes {
			t.Run(mix.name, func(t *testing.T) {
				for range (labelRaceRounds + 3) / 4 {
					r.round(t, mix, nil)
				}
			})
		}
		r.report(t, d.name)
		t.Logf("%d replies of the store were lost", dropped.Load())
	})
}

// storeGate is a proxy's way to stop whoever uses it. Without a storeStop everything passes.
type storeGate struct{ atomic.Pointer[storeStop] }

// storeStop holds the reply to the nth request to a store, and those to all later ones.
type storeStop struct {
	left atomic.Int64 // requests until then
	held chan struct{}
	open chan struct{} // closed: the replies go on
	cut  bool          // instead they are lost
}

func (g *storeGate) modify(*http.Response) error {
	stop := g.Load()
	if stop == nil {
		return nil
	}
	switch left := stop.left.Add(-1); {
	case left > 0:
		return nil
	case left == 0:
		close(stop.held)
	}
	if <-stop.open; stop.cut {
		panic(http.ErrAbortHandler)
	}
	return nil
}

// labelCrash is an operation of one replica that stops after each of its requests to the store, and
// what the other replica does then.
type labelCrash struct {
	verb, other string
}

// labelCrashes are all of a move against what can take its build away.
var labelCrashes = []labelCrash{
	{"move", "delete"}, {"move", "remove"}, {"move", "upload"},
	{"delete", "move"}, {"remove", "move"}, {"upload", "move"}, {"prune", "move"},
}

// do sends a request of a verb for the older of two builds.
func (s *siteRace) do(replica int, verb string) {
	switch build := "b90"; verb {
	case "move":
		s.move(replica, "live", build, false)
	case "upload":
		s.upload(replica, build, false)
	case "delete":
		s.send(replica, false, verb, []string{build}, "DELETE", "/artifacts/"+build, "")
	case "remove":
		s.send(replica, false, verb, []string{build}, "DELETE", "/versions/"+build, "")
	case "prune":
		s.runPrune("0h")
	}
}

// TestRealStoresLabelCrashes stops a service between any two requests of an operation to the store.
// Either it is killed, and then the other service acts, or it goes on when that has acted.
func TestRealStoresLabelCrashes(t *testing.T) {
	eachDigestStore(t, func(t *testing.T, d *digestRig) {
		if d.server == nil {
			return // TestLabelRacesWithKills
		}
		d.setenv(t)
		gate := &storeGate{}
		proxy := storeProxy(t, d.server.url(), gate.modify)
		victim, other := d.replicaThrough(t, proxy), d.replica(t)
		r := &labelRaces{replicas: []func() string{victim.url, other.url}, environ: d.environ(proxy), prune: pruneElsewhere, gap: true}
		for _, c := range labelCrashes {
			t.Run(c.verb+" and "+c.other, func(t *testing.T) {
				n := 1 + rand.N(crashStep)
				for r.stopAfter(t, c, n, gate, victim, false) {
					if c.verb != "prune" && rand.N(crashKillStep) == 0 {
						r.stopAfter(t, c, n, gate, victim, true)
					}
					n += crashStep
				}
				t.Logf("at most %d requests to the store", n-1)
			})
		}
		r.report(t, d.name)
	})
}

// pruneElsewhere runs the command in a process of its own: SDKs read the environment.
func pruneElsewhere(environ, args []string) ([]byte, error) {
	cmd := exec.Command(os.Args[0], args...)
	cmd.Env = append(environ, childVariable+"=main")
	return cmd.Output()
}

// stopAfter stops the victim after n requests to the store, and reports whether it made so many.
func (r *labelRaces) stopAfter(t *testing.T, c labelCrash, n int, gate *storeGate, victim *storeServer, kill bool) (stopped bool) {
	s := r.begin(t)
	s.create(1, false)
	s.create(1, false)
	s.move(1, "live", "b89", false)
	stop := &storeStop{held: make(chan struct{}), open: make(chan struct{}), cut: kill}
	stop.left.Store(int64(n))
	gate.Store(stop)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		s.do(0, c.verb)
	}()
	select {
	case <-ended:
	case <-stop.held:
		stopped = true
		if kill {
			victim.kill()
			r.kills.Add(1)
		}
		s.do(1, c.other)
	}
	gate.Store(nil)
	close(stop.open)
	<-ended
	if stopped && kill {
		raceClient.CloseIdleConnections()
		victim.start()
	}
	s.look()
	s.judged(fmt.Sprintf("%s and %s, stopped after %d requests, killed: %t", c.verb, c.other, n, kill))
	return stopped
}
