//go:build torture

package main

const (
	labelRaceRounds = 300
	labelRaceKills  = 300
)
