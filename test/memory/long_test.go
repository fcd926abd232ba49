//go:build torture

package memory

import "time"

const (
	torture         = true
	logSize         = 15 << 20
	appendSize      = 15 << 20
	unfinishedParts = 100
	latencyTime     = 30 * time.Second
)
