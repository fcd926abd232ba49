//go:build torture && linux && amd64

package faults

// everyCall: also the calls of a prune that only look.
const everyCall = true
