//go:build !torture

package main

const (
	labelRaceRounds = 8 // of each kind of race
	labelRaceKills  = 6
	crashStep       = 2 // requests to the store from one crash to the next
	crashKillStep   = 3 // one of so many is a kill as well
)
