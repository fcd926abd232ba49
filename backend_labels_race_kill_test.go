package main

import (
	"bytes"
	"math/rand/v2"
	"os"
	"os/exec"
	"sync"
	"testing"
	"time"

	proc "pagewright/storage/test/service"
)

// TestLabelRacesWithKills races over two services that share a directory. At a random moment of
// each race one of them ends by kill -9, and half of the commands prune do.
func TestLabelRacesWithKills(t *testing.T) {
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	base := t.TempDir()
	o := proc.Options{Bin: self, Base: base, More: []string{childVariable + "=serve"}}
	r := &labelRaces{environ: []string{envPrefix + "NFS_BASE_PATH=" + base}}
	r.prune = func(environ, args []string) ([]byte, error) { return r.pruneOrKill(self, environ, args) }
	var mu sync.Mutex
	services := []*proc.Service{proc.Start(t, o), proc.Start(t, o)}
	for i := range services {
		r.replicas = append(r.replicas, func() string {
			mu.Lock()
			defer mu.Unlock()
			return "http://" + services[i].Addr
		})
	}
	for kill := range labelRaceKills {
		victim := services[kill%2]
		r.round(t, raceMixes[kill%len(raceMixes)], func(s *siteRace) {
			moment := s.clock.Load() + rand.Int64N(raceClients*raceRequests)
			eventually(t, "the moment of a kill", func() bool { return s.clock.Load() >= moment })
			time.Sleep(rand.N(2 * time.Millisecond))
			victim.Kill()
			r.kills.Add(1)
			again := proc.Start(t, o)
			mu.Lock()
			services[kill%2] = again
			mu.Unlock()
		})
	}
	r.report(t, "a directory")
}

// pruneOrKill runs the command in a process of its own, and in half of the cases kills it.
func (r *labelRaces) pruneOrKill(self string, environ, args []string) ([]byte, error) {
	var out bytes.Buffer
	cmd := exec.Command(self, args...)
	cmd.Env, cmd.Stdout = append(environ, childVariable+"=main"), &out
	if err := cmd.Start(); err != nil {
		return nil, err
	}
	if rand.N(2) == 0 {
		kill := time.AfterFunc(rand.N(200*time.Millisecond), func() { _ = cmd.Process.Kill() })
		defer kill.Stop()
	}
	err := cmd.Wait()
	if err != nil && !cmd.ProcessState.Exited() {
		r.kills.Add(1)
	}
	return out.Bytes(), err
}
