//go:build integration && !torture

package nfs

// How much the short form does.
const (
	loadPerWorker    = 40 // requests
	visibilityRounds = 10
)
