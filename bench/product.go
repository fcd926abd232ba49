package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// The loads that no peer has.

// list asks for the versions of a site, and measures it.
func list(s *server, etag string) (tag string, values map[string]float64, err error) {
	req, err := http.NewRequest("GET", s.url("/sites/site/versions"), nil)
	if err != nil {
		return "", nil, err
	}
	if etag != "" {
		req.Header.Set("If-None-Match", etag)
	}
	cpu, start := cpuSeconds(s.pid()), time.Now()
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return "", nil, err
	}
	n, err := io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	took := time.Since(start)
	want := http.StatusOK
	if etag != "" {
		want = http.StatusNotModified
	}
	if err == nil && resp.StatusCode != want {
		err = fmt.Errorf("the list is answered %s, not %d", resp.Status, want)
	}
	return resp.Header.Get("ETag"), map[string]float64{
		"ms": took.Seconds() * 1e3, "CPU ms": (cpuSeconds(s.pid()) - cpu) * 1e3, "answer MB": float64(n) / mb}, err
}

// lists does it count times and adds the mean.
func (b *bench) lists(load string, builds, round, count int, s *server, etag string) error {
	sum := map[string]float64{}
	cpu := cpuSeconds(s.pid())
	for range count {
		_, values, err := list(s, etag)
		if err != nil {
			return err
		}
		for k, v := range values {
			sum[k] += v / float64(count)
		}
	}
	sum["CPU ms"] = (cpuSeconds(s.pid()) - cpu) * 1e3 / float64(count)
	b.add(load, float64(builds), s.name, round, sum)
	return nil
}

// versions: lists of sites with more and more builds, each with a log.
func (b *bench) versions() error {
	for _, builds := range []int{100, 1000, 10000} {
		s, _, err := b.start(pagewright)
		if err != nil {
			return err
		}
		err = seed(s, "site", builds, []byte("a build"), "")
		if err == nil {
			_, err = (&small{addr: s.addr, conns: 64, status: 201, count: builds,
				request: func(buf []byte, n int) []byte { return logRequest(buf, "site", n) }}).run(s.pid())
		}
		s.stop()
		if err != nil {
			return err
		}
		for round := range b.rounds {
			if err := b.versionsOf(s.dir, builds, round); err != nil {
				return err
			}
		}
		if err := os.RemoveAll(s.dir); err != nil {
			return err
		}
	}
	return nil
}

func (b *bench) versionsOf(dir string, builds, round int) error {
	s, _, err := b.startIn(pagewright, dir)
	if err != nil {
		return err
	}
	defer s.stop()
	_, values, err := list(s, "")
	if err != nil {
		return err
	}
	b.add("list, first", float64(builds), s.name, round, values)
	// What was seen to change less than 2 seconds ago is read once more.
	time.Sleep(2200 * time.Millisecond)
	etag, _, err := list(s, "")
	if err != nil {
		return err
	}
	if err := b.lists("list, repeated", builds, round, 20, s, ""); err != nil {
		return err
	}
	if err := b.lists("list, repeated with ETag", builds, round, 200, s, etag); err != nil {
		return err
	}
	uploads := 3
	for i := range uploads {
		next := time.Now().Add(time.Second)
		if err := put(s.addr, artifactPath("site", fmt.Sprintf("new%d-%d", round, i)), b.source, 4096, ""); err != nil {
			return err
		}
		_, values, err := list(s, "")
		if err != nil {
			return err
		}
		b.add("list, after an upload", float64(builds), s.name, round*uploads+i, values)
		sleepUntil(next)
	}
	return nil
}

// footprint: what it takes to start, and to be there.
func (b *bench) footprint() error {
	builds := map[string]string{pagewright: b.product, directory: b.directory}
	for _, name := range []string{pagewright, directory} {
		info, err := os.Stat(builds[name])
		if err != nil {
			return err
		}
		b.add("binary", 0, name, 0, map[string]float64{"MB": float64(info.Size()) / mb})
	}
	for round := range 3 * b.rounds {
		for name := range builds {
			s, started, err := b.start(name)
			if err != nil {
				return err
			}
			time.Sleep(300 * time.Millisecond) // what the start leaves running has come to rest
			b.add("start", 0, s.name, round, map[string]float64{"ms": started.Seconds() * 1e3, "RSS MB": memory(s.pid(), "VmRSS")})
			s.stop()
			os.RemoveAll(s.dir)
		}
	}
	err := b.turns([]string{pagewright, plain, nginx}, 1, func(s *server, round int) error {
		idle := memory(s.pid(), "VmRSS")
		up, err := each(s.pid(), 200, b.medium, func(i int) error {
			return put(s.addr, artifactPath("many", fmt.Sprintf("b%d", i)), b.source, b.medium, "")
		})
		b.add("200 uploads at once", float64(b.medium), s.name, round, map[string]float64{
			"idle RSS MB": idle, "peak RSS MB": up.peak, "MB/s": float64(up.bytes) / mb / up.seconds,
			"CPU s/GB": up.cpu / (float64(up.bytes) / gb)})
		if err != nil {
			return err
		}
		if err := os.RemoveAll(s.siteDir("many")); err != nil {
			return err
		}
		health := &small{addr: s.addr, conns: 64, status: 200, warm: b.warm, duration: b.duration,
			request: func(buf []byte, _ int) []byte {
				return append(buf, "GET /health HTTP/1.1\r\nHost: bench\r\n\r\n"...)
			}}
		r, err := health.run(s.pid())
		if err != nil {
			return err
		}
		b.add("/health", 64, s.name, round, r.values())
		return nil
	})
	if err != nil {
		return err
	}
	return b.turns([]string{pagewright, directory, plain, nginx}, 1, b.idleConnections)
}

// idleConnections holds 5,000 of them, each of which has asked once.
func (b *bench) idleConnections(s *server, round int) error {
	const count = 5000
	for range count {
		fd, err := dial(s.addr)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		if _, err := unix.Write(fd, []byte("GET /health HTTP/1.1\r\nHost: bench\r\n\r\n")); err != nil {
			return err
		}
		if n, err := unix.Read(fd, make([]byte, 4096)); err != nil || n == 0 {
			return fmt.Errorf("no answer on an idle connection: %w", err)
		}
	}
	b.add("idle connections", count, s.name, round, map[string]float64{"RSS MB": memory(s.pid(), "VmRSS")})
	return nil
}
