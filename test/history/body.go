package history

import (
	"bufio"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// minBody is the size in bytes of the smallest body: its header.
const minBody = 16

// Body is what the upload op sends: size bytes, of which every eight depend on
// op and on their place, so that any part in the wrong place shows.
func Body(op uint64, size int) []byte {
	size = max(size, minBody)
	b := make([]byte, 0, size+8)
	b = binary.LittleEndian.AppendUint64(b, op)
	b = binary.LittleEndian.AppendUint64(b, uint64(size))
	for w := newWords(op); len(b) < size; {
		b = binary.LittleEndian.AppendUint64(b, w.next())
	}
	return b[:size]
}

// Identify reads r to its end and returns the upload whose bytes these are, whole.
// Anything else is an error that says how it differs.
func Identify(r io.Reader) (op uint64, size int64, err error) {
	b := bufio.NewReaderSize(r, 64<<10)
	var word [8]byte
	n := 0
	for i := range 2 {
		k, err := io.ReadFull(b, word[:])
		n += k
		if err != nil {
			return 0, int64(n), fmt.Errorf("ends in its header, after %d bytes: %w", n, err)
		}
		if v := binary.LittleEndian.Uint64(word[:]); i == 0 {
			op = v
		} else {
			size = int64(v)
		}
	}
	if op == 0 || size < minBody {
		return 0, int64(n), errors.New("has no header")
	}
	at := int64(minBody)
	for w := newWords(op); at < size; {
		want := w.next()
		k, err := io.ReadFull(b, word[:min(8, size-at)])
		if err != nil {
			return 0, at + int64(k), fmt.Errorf("upload %d of %d bytes ends after %d", op, size, at+int64(k))
		}
		var sent [8]byte
		binary.LittleEndian.PutUint64(sent[:], want)
		if sent != word && string(sent[:k]) != string(word[:k]) {
			return 0, at, fmt.Errorf("upload %d of %d bytes is torn at %d", op, size, at)
		}
		at += int64(k)
	}
	if _, err := b.ReadByte(); err != io.EOF {
		return 0, at, fmt.Errorf("upload %d of %d bytes goes on after its end", op, size)
	}
	return op, size, nil
}

// words is xorshift64*, cheap also where the processor is emulated.
type words uint64

func newWords(op uint64) *words {
	w := words(op*0x9e3779b97f4a7c15 | 1)
	return &w
}

func (w *words) next() uint64 {
	x := uint64(*w)
	x ^= x >> 12
	x ^= x << 25
	x ^= x >> 27
	*w = words(x)
	return x * 0x2545f4914f6cdd1d
}
