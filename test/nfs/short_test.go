//go:build integration && !torture

package nfs

// How much the short form does.
const (
	loadPerWorker    = 40 // requests
	visibilityRounds = 10
	absentWrites     = 30
	costRounds       = 5
	appends          = "^TestProcessesAppend$/^10_at_once$" // one at a time takes a minute more
)

// The cuts under each protocol.
var cutsPerProtocol = [][]cut{{bothAtGap, oneAtLogGap, serverAtGap, bothServerFirst, oneAlone, bothAtLogGap}, nil}

// The cuts for the variant without the protocol.
var plainRenameCuts = []cut{bothAtGap}
