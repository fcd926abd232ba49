//go:build integration && !torture

package main

const (
	clientTransfers = 60 // over each store
	clientSizeBits  = 22 // of the largest file
	clientLargeFile = 40 << 20
)
