package main

// While an upload arrives, space is set aside for it ahead of what has arrived.
const (
	reserveAhead = 256 << 20 // bytes at most
	reserveMin   = 1 << 20   // bytes at least; a smaller file is not preallocated
)

// windowOf returns how many bytes ahead of the sent ones are set aside for an upload
// of size bytes.
func windowOf(sent, size int64) int64 {
	return min(max(sent, reserveMin), reserveAhead, size-sent)
}
