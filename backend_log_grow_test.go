package main

import (
	"bytes"
	"encoding/json"
	"testing"
)

// seesEntries keeps the entries that it is given.
type seesEntries struct {
	Backend
	got []LogEntry
}

func (s *seesEntries) WriteLog(_ string, e LogEntry) error {
	s.got = append(s.got, e)
	return nil
}

// Only an id that the service made itself is fresh, and no log shows which is.
func TestWhichIDsAreFresh(t *testing.T) {
	b := &seesEntries{}
	s, _ := startBackend(t, b)
	post := func(key ...string) {
		t.Helper()
		s.post(t, 201, "/sites/s/logs", `{"build_id":"b","action":"deploy","status":"ok","Fresh":true}`, key...)
	}
	post()
	post("Idempotency-Key", "mine")
	if len(b.got) != 2 || !b.got[0].Fresh || b.got[1].Fresh || b.got[1].ID != "mine" {
		t.Errorf("the entries are %+v", b.got)
	}
	line, err := encodeEntry(b.got[0])
	if err != nil || bytes.Contains(bytes.ToLower(line), []byte("fresh")) || !json.Valid(line) {
		t.Errorf("the entry is written as %s, %v", line, err)
	}
}
