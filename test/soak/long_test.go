//go:build torture

package soak

import "time"

const soakTime = 10 * time.Minute
const hostileTime = 10 * time.Minute
