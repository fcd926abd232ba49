package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// stopFile ends the programs that run until they are stopped.
const stopFile = "/tmp/stop"

// stopped returns a flag that is set soon after somebody makes stopFile.
func stopped() *atomic.Bool {
	var flag atomic.Bool
	os.Remove(stopFile)
	go func() {
		for !exists(stopFile) {
			time.Sleep(20 * time.Millisecond)
		}
		flag.Store(true)
	}()
	return &flag
}

func exists(path string) bool {
	var st syscall.Stat_t
	for {
		err := syscall.Lstat(path, &st)
		if err != syscall.EINTR {
			return err == nil
		}
	}
}

// replacements are the names of the new file, of the old one, and of the one to be
// removed, while the file at path is replaced.
func replacements(path string) [3]string {
	dir, name := filepath.Split(path)
	return [...]string{dir + ".new-" + name, dir + ".old-" + name, dir + ".out-" + name}
}

// Looks is what watch saw.
type Looks struct {
	Looks  int
	Absent int // looks at which the name was missing
	Gone   int // and its replacements too
	Left   int // times that the name went away
}

// watch looks at the files over and over until it is stopped, and prints what it
// saw of each.
func watch(paths []string) error {
	stop := stopped()
	seen := make([]Looks, len(paths))
	was := make([]bool, len(paths))
	for !stop.Load() {
		for i, path := range paths {
			s := &seen[i]
			s.Looks++
			there := exists(path)
			if !there {
				s.Absent++
				if was[i] {
					s.Left++
				}
				if gone(path) {
					s.Gone++
				}
			}
			was[i] = there
		}
	}
	return json.NewEncoder(os.Stdout).Encode(seen)
}

// gone reports whether neither the file nor one of its replacements is there. They
// cannot be looked at in one moment, and a file may be replaced several times
// between the looks. So several looks in a row must find none.
func gone(path string) bool {
	others := replacements(path)
	for range 4 {
		if exists(others[0]) || exists(others[1]) || exists(others[2]) || exists(path) {
			return false
		}
	}
	return true
}

// gap waits until one of the files is missing (with a + before its path: is
// there) and then cuts the links, so that the client cannot go on. It returns with
// the links down when what the server did until then is durable, and that is
// still so.
func gap(links string, paths []string) error {
	stop := stopped()
	so := func(path string) bool {
		path, there := strings.CutPrefix(path, "+")
		return exists(path) == there
	}
	for !stop.Load() {
		for _, path := range paths {
			if !so(path) {
				continue
			}
			if err := setLinks(links, false); err != nil {
				return err
			}
			time.Sleep(50 * time.Millisecond) // what the server has received, it does
			unix.Sync()
			if so(path) {
				fmt.Println(path)
				return nil
			}
			if err := setLinks(links, true); err != nil {
				return err
			}
		}
		time.Sleep(50 * time.Microsecond)
	}
	return errors.New("stopped before that was so")
}

// setLinks takes network links, separated by commas, up or down.
func setLinks(links string, up bool) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM, 0)
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	for link := range strings.SplitSeq(links, ",") {
		ifr, err := unix.NewIfreq(link)
		if err != nil {
			return err
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCGIFFLAGS, ifr); err != nil {
			return fmt.Errorf("%s: %w", link, err)
		}
		flags := ifr.Uint16() &^ unix.IFF_UP
		if up {
			flags |= unix.IFF_UP
		}
		ifr.SetUint16(flags)
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
			return fmt.Errorf("%s: %w", link, err)
		}
	}
	return nil
}

// hold locks one byte of a file exclusively until it is stopped, as a service
// does that changes the build of that byte. It prints a line when it has the lock.
func hold(path, region string) error {
	at, err := strconv.ParseInt(region, 10, 64)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE, 0o644)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := unix.FcntlFlock(f.Fd(), unix.F_OFD_SETLK, &unix.Flock_t{Type: unix.F_WRLCK, Start: at, Len: 1}); err != nil {
		return fmt.Errorf("cannot lock: %w", err)
	}
	stop := stopped()
	fmt.Println("locked")
	for !stop.Load() {
		time.Sleep(20 * time.Millisecond)
	}
	return nil
}
