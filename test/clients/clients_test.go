//go:build integration || torture

// Package clients holds the clients that misbehave: while they do, everybody
// else is served without an error, and when they are gone nothing of them is
// left.
package clients

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"pagewright/storage/test/service"
)

const (
	stall      = 4 * time.Second
	wellKept   = 4         // clients that behave
	peakBound  = 256 << 20 // bytes above idle that any of it may cost
	afterBound = 48 << 20  // and that may stay: what Go keeps for the next time
	bigSize    = 64 << 20
	maxPipes   = 4 * 32 // two for each upload that is spliced, and as many again that await the collector
	siteOfAll  = "good"
	siteOfBad  = "bad"
)

// trial is one kind of misbehaviour.
type trial struct {
	name  string
	conns int
	one   func(c net.Conn, i int) error // an error is a violation
}

var trials = []trial{
	{"slow headers", 300, slowHeader},
	{"slow bodies", 200, slowBody},
	{"half-closed and silent", 200, halfOpen},
	{"resets at random offsets", 500, reset},
	{"idle connections", 5000, idle},
	{"pipelined garbage", 300, garbage},
}

// clients is the service and what it cost before anybody misbehaved.
type clients struct {
	t        *testing.T
	s        *service.Service
	base     string
	profiler string // its address
	good     *http.Client

	memory      int64
	descriptors int
}

func TestClientsThatMisbehave(t *testing.T) {
	base := service.SharedDir(t)
	profiler := freeAddress(t)
	s := service.Start(t, service.Options{Bin: service.Build(t), Base: base, Env: []string{"PPROF_LISTEN=" + profiler,
		fmt.Sprintf("STALL_TIMEOUT=%v", stall), fmt.Sprintf("HEADER_TIMEOUT=%v", stall), "IDLE_TIMEOUT=5m"}})
	c := &clients{t: t, s: s, base: base, profiler: profiler, good: service.Client(wellKept)}
	c.warm()
	for _, tr := range trials {
		t.Run(tr.name, func(t *testing.T) {
			c.t = t
			c.try(tr)
		})
	}
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
}

func freeAddress(t *testing.T) string {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().String()
}

// warm brings the service to the state that it is to come back to.
func (c *clients) warm() {
	if err := c.put("big", bigSize); err != nil {
		c.t.Fatal(err)
	}
	if _, err := c.behaveFor(func() { time.Sleep(time.Second) }); err != nil {
		c.t.Fatal(err)
	}
	c.good.CloseIdleConnections()
	var err error
	if c.memory, err = c.s.Memory("VmRSS"); err != nil {
		c.t.Fatal(err)
	}
	c.descriptors = c.fds()
}

// fds is the number of open descriptors. Pipes are bounded by those who splice.
func (c *clients) fds() int {
	n, pipes, err := c.s.Descriptors()
	if err != nil {
		c.t.Fatal(err)
	}
	if pipes > maxPipes {
		c.t.Errorf("%d pipes are open", pipes)
	}
	return n
}

func (c *clients) try(tr trial) {
	if err := c.s.ResetPeak(); err != nil {
		c.t.Fatal(err)
	}
	most := 0
	served, err := c.behaveFor(func() {
		ended := make(chan struct{})
		go func() {
			c.misbehave(tr)
			close(ended)
		}()
		for {
			select {
			case <-ended:
				return
			case <-time.After(50 * time.Millisecond):
				most = max(most, c.fds())
			}
		}
	})
	if err != nil {
		c.t.Errorf("a client that behaves: %v", err)
	}
	c.good.CloseIdleConnections()
	peak, err := c.s.Memory("VmHWM")
	if err != nil {
		c.t.Fatal(err)
	}
	if peak-c.memory > peakBound {
		c.t.Errorf("memory rose by %d MiB", (peak-c.memory)>>20)
	}
	// The directory that a background task reads may be one more.
	service.Until(c.t, "the descriptors to be closed", func() bool { return c.fds() <= c.descriptors+2 })
	// The runtime collects every two minutes at the latest, and this asks it to
	// do so now. What is free then it returns to the system little by little.
	after := int64(0)
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		res, err := c.good.Get("http://" + c.profiler + "/debug/pprof/heap?gc=1")
		if err := answered(res, err, http.StatusOK); err != nil {
			c.t.Fatal(err)
		}
		if after, err = c.s.Memory("VmRSS"); err != nil {
			c.t.Fatal(err)
		}
		if after-c.memory < afterBound {
			break
		}
		if time.Now().After(end) {
			c.t.Errorf("memory is still %d MiB above what it was, %d MiB at most", (after-c.memory)>>20, (peak-c.memory)>>20)
			break
		}
	}
	c.good.CloseIdleConnections()
	service.Until(c.t, "no temporary file to be left", func() bool { return len(service.Temps(c.t, c.base)) == 0 })
	c.checkBad()
	c.t.Logf("%d connections; others were served %d times meanwhile, without an error; descriptors %d, at most %d, then %d; memory %d MiB, at most %d, then %d",
		tr.conns, served, c.descriptors, most, c.fds(), c.memory>>20, peak>>20, after>>20)
	if served == 0 {
		c.t.Error("nobody was served")
	}
}

// misbehave runs all the connections of a trial at once.
func (c *clients) misbehave(tr trial) {
	var all sync.WaitGroup
	var bad atomic.Int64
	turns := make(chan struct{}, 256) // a listen queue is 4096 at most
	for i := range tr.conns {
		all.Go(func() {
			turns <- struct{}{}
			conn, err := net.Dial("tcp", c.s.Addr)
			<-turns
			if err != nil {
				c.t.Errorf("cannot connect: %v", err)
				return
			}
			defer conn.Close()
			conn.SetDeadline(time.Now().Add(2 * time.Minute))
			if err := tr.one(conn, i); err != nil && bad.Add(1) < 5 {
				c.t.Errorf("connection %d: %v", i, err)
			}
		})
	}
	all.Wait()
}

// behaveFor serves clients that behave while f runs, and tells how often. Every
// answer is checked.
func (c *clients) behaveFor(f func()) (int64, error) {
	stop := make(chan struct{})
	var served atomic.Int64
	errs := make(chan error, wellKept)
	var all sync.WaitGroup
	for n := range wellKept {
		all.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				if err := c.behave(n); err != nil {
					errs <- err
					return
				}
				served.Add(1)
			}
		})
	}
	f()
	close(stop)
	all.Wait()
	select {
	case err := <-errs:
		return served.Load(), err
	default:
		return served.Load(), nil
	}
}

// behave uploads, downloads, logs and lists.
func (c *clients) behave(n int) error {
	name := fmt.Sprint("build", n)
	size := 1 + rand.IntN(300<<10)
	if err := c.put(name, size); err != nil {
		return err
	}
	if err := c.get(name, size); err != nil {
		return err
	}
	url := "http://" + c.s.Addr + "/sites/" + siteOfAll
	res, err := c.good.Post(url+"/logs", "application/json", strings.NewReader(`{"build_id":"`+name+`","action":"a","status":"s"}`))
	if err := answered(res, err, http.StatusCreated); err != nil {
		return fmt.Errorf("log: %w", err)
	}
	res, err = c.good.Get(url + "/versions?limit=1")
	if err := answered(res, err, http.StatusOK); err != nil {
		return fmt.Errorf("list: %w", err)
	}
	return nil
}

func answered(res *http.Response, err error, want int) error {
	if err != nil {
		return err
	}
	defer res.Body.Close()
	data, err := io.ReadAll(res.Body)
	if err == nil && res.StatusCode != want {
		err = fmt.Errorf("status %d: %.200s", res.StatusCode, data)
	}
	return err
}

func content(name string, size int) io.Reader {
	return io.LimitReader(rand.NewChaCha8(sha256.Sum256(fmt.Append(nil, name, size))), int64(size))
}

func (c *clients) put(name string, size int) error {
	req, _ := http.NewRequest("PUT", c.s.URL(siteOfAll, name), content(name, size))
	req.ContentLength = int64(size)
	res, err := c.good.Do(req)
	if err := answered(res, err, http.StatusCreated); err != nil {
		return fmt.Errorf("upload: %w", err)
	}
	return nil
}

func (c *clients) get(name string, size int) error {
	res, err := c.good.Get(c.s.URL(siteOfAll, name))
	if err != nil {
		return fmt.Errorf("download: %w", err)
	}
	defer res.Body.Close()
	got, want := sha256.New(), sha256.New()
	if _, err := io.Copy(got, res.Body); err != nil {
		return fmt.Errorf("download: %w", err)
	}
	io.Copy(want, content(name, size))
	if res.StatusCode != http.StatusOK || !bytes.Equal(got.Sum(nil), want.Sum(nil)) {
		return fmt.Errorf("download: status %d, or other bytes", res.StatusCode)
	}
	return nil
}

// checkBad: what those who misbehave uploaded is whole or not there.
func (c *clients) checkBad() {
	for i := range resetBuilds {
		res, err := c.good.Get(c.s.URL(siteOfBad, fmt.Sprint("r", i)))
		if err != nil {
			c.t.Fatal(err)
		}
		data, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.StatusCode != http.StatusNotFound && (res.StatusCode != http.StatusOK || !bytes.Equal(data, resetBody)) {
			c.t.Errorf("build r%d is there in part: status %d, %d bytes, %v", i, res.StatusCode, len(data), err)
		}
	}
	c.good.CloseIdleConnections()
}
