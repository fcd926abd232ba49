package main

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"runtime/debug"
	"sync"
	"sync/atomic"
	"time"
)

// maxKeysWaiting is how many requests wait for the keys of one issuer.
const maxKeysWaiting = 256

// keyTimes are the intervals of a keyStore.
type keyTimes struct {
	every   time.Duration // between reads in the background, give or take a tenth
	backoff time.Duration // after the first failed read; it doubles up to every
	again   time.Duration // between reads that tokens cause
	wait    time.Duration // how long a token waits for its key
	timeout time.Duration // of one read
}

// keyStore reads the public keys of issuers in the background, and again when a token has a
// key that it does not know. It is safe for concurrent use.
type keyStore struct {
	log   *slog.Logger
	times keyTimes
	read  func(context.Context, keySource) ([]byte, error) // readKeys

	ctx  context.Context
	stop context.CancelFunc

	mu      sync.Mutex
	issuers map[string]*issuerKeys // by URL
}

func newKeyStore(log *slog.Logger) *keyStore {
	s := &keyStore{log: log, read: readKeys, issuers: map[string]*issuerKeys{},
		times: keyTimes{every: 5 * time.Minute, backoff: 5 * time.Second, again: 30 * time.Second, wait: 5 * time.Second, timeout: 10 * time.Second}}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s
}

// use starts to read the keys of issuers that are new, and forgets those that are not listed.
// An issuer that changed, except in its name, counts as new.
func (s *keyStore) use(issuers []*oidcIssuer) {
	s.mu.Lock()
	defer s.mu.Unlock()
	next := map[string]*issuerKeys{}
	for _, i := range issuers {
		source := keySource{i.issuer, i.jwksURL, i.caFile, i.tokenFile}
		k := s.issuers[i.issuer]
		if k == nil || k.source != source {
			k = s.add(source)
		}
		k.name = i.name
		next[i.issuer] = k
	}
	for issuer, k := range s.issuers {
		if next[issuer] != k {
			k.end()
		}
	}
	s.issuers = next
}

func (s *keyStore) add(source keySource) *issuerKeys {
	// The first read counts as running: a token that comes sooner waits for it, and causes none.
	k := &issuerKeys{store: s, source: source, since: time.Now(), wake: make(chan struct{}, 1), running: make(chan struct{})}
	k.ctx, k.stop = context.WithCancel(s.ctx)
	go k.refresh()
	return k
}

// of returns the keys of an issuer, or nil if use did not list it.
func (s *keyStore) of(issuer string) *issuerKeys {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.issuers[issuer]
}

// close ends all reads. It does not wait: one could hang in a file of an NFS mount.
func (s *keyStore) close() { s.stop() }

// issuerStats are the metrics of one issuer.
type issuerStats struct {
	name       string // of its entry in the access file
	ok, failed uint64 // reads of its keys
	age        time.Duration
	known      bool // keys were read; if not, age is the time since the issuer was added
}

// stats returns the metrics of all issuers, in no order.
func (s *keyStore) stats() (all []issuerStats) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, k := range s.issuers {
		k.mu.Lock()
		all = append(all, issuerStats{k.name, k.ok, k.failed, time.Since(k.since), k.set.Load() != nil})
		k.mu.Unlock()
	}
	return all
}

// issuerKeys are the keys of one issuer. While the issuer does not respond, those of the latest
// successful read stay.
type issuerKeys struct {
	store   *keyStore
	source  keySource
	name    string // guarded by store.mu
	ctx     context.Context
	stop    context.CancelFunc
	set     atomic.Pointer[keySet] // nil: no read has succeeded
	waiting atomic.Int32
	wake    chan struct{} // has a value if ask wants a read

	mu         sync.Mutex
	running    chan struct{} // closed when the read that runs ends; nil: none runs
	asked      time.Time     // when a token caused the latest read
	since      time.Time     // of the latest successful read
	err        error         // of the latest read
	ok, failed uint64
}

// end stops the reads and drops the keys, so that nothing stays valid that they verified.
func (k *issuerKeys) end() {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.stop()
	k.set.Store(nil)
}

// entry returns the name of the entry of the access file. store.mu comes before k.mu.
func (k *issuerKeys) entry() string {
	k.store.mu.Lock()
	defer k.store.mu.Unlock()
	return k.name
}

// keySet is what one read returned. It never changes.
type keySet struct {
	keys []publicKey
	sum  [sha256.Size]byte // of the document
}

// readEnded is closed.
var readEnded = func() chan struct{} { c := make(chan struct{}); close(c); return c }()

var (
	errKeyUnknown = errors.New("no key of the issuer fits the token")
	errIssuerDown = errors.New("the keys of the token's issuer cannot be read at present")
)

// try calls check with the keys, and with newer ones until it returns true. It causes a read of
// the keys at most once in times.again, waits for at most times.wait, and lets only
// maxKeysWaiting callers wait. Otherwise it returns errKeyUnknown if the keys are those that
// the issuer has now, else errIssuerDown.
func (k *issuerKeys) try(check func(*keySet) bool) error {
	var seen *keySet
	fits := func() bool {
		set := k.set.Load()
		if set == nil || set == seen {
			return false
		}
		seen = set
		return check(set)
	}
	if fits() {
		return nil
	}
	timeout := time.NewTimer(k.store.times.wait)
	defer timeout.Stop()
	// The read that runs now may have begun before the issuer had the key, so there is a second round.
	for range 2 {
		done := k.ask(seen)
		if done != nil && !k.await(done, timeout.C) {
			return errIssuerDown
		}
		if fits() { // also without done: a read may have ended since
			return nil
		}
		if done == nil {
			break
		}
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.err != nil || seen == nil {
		return errIssuerDown
	}
	return errKeyUnknown
}

// await reports whether done was closed in time.
func (k *issuerKeys) await(done <-chan struct{}, timeout <-chan time.Time) bool {
	defer k.waiting.Add(-1)
	if k.waiting.Add(1) > maxKeysWaiting {
		return false
	}
	select {
	case <-done:
		return true
	case <-timeout:
		return false
	}
}

// ask returns a channel that is closed when the read that runs now ends, or is closed already if
// one has ended since the caller has seen the keys. Otherwise it causes one, or returns nil if
// the latest read for a token was too short a time ago.
func (k *issuerKeys) ask(seen *keySet) <-chan struct{} {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.running != nil || k.ctx.Err() != nil {
		return k.running
	}
	if k.set.Load() != seen {
		return readEnded
	}
	if !k.asked.IsZero() && time.Since(k.asked) < k.store.times.again {
		return nil
	}
	k.asked = time.Now()
	k.running = make(chan struct{})
	k.wake <- struct{}{}
	return k.running
}

// refresh reads the keys now, at intervals, and when ask wants it, until the issuer is stopped. Only
// it reads, so there is one read at a time.
func (k *issuerKeys) refresh() {
	t := k.store.times
	pause := t.backoff
	for k.ctx.Err() == nil {
		next := t.every
		if k.readOnce() {
			pause = t.backoff
		} else {
			next, pause = pause, min(2*pause, t.every)
		}
		// Replicas that started together must not all ask at once.
		timer := time.NewTimer(next - next/10 + rand.N(next/5+1))
		select {
		case <-timer.C:
		case <-k.wake:
		case <-k.ctx.Done():
		}
		timer.Stop()
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.running != nil {
		close(k.running)
		k.running = nil
	}
}

// readOnce reads the keys, and reports whether that succeeded.
func (k *issuerKeys) readOnce() bool {
	k.mu.Lock()
	if k.running == nil {
		k.running = make(chan struct{})
	}
	k.mu.Unlock()
	set, err := k.fetch()
	name := k.entry()

	k.mu.Lock()
	defer k.mu.Unlock()
	select {
	case <-k.wake: // of an ask that this read serves
	default:
	}
	running := k.running
	defer close(running) // after k.set.Store: who waits looks at k.set without k.mu
	k.running = nil
	if k.ctx.Err() != nil {
		return false
	}
	last := k.err
	k.err = err
	if err != nil {
		k.failed++
		if last == nil || last.Error() != err.Error() {
			k.store.log.Warn("cannot read the keys of an issuer", "name", name, "issuer", k.source.issuer, "error", err)
		}
		return false
	}
	k.ok, k.since = k.ok+1, time.Now()
	// The same document keeps the set, and with it the tokens that were verified by it.
	if old := k.set.Load(); old == nil || old.sum != set.sum {
		k.set.Store(set)
		k.store.log.Info("keys of an issuer read", "name", name, "issuer", k.source.issuer, "keys", len(set.keys))
	} else if last != nil {
		k.store.log.Info("keys of an issuer can be read again", "name", name, "issuer", k.source.issuer)
	}
	return true
}

func (k *issuerKeys) fetch() (set *keySet, err error) {
	defer func() {
		// No handler recovers panics of this goroutine: one would end the process.
		if cause := recover(); cause != nil {
			err = fmt.Errorf("reading the keys panicked: %v\n%s", cause, debug.Stack())
		}
	}()
	ctx, cancel := context.WithTimeout(k.ctx, k.store.times.timeout)
	defer cancel()
	data, err := k.store.read(ctx, k.source)
	if err != nil {
		return nil, err
	}
	keys, err := parseKeySet(data)
	if err != nil {
		return nil, err
	}
	return &keySet{keys, sha256.Sum256(data)}, nil
}
