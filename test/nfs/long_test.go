//go:build torture

package nfs

import "slices"

// How much the long form does.
const (
	loadPerWorker    = 600
	visibilityRounds = 200
	absentWrites     = 500
	costRounds       = 50
	appends          = "^TestProcessesAppend$"
)

// The cuts under each protocol.
var cutsPerProtocol = [][]cut{slices.Repeat(allCuts, 3), allCuts}

var allCuts = []cut{
	bothAtGap, bothAtLogGap, bothServerFirst, bothClientFirst,
	serverAtGap, serverAtLogGap, serverAlone,
	clientsAtGap, clientsAtLogGap, clientsAlone,
	oneAtGap, oneAtLogGap, oneAlone, oneAndServer, oneServerGap,
}

// The cuts for the variant without the protocol.
var plainRenameCuts = []cut{bothAtGap, clientsAtLogGap}
