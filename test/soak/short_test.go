//go:build integration && !torture

package soak

import "time"

const soakTime = time.Minute
