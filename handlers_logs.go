package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/valyala/fasthttp"
)

const (
	maxEntryText = 256 // bytes of an action, and of a status
	maxKeyLen    = 255 // bytes of an Idempotency-Key
	maxNesting   = 50  // levels of metadata: in a list they are five deeper, and a few parsers take 64
)

// logAppend is a POST of an entry to the log of a build.
type logAppend struct {
	conn   *conn
	siteID string
	id     string // of the entry
	fresh  bool   // no log has the id
	size   int64  // of the body; -1: chunked

	digests announcedDigests
}

// parseAppend returns what the header of a POST announces.
func (a *api) parseAppend(ctx *fasthttp.RequestCtx) (p logAppend, err error) {
	p.conn = connOf(ctx)
	if p.siteID, err = pathID(ctx, "site_id"); err != nil {
		return p, err
	}
	if p.id, p.fresh, err = entryID(ctx); err != nil {
		return p, badRequest("%v", err)
	}
	if err := checkPlainBody(ctx, "log entry", "curl -d"); err != nil {
		return p, err
	}
	if p.digests, err = a.requestDigests(ctx); err != nil {
		return p, err
	}
	if p.size = int64(ctx.Request.Header.ContentLength()); p.size > maxEntrySize {
		return p, entryTooLarge()
	}
	return p, nil
}

// postLog appends the entry that is the body to the log of its build.
func (a *api) postLog(ctx *fasthttp.RequestCtx, p logAppend) (response, error) {
	memory, err := acquire(a.entries, p.conn, budgetRequest{n: p.memory(), revoke: p.conn.bodyRevoker()})
	if err != nil {
		return response{}, err
	}
	defer memory.release()
	body, err := a.readEntry(ctx, p)
	if errors.Is(err, errTooLarge) {
		return response{}, entryTooLarge()
	}
	if err != nil {
		return response{}, &operationError{operation: "read the log entry", siteID: p.siteID, err: err}
	}
	entry, err := parseEntry(body)
	if err != nil {
		return response{}, badRequest("%v", err)
	}
	entry.ID, entry.Fresh, entry.Timestamp = p.id, p.fresh, time.Now().UTC()
	entry.Client, entry.Outcome = p.conn.client(), &p.conn.rec.outcome
	p.conn.rec.build = entry.BuildID
	place, err := a.acquireWrite(p.conn, p.siteID, entry.BuildID)
	if err != nil {
		return response{}, err
	}
	defer place.release()
	start := time.Now()
	err = a.backend.WriteLog(p.siteID, entry)
	a.metrics.call(callAppend, start, err)
	if errors.Is(err, ErrLogFull) {
		return response{}, newHTTPError(fasthttp.StatusRequestEntityTooLarge,
			"cannot write the log entry: the build's log has reached the maximum of %d bytes", maxLogSize)
	}
	if err != nil {
		return response{}, &operationError{operation: "write the log entry", siteID: p.siteID, buildID: entry.BuildID, err: err}
	}
	return jsonResponse(fasthttp.StatusCreated, success{Status: "success", SiteID: p.siteID, BuildID: entry.BuildID, EntryID: p.id}), nil
}

func entryTooLarge() error {
	return newHTTPError(fasthttp.StatusRequestEntityTooLarge, "the log entry is larger than the maximum of %d bytes", maxEntrySize)
}

// readEntry reads the whole body.
func (a *api) readEntry(ctx *fasthttp.RequestCtx, p logAppend) ([]byte, error) {
	stream := ctx.RequestBodyStream()
	if stream == nil {
		return nil, errEmptyBody
	}
	body := openBody(p.conn, stream, p.size, maxEntrySize, false, nil)
	defer body.close()
	a.digestsOf(ctx, body, p.digests, false)
	var data bytes.Buffer
	data.Grow(int(max(p.size, 0)) + bytes.MinRead) // the body as a whole, at once
	_, err := data.ReadFrom(body)
	return data.Bytes(), err
}

// memory returns about what a log entry takes of memory until it is stored: its
// body, and what is made of it.
func (p *logAppend) memory() int64 {
	size := p.size
	if size < 0 {
		size = maxEntrySize // in chunks: as much as it may be
	}
	return 6*size + 4<<10
}

// entryID returns the client's Idempotency-Key, which makes a POST safe to repeat,
// or a fresh id, which no log has.
func entryID(ctx *fasthttp.RequestCtx) (id string, fresh bool, err error) {
	key := ctx.Request.Header.Peek("Idempotency-Key")
	if len(key) == 0 {
		return rand.Text(), true, nil
	}
	if len(key) > maxKeyLen {
		return "", false, fmt.Errorf("Idempotency-Key is longer than %d characters", maxKeyLen)
	}
	for _, c := range key {
		if c < ' ' || c > '~' {
			return "", false, errors.New("Idempotency-Key must contain only printable ASCII")
		}
	}
	return string(key), false, nil
}

// parseEntry reads the body of a POST: an object with the strings build_id,
// action and status and an optional object metadata, which is kept as it was
// sent. Names are matched exactly, each of these may occur once, and other members are
// ignored. The error names the member at fault.
func parseEntry(body []byte) (LogEntry, error) {
	// Surrogates are checked below: in a member that is ignored any are allowed.
	dec := jsontext.NewDecoder(bytes.NewBuffer(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	switch {
	case len(bytes.TrimSpace(body)) == 0:
		return LogEntry{}, errEmptyBody
	case !utf8.Valid(body):
		return LogEntry{}, errors.New("the body is not valid UTF-8")
	case dec.PeekKind() != jsontext.KindBeginObject && dec.PeekKind() != jsontext.KindInvalid:
		return LogEntry{}, errors.New("the body is not a JSON object")
	}
	e, err := entryMembers(dec, body)
	if err != nil {
		return LogEntry{}, err
	}
	if _, err := dec.ReadToken(); err != io.EOF {
		return LogEntry{}, syntaxError(err)
	}
	for _, m := range []struct{ name, value string }{{"build_id", e.BuildID}, {"action", e.Action}, {"status", e.Status}} {
		if m.value == "" {
			return LogEntry{}, fmt.Errorf("%s is missing", m.name)
		}
	}
	if err := checkID(e.BuildID); err != nil {
		return LogEntry{}, fmt.Errorf("build_id %w", err)
	}
	return e, nil
}

// entryMembers reads the object of parseEntry, in which members may be missing.
func entryMembers(dec *jsontext.Decoder, body []byte) (e LogEntry, err error) {
	if _, err := dec.ReadToken(); err != nil {
		return e, syntaxError(err)
	}
	seen := map[string]bool{} // of the names that are known
	for dec.PeekKind() != jsontext.KindEndObject {
		t, err := dec.ReadToken()
		if err != nil {
			return e, syntaxError(err)
		}
		name := t.String()
		if seen[name] {
			return e, fmt.Errorf("%s is specified more than once", name)
		}
		switch name {
		case "build_id":
			e.BuildID, err = entryText(dec, name, maxEntrySize)
		case "action":
			e.Action, err = entryText(dec, name, maxEntryText)
		case "status":
			e.Status, err = entryText(dec, name, maxEntryText)
		case "metadata":
			e.Metadata, err = entryMetadata(dec, body)
		default:
			if err := dec.SkipValue(); err != nil {
				return e, syntaxError(err)
			}
			continue
		}
		if err != nil {
			return e, err
		}
		seen[name] = true
	}
	if _, err := dec.ReadToken(); err != nil {
		return e, syntaxError(err)
	}
	return e, nil
}

// entryText reads a string that is not empty, or null, for which it returns "".
func entryText(dec *jsontext.Decoder, name string, most int) (string, error) {
	raw, err := dec.ReadValue()
	if err != nil {
		return "", syntaxError(err)
	}
	switch raw.Kind() {
	case jsontext.KindNull:
		return "", nil
	case jsontext.KindString:
	default:
		return "", fmt.Errorf("%s is not a string", name)
	}
	if err := checkValue(dec, raw); err != nil {
		return "", err
	}
	text, err := jsontext.AppendUnquote(nil, raw)
	switch {
	case err != nil:
		return "", fmt.Errorf("%s is not a valid string: %v", name, err)
	case len(text) == 0:
		return "", fmt.Errorf("%s is empty", name)
	case len(text) > most:
		return "", fmt.Errorf("%s is %d bytes long; the maximum is %d", name, len(text), most)
	}
	return string(text), nil
}

// entryMetadata reads an object, which it returns as it is in body, or null, for which it
// returns nil.
func entryMetadata(dec *jsontext.Decoder, body []byte) ([]byte, error) {
	switch dec.PeekKind() {
	case jsontext.KindNull:
		if err := dec.SkipValue(); err != nil {
			return nil, syntaxError(err)
		}
		return nil, nil
	case jsontext.KindBeginObject, jsontext.KindInvalid: // the next read returns the error
	default:
		return nil, errors.New("metadata is not an object")
	}
	outside, start := dec.StackDepth(), int64(-1)
	for {
		switch dec.PeekKind() {
		case jsontext.KindBeginObject, jsontext.KindBeginArray, jsontext.KindEndObject, jsontext.KindEndArray:
			if _, err := dec.ReadToken(); err != nil {
				return nil, syntaxError(err)
			}
			if start < 0 {
				start = dec.InputOffset() - 1
			}
		default:
			raw, err := dec.ReadValue()
			if err != nil {
				return nil, syntaxError(err)
			}
			if err := checkValue(dec, raw); err != nil {
				return nil, err
			}
		}
		switch depth := dec.StackDepth() - outside; {
		case depth > maxNesting:
			return nil, fmt.Errorf("metadata is nested deeper than %d levels", maxNesting)
		case depth == 0:
			return body[start:dec.InputOffset()], nil
		}
	}
}

// checkValue refuses raw, a string or another scalar that dec has just read, if strict
// decoders would refuse it (RFC 8259, sections 6 and 8.2; RFC 7493, section 2).
func checkValue(dec *jsontext.Decoder, raw jsontext.Value) error {
	switch raw.Kind() {
	case jsontext.KindString:
		if loneSurrogate(raw, 0) >= 0 {
			return fmt.Errorf("%.200s contains an unpaired surrogate", dec.StackPointer())
		}
	case jsontext.KindNumber:
		if outsideBinary64(raw) {
			return fmt.Errorf("%.200s is too large for a 64-bit float; send it as a string", dec.StackPointer())
		}
	}
	return nil
}

// syntaxError returns where a body stops being JSON. A nil err means that something follows
// the object.
func syntaxError(err error) error {
	if err == nil {
		return errors.New("the body is not valid JSON: trailing data after the object")
	}
	var syntax *jsontext.SyntacticError
	if errors.As(err, &syntax) {
		return fmt.Errorf("the body is not valid JSON: %v at byte %d", syntax.Err, syntax.ByteOffset)
	}
	return fmt.Errorf("the body is not valid JSON: %v", err)
}
