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
	temp, err := n.disk.createTemp(dir)
	if err != nil {
		return err
	}
	defer temp.discard()
	if _, err := temp.Write(data); err != nil {
		return err
	}
	if _, err := temp.seal(); err != nil {
		return err
	}
	if err := temp.replace(name + statusSuffix); err != nil {
		return err
	}
	return temp.syncDir()
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
