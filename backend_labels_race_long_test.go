//go:build torture

package main

const (
	labelRaceRounds = 300
	labelRaceKills  = 300
	crashStep       = 1
	crashKillStep   = 1
)
