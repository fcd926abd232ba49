//go:build torture

package powercut

// leftOut are the variants that are not tried.
var leftOut []string

// How much the long form does.
const (
	cutsPerSystem    = 60
	replaysPerSystem = 120
	replayedSeconds  = 15
)
