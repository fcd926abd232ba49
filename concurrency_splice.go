package main

import "golang.org/x/sys/unix"

// maxSpliceSlots is the largest number of concurrent uploads that use splice(2).
const maxSpliceSlots = 32

// spliceSlots hands out marker regions to uploads that use splice(2). A marker region is an
// address range: a Read into it means that the bytes are to be spliced. Almost nothing is
// ever written to the region, so it uses no memory. The number is limited because each
// splice holds a pipe of 1 MiB, and past pipe-user-pages-soft (64 MiB by default) an
// unprivileged user gets pipes of only a page or two (pipe(7)).
type spliceSlots struct {
	free chan []byte
}

func newSpliceSlots() *spliceSlots {
	s := &spliceSlots{free: make(chan []byte, maxSpliceSlots)}
	for range maxSpliceSlots {
		s.free <- nil // mapped on first use
	}
	return s
}

// acquire returns a marker region, or nil if all are in use.
func (s *spliceSlots) acquire() []byte {
	select {
	case region := <-s.free:
		if region == nil {
			region = mapMarkerRegion()
			if region == nil {
				s.free <- nil
			}
		}
		return region
	default:
		return nil
	}
}

func (s *spliceSlots) release(region []byte) { s.free <- region }

// mapMarkerRegion maps moveSize bytes of the kernel's zero page. It returns nil on failure.
func mapMarkerRegion() []byte {
	region, err := unix.Mmap(-1, 0, moveSize, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil
	}
	_ = unix.Madvise(region, unix.MADV_NOHUGEPAGE) // writing one byte must not allocate 2 MiB
	return region
}
