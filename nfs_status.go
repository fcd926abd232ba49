package main

import (
	"fmt"
)

const maxStatus = 16 << 20 // bytes

// WriteStatus implements StatusKeeper.
func (n *nfs) WriteStatus(name string, data []byte) error {
	if n.readOnly {
		return ErrReadOnly
	}
	if len(data) > maxStatus {
		return fmt.Errorf("%w: the status %q has %d bytes", ErrTooLarge, name, len(data))
	}
	if err := n.checkMounted(); err != nil {
		return err
	}
	dir, err := n.disk.ensureDir(n.base, statusDir)
	if err != nil {
		return err
	}
	defer dir.Close()
	return n.disk.replaceIn(dir, name+statusSuffix, data, 0)
}

// ReadStatus implements StatusKeeper.
func (n *nfs) ReadStatus(name string) ([]byte, error) {
	dir, err := n.disk.openDir(n.base + "/" + statusDir)
	if err != nil {
		return nil, n.notFound(err)
	}
	defer dir.Close()
	data, _, err := readFile(dir, name+statusSuffix, maxStatus)
	if err == nil && data == nil {
		err = notAFile(dir.Name() + "/" + name + statusSuffix)
	}
	return data, n.notFound(err)
}
