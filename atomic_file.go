package main

import (
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
)

// replaceFile durably replaces the file at path, which is not in the store. Everybody may read
// it. Readers see the old content or the new.
func replaceFile(path string, data []byte) error {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer dir.Close()
	return newDisk(slog.New(slog.DiscardHandler)).replaceIn(dir, filepath.Base(path), data, 0o644)
}

// replaceIn durably replaces the file name in dir. mode is its mode; 0: that of a new file.
func (d *disk) replaceIn(dir *os.File, name string, data []byte, mode fs.FileMode) error {
	t, err := d.createTemp(dir)
	if err != nil {
		return err
	}
	defer t.discard()
	if mode != 0 {
		if err := t.f.Chmod(mode); err != nil {
			return diskError("set the mode of", t.path, err)
		}
	}
	if _, err := t.Write(data); err != nil {
		return err
	}
	if _, err := t.seal(); err != nil {
		return err
	}
	if err := t.replace(name); err != nil {
		return err
	}
	return t.syncDir()
}
