package main

import "testing"

func TestDigestsNFS(t *testing.T) {
	base := t.TempDir()
	testDigests(t, func(t *testing.T) Backend { return openTestNFS(t, base) })
}

func TestDigestsRemoteNFS(t *testing.T) {
	base := t.TempDir()
	testDigests(t, func(t *testing.T) Backend { return openRemote(t, base) })
}
