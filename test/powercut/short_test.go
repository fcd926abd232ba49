//go:build integration && !torture

package powercut

// leftOut are the variants that only the long form tries: each takes more than a minute.
var leftOut = []string{digestAsIs, digestByName, digestOfTheReplaced, everyShared, renameFirst, noRepeat}

// How much the short form does.
const (
	cutsPerSystem    = 4  // power cuts on each file system
	replaysPerSystem = 16 // points to which each recorded run is replayed
	replayedSeconds  = 3  // of load in each recorded run
)
