package main

import (
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// The loads. Every one gives each server its turn in every round, in an order
// that rotates.

// turns starts the servers and calls f for each in each round.
func (b *bench) turns(names []string, rounds int, f func(s *server, round int) error) error {
	var servers []*server
	if b.before != "" && !isTLS(names[0]) {
		names = append([]string{before}, names...)
	}
	if b.alone {
		names = slices.DeleteFunc(names, func(n string) bool { return n != before && !strings.HasPrefix(n, pagewright) })
	}
	for _, name := range names {
		s, _, err := b.start(name)
		if err != nil {
			return err
		}
		defer os.RemoveAll(s.dir)
		defer s.stop()
		servers = append(servers, s)
	}
	for round := range rounds {
		for i := range servers {
			s := servers[(i+round)%len(servers)]
			b.settle()
			if err := f(s, round); err != nil {
				return fmt.Errorf("%s: %w", s.name, err)
			}
		}
	}
	return nil
}

// accessLogLoad is the name of the load of accessLog in the results.
const accessLogLoad = "small GET, access log"

const gb, mb = 1e9, 1e6

func (r largeResult) values() map[string]float64 {
	return map[string]float64{
		"MB/s":        float64(r.bytes) / mb / r.seconds,
		"CPU s/GB":    r.cpu / (float64(r.bytes) / gb),
		"peak RSS MB": r.peak,
	}
}

func artifactPath(site, build string) string { return "/sites/" + site + "/artifacts/" + build }

// largePut: one body, and four at once.
func (b *bench) largePut() error {
	for _, n := range []int{1, 4} {
		err := b.turns([]string{pagewright, plain, nginx}, b.rounds, func(s *server, round int) error {
			build := func(i int) string { return fmt.Sprintf("b%d-%d", round, i) }
			if err := touchMemory(2 * int64(n) * b.large); err != nil {
				return err
			}
			r, err := each(s.pid(), n, b.large, func(i int) error {
				return put(s.addr, artifactPath("large", build(i)), b.source, b.large, "")
			})
			for i := range n {
				if rerr := os.Remove(s.stored("large", build(i))); err == nil {
					err = rerr
				}
			}
			b.add("large PUT", float64(n), s.name, round, r.values())
			if err == nil && n == 1 && s.name == plain {
				var speed float64
				b.settle()
				if err := touchMemory(2 * b.large); err != nil {
					return err
				}
				speed, err = b.ddLimit(b.large)
				b.add("large PUT", 1, limit, round, map[string]float64{"MB/s": speed})
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// largeGet: the same, out of the page cache. One transfer alone costs 0.3 or 0.6 s
// of CPU per GB, whoever serves it, by the cores that the kernel happens to put
// the two ends on: so there are many rounds, each with connections of its own.
func (b *bench) largeGet() error {
	stored := map[string]bool{}
	for _, n := range []int{1, 4} {
		clear(stored)
		err := b.turns([]string{pagewright, plain, nginx, limit}, b.rounds*3, func(s *server, round int) error {
			path := artifactPath("large", "b")
			if s.name != limit && !stored[s.name] {
				if err := put(s.addr, path, b.source, b.large, ""); err != nil {
					return err
				}
				stored[s.name] = true
				b.settle()
			}
			r, err := each(s.pid(), n, b.large, func(int) error { return get(s.addr, path, b.large) })
			b.add("large GET", float64(n), s.name, round, r.values())
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

func (r smallResult) values() map[string]float64 {
	n := max(float64(r.requests), 1)
	return map[string]float64{
		"per s": n / r.seconds, "CPU us": r.cpu / n * 1e6,
		"p50 ms": r.percentile(50), "p99 ms": r.percentile(99), "p99.9 ms": r.percentile(99.9),
	}
}

// putRequest appends the PUT of body as a build of its own. header is empty, or more lines
// of the header.
func putRequest(site string, body []byte, header string) func(buf []byte, n int) []byte {
	return func(buf []byte, n int) []byte {
		buf = fmt.Appendf(buf, "PUT /sites/%s/artifacts/b%08d HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n%s\r\n", site, n, len(body), header)
		return append(buf, body...)
	}
}

// siteDir is the directory of a site of s.
func (s *server) siteDir(site string) string {
	return filepath.Dir(filepath.Dir(s.stored(site, "b")))
}

func (b *bench) smallPut() error {
	body, err := b.bytes(16 << 10)
	if err != nil {
		return err
	}
	for _, conns := range []int{1, 16, 64, 256} {
		err := b.turns([]string{pagewright, plain, nginx}, b.rounds, func(s *server, round int) error {
			site := fmt.Sprintf("small%d", round)
			r, err := (&small{addr: s.addr, conns: conns, status: 201, request: putRequest(site, body, ""),
				warm: b.warm, duration: b.duration}).run(s.pid())
			b.add("small PUT", float64(conns), s.name, round, r.values())
			if err == nil {
				err = os.RemoveAll(s.siteDir(site))
			}
			if err == nil && s.name == plain {
				var rate float64
				b.settle()
				rate, err = b.durableLoop(conns, len(body), b.duration)
				b.add("small PUT", float64(conns), limit, round, map[string]float64{"per s": rate})
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// logs: entries to one build, and to a thousand.
func (b *bench) logs() error {
	for _, builds := range []int{1, 1000} {
		load := fmt.Sprintf("log append, builds: %d", builds)
		for _, conns := range []int{1, 64} {
			err := b.turns([]string{pagewright, plain}, b.rounds, func(s *server, round int) error {
				site := fmt.Sprintf("logs%d", round)
				r, err := (&small{addr: s.addr, conns: conns, status: 201, warm: b.warm, duration: b.duration,
					request: func(buf []byte, n int) []byte { return logRequest(buf, site, n%builds) }}).run(s.pid())
				b.add(load, float64(conns), s.name, round, r.values())
				if err == nil {
					err = os.RemoveAll(s.siteDir(site))
				}
				return err
			})
			if err != nil {
				return err
			}
		}
	}
	return nil
}

func logRequest(buf []byte, site string, build int) []byte {
	body := fmt.Sprintf(`{"build_id":"b%08d","action":"deploy","status":"success","metadata":{"commit":"9fceb02d0ae598e95dc970b74767f19372d61af8","seconds":12}}`, build)
	return fmt.Appendf(buf, "POST /sites/%s/logs HTTP/1.1\r\nHost: bench\r\nContent-Length: %d\r\n\r\n%s", site, len(body), body)
}

const smallFiles = 100 // what the small reads go round

// seed stores builds b00000000... of body. header is as in putRequest.
func seed(s *server, site string, count int, body []byte, header string) error {
	_, err := (&small{addr: s.addr, conns: 64, status: 201, request: putRequest(site, body, header), count: count}).run(s.pid())
	return err
}

// smallGet: GET, HEAD, and GET that ends in 304, of 4 KiB.
func (b *bench) smallGet() error {
	body, err := b.bytes(4 << 10)
	if err != nil {
		return err
	}
	tags := map[string][]string{}
	return b.turns([]string{pagewright, nginx, nginxCache, plain}, b.rounds, func(s *server, round int) error {
		if tags[s.name] == nil {
			if err := seed(s, "site", smallFiles, body, ""); err != nil {
				return err
			}
			if tags[s.name], err = etags(s); err != nil {
				return err
			}
		}
		for _, load := range []string{"GET", "HEAD", "304"} {
			l := &small{addr: s.addr, conns: 64, status: 200, warm: b.warm, duration: b.duration, request: get4K}
			switch load {
			case "HEAD":
				l.bodyless = true
				l.request = func(buf []byte, n int) []byte {
					return fmt.Appendf(buf, "HEAD /sites/site/artifacts/b%08d HTTP/1.1\r\nHost: bench\r\n\r\n", n%smallFiles)
				}
			case "304":
				l.status = 304
				l.request = func(buf []byte, n int) []byte {
					return fmt.Appendf(buf, "GET /sites/site/artifacts/b%08d HTTP/1.1\r\nHost: bench\r\nIf-None-Match: %s\r\n\r\n",
						n%smallFiles, tags[s.name][n%smallFiles])
				}
			}
			r, err := l.run(s.pid())
			if err != nil {
				return err
			}
			b.add("small "+load, 64, s.name, round, r.values())
		}
		return b.wrk("small GET by wrk", s, round)
	})
}

func get4K(buf []byte, n int) []byte {
	return fmt.Appendf(buf, "GET /sites/site/artifacts/b%08d HTTP/1.1\r\nHost: bench\r\n\r\n", n%smallFiles)
}

func etags(s *server) (tags []string, err error) {
	for i := range smallFiles {
		resp, err := http.Head(s.url(artifactPath("site", fmt.Sprintf("b%08d", i))))
		if err != nil {
			return nil, err
		}
		resp.Body.Close()
		tags = append(tags, resp.Header.Get("ETag"))
	}
	return tags, nil
}

func (s *server) url(path string) string {
	scheme := "http"
	if isTLS(s.name) {
		scheme = "https"
	}
	return fmt.Sprintf("%s://127.0.0.1:%d%s", scheme, s.addr.Port, path)
}

// accessLog: GET of 4 KiB with the access log on and off.
func (b *bench) accessLog() error {
	body, err := b.bytes(4 << 10)
	if err != nil {
		return err
	}
	seeded := map[string]bool{}
	return b.turns([]string{pagewright, pagewrightLog, nginx, nginxLog}, b.rounds, func(s *server, round int) error {
		if !seeded[s.name] {
			if err := seed(s, "site", smallFiles, body, ""); err != nil {
				return err
			}
			seeded[s.name] = true
		}
		r, err := (&small{addr: s.addr, conns: 64, status: 200, warm: b.warm, duration: b.duration, request: get4K}).run(s.pid())
		if err != nil {
			return err
		}
		b.add(accessLogLoad, 64, s.name, round, r.values())
		return nil
	})
}

// wrk asks with wrk: over TLS, and else as a second opinion on the load driver.
func (b *bench) wrk(load string, s *server, round int) error {
	cmd := exec.Command("wrk", "-t2", "-c64", "-d"+strconv.Itoa(max(1, int(b.duration.Seconds())))+"s",
		"-s", filepath.Join(b.home, "wrk", "get.lua"), s.url("/"))
	cmd.Env = append(os.Environ(), "SITE=site", "BUILDS="+strconv.Itoa(smallFiles))
	cpu := cpuSeconds(s.pid())
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("wrk: %w: %s", err, out)
	}
	cpu = cpuSeconds(s.pid()) - cpu
	values := map[string]float64{}
	for line := range strings.Lines(string(out)) {
		f := strings.Fields(line)
		switch {
		case len(f) == 2 && f[0] == "Requests/sec:":
			values["per s"], err = strconv.ParseFloat(f[1], 64)
		case len(f) > 2 && f[1] == "requests" && f[2] == "in":
			n, _ := strconv.ParseFloat(f[0], 64)
			values["CPU us"] = cpu / max(n, 1) * 1e6
		case strings.Contains(line, "Non-2xx"):
			return fmt.Errorf("wrk: %s", line)
		}
	}
	b.add(load, 64, s.name, round, values)
	return err
}

// fixedRate: the latency at a rate that all of them can keep up with.
func (b *bench) fixedRate() error {
	small4, err := b.bytes(4 << 10)
	if err != nil {
		return err
	}
	small16, err := b.bytes(16 << 10)
	if err != nil {
		return err
	}
	seeded := map[string]bool{}
	return b.turns([]string{pagewright, plain, nginx}, b.rounds, func(s *server, round int) error {
		if !seeded[s.name] {
			if err := seed(s, "site", smallFiles, small4, ""); err != nil {
				return err
			}
			seeded[s.name] = true
		}
		r, err := (&small{addr: s.addr, conns: 64, status: 200, warm: b.warm, duration: b.duration,
			rate: 4000, request: get4K}).run(s.pid())
		if err != nil {
			return err
		}
		b.add("GET at a fixed rate", 4000, s.name, round, r.values())
		site := fmt.Sprintf("rate%d", round)
		r, err = (&small{addr: s.addr, conns: 64, status: 201, warm: b.warm, duration: b.duration,
			rate: 500, request: putRequest(site, small16, "")}).run(s.pid())
		if err != nil {
			return err
		}
		b.add("PUT at a fixed rate", 500, s.name, round, r.values())
		return os.RemoveAll(s.siteDir(site))
	})
}

// bytes is the beginning of the source.
func (b *bench) bytes(n int) ([]byte, error) {
	f, err := os.Open(b.source)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	data := make([]byte, n)
	_, err = io.ReadFull(f, data)
	return data, err
}

// growth: how cost grows with the size of a body, and with connections.
func (b *bench) growth() error {
	servers := []string{pagewright, plain, nginx}
	for size := int64(4 << 10); size <= b.large; size *= 8 {
		count := int(min(max(b.large/4/size, 2), 200))
		err := b.turns(servers, 1, func(s *server, round int) error {
			r, err := each(s.pid(), 1, 0, func(int) error {
				for i := range count {
					if err := put(s.addr, artifactPath("grow", fmt.Sprintf("b%d", i)), b.source, size, ""); err != nil {
						return err
					}
				}
				return nil
			})
			if err != nil {
				return err
			}
			b.add("PUT by size", float64(size), s.name, round, map[string]float64{"CPU us": r.cpu / float64(count) * 1e6})
			b.settle()
			r, err = each(s.pid(), 1, 0, func(int) error {
				for i := range count {
					if err := get(s.addr, artifactPath("grow", fmt.Sprintf("b%d", i)), size); err != nil {
						return err
					}
				}
				return nil
			})
			b.add("GET by size", float64(size), s.name, round, map[string]float64{"CPU us": r.cpu / float64(count) * 1e6})
			return err
		})
		if err != nil {
			return err
		}
	}
	body, err := b.bytes(4 << 10)
	if err != nil {
		return err
	}
	return b.turns(servers, 1, func(s *server, round int) error {
		if err := seed(s, "site", smallFiles, body, ""); err != nil {
			return err
		}
		for _, conns := range []int{1, 4, 16, 64, 256, 1024} {
			r, err := (&small{addr: s.addr, conns: conns, status: 200, warm: b.warm, duration: b.duration, request: get4K}).run(s.pid())
			if err != nil {
				return err
			}
			b.add("GET by connections", float64(conns), s.name, round, r.values())
		}
		return nil
	})
}

func sleepUntil(t time.Time) { time.Sleep(time.Until(t)) }
