package main

import (
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"time"
)

const (
	leaseName    = ".lease" // after the name of a lease: the name of its status
	maxLeaseSize = 4 << 10
)

var _ Leaser = (*objectStore)(nil)

// lease is the object of a lease, {prefix}status/{name}.lease.json. It is never removed.
type lease struct {
	ID      string `json:"id"`      // of the holder: no two objects are equal, so their ETags differ
	Seconds int64  `json:"seconds"` // for how long it is held, from the time of the object; 0: it was released
}

// TryLease implements Leaser. If the store ignores conditions, everybody gets the lease: it only
// saves work.
func (s *objectStore) TryLease(name string, ttl time.Duration) (release func(), ok bool, err error) {
	if s.readOnly {
		return nil, false, ErrReadOnly
	}
	switch err := s.requireCapability(conditionalPut); {
	case errors.Is(err, ErrUnsupported):
		return func() {}, true, nil
	case err != nil:
		return nil, false, err
	}
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	key := s.statusKey(name + leaseName)
	etag, held, err := s.findLease(ctx, key, ttl)
	if err != nil || held {
		return nil, false, err
	}
	etag, err = s.writeLease(ctx, key, etag, ttl)
	if errors.Is(err, ErrPrecondition) { // another process was faster
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	return func() {
		ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
		defer cancel()
		_, err := s.writeLease(ctx, key, etag, 0)
		if err != nil && !errors.Is(err, ErrPrecondition) { // it has ended, and another process has it
			s.log.Warn("cannot release a lease; it ends by itself", "key", key, "error", err)
		}
	}, true, nil
}

// findLease returns the ETag of the object of a lease, empty if it has no object, and whether
// somebody holds the lease. One that cannot be read is held for ttl.
func (s *objectStore) findLease(ctx context.Context, key string, ttl time.Duration) (etag string, held bool, err error) {
	r, err := s.open(ctx, key, "", 0, -1)
	if errors.Is(err, ErrNotFound) {
		return "", false, nil
	}
	if err != nil {
		return "", false, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxLeaseSize))
	if err != nil {
		return "", false, fmt.Errorf("cannot read %q: %w", key, err)
	}
	var l lease
	if json.Unmarshal(data, &l) == nil {
		ttl = time.Duration(l.Seconds) * time.Second
	}
	etag = r.info.etag
	if ttl <= 0 {
		return etag, false, nil
	}
	now, err := s.StoreTime()
	return etag, now.Sub(r.info.modTime) < ttl, err
}

// writeLease stores a lease for ttl over the one that has etag; empty: over none. It fails with
// ErrPrecondition if that is not the one that is there.
func (s *objectStore) writeLease(ctx context.Context, key, etag string, ttl time.Duration) (newETag string, err error) {
	l := lease{ID: rand.Text(), Seconds: int64(math.Ceil(ttl.Seconds()))}
	data, err := json.Marshal(l)
	if err != nil {
		return "", err
	}
	data = append(data, '\n')
	opts := putOptions{contentType: logType, uploadID: l.ID, absent: etag == "", ifMatch: etag}
	info, err := s.put(ctx, key, data, opts)
	if err != nil {
		cond := Precondition{Absent: true}
		if etag != "" {
			cond = Precondition{IfMatch: &ETagList{Tags: []string{etag}}}
		}
		info, err = s.resolveAmbiguousPut(key, opts, cond, err)
	}
	return info.etag, err
}
