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
	checksDir = "checks/" // below the prefix: the keys of checks

	// checkRetry is how long the error of a failed check is reused, so that not every
	// request asks a store that is down.
	checkRetry     = 2 * time.Second
	capabilityWait = 5 * time.Second // how long a request waits for the first check
)

// capability is a kind of conditional write that a store may or may not support.
type capability int

const (
	conditionalPut    capability = iota // a small object in a single request
	conditionalParts                    // a large object in parts
	conditionalRemove                   // a delete with If-Match
)

// capabilities caches the result of check: for good if it succeeded, for checkRetry if it
// failed. The check runs in the background, so that no request waits longer than
// capabilityWait for a slow store.
type capabilities struct {
	missing atomic.Pointer[map[capability]error] // nil: not known yet
	probe   cachedProbe[map[capability]error]
}

// requireCapability fails with ErrUnsupported if the store ignores conditions of this kind.
// Without this, a write that needs the condition would silently replace what another
// client stored. The first call checks the store.
func (s *objectStore) requireCapability(c capability) error {
	missing := s.capabilities.missing.Load()
	if missing == nil {
		found, err := s.capabilities.probe.get(checkRetry)
		if err != nil {
			return err
		}
		missing = &found
	}
	return (*missing)[c]
}

// probeCapabilities runs the check and caches its result.
func (s *objectStore) probeCapabilities() (map[capability]error, error) {
	results, missing, err := s.check()
	if err != nil {
		return nil, err
	}
	for _, r := range results {
		if r.err != nil {
			s.log.Warn("a check of the store failed", "check", r.what, "error", r.err)
		}
	}
	s.capabilities.missing.Store(&missing)
	return missing, nil
}

// check tests whether the store does what this package relies on, under a key of its own,
// which it removes again. It fails if it cannot find out. missing has an error for each
// kind of condition that the store does not support.
func (s *objectStore) check() (results []checkResult, missing map[capability]error, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), checkTimeout)
	defer cancel()
	c := s.newCheck(ctx)
	defer func() { c.clean(); results = c.results }()
	for _, step := range []func() error{c.access, c.puts, c.parts, c.removes, c.abort} {
		if err := step(); err != nil {
			return c.results, nil, err
		}
	}
	return c.results, c.missing, nil
}

// storeCheck is a check in progress.
type storeCheck struct {
	s       *objectStore
	ctx     context.Context
	key     string
	results []checkResult
	missing map[capability]error
}

func (s *objectStore) newCheck(ctx context.Context) *storeCheck {
	return &storeCheck{s: s, ctx: ctx, key: s.prefix + checksDir + rand.Text(), missing: map[capability]error{}}
}

func (c *storeCheck) add(what string, err error, note string) {
	c.results = append(c.results, checkResult{what: what, err: err, note: note, warning: errors.Is(err, ErrUnsupported)})
}

// put writes the object of the check. If it fails, the upload id shows whether the object
// was stored anyway: the reply may have been lost, or a retry of the SDK may have met
// the object of its own first attempt.
func (c *storeCheck) put(opts putOptions) (objectInfo, error) {
	opts.contentType, opts.uploadID = logType, rand.Text()
	body := `{"check":"` + rand.Text() + "\"}\n" // never the same bytes twice: an ETag may be their hash
	info, err := c.s.bucket.put(c.ctx, c.key, strings.NewReader(body), int64(len(body)), opts)
	if err != nil {
		if now, serr := c.s.bucket.stat(c.ctx, c.key); serr == nil && now.uploadID == opts.uploadID {
			return now, nil
		}
	}
	return info, err
}

// access tests the calls without a condition, and compares the clocks.
func (c *storeCheck) access() error {
	put, err := c.put(putOptions{absent: true})
	c.add("write an object", err, "")
	if err != nil {
		return fmt.Errorf("cannot write %q: %w", c.key, err)
	}
	info, err := c.s.bucket.stat(c.ctx, c.key)
	if err == nil && info.etag != put.etag {
		err = fmt.Errorf("its ETag is %s, but the write returned %s", info.etag, put.etag)
	}
	c.add("stat the object", err, "")
	if err != nil {
		return fmt.Errorf("cannot stat %q: %w", c.key, err)
	}
	note, skewed := judgeClockCheck(time.Since(info.modTime), "signed requests may be refused, and log entries get the wrong time")
	c.add("compare the clocks", skewed, note)
	c.foldsCase()
	size, err := c.read()
	c.add("read the object", err, "")
	if err == nil && size == 0 {
		return fmt.Errorf("%w: %q is empty", ErrDamaged, c.key)
	}
	var listed int
	err = c.s.bucket.list(c.ctx, c.key, func(page []objectInfo) error { listed += len(page); return nil })
	if err == nil && listed != 1 {
		err = fmt.Errorf("the list has %d objects instead of 1", listed)
	}
	c.add("list the object", err, "")
	return err
}

// read reads the object of the check and returns how many bytes it has.
func (c *storeCheck) read() (int64, error) {
	r, err := c.s.open(c.ctx, c.key, "", 0, -1)
	if err != nil {
		return 0, err
	}
	defer r.Close()
	return io.Copy(io.Discard, r)
}

// foldsCase looks for the object under its key in lower case.
func (c *storeCheck) foldsCase() {
	at := strings.LastIndexByte(c.key, '/') + 1
	_, err := c.s.bucket.stat(c.ctx, c.key[:at]+strings.ToLower(c.key[at:]))
	if errors.Is(err, ErrNotFound) {
		err = fs.ErrNotExist
	}
	c.add(foldsCaseCheck, judgeCaseCheck(err), "")
}

func (c *storeCheck) puts() error {
	return c.conditions(conditionalPut, "in a single request", putOptions{})
}

func (c *storeCheck) parts() error {
	return c.conditions(conditionalParts, "in parts", putOptions{parts: true})
}

// conditions tests the conditions of puts with opts. how says in a result which puts.
func (c *storeCheck) conditions(kind capability, how string, opts putOptions) error {
	create := opts
	create.absent = true
	_, err := c.put(create)
	if err := c.wantRefused(kind, "refuse to create if the object exists, "+how, err); err != nil {
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
		current := opts
		current.ifMatch = info.etag
		_, err = c.put(current)
		a, ok := c.s.bucket.(adapter)
		if errors.Is(err, ErrPrecondition) && ok && a.adapt() {
			continue
		}
		if err := c.wantRefused(kind, "refuse to replace if the ETag is stale, "+how, staleErr); err != nil {
			return err
		}
		if errors.Is(err, ErrPrecondition) {
			c.missing[kind] = fmt.Errorf("%w: a write with the current ETag is refused", ErrUnsupported)
		} else if err != nil {
			return err
		}
		c.add("replace if the ETag matches, "+how, err, "")
		return nil
	}
}

func (c *storeCheck) removes() error {
	etag, err := c.staleETag()
	if err != nil {
		return err
	}
	err = c.s.bucket.remove(c.ctx, c.key, etag)
	return c.wantRefused(conditionalRemove, "refuse to delete if the ETag is stale", err)
}

// staleETag replaces the object and returns the ETag that it had before.
func (c *storeCheck) staleETag() (string, error) {
	info, err := c.s.bucket.stat(c.ctx, c.key)
	if err != nil {
		return "", err
	}
	_, err = c.put(putOptions{})
	return info.etag, err
}

// wantRefused adds the result of a change whose condition did not hold. err should be
// ErrPrecondition; nil means that the store ignores the condition.
func (c *storeCheck) wantRefused(kind capability, what string, err error) error {
	switch {
	case errors.Is(err, ErrPrecondition), errors.Is(err, errConflict):
		c.add(what, nil, "")
	case err == nil, errors.Is(err, ErrUnsupported):
		err = fmt.Errorf("%w: the condition is not enforced (check: %s)", ErrUnsupported, what)
		c.missing[kind] = err
		c.add(what, err, "")
	default:
		c.add(what, err, "")
		return fmt.Errorf("check %q failed for key %q: %w", what, c.key, err)
	}
	return nil
}

// abort tests whether an upload that fails in the middle leaves no object.
func (c *storeCheck) abort() error {
	key := c.key + "-aborted"
	body := io.MultiReader(strings.NewReader("the beginning"), brokenReader{})
	_, err := c.s.bucket.put(c.ctx, key, body, -1, putOptions{contentType: logType, parts: true})
	if err == nil {
		err = errors.New("an upload succeeded although its body failed")
	} else if _, err = c.s.bucket.stat(c.ctx, key); errors.Is(err, ErrNotFound) {
		err = nil
	} else if err == nil {
		err = errors.New("a failed upload left an object")
	}
	c.add("abort an upload", err, "")
	return err
}

type brokenReader struct{}

func (brokenReader) Read([]byte) (int, error) { return 0, errBodyFailed }

func (c *storeCheck) clean() {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.ctx), storeTimeout)
	defer cancel()
	err := c.s.bucket.remove(ctx, c.key, "")
	if err != nil && !errors.Is(err, ErrNotFound) {
		c.add("delete the object", err, "")
		c.s.log.Warn("cannot delete the object of a check", "key", c.key, "error", err)
	}
}

// runChecks implements checker. It adds what the service refuses for lack of a capability.
func (s *objectStore) runChecks(report func(checkResult)) {
	if s.readOnly {
		report(checkResult{what: "list the store", err: s.listChecks()})
		report(writesSkipped)
		return
	}
	results, missing, err := s.check()
	failed := false
	for _, r := range results {
		failed = failed || r.err != nil && !r.warning
		report(r)
	}
	if err != nil {
		if !failed { // err has no result of its own
			report(checkResult{what: "complete the checks", err: err})
		}
		return
	}
	for _, c := range []struct {
		kind capability
		what string
	}{
		{conditionalPut, "log entries and labels are refused with 501"},
		{conditionalParts, "conditional uploads are refused with 501"},
		{conditionalRemove, "conditional deletes are refused with 501, and prune --apply will refuse"},
	} {
		if missing[c.kind] != nil {
			report(checkResult{what: c.what, err: errors.New("the store does not support this kind of condition"), warning: c.kind != conditionalPut})
		}
	}
	r, err := s.checkChecksums()
	if err != nil {
		r = checkResult{what: checksumCheck, err: err}
	}
	if r.what != "" {
		report(r)
	}
}
