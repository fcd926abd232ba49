//go:build !integration

package main

// largeBody is larger than anything that a directory or a bucket in memory takes in one piece.
// That of real stores is larger still.
const largeBody = 3<<20 + 4321
