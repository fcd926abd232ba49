package main

import (
	"log/slog"
	"testing"
)

func quiet() *slog.Logger { return slog.New(slog.DiscardHandler) }

func TestMemory(t *testing.T) {
	m := newMemBucket()
	testBackend(t, func(*testing.T) Backend { return newObjectStore(m, "a/prefix/", quiet()) })
}
