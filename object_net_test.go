package main

import "testing"

func TestSizeOfRange(t *testing.T) {
	f := func(contentRange string, offset, want int64) {
		t.Helper()
		size, err := sizeOfRange(contentRange, offset)
		if want < 0 && err == nil || want >= 0 && (err != nil || size != want) {
			t.Errorf("of %q from %d the size is %d, %v", contentRange, offset, size, err)
		}
	}
	f("bytes 0-9/100", 0, 100)
	f("bytes 10-19/100", 10, 100)
	f("bytes 10-19/100", 1, -1) // other bytes than asked for
	f("bytes 0-9/100", 10, -1)
	f("bytes 0-9/*", 0, -1)
	f("bytes */100", 0, -1)
	f("", 0, -1) // the whole object instead of a range
}
