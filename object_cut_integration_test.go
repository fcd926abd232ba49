//go:build integration

package main

import (
	"bytes"
	"errors"
	"io"
	"net/http"
	"sync/atomic"
	"syscall"
	"testing"
)

// cutter makes a proxy end the connection early in responses of a store that carry a build.
type cutter struct {
	times atomic.Int64 // responses that are still to be cut
	after atomic.Int64 // percent of the body that is passed on, or firstByte, or nothing
	cut   atomic.Int64 // responses that were cut
}

const firstByte, nothing = 0, -1 // of cutter.after

func (c *cutter) modify(resp *http.Response) error {
	if resp.Request.Method != http.MethodGet || resp.Header.Get("Content-Type") != artifactType || c.times.Add(-1) < 0 {
		return nil
	}
	c.cut.Add(1)
	after := c.after.Load()
	if after == nothing {
		panic(http.ErrAbortHandler)
	}
	resp.Body = struct {
		io.Reader
		io.Closer
	}{io.MultiReader(io.LimitReader(resp.Body, max(1, resp.ContentLength*after/100)), errReader{errors.New("cut")}), resp.Body}
	return nil
}

// If the store breaks off one response, the download resumes with the right bytes. If it
// breaks off every response, the download ends early or is an error: the client never takes
// it for complete.
func TestRealStoresCutDownload(t *testing.T) {
	data := body(largeBody, 5)
	eachStore(t, func(t *testing.T, s *realStore) {
		c := &cutter{}
		service := s.service(t, storeProxy(t, s.server.url(), c.modify))
		if status, err := putBuild(service.url(), "b", data); status != 201 {
			t.Fatal(status, err)
		}
		for _, cut := range []struct {
			name         string
			times, after int64
		}{
			{"once in the middle", 1, 50},
			{"once after a byte", 1, firstByte},
			{"once before it begins", 1, nothing},
			{"always in the middle", 1 << 40, 50},
			{"always after a byte", 1 << 40, firstByte},
			{"always before it begins", 1 << 40, nothing},
		} {
			t.Run(cut.name, func(t *testing.T) {
				c.after.Store(cut.after)
				cutDownload(t, service.url(), c, cut.times, "", 200, data)
				cutDownload(t, service.url(), c, cut.times, "bytes=1000000-8999999", 206, data[1_000_000:9_000_000])
			})
		}
	})
}

// cutDownload downloads while c cuts responses, and once more when it does not.
func cutDownload(t *testing.T, service string, c *cutter, times int64, value string, status int, want []byte) {
	t.Helper()
	c.cut.Store(0)
	c.times.Store(times)
	got, answered, err := downloadPart(service, value)
	c.times.Store(0)
	short := errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET)
	switch {
	case answered == http.StatusServiceUnavailable && err == nil && times > 1:
	case answered == 0 && times > 1 && errors.Is(err, io.EOF): // the connection ended before any of it was sent
	case answered != status:
		t.Errorf("status %d, %v", answered, err)
	case !bytes.HasPrefix(want, got):
		t.Errorf("%d bytes that are not those of the build", len(got))
	case times == 1: // it resumed
		if err != nil || len(got) != len(want) {
			t.Errorf("cut once, %d bytes of %d came, %v", len(got), len(want), err)
		}
	case !short:
		t.Errorf("%d bytes of %d came, and the error is %v", len(got), len(want), err)
	}
	if c.cut.Load() == 0 {
		t.Error("no reply of the store was cut")
	}
	t.Logf("%d replies of the store cut: status %d, %d bytes of %d, %v", c.cut.Load(), answered, len(got), len(want), err)
	if got, answered, err := downloadPart(service, value); err != nil || answered != status || !bytes.Equal(got, want) {
		t.Errorf("when nothing is cut: status %d, %d bytes of %d, %v", answered, len(got), len(want), err)
	}
}

// downloadPart returns the bytes that arrived, and the error if the download ended early.
func downloadPart(service, value string) (got []byte, status int, err error) {
	req, err := http.NewRequest(http.MethodGet, service+"/sites/s/artifacts/b", nil)
	if err != nil {
		return nil, 0, err
	}
	if value != "" {
		req.Header.Set("Range", value)
	}
	resp, err := patientClient.Do(req)
	if err != nil {
		return nil, 0, err
	}
	defer resp.Body.Close()
	got, err = io.ReadAll(resp.Body)
	return got, resp.StatusCode, err
}
