package main

import (
	"encoding/json"
	"fmt"
	"slices"
	"testing"
)

// get returns the reply to a GET, which it repeats until the status is one of want.
func (s *siteRace) get(replica int, path string, want ...int) (status int, answer []byte, start int64) {
	s.t.Helper()
	eventually(s.t, fmt.Sprintf("GET %s is answered %d", path, want), func() bool {
		start = s.clock.Add(1)
		var err error
		status, _, answer, err = s.request(replica, "GET", path, "")
		return err == nil && slices.Contains(want, status)
	})
	return status, answer, start
}

// look records what all replicas show when the race is over.
func (s *siteRace) look() {
	for replica := range s.replicas {
		for _, label := range []string{"live", "preview"} {
			status, answer, start := s.get(replica, "/labels/"+label, 200, 404)
			var l struct {
				BuildID string `json:"build_id"`
			}
			if status == 404 {
				l.BuildID = "-"
			} else if err := json.Unmarshal(answer, &l); err != nil {
				s.t.Error(err)
			}
			s.record("label", []string{label, l.BuildID}, start, raceDone)
			s.fetch(replica, label)
			s.lookStale(replica, label, l.BuildID)
		}
		_, list, start := s.get(replica, "/versions", 200)
		logs := logsOf(s.t, list)
		for n := 90; n > s.next; n-- {
			build := fmt.Sprint("b", n)
			s.record("logs", append([]string{build}, logs[build]...), start, raceDone)
			status, answer, start := s.get(replica, "/artifacts/"+build, 200, 404)
			if status == 404 {
				answer = []byte("-")
			}
			s.record("see", []string{build, string(answer)}, start, raceDone)
		}
	}
}

// lookStale records whether a client that has a copy of a former build is told that it is current.
func (s *siteRace) lookStale(replica int, label, build string) {
	_, h, _, err := s.request(replica, "HEAD", "/artifacts/"+build, "")
	if err != nil {
		return
	}
	for _, tag := range s.tags[build] {
		if tag == h.Get("ETag") {
			continue
		}
		start := s.clock.Add(1)
		if status, _, _, err := s.request(replica, "GET", "/labels/"+label+"/artifact", "", "If-None-Match", tag); err == nil && status == 304 {
			s.record("stale", []string{label}, start, raceDone)
		}
	}
}

// logsOf returns the entries of each build in a list of versions.
func logsOf(t *testing.T, list []byte) map[string][]string {
	t.Helper()
	var body struct {
		Versions []struct {
			BuildID string `json:"build_id"`
			Logs    []struct{ Status string }
		}
	}
	if err := json.Unmarshal(list, &body); err != nil {
		t.Fatalf("%v: %.300s", err, list)
	}
	logs := map[string][]string{}
	for _, v := range body.Versions {
		for _, l := range v.Logs {
			logs[v.BuildID] = append(logs[v.BuildID], l.Status)
		}
	}
	return logs
}
