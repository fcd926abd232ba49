package main

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"sync/atomic"
	"time"
)

const (
	checksDir = "checks/" // below the prefix: where a check tries what the store does

	// checkAgain is how long a failed check is remembered, so that a store which
	// is away is not asked by everybody at once.
	checkAgain     = 2 * time.Second
	capabilityWait = 5 * time.Second // how long one waits for the first check

)

// capability is a kind of conditional write that a store may or may not honour.
type capability int

const (
	conditionalPut    capability = iota // of a small object, in one piece
	conditionalParts                    // of a large one, in parts
	conditionalRemove                   // If-Match of a delete
)

// capabilities remembers what check found out about the store: for good, or for checkAgain
// that it failed. It asks in the background, so that nobody waits longer than
// capabilityWait for a slow store.
type capabilities struct {
	refused atomic.Pointer[map[capability]error] // nil: not known yet
	probe   cachedProbe[map[capability]error]
}

// requireCapability fails with ErrUnsupported if the store ignores conditions of this
// kind: then nothing that needs them is done, since it would go wrong in
// silence. The first call asks the store.
func (s *objectStore) requireCapability(c capability) error {
	refused := s.capabilities.refused.Load()
	if refused == nil {
		found, err := s.capabilities.probe.get(checkAgain)
		if err != nil {
			return err
		}
		refused = &found
	}
	return (*refused)[c]
}

// probeCapabilities runs the check and remembers what it found.
func (s *objectStore) probeCapabilities() (map[capability]error, error) {
	findings, refused, err := s.check()
	if err != nil {
		return nil, err
	}
	for _, f := range findings {
		if f.err != nil {
			s.log.Warn("the store does not do all that is asked of it", "check", f.what, "error", f.err)
		}
	}
	s.capabilities.refused.Store(&refused)
	return refused, nil
}

// check tries out whether the store does what this package relies on, under a
// key of its own, and leaves nothing behind. It fails if that cannot be found
// out at all; refused has the conditions that the store ignores.
func (s *objectStore) check() (findings []checkResult, refused map[capability]error, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	c := &storeCheck{s: s, ctx: ctx, key: s.prefix + checksDir + rand.Text(), refused: map[capability]error{}}
	defer func() { c.clean(); findings = c.findings }()
	for _, step := range []func() error{c.access, c.puts, c.parts, c.removes, c.abort} {
		if err := step(); err != nil {
			return c.findings, nil, err
		}
	}
	return c.findings, c.refused, nil
}

type storeCheck struct {
	s        *objectStore
	ctx      context.Context
	key      string
	findings []checkResult
	refused  map[capability]error
}

func (c *storeCheck) found(what string, err error, note string) {
	c.findings = append(c.findings, checkResult{what: what, err: err, note: note, warning: errors.Is(err, ErrUnsupported)})
}

// put writes the object of the check. A reply that was lost, or an SDK's second
// attempt that ran into its own first one, is told from a refusal by the mark.
func (c *storeCheck) put(opts putOptions) (objectInfo, error) {
	opts.contentType, opts.uploadID = logType, rand.Text()
	body := `{"check":"` + rand.Text() + "\"}\n" // each time other bytes: an ETag may be their hash
	info, err := c.s.bucket.put(c.ctx, c.key, strings.NewReader(body), int64(len(body)), opts)
	if err != nil {
		if now, serr := c.s.bucket.stat(c.ctx, c.key); serr == nil && now.uploadID == opts.uploadID {
			return now, nil
		}
	}
	return info, err
}

// access tries what needs no condition, and compares the clocks.
func (c *storeCheck) access() error {
	put, err := c.put(putOptions{absent: true})
	c.found("write an object", err, "")
	if err != nil {
		return fmt.Errorf("cannot write %q: %w", c.key, err)
	}
	info, err := c.s.bucket.stat(c.ctx, c.key)
	if err == nil && info.etag != put.etag {
		err = fmt.Errorf("its ETag is %s, and was %s when it was written", info.etag, put.etag)
	}
	c.found("look at it", err, "")
	if err != nil {
		return fmt.Errorf("cannot look at %q: %w", c.key, err)
	}
	note, skewed := judgeClockCheck(time.Since(info.modTime), "signatures are refused, and entries of logs have a wrong time")
	c.found("compare the clocks", skewed, note)
	c.foldsCase()
	data, _, err := c.s.readLog(c.ctx, c.key)
	c.found("read it", err, "")
	if err == nil && len(data) == 0 {
		return fmt.Errorf("%w: %q is empty", ErrDamaged, c.key)
	}
	var listed int
	err = c.s.bucket.list(c.ctx, c.key, func(page []objectInfo) error { listed += len(page); return nil })
	if err == nil && listed != 1 {
		err = fmt.Errorf("%d objects are listed, not 1", listed)
	}
	c.found("list it", err, "")
	return err
}

// foldsCase looks for the object under its key in small letters.
func (c *storeCheck) foldsCase() {
	at := strings.LastIndexByte(c.key, '/') + 1
	_, err := c.s.bucket.stat(c.ctx, c.key[:at]+strings.ToLower(c.key[at:]))
	if errors.Is(err, ErrNotFound) {
		err = fs.ErrNotExist
	}
	c.found(foldsCaseCheck, judgeCaseCheck(err), "")
}

// puts tries the conditions of a small object.
func (c *storeCheck) puts() error { return c.conditions(conditionalPut, "one piece", putOptions{}) }

// parts tries those of an object in parts.
func (c *storeCheck) parts() error {
	return c.conditions(conditionalParts, "parts", putOptions{parts: true})
}

func (c *storeCheck) conditions(kind capability, how string, opts putOptions) error {
	create := opts
	create.absent = true
	_, err := c.put(create)
	if err := c.judge(kind, "create only, in "+how, err); err != nil {
		return err
	}
	for {
		etag, err := c.staleETag()
		if err != nil {
			return err
		}
		stale := opts
		stale.ifMatch = etag
		_, staleErr := c.put(stale)
		info, err := c.s.bucket.stat(c.ctx, c.key)
		if err != nil {
			return err
		}
		right := opts
		right.ifMatch = info.etag
		_, err = c.put(right)
		a, ok := c.s.bucket.(adapter)
		if errors.Is(err, ErrPrecondition) && ok && a.adapt() {
			continue
		}
		if err := c.judge(kind, "replace on a condition that fails, in "+how, staleErr); err != nil {
			return err
		}
		if errors.Is(err, ErrPrecondition) {
			c.refused[kind] = fmt.Errorf("%w: it refuses conditions that hold", ErrUnsupported)
		} else if err != nil {
			return err
		}
		c.found("replace on a condition that holds, in "+how, err, "")
		return nil
	}
}

// removes tries the condition of a delete.
func (c *storeCheck) removes() error {
	etag, err := c.staleETag()
	if err != nil {
		return err
	}
	err = c.s.bucket.remove(c.ctx, c.key, etag)
	return c.judge(conditionalRemove, "delete on a condition that fails", err)
}

// staleETag is one that the object had until now.
func (c *storeCheck) staleETag() (string, error) {
	info, err := c.s.bucket.stat(c.ctx, c.key)
	if err != nil {
		return "", err
	}
	_, err = c.put(putOptions{})
	return info.etag, err
}

// judge notes err, which should be ErrPrecondition. Success means that the
// store ignores the condition.
func (c *storeCheck) judge(kind capability, what string, err error) error {
	switch {
	case errors.Is(err, ErrPrecondition), errors.Is(err, errConflict):
		c.found(what, nil, "refused, as it should be")
	case err == nil, errors.Is(err, ErrUnsupported):
		err = fmt.Errorf("%w: it ignores the condition: %s", ErrUnsupported, what)
		c.refused[kind] = err
		c.found(what, err, "")
	default:
		c.found(what, err, "")
		return fmt.Errorf("cannot %s %q: %w", what, c.key, err)
	}
	return nil
}

// abort tries whether an upload that fails in the middle leaves nothing.
func (c *storeCheck) abort() error {
	key := c.key + "-aborted"
	body := io.MultiReader(strings.NewReader("the beginning"), brokenReader{})
	_, err := c.s.bucket.put(c.ctx, key, body, -1, putOptions{contentType: logType, parts: true})
	if err == nil {
		err = errors.New("an upload that failed was stored")
	} else if _, err = c.s.bucket.stat(c.ctx, key); errors.Is(err, ErrNotFound) {
		err = nil
	} else if err == nil {
		err = errors.New("an upload that failed is there")
	}
	c.found("abort an upload", err, "")
	return err
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errBodyFailed }

func (c *storeCheck) clean() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), storeTimeout)
	defer cancel()
	err := c.s.bucket.remove(ctx, c.key, "")
	if err != nil && !errors.Is(err, ErrNotFound) {
		c.found("delete", err, "")
		c.s.log.Warn("a check left an object behind", "key", c.key, "error", err)
	}
}

// errEnough ends a listing.
var errEnough = errors.New("enough")

// Probe implements Prober: once it finds out what the store honours, and then
// it looks whether it can be listed. It does not write again: that costs money,
// and a store that refuses writes tells it to the first.
func (s *objectStore) Probe() (Readiness, error) {
	var found Readiness
	switch err := s.requireCapability(conditionalPut); {
	case err == nil, errors.Is(err, ErrUnsupported):
	case errors.Is(err, ErrDenied), errors.Is(err, ErrNoSpace), errors.Is(err, ErrReadOnly):
		found.WriteError = reasonOf(err)
	default:
		return found, err
	}
	return found, s.listChecks()
}

// listChecks tries whether the store can be listed.
func (s *objectStore) listChecks() error {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	err := s.bucket.list(ctx, s.prefix+checksDir, func([]objectInfo) error { return errEnough })
	if err != nil && !errors.Is(err, errEnough) {
		return fmt.Errorf("cannot list %q: %w", s.prefix+checksDir, err)
	}
	return nil
}

// runChecks is check, and what follows from it for the service.
func (s *objectStore) runChecks(tell func(checkResult)) {
	findings, refused, err := s.check()
	told := false
	for _, f := range findings {
		told = told || f.err != nil && !f.warning
		tell(f)
	}
	if err != nil {
		if !told {
			tell(checkResult{what: "go on", err: err})
		}
		return
	}
	for _, c := range []struct {
		kind capability
		what string
	}{
		{conditionalPut, "entries of logs are refused with 501"},
		{conditionalParts, "conditional uploads are refused with 501"},
		{conditionalRemove, "conditional deletes are refused with 501"},
	} {
		if refused[c.kind] != nil {
			tell(checkResult{what: c.what, err: errors.New("the store does not honour the condition"), warning: c.kind != conditionalPut})
		}
	}
}
