package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/valyala/fasthttp"
)

// jsonBody is the JSON body that the header of a request announces. It is read whole.
type jsonBody struct {
	noun    string // what the body is
	size    int64  // -1: chunked
	limit   int64  // in bytes
	digests announcedDigests
}

// announcedBody returns the body of a request, which is a noun of at most limit bytes. It
// refuses one that is too large, or that would not be taken as its sender means it.
func (a *api) announcedBody(ctx *fasthttp.RequestCtx, noun string, limit int64) (b jsonBody, err error) {
	b.noun, b.limit = noun, limit
	if err := checkPlainBody(ctx, noun, "curl -d"); err != nil {
		return b, err
	}
	if b.digests, err = a.requestDigests(ctx); err != nil {
		return b, err
	}
	if b.size = int64(ctx.Request.Header.ContentLength()); b.size > limit {
		return b, b.tooLarge()
	}
	return b, nil
}

func (b *jsonBody) tooLarge() error {
	return newHTTPError(fasthttp.StatusRequestEntityTooLarge, "the %s is larger than the maximum of %d bytes", b.noun, b.limit)
}

// memory returns about what the body takes of memory until the request is done: its bytes, and
// what is made of them.
func (b *jsonBody) memory() int64 {
	size := b.size
	if size < 0 {
		size = b.limit // in chunks: as much as it may be
	}
	return 6*size + 4<<10
}

// receive reads the whole body of a request for siteID. The caller releases the memory.
func (a *api) receive(ctx *fasthttp.RequestCtx, b jsonBody, siteID string) (data []byte, memory *grant, err error) {
	c := connOf(ctx)
	if memory, err = acquire(a.entries, c, budgetRequest{n: b.memory(), revoke: c.bodyRevoker()}); err != nil {
		return nil, nil, err
	}
	if data, err = a.readBody(ctx, c, b); err == nil {
		return data, memory, nil
	}
	memory.release()
	if errors.Is(err, errTooLarge) {
		return nil, nil, b.tooLarge()
	}
	return nil, nil, &operationError{operation: "read the " + b.noun, siteID: siteID, err: err}
}

func (a *api) readBody(ctx *fasthttp.RequestCtx, c *conn, b jsonBody) ([]byte, error) {
	stream := ctx.RequestBodyStream()
	if stream == nil {
		return nil, errEmptyBody
	}
	body := openBody(c, stream, b.size, b.limit, false, nil)
	defer body.close()
	a.digestsOf(ctx, body, b.digests, false)
	var data bytes.Buffer
	data.Grow(int(max(b.size, 0)) + bytes.MinRead) // the body as a whole, at once
	_, err := data.ReadFrom(body)
	return data.Bytes(), err
}

// parseObject reads a body that is one JSON object. It calls member with the name of each of
// its members; member reads the value, or says that it does not know the name: that member is
// ignored. Names are matched exactly, and those that are known may occur once.
func parseObject(body []byte, member func(dec *jsontext.Decoder, name string) (known bool, err error)) error {
	// Surrogates are checked by member: in what is ignored any are allowed.
	dec := jsontext.NewDecoder(bytes.NewBuffer(body), jsontext.AllowDuplicateNames(true), jsontext.AllowInvalidUTF8(true))
	switch {
	case len(bytes.TrimSpace(body)) == 0:
		return errEmptyBody
	case !utf8.Valid(body):
		return errors.New("the body is not valid UTF-8")
	case dec.PeekKind() != jsontext.KindBeginObject && dec.PeekKind() != jsontext.KindInvalid:
		return errors.New("the body is not a JSON object")
	}
	if _, err := dec.ReadToken(); err != nil {
		return syntaxError(err)
	}
	seen := map[string]bool{} // of the names that are known
	for dec.PeekKind() != jsontext.KindEndObject {
		t, err := dec.ReadToken()
		if err != nil {
			return syntaxError(err)
		}
		name := t.String()
		if seen[name] {
			return fmt.Errorf("%s is specified more than once", name)
		}
		known, err := member(dec, name)
		if err != nil {
			return err
		}
		if known {
			seen[name] = true
		} else if err := dec.SkipValue(); err != nil {
			return syntaxError(err)
		}
	}
	if _, err := dec.ReadToken(); err != nil {
		return syntaxError(err)
	}
	if _, err := dec.ReadToken(); err != io.EOF {
		return syntaxError(err)
	}
	return nil
}

// memberText reads a string that is not empty, or null, for which it returns "".
func memberText(dec *jsontext.Decoder, name string, most int) (string, error) {
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
