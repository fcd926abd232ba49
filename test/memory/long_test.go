//go:build torture

package memory

import "time"

const (
	torture     = true
	logSize     = 15 << 20
	appendSize  = 15 << 20
	latencyTime = 30 * time.Second
)
