package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"time"

	"pagewright/storage/test/history"
	"pagewright/storage/test/vm"
	"pagewright/storage/test/writelog"
)

// scan prints the inventory of the store at base.
func scan(base string) error {
	inv, err := history.Scan(base)
	if err != nil {
		return err
	}
	return json.NewEncoder(os.Stdout).Encode(inv)
}

// replay brings a disk to each of points in turn, as it would be found after a
// power cut there, mounts it and prints the inventory of the store on it. The
// disk, of size bytes, begins as the log base has it. A point is N: the first N
// entries of the log and no more; or N:SEED: also some of those up to the next
// flush, which a disk may have written or not. The points ascend.
func replay(kind, options, size, base, log string, points []string) error {
	const image, copied = "/tmp/disk.img", "/tmp/cut.img"
	disk, err := os.Create(image)
	if err != nil {
		return err
	}
	defer disk.Close()
	n, err := strconv.ParseInt(size, 10, 64)
	if err != nil {
		return err
	}
	if err := disk.Truncate(n); err != nil {
		return err
	}
	b, start, err := openLog(base)
	if err != nil {
		return err
	}
	defer b.Close()
	for _, e := range start {
		if err := e.Apply(disk, b); err != nil {
			return err
		}
	}
	l, entries, err := openLog(log)
	if err != nil {
		return err
	}
	defer l.Close()
	applied := 0
	for _, point := range points {
		p, s, _ := strings.Cut(point, ":")
		n, err := strconv.Atoi(p)
		if err != nil || n < applied || n > len(entries) {
			return fmt.Errorf("bad point %q after %d of %d", point, applied, len(entries))
		}
		for ; applied < n; applied++ {
			if err := entries[applied].Apply(disk, l); err != nil {
				return err
			}
		}
		if err := copyDisk(copied, image); err != nil {
			return err
		}
		if s != "" {
			if err := applySome(copied, entries[n:], l, s); err != nil {
				return err
			}
		}
		inv, err := look(kind, options, copied)
		if err != nil {
			return fmt.Errorf("point %s: %w", point, err)
		}
		if err := json.NewEncoder(os.Stdout).Encode(inv); err != nil {
			return err
		}
	}
	return nil
}

func openLog(path string) (*os.File, []writelog.Entry, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	entries, err := writelog.Read(f)
	if err != nil {
		f.Close()
		return nil, nil, fmt.Errorf("%s: %w", path, err)
	}
	return f, entries, nil
}

// applySome does a random half of the writes before the next flush.
func applySome(image string, entries []writelog.Entry, log io.ReaderAt, seed string) error {
	disk, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	defer disk.Close()
	s, err := strconv.ParseUint(seed, 10, 64)
	if err != nil {
		return err
	}
	for rng := rand.New(rand.NewPCG(s, 1)); len(entries) > 0 && !entries[0].Flush; entries = entries[1:] {
		if rng.IntN(2) == 0 {
			if err := entries[0].Apply(disk, log); err != nil {
				return err
			}
		}
	}
	return disk.Close()
}

// copyDisk copies an image without its holes, so that both need little memory.
func copyDisk(to, from string) error {
	in, err := os.Open(from)
	if err != nil {
		return err
	}
	defer in.Close()
	out, err := os.Create(to)
	if err != nil {
		return err
	}
	defer out.Close()
	size, err := in.Seek(0, io.SeekEnd)
	if err != nil {
		return err
	}
	const seekData, seekHole = 3, 4 // lseek(2)
	for end := int64(0); ; {
		at, err := in.Seek(end, seekData)
		if errors.Is(err, syscall.ENXIO) { // a hole up to the end
			break
		}
		if err == nil {
			end, err = in.Seek(at, seekHole)
		}
		if err == nil {
			_, err = io.Copy(io.NewOffsetWriter(out, at), io.NewSectionReader(in, at, end-at))
		}
		if err != nil {
			return err
		}
	}
	if err := out.Truncate(size); err != nil {
		return err
	}
	return out.Close()
}

// look mounts a copy of a disk as the machine would after a power cut, and
// takes the inventory of the store on it.
func look(kind, options, image string) (*history.Inventory, error) {
	const device, target = "/dev/loop0", "/mnt/cut"
	if out, err := exec.Command("losetup", device, image).CombinedOutput(); err != nil {
		return nil, fmt.Errorf("losetup: %w: %s", err, out)
	}
	defer exec.Command("losetup", "-d", device).Run()
	if err := mount(kind, device, target, options); err != nil {
		return nil, fmt.Errorf("cannot mount it: %w", err)
	}
	inv, err := history.Scan(target)
	if _, missing := os.Stat(vm.ServicePath); err == nil && missing == nil {
		inv.Front, err = ask(target, inv)
	}
	if uerr := syscall.Unmount(target, 0); err == nil {
		err = uerr
	}
	return inv, err
}

// ask starts the service on the store at base, read-only, and judges what it says.
func ask(base string, inv *history.Inventory) ([]string, error) {
	const port = "8081"
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	service := exec.CommandContext(ctx, vm.ServicePath)
	service.Env = []string{"PAGEWRIGHT_PORT=" + port, "PAGEWRIGHT_NFS_BASE_PATH=" + base, "PAGEWRIGHT_READ_ONLY=true", "PAGEWRIGHT_ACCESS_LOG=false"}
	if err := service.Start(); err != nil {
		return nil, err
	}
	defer service.Wait()
	defer service.Process.Kill()
	d := history.NewDriver("http://127.0.0.1:"+port, nil, 30*time.Second)
	d.Fresh = true
	for {
		resp, err := http.Get(d.URL + "/health")
		if err == nil {
			resp.Body.Close()
			return d.JudgeFront(ctx, inv)
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(10 * time.Millisecond):
		}
	}
}
