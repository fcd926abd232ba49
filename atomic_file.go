package main

import (
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
	t, err := newDisk(slog.New(slog.DiscardHandler)).createTemp(dir)
	if err != nil {
		return err
	}
	defer t.discard()
	if err := t.f.Chmod(0o644); err != nil {
		return err
	}
	if _, err := t.Write(data); err != nil {
		return err
	}
	if _, err := t.seal(); err != nil {
		return err
	}
	if err := t.replace(filepath.Base(path)); err != nil {
		return err
	}
	return t.syncDir()
}
