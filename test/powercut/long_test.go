//go:build torture

package powercut

// How much the long form does.
const (
	cutsPerSystem    = 60
	replaysPerSystem = 120
	replayedSeconds  = 15
)
