package main

import "golang.org/x/sys/unix"

// maxSpliceSlots is how many uploads are spliced at once.
const maxSpliceSlots = 32

// spliceSlots lends the slabs of the uploads that are spliced. A slab is an
// address range that marks a Read as one to be moved; next to nothing is ever
// written to it, so it costs no memory. Their number is bounded because each
// splice holds a pipe of 1 MiB, and past pipe-user-pages-soft (64 MiB by
// default) a user without privileges gets pipes of a page or two (pipe(7)).
type spliceSlots struct {
	free chan []byte
}

func newSpliceSlots() *spliceSlots {
	s := &spliceSlots{free: make(chan []byte, maxSpliceSlots)}
	for range maxSpliceSlots {
		s.free <- nil // mapped when first used
	}
	return s
}

// acquire returns a slab, or nil if all are lent.
func (s *spliceSlots) acquire() []byte {
	select {
	case slab := <-s.free:
		if slab == nil {
			slab = mapMarkerRegion()
			if slab == nil {
				s.free <- nil
			}
		}
		return slab
	default:
		return nil
	}
}

func (s *spliceSlots) release(slab []byte) { s.free <- slab }

// mapMarkerRegion maps moveSize bytes of the kernel's zero page, or nil.
func mapMarkerRegion() []byte {
	slab, err := unix.Mmap(-1, 0, moveSize, unix.PROT_READ|unix.PROT_WRITE,
		unix.MAP_PRIVATE|unix.MAP_ANONYMOUS|unix.MAP_NORESERVE)
	if err != nil {
		return nil
	}
	_ = unix.Madvise(slab, unix.MADV_NOHUGEPAGE) // a byte written must not cost 2 MiB
	return slab
}
