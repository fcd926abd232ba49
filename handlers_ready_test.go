package main

import (
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// readiness asks /ready and returns the body, which has no other members.
func readiness(t *testing.T, s *testServer, status int) (body struct {
	Status, Error, Reason string
	Writes                bool
}) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(string(s.get(t, status, "/ready").body)))
	d.DisallowUnknownFields()
	if err := d.Decode(&body); err != nil {
		t.Errorf("/ready: %v", err)
	}
	return body
}

// waitForLine waits for a line of the log and returns its members.
func waitForLine(t *testing.T, s *testServer, msg string) (line map[string]any) {
	t.Helper()
	eventually(t, "the line "+msg, func() bool {
		for l := range strings.Lines(s.log.String()) {
			line = nil
			if json.Unmarshal([]byte(l), &line) == nil && line["msg"] == msg {
				return true
			}
		}
		return false
	})
	return line
}

// The service log says when the store is lost and when it is back, even without requests.
func TestStoreLostAndBack(t *testing.T) {
	s, _ := startTuned(t, func(svc *service, _ *listener) { go svc.watchStore(t.Context(), 10*time.Millisecond) })
	away := s.dir + ".away"
	if err := os.Rename(s.dir, away); err != nil {
		t.Fatal(err)
	}
	lost := waitForLine(t, s, "store lost")
	if cause, _ := lost["cause"].(string); lost["level"] != "ERROR" || lost["kind"] != "unavailable" || !strings.Contains(cause, s.dir) {
		t.Errorf("got %v", lost)
	}
	if err := os.Rename(away, s.dir); err != nil {
		t.Fatal(err)
	}
	back := waitForLine(t, s, "store is back")
	if ms, ok := back["lost_ms"].(float64); back["level"] != "INFO" || !ok || ms < 0 {
		t.Errorf("got %v", back)
	}
	if log := s.log.String(); strings.Count(log, `"store lost"`) != 1 || strings.Count(log, `"store is back"`) != 1 || strings.Contains(log, "not writable") {
		t.Errorf("logged:\n%s", log)
	}
}

// A probe that fails after longer than /ready waits for it is seen too.
func TestStoreLostSlowly(t *testing.T) {
	p := &probed{nfs: openTestNFS(t, t.TempDir())}
	hangs := make(chan struct{})
	p.set(Readiness{}, diskError("open", "/srv", syscall.EIO), hangs)
	s, svc := startBackend(t, p)
	svc.ready.wait = time.Nanosecond
	go svc.watchStore(t.Context(), time.Hour)
	eventually(t, "a probe runs", func() bool {
		svc.ready.mu.Lock()
		defer svc.ready.mu.Unlock()
		return svc.ready.running != nil
	})
	if _, err := svc.ready.get(0); !errors.As(err, new(*errNoResponse)) {
		t.Fatal(err)
	}
	close(hangs)
	waitForLine(t, s, "store lost")
}

// probed is a store whose probe has the result that a test sets.
type probed struct {
	*nfs
	mu    sync.Mutex
	found Readiness
	err   error
	hangs chan struct{} // if not nil, the probe waits until it is closed
}

func (p *probed) set(found Readiness, err error, hangs chan struct{}) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.found, p.err, p.hangs = found, err, hangs
}

func (p *probed) Probe() (Readiness, error) {
	p.mu.Lock()
	found, err, hangs := p.found, p.err, p.hangs
	p.mu.Unlock()
	if hangs != nil {
		<-hangs
	}
	return found, err
}

// probeNow makes the service probe the store again.
func probeNow(svc *service) { _, _ = svc.ready.get(0) }

// /ready says what is wrong, and the service log says why. What makes a replica useless from
// the start stops a roll-out; what happens to all replicas at once does not.
func TestReadyNamesTheKind(t *testing.T) {
	const secret = "/srv/secret"
	of := func(err error) error { return diskError("open", secret, err) }
	writes := func(err error) Readiness { return Readiness{WriteError: of(err)} }
	for _, c := range []struct {
		name   string
		found  Readiness
		err    error
		status int
		text   string // the error, or the reason
		denied float64
	}{
		{"well", Readiness{}, nil, 200, "", 0},
		{"lost", Readiness{}, of(syscall.ESTALE), 503, "the store is unavailable", 0},
		{"reading is denied", Readiness{}, of(syscall.EACCES), 503, "the store denied access", 0},
		{"broken", Readiness{}, of(syscall.EIO), 503, "internal error", 0},
		{"full", writes(syscall.ENOSPC), nil, 200, "no space left in the store", 0},
		{"read-only", writes(syscall.EROFS), nil, 200, "the store is read-only", 0},
		{"writing is denied", writes(syscall.EACCES), nil, 503, "the store denied access", 1},
	} {
		p := &probed{nfs: openTestNFS(t, t.TempDir())}
		p.set(c.found, c.err, nil)
		s, svc := startBackend(t, p)
		got := readiness(t, s, c.status)
		if got.Error+got.Reason != c.text || got.Writes != (c.text == "") || (got.Status == "ready") != (c.status == 200) {
			t.Errorf("%s: /ready says %+v, want %q", c.name, got, c.text)
		}
		if logged := strings.Contains(s.log.String(), secret); logged != (c.status == 503) {
			t.Errorf("%s: logged %s", c.name, s.log)
		}
		if m := scrape(t, s); m["pagewright_store_denied"] != c.denied || m["pagewright_store_writable"] != boolToFloat(c.text == "") {
			t.Errorf("%s: denied %v, writable %v", c.name, m["pagewright_store_denied"], m["pagewright_store_writable"])
		}
		p.set(Readiness{}, nil, nil)
		probeNow(svc)
		readiness(t, s, 200)
		p.set(writes(syscall.EACCES), nil, nil) // it could write before
		probeNow(svc)
		if got := readiness(t, s, 200); got.Writes || got.Reason != "the store denied access" {
			t.Errorf("%s, and denied later: %+v", c.name, got)
		}
		if m := scrape(t, s); m["pagewright_store_denied"] != 0 || m["pagewright_store_writable"] != 0 {
			t.Errorf("%s, and denied later: denied %v, writable %v", c.name, m["pagewright_store_denied"], m["pagewright_store_writable"])
		}
	}
}

// If a probe hangs after others have failed, the service log has the cause of the failures.
func TestReadyOfAHungStoreLogsTheLastCause(t *testing.T) {
	p := &probed{nfs: openTestNFS(t, t.TempDir())}
	p.set(Readiness{}, errors.Join(ErrUnavailable, errors.New("the real cause")), nil)
	s, svc := startBackend(t, p)
	readiness(t, s, 503)
	hangs := make(chan struct{})
	defer close(hangs)
	p.set(Readiness{}, nil, hangs)
	svc.ready.wait = time.Millisecond
	probeNow(svc)
	if got := readiness(t, s, 503); got.Error != "the store is unavailable" {
		t.Errorf("/ready says %+v", got)
	}
	eventually(t, "the line with the last cause", func() bool { // at most one line a second
		for l := range strings.Lines(s.log.String()) {
			if strings.Contains(l, "has not responded for") && strings.Contains(l, "the real cause") {
				return true
			}
		}
		return false
	})
}

// A replica whose user may read but not write the store is not ready. It becomes ready when
// a write has succeeded, and stays ready.
func TestReadyOfADeniedReplica(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("only root can start a process as another user")
	}
	const user = 65529
	dir, err := os.MkdirTemp("", "denied") // not t.TempDir: no other user may enter that
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	program, base := dir+"/program", dir+"/store"
	binary, err := os.ReadFile(os.Args[0])
	err = errors.Join(err, os.WriteFile(program, binary, 0o755), os.MkdirAll(filepath.Join(base, sitesDir), 0o755), os.Chmod(dir, 0o755))
	if err != nil {
		t.Fatal(err)
	}
	owner := func(uid int) {
		err := filepath.WalkDir(base, func(path string, _ fs.DirEntry, err error) error {
			return errors.Join(err, os.Lchown(path, uid, uid))
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	s := startUnder(t, "022", program, base, user, user)
	if got := readiness(t, s, 503); got.Error != "the store denied access" {
		t.Errorf("/ready says %+v", got)
	}
	if got := scrape(t, s)["pagewright_store_denied"]; got != 1 {
		t.Errorf("pagewright_store_denied is %v", got)
	}
	owner(user)
	eventually(t, "it is ready and writes", func() bool {
		r, err := s.try(request{"GET", "/ready", nil, nil})
		return err == nil && r.status == 200 && strings.Contains(string(r.body), `"writes":true`)
	})
	owner(0)
	eventually(t, "it is ready and does not write", func() bool {
		r, err := s.try(request{"GET", "/ready", nil, nil})
		if err == nil && r.status != 200 {
			t.Fatalf("/ready: %d %s", r.status, r.body)
		}
		return err == nil && strings.Contains(string(r.body), `"writes":false`)
	})
}

// Every kind of error of every operation has a series before the first error, so that
// rate() sees that one too.
func TestErrorSeriesExistFromTheStart(t *testing.T) {
	s := startServer(t)
	got := scrape(t, s)
	for _, class := range errorClasses {
		for _, call := range []string{callStore, callFetch, callStat, callDelete, callAppend, callList, callSites, callRemove, callProbe, callSpace, callURL,
			callMoveLabel, callGetLabel, callListLabels, callDeleteLabel} {
			name := `pagewright_backend_errors_total{operation="` + call + `",kind="` + class.kind + `"}`
			if v, ok := got[name]; !ok || v != 0 {
				t.Errorf("%s is %v (there: %v)", name, v, ok)
			}
		}
	}
	for name, want := range map[string]float64{
		`pagewright_http_requests_refused_total{reason="read_only"}`: 0,
		`pagewright_uploads_refused_total{reason="too_many"}`:        0,
		`pagewright_uploads_refused_total{reason="no_space"}`:        0,
		`pagewright_budget_refused_total{budget="reads"}`:            0,
		`pagewright_budget_ended_total{budget="uploads"}`:            0,
		`pagewright_log_lines_dropped_total{kind="access"}`:          0,
		`pagewright_log_lines_dropped_total{kind="other"}`:           0,
		`pagewright_store_calls_limit{kind="read"}`:                  maxReads + maxLists,
		`pagewright_store_calls_limit{kind="write"}`:                 maxWrites,
		`pagewright_read_only`:                                       0,
		`pagewright_store_denied`:                                    0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s is %v (there: %v), want %v", name, v, ok, want)
		}
	}
}
