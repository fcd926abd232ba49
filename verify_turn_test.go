package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"slices"
	"sync"
	"testing"
	"time"
)

// TestVerifyReadsLargeBuildsInOrder: with a rate, the build at the position is read first, however
// late it is opened, also if others between are not read. So a run that is stopped has done
// all that it read, except one build.
func TestVerifyReadsLargeBuildsInOrder(t *testing.T) {
	const builds = 10
	s := openFaulty(t, t.TempDir())
	data := make([]byte, verifyBuffer+1)
	want := []string{}
	for build := range builds {
		id := fmt.Sprint(builds - 1 - build)
		if build%3 == 1 { // unknown: not read
			noError(t, s.StoreArtifact("a", id, bytes.NewReader(data)))
			continue
		}
		storeHashed(t, s, "a", id, data)
		want = append([]string{id}, want...) // the newest first
	}
	var mu sync.Mutex
	var opened, begun []string
	others := make(chan struct{})
	s.onFetch = func(build string) error {
		mu.Lock()
		if opened = append(opened, build); len(opened) == verifyReaders+1 {
			close(others)
		}
		mu.Unlock()
		if build != want[0] {
			return nil
		}
		select { // until the other readers are at work
		case <-others:
			return nil
		case <-time.After(time.Minute):
			return io.ErrNoProgress
		}
	}
	s.onRead = func(build string, n int64) error {
		mu.Lock()
		defer mu.Unlock()
		if !slices.Contains(begun, build) {
			begun = append(begun, build)
		}
		return nil
	}
	v := newVerifier(s, verifyOptions{}, 1<<40, &verifyReport{commandOutput: commandOutput{stdout: io.Discard, stderr: io.Discard}})
	_, err := v.begin(false, time.Now())
	noError(t, err)
	if err := v.run(t.Context()); err != nil || v.state.Counts.OK != int64(len(want)) || !slices.Equal(begun, want) {
		t.Errorf("%v, %+v: read %v, want %v", err, v.state.Counts, begun, want)
	}
}

func TestReadOrder(t *testing.T) {
	var o readOrder
	turns := map[byte]*readTurn{}
	for i := byte('a'); i <= 'e'; i++ {
		turns[i] = o.add()
	}
	state := func() (come string) {
		for i := byte('a'); i <= 'e'; i++ {
			select {
			case <-turns[i].come:
				come += string(i)
			default:
			}
		}
		return come
	}
	for _, c := range []struct{ pass, want string }{{"", "a"}, {"b", "a"}, {"d", "a"}, {"a", "ac"}, {"a", "ac"}, {"c", "ace"}, {"e", "ace"}} {
		for _, i := range []byte(c.pass) {
			turns[i].pass()
		}
		if got := state(); got != c.want {
			t.Errorf("after %q has passed: %q have come, want %q", c.pass, got, c.want)
		}
	}
	waiting := o.add()
	ended, cancel := context.WithCancel(t.Context())
	if err := waiting.wait(ended); err != nil { // the only one
		t.Error(err)
	}
	cancel()
	if err := o.add().wait(ended); err != context.Canceled {
		t.Error(err)
	}
	var none *readTurn
	none.pass()
	noError(t, none.wait(ended))
}
