//go:build torture

package nfs

import (
	"slices"

	"pagewright/storage/test/vm"
)

// How much the long form does.
const (
	loadPerWorker    = 600
	visibilityRounds = 200
	absentWrites     = 500
	costRounds       = 50
	appends          = "^TestProcessesAppend$"
)

// The services that replace a build under reads.
var replacing = []vm.Variant{asItIs, plainRename}

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
