//go:build !torture

package main

const (
	labelRaceRounds = 8 // of each kind of race
	labelRaceKills  = 6
)
