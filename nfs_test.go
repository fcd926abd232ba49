package main

import "testing"

// openTestNFS opens the store at base, as another process would.
func openTestNFS(t testing.TB, base string) *nfs {
	t.Helper()
	n, err := openNFS(base, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return n
}

func TestNFS(t *testing.T) {
	base := t.TempDir()
	testBackend(t, func(t *testing.T) Backend { return openTestNFS(t, base) })
}
