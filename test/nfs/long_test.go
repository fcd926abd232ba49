//go:build torture

package nfs

// How much the long form does.
const (
	loadPerWorker    = 600
	visibilityRounds = 200
	appends          = "^TestProcessesAppend$"
)
