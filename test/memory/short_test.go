//go:build integration && !torture

package memory

import "time"

const (
	torture         = false
	logSize         = 2 << 20 // of the logs that are listed
	appendSize      = 6 << 20
	unfinishedParts = 60
	latencyTime     = 2 * time.Second
)
