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
// one piece of it, and one entry. Its size is known before, so that a client notices
// when it was cut.
type listBody struct {
	conn     *conn
	site     string
	page     *VersionPage
	metadata bool
	memory   *grant
}

var _ fasthttp.BodyWriterTo = (*listBody)(nil)

// Read is never called, since there is WriteTo.
func (l *listBody) Read([]byte) (int, error) { return 0, errors.ErrUnsupported }

// SupportsBodyWriteTo implements fasthttp.BodyWriterTo.
func (l *listBody) SupportsBodyWriteTo() bool { return true }

// WriteTo implements io.WriterTo. If a log has changed since the header was made, it fails
// and the connection is cut.
func (l *listBody) WriteTo(w io.Writer) (int64, error) {
	lw := listWriter{w: w, b: make([]byte, 0, listPiece+listPiece/4)}
	err := lw.versions(l.site, l.page, l.metadata)
	if err != nil && lw.err == nil { // the client did not cause it
		_ = l.conn.sourceFailed(err)
	}
	return lw.written, err
}

// Close releases the memory.
func (l *listBody) Close() error {
	l.memory.release()
	return nil
}

// sendList returns a response with a page, in the memory that it takes.
func (a *api) sendList(ctx *fasthttp.RequestCtx, l listing, page *VersionPage) (r response, err error) {
	size := sizeOfList(l.siteID, page, l.query.Metadata)
	if l.head {
		return response{sizeOnly: true, size: size}, nil
	}
	need, buffered := size, size <= a.listBuffered
	if !buffered {
		need = memoryToSend(page, l.query.Metadata)
	}
	var memory *grant
	if size > listFree {
		memory, err = acquire(a.lists, l.conn, budgetRequest{n: need, revoke: l.conn.responseRevoker()})
		if err != nil {
			return r, err
		}
	}
	if !buffered {
		return response{
			stream:       &listBody{l.conn, l.siteID, page, l.query.Metadata, memory},
			size:         size,
			sourceFailed: a.sourceFailed(l.conn, "a list", callList, l.siteID, ""),
		}, nil
	}
	sent := false
	defer func() {
		if !sent {
			memory.release()
		}
	}()
	lw := listWriter{b: takeBuffer(ctx)}
	if need := int(size); cap(lw.b) < need {
		lw.b = make([]byte, 0, need)
	}
	if err := lw.versions(l.siteID, page, l.query.Metadata); err != nil {
		return r, err
	}
	sent = true
	return response{buffer: lw.b, release: memory.release}, nil
}

// memoryToSend returns about how much memory that sending a page takes, piece by piece.
func memoryToSend(page *VersionPage, metadata bool) int64 {
	largest, versions := int64(0), int64(len(page.Versions))
	for _, v := range page.Versions {
		if v.Stored != nil && v.Stored.known(metadata) == nil {
			largest = max(largest, v.Stored.largest)
		}
	}
	return listStream + 4*largest + 200*versions + int64(len(page.digests)*len(Digest{})+len(page.labels)*24)
}
