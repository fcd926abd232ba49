package main

import (
	"errors"
	"testing"
	"time"
)

// The clock of the store is not that of the service. A store need not report the time of a put.
func TestObjectStoreTime(t *testing.T) {
	for _, c := range []struct {
		name     string
		tells    bool
		requests int
	}{
		{"the put tells", true, 2},
		{"only a stat tells", false, 3},
	} {
		t.Run(c.name, func(t *testing.T) {
			m := newMemBucket()
			m.ahead = -time.Hour
			m.silent = !c.tells
			s := openMem(m)
			requests := 0
			m.fault = func(string, string) (bool, error) { requests++; return false, nil }
			before := time.Now()
			now, err := s.StoreTime()
			if now = now.Add(time.Hour); err != nil || now.Before(before) || now.After(time.Now()) {
				t.Errorf("%v, an hour behind %v, %v", now, before, err)
			}
			if requests != c.requests || len(m.objects) > 0 {
				t.Errorf("%d requests, which left %d objects", requests, len(m.objects))
			}
		})
	}
	for _, cause := range []error{ErrUnavailable, ErrDenied, ErrNotFound, errors.New("other")} {
		m := newMemBucket()
		m.fault = func(string, string) (bool, error) { return false, cause }
		_, err := openMem(m).StoreTime()
		wantError(t, err, ErrUnavailable)
		if errors.Is(err, ErrNotFound) {
			t.Errorf("%v is that of an object", err)
		}
	}
}
