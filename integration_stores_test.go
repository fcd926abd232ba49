//go:build integration

package main

import "testing"

func TestRealStores(t *testing.T) {
	eachStore(t, func(t *testing.T, s *realStore) {
		testBackend(t, func(t *testing.T) Backend { return s.open(t, "") }, s.but...)
	})
}
