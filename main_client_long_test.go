//go:build torture

package main

const (
	clientTransfers = 1000 // over each store
	clientSizeBits  = 26   // of the largest file
	clientLargeFile = 2 << 30
)
