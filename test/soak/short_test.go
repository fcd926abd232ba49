//go:build integration && !torture

package soak

import "time"

const soakTime = time.Minute
const hostileTime = 20 * time.Second
