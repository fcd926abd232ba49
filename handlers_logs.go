package main

import (
	"bytes"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/valyala/fasthttp"
)

const (
	maxEntryText = 256    // bytes of an action, and of a status
	maxPageLimit = 10_000 // builds on a page at most
	maxKeyLen    = 255    // bytes of an Idempotency-Key
	maxNesting   = 50     // levels of metadata: in a list they are five deeper, and a few parsers take 64
)

// postLog appends an entry to the log of a build.
func (s *service) postLog(ctx *fasthttp.RequestCtx) {
	siteID, ok := pathID(ctx, "site_id")
	if !ok {
		return
	}
	id, fresh, err := entryID(ctx)
	if err != nil {
		refuse(ctx, fasthttp.StatusBadRequest, "%v", err)
		return
	}
	if !plainBody(ctx, "log entry", "curl -d") {
		return
	}
	if ctx.Request.Header.ContentLength() > maxEntrySize {
		refuseEntrySize(ctx)
		return
	}
	if expecting(ctx) {
		return
	}
	memory, ok := s.entryMemory(ctx)
	if !ok {
		return
	}
	defer memory.release()
	body, err := s.readEntry(ctx)
	if errors.Is(err, errTooLarge) {
		refuseEntrySize(ctx)
		return
	}
	if err != nil {
		s.fail(ctx, "read the log entry", siteID, "", err)
		return
	}
	entry, err := parseEntry(body)
	if err != nil {
		refuse(ctx, fasthttp.StatusBadRequest, "%v", err)
		return
	}
	entry.ID, entry.Fresh, entry.Timestamp = id, fresh, time.Now().UTC()
	entry.Client = ctx.Conn().(*conn).client()
	place, ok := s.toWrite(ctx, siteID, entry.BuildID)
	if !ok {
		return
	}
	defer place.release()
	start := time.Now()
	err = s.backend.WriteLog(siteID, entry)
	s.metrics.call(callAppend, start, err)
	if err != nil {
		s.fail(ctx, "write the log entry", siteID, entry.BuildID, err)
		return
	}
	answer(ctx, fasthttp.StatusCreated, success{Status: "success", SiteID: siteID, BuildID: entry.BuildID, EntryID: id})
}

func refuseEntrySize(ctx *fasthttp.RequestCtx) {
	refuse(ctx, fasthttp.StatusRequestEntityTooLarge, "the log entry is larger than the maximum of %d bytes", maxEntrySize)
}

// readEntry reads the whole body.
func (s *service) readEntry(ctx *fasthttp.RequestCtx) ([]byte, error) {
	stream := ctx.RequestBodyStream()
	if stream == nil {
		return nil, errEmptyBody
	}
	size := int64(ctx.Request.Header.ContentLength())
	body := openBody(ctx.Conn().(*conn), stream, size, maxEntrySize, false)
	defer body.close()
	var data bytes.Buffer
	data.Grow(int(max(size, 0)) + bytes.MinRead) // the body as a whole, at once
	_, err := data.ReadFrom(body)
	return data.Bytes(), err
}

// entryMemory takes what a log entry takes of memory, about, until it is stored: its
// body, and what is made of it.
func (s *service) entryMemory(ctx *fasthttp.RequestCtx) (*grant, bool) {
	size := int64(ctx.Request.Header.ContentLength())
	if size < 0 {
		size = maxEntrySize // in chunks: as much as it may be
	}
	c := ctx.Conn().(*conn)
	token := c.hold()
	return s.take(ctx, s.entries, budgetRequest{n: 6*size + 4<<10, revoke: func() { c.revokeBody(token) }})
}

// entryID is the client's Idempotency-Key, which makes a POST safe to repeat,
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
			return "", false, errors.New("Idempotency-Key has a character outside printable ASCII")
		}
	}
	return string(key), false, nil
}

// parseEntry reads the body of a POST: an object with the strings build_id,
// action and status and an optional object metadata, which is kept as it was
// sent. Names are matched exactly, each of these may be there once, and other
// members are ignored. The error names the member at fault.
func parseEntry(body []byte) (LogEntry, error) {
	// Surrogates are judged here, since in a member that is ignored they may be anything.
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
			return e, fmt.Errorf("%s is there twice", name)
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
		return "", fmt.Errorf("%s is not a string: %v", name, err)
	case len(text) == 0:
		return "", fmt.Errorf("%s is empty", name)
	case len(text) > most:
		return "", fmt.Errorf("%s has %d bytes, more than %d", name, len(text), most)
	}
	return string(text), nil
}

// entryMetadata reads an object, which it returns as it stands in body, or null, for
// which it returns nil.
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
			return fmt.Errorf("%.200s has one half of a surrogate pair without the other", dec.StackPointer())
		}
	case jsontext.KindNumber:
		if outsideBinary64(raw) {
			return fmt.Errorf("%.200s is a number that is too large for binary64; send it as a string", dec.StackPointer())
		}
	}
	return nil
}

// syntaxError says where a body stops being JSON. nil: something follows its end.
func syntaxError(err error) error {
	if err == nil {
		return errors.New("the body is not valid JSON: something follows the object")
	}
	var syntax *jsontext.SyntacticError
	if errors.As(err, &syntax) {
		return fmt.Errorf("the body is not valid JSON: %v at byte %d", syntax.Err, syntax.ByteOffset)
	}
	return fmt.Errorf("the body is not valid JSON: %v", err)
}

// getVersions lists the builds of a site with their logs.
func (s *service) getVersions(ctx *fasthttp.RequestCtx) {
	siteID, ok := pathID(ctx, "site_id")
	if !ok {
		return
	}
	query, ok := versionQuery(ctx)
	if !ok {
		return
	}
	ifNoneMatch, _ := headerETags(ctx, fasthttp.HeaderIfNoneMatch) // of a GET or HEAD none is an error
	if expecting(ctx) {
		return
	}
	query.Client = ctx.Conn().(*conn).client()
	err := s.answerList(ctx, siteID, query, ifNoneMatch)
	if errors.Is(err, errLogChanged) { // it is known now that it did
		err = s.answerList(ctx, siteID, query, ifNoneMatch)
	}
	if err != nil {
		s.fail(ctx, "list the versions", siteID, "", err)
	}
}

// answerList answers with the builds that query selects. After an error nothing is
// answered.
func (s *service) answerList(ctx *fasthttp.RequestCtx, siteID string, query VersionQuery, ifNoneMatch *ETagList) error {
	place, ok := s.take(ctx, s.listing, budgetRequest{n: 1, caps: []keyCap{{"site " + siteID, maxSiteLists}}})
	if !ok {
		return nil
	}
	page, err := s.timedList(place, siteID, query)
	if err != nil {
		return err
	}
	ctx.Response.Header.Set(fasthttp.HeaderCacheControl, "no-cache")
	etag := ""
	if page.Tag != "" {
		etag = pageETag(page, query)
		if ifNoneMatch != nil && (ifNoneMatch.Any || ifNoneMatch.matchWeak(etag)) {
			ctx.Response.Header.Set(fasthttp.HeaderETag, etag)
			ctx.SetStatusCode(fasthttp.StatusNotModified)
			return nil
		}
	}
	ok, err = s.sendList(ctx, siteID, page, query.Metadata)
	if ok && etag != "" {
		ctx.Response.Header.Set(fasthttp.HeaderETag, etag)
	}
	return err
}

// listFormat is raised whenever the same versions are written otherwise into a list, so
// that clients do not keep the list of an older service.
const listFormat = "2"

// pageETag is the entity tag of a page: of what is listed and how it is shown.
func pageETag(page *VersionPage, q VersionQuery) string {
	tag := `"` + listFormat + "-" + page.Tag
	if q.Metadata {
		tag += "-m"
	}
	if page.NextCursor != "" {
		tag += "-n"
	}
	return tag + `"`
}

// timedList is listVersions with a place among the lists, which it gives back before
// the answer is made.
func (s *service) timedList(place *grant, siteID string, q VersionQuery) (*VersionPage, error) {
	defer place.release()
	start := time.Now()
	page, err := s.listVersions(siteID, q)
	s.metrics.call(callList, start, err)
	return page, err
}

// listVersions asks a backend that cannot page for all versions.
func (s *service) listVersions(siteID string, q VersionQuery) (*VersionPage, error) {
	if b, ok := s.backend.(VersionPager); ok {
		return b.ListVersionsPage(siteID, q)
	}
	all, err := s.backend.ListVersions(siteID)
	if err != nil {
		return nil, err
	}
	page, err := pageVersions(all, q)
	if err != nil {
		return nil, err
	}
	page.Versions = slices.Clone(page.Versions)
	for i, v := range page.Versions {
		page.Versions[i] = v.listable()
	}
	page.seal()
	return page, nil
}

// versionQuery reads the arguments of a listing. What it refuses it answers.
func versionQuery(ctx *fasthttp.RequestCtx) (q VersionQuery, ok bool) {
	if !queryKnown(ctx, "limit", "cursor", "metadata") {
		return q, false
	}
	args := ctx.QueryArgs()
	if args.Has("limit") {
		n, err := strconv.Atoi(string(args.Peek("limit")))
		if err != nil || n < 1 || n > maxPageLimit {
			refuse(ctx, fasthttp.StatusBadRequest, "limit must be a number from 1 to %d", maxPageLimit)
			return q, false
		}
		q.Limit = n
	}
	if args.Has("cursor") {
		q.Cursor = string(args.Peek("cursor"))
		if _, err := parseCursor(q.Cursor); err != nil {
			refuse(ctx, fasthttp.StatusBadRequest, "cursor must be a next_cursor of this service")
			return q, false
		}
	}
	q.Metadata, ok = queryBool(ctx, "metadata", false)
	return q, ok
}
