package main

import (
	"errors"
	"io"

	"github.com/valyala/fasthttp"
)

const (
	listMemory   = 64 << 20  // bytes for the lists that are made and sent
	listBuffered = 1 << 20   // bytes of a list that is made whole before it is sent
	listFree     = 16 << 10  // bytes of a list that is not counted
	listStream   = 256 << 10 // bytes that sending a list takes, whatever is in it
)

// listBody is the body of a list that is made while it is sent: a slow client holds
// one piece of it, and one entry. Its size is known before, so that a client sees
// when it was cut.
type listBody struct {
	conn     *conn
	site     string
	page     *VersionPage
	metadata bool
	memory   *grant
}

var _ fasthttp.BodyWriterTo = (*listBody)(nil)

// Read is never called, as there is WriteTo.
func (l *listBody) Read([]byte) (int, error) { return 0, errors.ErrUnsupported }

// SupportsBodyWriteTo implements fasthttp.BodyWriterTo.
func (l *listBody) SupportsBodyWriteTo() bool { return true }

// WriteTo implements io.WriterTo. If a log is not any more what it was when the
// header was made it fails, and the connection is cut.
func (l *listBody) WriteTo(w io.Writer) (int64, error) {
	lw := listWriter{w: w, b: make([]byte, 0, listPiece+listPiece/4)}
	err := lw.versions(l.site, l.page, l.metadata)
	if err != nil && lw.err == nil { // not the client's doing
		_ = l.conn.sourceFailed(err)
	}
	return lw.written, err
}

// Close gives back the memory.
func (l *listBody) Close() error {
	l.memory.release()
	return nil
}

// sendList answers with a page, unless there is no memory for it: then the answer is
// given, and ok is false. After an error nothing is answered.
func (s *service) sendList(ctx *fasthttp.RequestCtx, siteID string, page *VersionPage, metadata bool) (ok bool, err error) {
	size := sizeOfList(siteID, page, metadata)
	ctx.SetContentType("application/json")
	if ctx.IsHead() {
		ctx.Response.SkipBody = true
		ctx.Response.Header.SetContentLength(int(size))
		return true, nil
	}
	need, buffered := size, size <= s.listBuffered
	if !buffered {
		need = memoryToSend(page, metadata)
	}
	c := ctx.Conn().(*conn)
	var memory *grant
	if size > listFree {
		token := c.hold()
		if memory, ok = s.take(ctx, s.lists, budgetRequest{n: need, revoke: func() { c.revokeAnswer(token) }}); !ok {
			return false, nil
		}
	}
	if !buffered {
		s.failLater(c, "a list", callList, siteID, "")
		ctx.SetBodyStream(&listBody{c, siteID, page, metadata, memory}, int(size))
		return true, nil
	}
	c.ex.release = memory.release
	// Into the buffer of an answer before: one of a megabyte is dear to make.
	lw := listWriter{b: ctx.Response.SwapBody(nil)[:0]}
	if need := int(size); cap(lw.b) < need {
		lw.b = make([]byte, 0, need)
	}
	if err := lw.versions(siteID, page, metadata); err != nil {
		memory.release()
		return false, err
	}
	ctx.Response.SwapBody(lw.b)
	return true, nil
}

// memoryToSend is about the memory that sending a page takes, piece by piece.
func memoryToSend(page *VersionPage, metadata bool) int64 {
	largest, versions := int64(0), int64(len(page.Versions))
	for _, v := range page.Versions {
		if v.Stored != nil && v.Stored.known(metadata) == nil {
			largest = max(largest, v.Stored.largest)
		}
	}
	return listStream + 4*largest + 200*versions
}
