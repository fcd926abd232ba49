//go:build integration

package main

import "testing"

func TestRealStoresKeepLabels(t *testing.T) {
	eachStore(t, func(t *testing.T, s *realStore) {
		testLabels(t, labelRig{
			gap:   true,
			open:  func(t *testing.T) Backend { return s.open(t, "") },
			plant: plantIn(t, s.open(t, "").(*objectStore)),
		})
	})
}

func TestRealStoresDeleteVersions(t *testing.T) {
	eachStore(t, func(t *testing.T, s *realStore) {
		testDeletes(t, func(t *testing.T) Backend { return s.open(t, "") }, s.but...)
	})
}
