package main

import "testing"

func TestDeletesNFS(t *testing.T) {
	base := t.TempDir()
	testDeletes(t, func(t *testing.T) Backend { return openTestNFS(t, base) })
}

func TestDeletesRemoteNFS(t *testing.T) {
	base := t.TempDir()
	testDeletes(t, func(t *testing.T) Backend { return openRemote(t, base) })
}
