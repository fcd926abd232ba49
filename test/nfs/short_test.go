//go:build integration && !torture

package nfs

import "pagewright/storage/test/vm"

// How much the short form does.
const (
	loadPerWorker    = 40 // requests
	visibilityRounds = 10
	absentWrites     = 30
	appends          = "^TestProcessesAppend$/^10_at_once$" // one at a time takes a minute more
)

// The services that replace a build under reads.
var replacing = []vm.Variant{asItIs}

// The cuts under each protocol.
var cutsPerProtocol = [][]cut{{bothAtGap, oneAtLogGap, serverAtGap, bothServerFirst}, nil}

// The cuts for the variant without the protocol.
var plainRenameCuts = []cut{bothAtGap}
