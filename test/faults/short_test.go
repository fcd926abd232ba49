//go:build integration && !torture && linux && amd64

package faults

// everyCall: also the calls of a prune that only look. Prune waits a second before it tries again.
const everyCall = false
