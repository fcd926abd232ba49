// Package writelog reads what qemu's blklogwrites driver recorded of a disk:
// every write and every flush, in the format of the kernel's dm-log-writes
// (Documentation/admin-guide/device-mapper/log-writes.rst). With it the disk is
// brought to the state of any moment, in particular to that after a power cut
// that lost everything not flushed.
package writelog

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

const (
	magic      = 0x6a736677736872
	sectorSize = 512
	flagFlush  = 1
	maxSectors = 1 << 20
)

// Entry is a write or a flush.
type Entry struct {
	Flush  bool
	at     int64 // of the data in the log
	offset int64 // of the data on the disk
	length int64
}

// Read lists the entries of a log. One that the end of qemu cut short is left
// out.
func Read(log io.ReaderAt) ([]Entry, error) {
	var head [sectorSize]byte
	le := binary.LittleEndian
	if _, err := log.ReadAt(head[:], 0); err != nil {
		return nil, fmt.Errorf("cannot read the head of a write log: %w", err)
	}
	if le.Uint64(head[:]) != magic || le.Uint32(head[24:]) != sectorSize {
		return nil, errors.New("not a write log, or not one of sectors of 512 bytes")
	}
	var entries []Entry
	for at := int64(sectorSize); ; {
		if n, err := log.ReadAt(head[:], at); n < sectorSize {
			if err == io.EOF {
				return entries, nil
			}
			return nil, err
		}
		sector, sectors, flags := le.Uint64(head[:]), le.Uint64(head[8:]), le.Uint64(head[16:])
		switch {
		case flags == 0 && sectors == 0:
			return entries, nil // nothing was written here
		case flags > flagFlush, flags == flagFlush && sectors != 0, sectors > maxSectors:
			return nil, fmt.Errorf("entry %d of the write log, flags %#x, %d sectors, is neither a plain write nor a flush", len(entries), flags, sectors)
		}
		e := Entry{flags == flagFlush, at + sectorSize, int64(sector) * sectorSize, int64(sectors) * sectorSize}
		at = e.at + e.length
		if _, err := log.ReadAt(head[:1], at-1); err != nil {
			return entries, nil
		}
		entries = append(entries, e)
	}
}

// Dump writes a log of which the entries make image out of a disk of zeroes.
func Dump(log io.Writer, image io.ReaderAt) error {
	var head [sectorSize]byte
	le := binary.LittleEndian
	le.PutUint64(head[:], magic)
	le.PutUint32(head[24:], sectorSize)
	if _, err := log.Write(head[:]); err != nil {
		return err
	}
	data, zeroes := make([]byte, 8*sectorSize), make([]byte, 8*sectorSize)
	for at := int64(0); ; at += int64(len(data)) {
		n, err := image.ReadAt(data, at)
		if err != nil && err != io.EOF || n%sectorSize != 0 {
			return fmt.Errorf("cannot read the image at %d: %w", at, err)
		}
		if n == 0 {
			return nil
		}
		if bytes.Equal(data[:n], zeroes[:n]) {
			continue
		}
		head = [sectorSize]byte{}
		le.PutUint64(head[:], uint64(at)/sectorSize)
		le.PutUint64(head[8:], uint64(n)/sectorSize)
		if _, err := log.Write(append(head[:], data[:n]...)); err != nil {
			return err
		}
	}
}

// Apply does on disk what e did.
func (e Entry) Apply(disk io.WriterAt, log io.ReaderAt) error {
	data := make([]byte, e.length)
	if _, err := log.ReadAt(data, e.at); err != nil {
		return err
	}
	_, err := disk.WriteAt(data, e.offset)
	return err
}

// Flushed tells how many entries the log had at the latest flush, while qemu
// goes on writing it: what is acknowledged now must be in these.
func Flushed(log io.ReaderAt) (int64, error) {
	var super [24]byte
	if n, err := log.ReadAt(super[:], 0); n < len(super) && err != io.EOF {
		return 0, err
	}
	return int64(binary.LittleEndian.Uint64(super[16:])), nil
}
