package main

import (
	"crypto/rand"
	"errors"
	"fmt"
	"time"

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
	body   jsonBody
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
	p.body, err = a.announcedBody(ctx, "log entry", maxEntrySize)
	return p, err
}

// postLog appends the entry that is the body to the log of its build.
func (a *api) postLog(ctx *fasthttp.RequestCtx, p logAppend) (response, error) {
	body, memory, err := a.receive(ctx, p.body, p.siteID)
	if err != nil {
		return response{}, err
	}
	defer memory.release()
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
// sent. Other members are ignored. The error names the member at fault.
func parseEntry(body []byte) (e LogEntry, err error) {
	err = parseObject(body, func(dec *jsontext.Decoder, name string) (known bool, err error) {
		switch name {
		case "build_id":
			e.BuildID, err = memberText(dec, name, maxEntrySize)
		case "action":
			e.Action, err = memberText(dec, name, maxEntryText)
		case "status":
			e.Status, err = memberText(dec, name, maxEntryText)
		case "metadata":
			e.Metadata, err = entryMetadata(dec, body)
		default:
			return false, nil
		}
		return true, err
	})
	if err != nil {
		return LogEntry{}, err
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
