//go:build (integration || torture) && linux && amd64

// Package faults makes the system calls of the real binary fail, one at a
// time, and looks at what becomes of the store.
package faults

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/unix"
)

// call is the n-th system call with this name on this target, from the
// beginning of a watch. Targets are paths below the store.
type call struct {
	name, target string
	n            int
}

func (c call) String() string { return fmt.Sprintf("%s(%s)#%d", c.name, c.target, c.n) }

// fault is what happens to a call.
type fault struct {
	call
	errno   unix.Errno
	applied bool // the call is made, and its success reported as errno: a lost reply
	short   bool // the call is made with half of its length
}

func (f fault) String() string {
	switch {
	case f.short:
		return f.call.String() + " short"
	case f.applied:
		return f.call.String() + " done but " + unix.ErrnoName(f.errno)
	}
	return f.call.String() + " " + unix.ErrnoName(f.errno)
}

// tracer sees every system call of a process on the files of one store, by
// ptrace(2). strace could make calls fail too, but it counts them by thread,
// and it can neither shorten a write nor lose a reply.
type tracer struct {
	pid  int
	base string
	ends chan struct{} // closed when the process is gone

	mu      sync.Mutex
	on      bool
	fault   *fault
	calls   []call
	counts  map[string]int
	hit     bool
	changed bool            // a rename, link or unlink was really made
	inCall  map[int]*inCall // by thread
}

// inCall is a call between its entry and its exit.
type inCall struct {
	call    call
	inject  bool
	skipped bool
}

// trace attaches to all threads of a process, and to those it will have.
func trace(pid int, base string) (*tracer, error) {
	t := &tracer{pid: pid, base: base, ends: make(chan struct{}), inCall: map[int]*inCall{}}
	attached := make(chan error)
	go func() {
		runtime.LockOSThread() // a tracer is a thread; this one ends with the goroutine
		defer close(t.ends)
		err := t.attach()
		attached <- err
		if err == nil {
			t.loop()
		}
	}()
	return t, <-attached
}

func (t *tracer) attach() error {
	const options = unix.PTRACE_O_TRACESYSGOOD | unix.PTRACE_O_TRACECLONE
	seized := map[int]bool{}
	for more := true; more; {
		more = false
		tasks, err := os.ReadDir(fmt.Sprintf("/proc/%d/task", t.pid))
		if err != nil {
			return err
		}
		for _, task := range tasks {
			tid, _ := strconv.Atoi(task.Name())
			if seized[tid] {
				continue
			}
			seized[tid], more = true, true
			_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SEIZE, uintptr(tid), 0, options, 0, 0)
			if errno == unix.EPERM || errno == unix.ESRCH { // it is ours already, by its parent; or gone
				continue
			}
			if errno != 0 {
				return fmt.Errorf("cannot trace thread %d: %w", tid, errno)
			}
			if err := unix.PtraceInterrupt(tid); err != nil {
				return err
			}
		}
	}
	return nil
}

// loop lets the threads run from one stop to the next, until all are gone.
func (t *tracer) loop() {
	for {
		var ws unix.WaitStatus
		// Only what this thread traces: the children of the test are not its to reap.
		tid, err := unix.Wait4(-1, &ws, unix.WALL|unix.WNOTHREAD, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return
		}
		if tid == t.pid && !ws.Stopped() { // its last thread: the other children of this one go on
			return
		}
		if !ws.Stopped() {
			continue
		}
		signal := 0
		switch event := int(ws) >> 16; {
		case ws.StopSignal() == unix.SIGTRAP|0x80:
			t.atCall(tid)
		case event == 0:
			signal = int(ws.StopSignal()) // its own, to be delivered
		}
		_ = unix.PtraceSyscall(tid, signal) // fails if it was killed meanwhile
	}
}

// syscallInfo is struct ptrace_syscall_info of linux/ptrace.h.
type syscallInfo struct {
	op       uint8
	_        [3]byte
	arch     uint32
	ip, sp   uint64
	nr       uint64 // of an exit: the result
	args     [6]uint64
	reserved [16]byte
}

// atCall is a thread at the entry or the exit of a call.
func (t *tracer) atCall(tid int) {
	var info syscallInfo
	_, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_GET_SYSCALL_INFO, uintptr(tid), unsafe.Sizeof(info), uintptr(unsafe.Pointer(&info)), 0, 0)
	if errno != 0 {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	switch info.op {
	case unix.PTRACE_SYSCALL_INFO_ENTRY:
		delete(t.inCall, tid)
		if t.on {
			t.enter(tid, &info)
		}
	case unix.PTRACE_SYSCALL_INFO_EXIT:
		if c := t.inCall[tid]; c != nil {
			delete(t.inCall, tid)
			t.leave(tid, c, int64(info.nr))
		}
	}
}

func (t *tracer) enter(tid int, info *syscallInfo) {
	name, target := t.describe(info)
	if name == "" {
		return
	}
	t.counts[name+target]++
	c := &inCall{call: call{name, target, t.counts[name+target]}}
	t.inCall[tid] = c
	t.calls = append(t.calls, c.call)
	f := t.fault
	if f == nil || t.hit || c.call != f.call {
		return
	}
	t.hit, c.inject = true, true
	var regs unix.PtraceRegs
	if f.applied || unix.PtraceGetRegs(tid, &regs) != nil {
		return
	}
	if f.short { // the third argument is a length in all other calls that have one
		if name == "splice" || name == "copy_file_range" {
			regs.R8 -= regs.R8 / 2
		} else {
			regs.Rdx -= regs.Rdx / 2
		}
		c.inject = false
	} else {
		regs.Orig_rax = ^uint64(0) // no such call: nothing is done
		c.skipped = true
	}
	_ = unix.PtraceSetRegs(tid, &regs)
}

func (t *tracer) leave(tid int, c *inCall, result int64) {
	if result == 0 && !c.skipped && strings.Contains(" renameat renameat2 linkat unlinkat ", " "+c.call.name+" ") {
		if c.call.name != "unlinkat" || !strings.Contains(c.call.target, ".tmp-") {
			t.changed = true
		}
	}
	if !c.inject {
		return
	}
	var regs unix.PtraceRegs
	if unix.PtraceGetRegs(tid, &regs) == nil {
		regs.Rax = uint64(-int64(t.fault.errno))
		_ = unix.PtraceSetRegs(tid, &regs)
	}
}

// watch begins to count calls, of which one may be at fault.
func (t *tracer) watch(f *fault) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.on, t.fault, t.calls, t.counts, t.hit, t.changed = true, f, nil, map[string]int{}, false, false
}

// seen ends a watch.
func (t *tracer) seen() (calls []call, hit, changed bool) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.on = false
	return t.calls, t.hit, t.changed
}

// watched are the calls that are looked at: which argument is the descriptor,
// and which the path below it, -1 for none.
var watched = map[uint64]struct {
	name     string
	fd, path int
}{
	unix.SYS_WRITE: {"write", 0, -1}, unix.SYS_PREAD64: {"pread64", 0, -1}, unix.SYS_PWRITE64: {"pwrite64", 0, -1},
	unix.SYS_SPLICE: {"splice", 2, -1}, unix.SYS_COPY_FILE_RANGE: {"copy_file_range", 2, -1}, unix.SYS_FALLOCATE: {"fallocate", 0, -1}, unix.SYS_SYNC_FILE_RANGE: {"sync_file_range", 0, -1},
	unix.SYS_FSTATFS: {"fstatfs", 0, -1}, unix.SYS_FSTAT: {"fstat", 0, -1}, unix.SYS_FSYNC: {"fsync", 0, -1}, unix.SYS_CLOSE: {"close", 0, -1},
	unix.SYS_FCNTL: {"fcntl", 0, -1}, unix.SYS_OPENAT: {"openat", 0, 1}, unix.SYS_MKDIRAT: {"mkdirat", 0, 1},
	unix.SYS_OPENAT2: {"openat2", 0, 1}, unix.SYS_NEWFSTATAT: {"newfstatat", 0, 1}, unix.SYS_UTIMENSAT: {"utimensat", 0, 1}, unix.SYS_UNLINKAT: {"unlinkat", 0, 1},
	unix.SYS_RENAMEAT: {"renameat", 2, 3}, unix.SYS_RENAMEAT2: {"renameat2", 2, 3}, unix.SYS_LINKAT: {"linkat", 2, 3},
}

var randomName = regexp.MustCompile(`\.tmp-\w+`)

// describe names a call that is looked at and its target.
func (t *tracer) describe(info *syscallInfo) (name, target string) {
	w, ok := watched[info.nr]
	// Of the things that fcntl does only locks are asked of the file system.
	if !ok || w.name == "fcntl" && info.args[1] != unix.F_OFD_SETLK && info.args[1] != unix.F_OFD_SETLKW {
		return "", ""
	}
	if fd := int32(info.args[w.fd]); fd >= 0 {
		target, _ = os.Readlink(fmt.Sprintf("/proc/%d/fd/%d", t.pid, fd))
	}
	if w.path >= 0 {
		if p := t.text(info.args[w.path]); filepath.IsAbs(p) {
			target = p
		} else {
			target += "/" + p
		}
	}
	rest, ok := strings.CutPrefix(target, t.base)
	if !ok {
		return "", ""
	}
	return w.name, "." + randomName.ReplaceAllString(rest, ".tmp-")
}

// text reads a string out of the process.
func (t *tracer) text(addr uint64) string {
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", t.pid))
	if err != nil {
		return ""
	}
	defer mem.Close()
	buf := make([]byte, 4096)
	for n := len(buf); n >= 64; n /= 2 { // the end of its memory may be near
		got, err := mem.ReadAt(buf[:n], int64(addr))
		if end := strings.IndexByte(string(buf[:got]), 0); end >= 0 {
			return string(buf[:end])
		}
		if err == nil || errors.Is(err, os.ErrNotExist) {
			break
		}
	}
	return ""
}
