package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"syscall"
	"unsafe"
)

// loadModules loads a group of modules (initrd.go) in its order.
func loadModules(group string) error {
	files, err := filepath.Glob("/modules/" + group + "/*")
	if err != nil {
		return err
	}
	if len(files) == 0 {
		return fmt.Errorf("no modules of group %q", group)
	}
	slices.Sort(files)
	for _, f := range files {
		if err := loadModule(f); err != nil {
			return err
		}
	}
	return nil
}

// loadModule is init_module(2), which the syscall package leaves out.
func loadModule(path string) error {
	image, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if len(image) == 0 {
		return fmt.Errorf("%s is empty", path)
	}
	const sysInitModule = 175 // amd64
	options := []byte{0}
	_, _, errno := syscall.Syscall(sysInitModule, uintptr(unsafe.Pointer(&image[0])), uintptr(len(image)), uintptr(unsafe.Pointer(&options[0])))
	if errno != 0 && errno != syscall.EEXIST {
		return fmt.Errorf("cannot load %s: %w", path, errno)
	}
	return nil
}
