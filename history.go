package main

import (
	"bytes"
	"crypto/rand"
	stdjson "encoding/json"
	"errors"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/goccy/go-json"
	"github.com/valyala/fasthttp"
)

const (
	maxEntrySize = 1 << 20 // bytes of the body of a POST of a log entry
	maxPageLimit = 10_000  // builds on a page at most
	maxKeyLen    = 255     // bytes of an Idempotency-Key
	maxNesting   = 50      // levels of metadata: in a list they are five deeper, and a few parsers take 64
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
	return s.take(ctx, s.entries, ask{n: 6*size + 4<<10, end: func() { c.revokeBody(token) }})
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
// sent. Other members are ignored. The error names the member at fault.
func parseEntry(body []byte) (LogEntry, error) {
	// The standard library judges what is JSON: what it lets through is written
	// into the log as it is, and one byte too much would damage the log.
	switch {
	case len(bytes.TrimSpace(body)) == 0:
		return LogEntry{}, errEmptyBody
	case !utf8.Valid(body):
		return LogEntry{}, errors.New("the body is not valid UTF-8")
	case !stdjson.Valid(body):
		return LogEntry{}, fmt.Errorf("the body is not valid JSON%s", syntaxError(body))
	case kindOf(body) != '{':
		return LogEntry{}, errors.New("the body is not a JSON object")
	}
	var raw struct {
		BuildID  json.RawMessage `json:"build_id"`
		Action   json.RawMessage `json:"action"`
		Status   json.RawMessage `json:"status"`
		Metadata json.RawMessage `json:"metadata"`
	}
	if err := json.Unmarshal(body, &raw); err != nil {
		return LogEntry{}, fmt.Errorf("the body is not valid JSON: %v", err)
	}
	e := LogEntry{}
	for _, m := range []struct {
		name string
		raw  json.RawMessage
		to   *string
	}{{"build_id", raw.BuildID, &e.BuildID}, {"action", raw.Action, &e.Action}, {"status", raw.Status, &e.Status}} {
		if kindOf(m.raw) == 'n' {
			return LogEntry{}, fmt.Errorf("%s is missing", m.name)
		}
		if kindOf(m.raw) != '"' {
			return LogEntry{}, fmt.Errorf("%s is not a string", m.name)
		}
		if err := stdjson.Unmarshal(m.raw, m.to); err != nil {
			return LogEntry{}, fmt.Errorf("%s is not a string: %v", m.name, err)
		}
		if *m.to == "" {
			return LogEntry{}, fmt.Errorf("%s is empty", m.name)
		}
	}
	if err := checkID(e.BuildID); err != nil {
		return LogEntry{}, fmt.Errorf("build_id %w", err)
	}
	switch kindOf(raw.Metadata) {
	case 'n': // absent, or null
	case '{':
		e.Metadata = bytes.TrimSpace(raw.Metadata)
		if nesting(e.Metadata) > maxNesting {
			return LogEntry{}, fmt.Errorf("metadata is nested deeper than %d levels", maxNesting)
		}
	default:
		return LogEntry{}, errors.New("metadata is not an object")
	}
	return e, nil
}

// kindOf is the first byte of a valid JSON value, 'n' if there is none.
func kindOf(raw []byte) byte {
	raw = bytes.TrimSpace(raw)
	if len(raw) == 0 {
		return 'n'
	}
	return raw[0]
}

// nesting is how deep the arrays and objects of a valid JSON value go.
func nesting(raw []byte) int {
	depth, deepest, quoted := 0, 0, false
	for i := 0; i < len(raw); i++ {
		switch c := raw[i]; {
		case c == '"':
			quoted = !quoted
		case quoted && c == '\\':
			i++
		case quoted:
		case c == '{', c == '[':
			depth++
			deepest = max(deepest, depth)
		case c == '}', c == ']':
			depth--
		}
	}
	return deepest
}

// syntaxError tells where body stops being JSON.
func syntaxError(body []byte) string {
	var syntax *stdjson.SyntaxError
	if err := stdjson.Unmarshal(body, new(any)); errors.As(err, &syntax) {
		return fmt.Sprintf(": %v at byte %d", syntax, syntax.Offset)
	}
	return ""
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
	ifNoneMatch, err := headerETags(ctx, fasthttp.HeaderIfNoneMatch)
	if err != nil {
		refuse(ctx, fasthttp.StatusBadRequest, "If-None-Match: %v", err)
		return
	}
	if expecting(ctx) {
		return
	}
	query.Client = ctx.Conn().(*conn).client()
	err = s.answerList(ctx, siteID, query, ifNoneMatch)
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
	place, ok := s.take(ctx, s.listing, ask{n: 1, caps: []keyCap{{"site " + siteID, maxSiteLists}}})
	if !ok {
		return nil
	}
	page, err := s.timedList(place, siteID, query)
	if err != nil {
		return err
	}
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

// pageETag is the entity tag of a page: of what is listed and how it is shown.
func pageETag(page *VersionPage, q VersionQuery) string {
	tag := `"` + page.Tag
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
	sums := make([][16]byte, len(page.Versions))
	for i, v := range page.Versions {
		sums[i] = versionSum(v)
	}
	page.seal(sums)
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
	switch v := string(args.Peek("metadata")); v {
	case "", "false":
	case "true":
		q.Metadata = true
	default:
		refuse(ctx, fasthttp.StatusBadRequest, "metadata must be true or false")
		return q, false
	}
	return q, true
}
