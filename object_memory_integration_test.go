//go:build integration

package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// memoryLarge, if set, makes the bodies as large as real builds. Then the test takes minutes,
// longer with fake-gcs-server, and 20 GB of disk.
const memoryLarge = "STORAGE_MEMORY_LARGE"

// The memory of the service depends on its budgets, not on the number of uploads, the size of
// builds or the size of logs.
func TestRealStoresMemory(t *testing.T) {
	const (
		together = 20
		memory   = 64 << 20 // PAGEWRIGHT_UPLOAD_MEMORY
		slack    = 64 << 20 // connections, and what the SDKs hold
		// The garbage collector lets the heap grow to twice the memory in use.
		garbage = 2
	)
	kinds := map[string]struct {
		size  string // the variable
		part  int64  // as small as the kind of store allows, and the emulator is quick with
		ofOne int64  // parts of one upload that are sent while it reads on
	}{
		"s3":    {"S3_PART_SIZE", 5 << 20, 4},
		"azure": {"AZURE_PART_SIZE", 5 << 20, 4},
		"gcs":   {"GCS_CHUNK_SIZE", 8 << 20, 0},
	}
	one, each := int64(128<<20), int64(24<<20)
	if os.Getenv(memoryLarge) != "" {
		one, each = 1<<30, 256<<20
		gcs := kinds["gcs"]
		gcs.part = memory / partsInMemory // fake-gcs-server hashes all that it has with each chunk
		kinds["gcs"] = gcs
	}
	eachStore(t, func(t *testing.T, s *realStore) {
		k := kinds[s.env[envPrefix+"STORAGE_BACKEND"]]
		s = s.with(map[string]string{envPrefix + k.size: strconv.FormatInt(k.part, 10), envPrefix + "UPLOAD_MEMORY": strconv.Itoa(memory)})
		for _, c := range []struct {
			count int
			size  int64
			up    int64 // the bound of an upload
		}{
			{1, one, garbage*k.part*(1+k.ofOne) + slack},
			{together, each, garbage*memory + slack},
		} {
			sums := make([][]byte, c.count)
			path := func(i int) string { return fmt.Sprintf("/sites/of%d/artifacts/%d", c.count, i) }
			measureMemory(t, s, fmt.Sprintf("%d up, %d MiB", c.count, c.size>>20), c.count, c.up, func(url string, i int, meet func()) error {
				f := &flow{left: c.size, source: rand.NewChaCha8([32]byte{byte(i), byte(c.count)}), hash: sha256.New(), meet: meet}
				err := sendFlow(url+path(i), f, i%2 == 1)
				sums[i] = f.hash.Sum(nil)
				return err
			})
			measureMemory(t, s, fmt.Sprintf("%d down, %d MiB", c.count, c.size>>20), c.count, slack, func(url string, i int, meet func()) error {
				sum, err := receiveFlow(url+path(i), meet)
				if err == nil && !bytes.Equal(sum, sums[i]) {
					err = errors.New("received other bytes than were sent")
				}
				return err
			})
		}
		const logs = 12
		b := s.open(t, "")
		for i := range logs {
			plantLog(t, b, "s", fmt.Sprint("b", i), bigLog(t, 15<<20))
		}
		measureMemory(t, s, fmt.Sprintf("%d appends to logs of 15 MiB", logs), logs, garbage*logMemory+slack, func(url string, i int, meet func()) error {
			meet()
			for {
				resp, err := http.Post(url+"/sites/s/logs", "application/json", strings.NewReader(fmt.Sprintf(`{"build_id":"b%d","action":"a","status":"s"}`, i)))
				if err != nil {
					return err
				}
				resp.Body.Close()
				switch resp.StatusCode {
				case http.StatusCreated:
					return nil
				case http.StatusServiceUnavailable: // others had the memory for too long, on a slow machine
				default:
					return fmt.Errorf("status %d", resp.StatusCode)
				}
			}
		})
	})
}

// measureMemory runs count requests at once against a separate service process, and compares
// its peak memory with the bound. Each request calls meet when its body has begun, which
// blocks until all requests have called it.
func measureMemory(t *testing.T, s *realStore, name string, count int, bound int64, request func(url string, i int, meet func()) error) {
	t.Helper()
	service := s.service(t, "")
	defer service.kill()
	status := fmt.Sprintf("/proc/%d/", service.cmd.Process.Pid)
	if err := os.WriteFile(status+"clear_refs", []byte("5"), 0); err != nil { // the peak counts from here on
		t.Fatal(err)
	}
	idle := memoryOf(t, status+"status", "VmRSS")
	var begun, done sync.WaitGroup
	begun.Add(count)
	for i := range count {
		done.Go(func() {
			arrive := sync.OnceFunc(begun.Done)
			defer arrive() // also if it fails, so that no other request waits for it
			if err := request(service.url(), i, func() { arrive(); begun.Wait() }); err != nil {
				t.Errorf("%s: build %d: %v", name, i, err)
			}
		})
	}
	done.Wait()
	peak := memoryOf(t, status+"status", "VmHWM")
	t.Logf("%-17s idle %3d MiB, peak %3d MiB; %3d MiB more, of %3d", name, idle>>20, peak>>20, (peak-idle)>>20, bound>>20)
	if peak-idle > bound {
		t.Errorf("%s: the peak is %d MiB above idle, of %d", name, (peak-idle)>>20, bound>>20)
	}
}

// memoryOf reads a size from /proc/PID/status.
func memoryOf(t *testing.T, status, field string) int64 {
	t.Helper()
	text, err := os.ReadFile(status)
	if err != nil {
		t.Fatal(err)
	}
	m := regexp.MustCompile(field + `:\s+(\d+) kB`).FindSubmatch(text)
	if m == nil {
		t.Fatalf("no %s in %s", field, text)
	}
	kb, err := strconv.ParseInt(string(m[1]), 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return kb << 10
}

// flow is a body that is generated while it is read, and never held in memory.
type flow struct {
	left   int64
	source io.Reader // endless
	hash   hash.Hash // of what was read
	meet   func()
	begun  bool
}

func (f *flow) Read(p []byte) (int, error) {
	if f.left == 0 {
		return 0, io.EOF
	}
	if f.begun {
		f.meet()
	}
	f.begun = true
	n, err := f.source.Read(p[:min(int64(len(p)), f.left)])
	f.hash.Write(p[:n])
	f.left -= int64(n)
	return n, err
}

func sendFlow(url string, f *flow, chunked bool) error {
	req, err := http.NewRequest(http.MethodPut, url, f)
	if err != nil {
		return err
	}
	if !chunked {
		req.ContentLength = f.left
	}
	resp, err := http.DefaultClient.Do(req) // with no timeout: a large body takes long
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	if answer, err := io.ReadAll(resp.Body); err != nil || resp.StatusCode != http.StatusCreated {
		return fmt.Errorf("status %d, %s %v", resp.StatusCode, answer, err)
	}
	return nil
}

// receiveFlow returns the hash of a build.
func receiveFlow(url string, meet func()) ([]byte, error) {
	resp, err := http.Get(url)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("status %d", resp.StatusCode)
	}
	h := sha256.New()
	if _, err := io.CopyN(h, resp.Body, 1<<20); err != nil {
		return nil, err
	}
	meet()
	_, err = io.Copy(h, resp.Body)
	return h.Sum(nil), err
}
