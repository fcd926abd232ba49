package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"
)

// labelRaces are races over replicas that share a store. judge says what must not come out.
type labelRaces struct {
	replicas []func() string // the URL of each
	environ  []string        // of a process that uses the store
	prune    func(environ, args []string) (out []byte, err error)
	gap      bool // a replacement can come after a move that it could not see

	clock      atomic.Int64
	seed       atomic.Int64 // of what must differ
	ops        atomic.Int64
	lost       atomic.Int64 // replies
	unknown    atomic.Int64 // results
	kills      atomic.Int64
	gaps       atomic.Int64
	violations atomic.Int64
}

var (
	raceClient = &http.Client{Timeout: time.Minute, Transport: &http.Transport{MaxIdleConnsPerHost: 32}}

	errReplyLost = errors.New("the reply was lost")
)

// raceMix is a kind of race: the verbs that its clients choose from.
type raceMix struct {
	name  string
	verbs []string
}

var raceMixes = []raceMix{
	{"label against delete", []string{"move", "move", "delete", "delete", "upload", "fetch", "unlabel"}},
	{"label against replacement", []string{"move", "upload", "upload", "unlabel", "fetch"}},
	{"prune against upload", []string{"create", "create", "log", "prune"}},
	{"prune against label", []string{"move", "move", "prune", "create", "fetch"}},
	{"two prunes", []string{"prune", "prune", "create", "log", "remove"}},
	{"site delete against upload", []string{"delsite", "create", "create", "log", "move"}},
	{"delete of versions against entries and uploads", []string{"remove", "log", "log", "upload", "move"}},
}

const (
	raceClients  = 6
	raceRequests = 4  // of each client
	raceLostOf   = 10 // one of so many replies is lost
)

// report prints the counts.
func (r *labelRaces) report(t *testing.T, what string) {
	t.Helper()
	t.Logf("%s: %d requests, %d replies lost, %d kills, %d results not known, %d replacements after a move that they could not see, %d violations",
		what, r.ops.Load(), r.lost.Load(), r.kills.Load(), r.unknown.Load(), r.gaps.Load(), r.violations.Load())
}

// siteRace is a race in a site of its own.
type siteRace struct {
	*labelRaces
	t    *testing.T
	site string
	mu   sync.Mutex
	h    raceHistory
	next int // the next new build; names descend, so that of two of one second the later is the newer
	tags map[string][]string
}

func (r *labelRaces) begin(t *testing.T) *siteRace {
	return &siteRace{labelRaces: r, t: t, site: fmt.Sprint("race", r.seed.Add(1)), next: 90, tags: map[string][]string{}}
}

// round runs one race: builds and labels that are there, clients at once, and meanwhile, if it is
// not nil, disturb. In the end it looks at everything through all replicas.
func (r *labelRaces) round(t *testing.T, mix raceMix, disturb func(s *siteRace)) {
	t.Helper()
	s := r.begin(t)
	for range 3 {
		s.create(0, false)
	}
	if rand.N(2) == 0 {
		s.move(0, "live", s.anyBuild(), false)
	}
	var g sync.WaitGroup
	for range raceClients {
		g.Go(func() {
			for range raceRequests {
				s.act(rand.N(len(r.replicas)), mix.verbs[rand.N(len(mix.verbs))])
			}
		})
	}
	if disturb != nil {
		disturb(s)
	}
	g.Wait()
	s.look()
	s.judged(mix.name)
}

// judged reports the violations of the race.
func (s *siteRace) judged(what string) {
	s.t.Helper()
	violations := s.h.judge()
	if s.gap {
		all := len(violations)
		violations = slices.DeleteFunc(violations, func(v string) bool { return strings.HasPrefix(v, replacedLate) })
		s.gaps.Add(int64(all - len(violations)))
	}
	if len(violations) == 0 {
		return
	}
	s.violations.Add(int64(len(violations)))
	var text strings.Builder
	for _, o := range s.h {
		fmt.Fprintln(&text, o)
	}
	s.t.Errorf("%s: VIOLATION: %s\n%s", what, strings.Join(violations, "\n"), &text)
}

// act sends a request of a verb.
func (s *siteRace) act(replica int, verb string) {
	build, label := s.anyBuild(), []string{"live", "preview"}[rand.N(2)]
	switch verb {
	case "create":
		s.create(replica, true)
	case "upload":
		s.upload(replica, build, true)
	case "move":
		s.move(replica, label, build, true)
	case "unlabel":
		s.send(replica, true, "unlabel", []string{label}, "DELETE", "/labels/"+label, "")
	case "delete":
		s.send(replica, true, "delete", []string{build}, "DELETE", "/artifacts/"+build, "")
	case "remove":
		s.send(replica, true, "remove", []string{build}, "DELETE", "/versions/"+build, "")
	case "delsite":
		query, args := "?confirm="+s.site, []string(nil)
		if rand.N(2) == 0 {
			query, args = query+"&labels=true", []string{"labels"}
		}
		s.send(replica, true, "delsite", args, "DELETE", query, "")
	case "log":
		entry := fmt.Sprint("e", s.seed.Add(1))
		s.send(replica, true, "log", []string{build, entry}, "POST", "/logs", fmt.Sprintf(`{"build_id":%q,"action":"a","status":%q}`, build, entry))
	case "fetch":
		s.fetch(replica, label)
	case "prune":
		s.runPrune([]string{"0h", "1h"}[rand.N(2)])
	}
}

// anyBuild returns one of the builds so far.
func (s *siteRace) anyBuild() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return fmt.Sprint("b", min(90, s.next+1+rand.N(4)))
}

func (s *siteRace) create(replica int, lossy bool) {
	s.mu.Lock()
	build := fmt.Sprint("b", s.next)
	s.next--
	s.mu.Unlock()
	s.upload(replica, build, lossy)
}

func (s *siteRace) upload(replica int, build string, lossy bool) {
	bytes := fmt.Sprint("bytes", s.seed.Add(1))
	_, header, _ := s.send(replica, lossy, "upload", []string{build, bytes}, "PUT", "/artifacts/"+build, bytes)
	if tag := header.Get("ETag"); tag != "" {
		s.mu.Lock()
		s.tags[build] = append(s.tags[build], tag)
		s.mu.Unlock()
	}
}

func (s *siteRace) move(replica int, label, build string, lossy bool) {
	s.send(replica, lossy, "move", []string{label, build}, "PUT", "/labels/"+label, `{"build_id":"`+build+`"}`)
}

// send sends a change, and records it. If lossy, the reply may be lost.
func (s *siteRace) send(replica int, lossy bool, verb string, args []string, method, path, body string) (status int, header http.Header, answer []byte) {
	start := s.clock.Add(1)
	status, header, answer, err := s.request(replica, method, path, body)
	if lossy && err == nil && rand.N(raceLostOf) == 0 {
		s.lost.Add(1)
		status, header, err = 0, nil, errReplyLost
	}
	result := raceUnknown
	switch {
	case errors.Is(err, syscall.ECONNREFUSED): // the replica is dead
		result = raceRefused
	case err != nil:
	case verb == "delsite":
		if status == 200 && bytes.Contains(answer, []byte(`"complete":true`)) {
			result = raceDone
		}
	case status < 300:
		result = raceDone
	case status == 404 || status == 409 || status == 412:
		result = raceRefused
	case status != 503:
		s.t.Errorf("%s %s: status %d: %s", method, path, status, answer)
	}
	s.record(verb, args, start, result)
	return status, header, answer
}

func (s *siteRace) record(verb string, args []string, start int64, result raceResult) {
	s.ops.Add(1)
	if result == raceUnknown {
		s.unknown.Add(1)
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.h = append(s.h, raceOp{verb, args, start, s.clock.Add(1), result})
}

func (s *siteRace) request(replica int, method, path, body string, kv ...string) (status int, h http.Header, answer []byte, err error) {
	req, err := http.NewRequest(method, s.replicas[replica]()+"/sites/"+s.site+path, strings.NewReader(body))
	if err != nil {
		return 0, nil, nil, err
	}
	req.Header = header(kv...)
	resp, err := raceClient.Do(req)
	if err != nil {
		return 0, nil, nil, err
	}
	defer resp.Body.Close()
	answer, err = io.ReadAll(resp.Body)
	return resp.StatusCode, resp.Header, answer, err
}

// fetch records what a label serves. A reply that does not come shows nothing.
func (s *siteRace) fetch(replica int, label string) {
	start := s.clock.Add(1)
	status, header, answer, err := s.request(replica, "GET", "/labels/"+label+"/artifact", "")
	switch {
	case err != nil || status == 503:
	case status == 404:
		s.record("fetch", []string{label, "-"}, start, raceDone)
	case status == 200:
		_, build, _ := strings.Cut(header.Get("Content-Location"), "/artifacts/")
		s.record("fetch", []string{label, build, string(answer)}, start, raceDone)
	default:
		s.t.Errorf("GET by label: status %d: %s", status, answer)
	}
}

// runPrune prunes the site. All builds are young, unless the grace is 0h.
func (s *siteRace) runPrune(grace string) {
	var args []string
	if grace != "0h" {
		args = []string{"young"}
	}
	file := filepath.Join(s.t.TempDir(), "retention.json")
	rules := fmt.Sprintf(`{"grace":%q,"rules":[{"sites":["*"],"keep_last":1,"labels":"optional"}]}`, grace)
	if err := os.WriteFile(file, []byte(rules), 0o600); err != nil {
		s.t.Error(err)
		return
	}
	start := s.clock.Add(1)
	out, err := s.prune(append(slices.Clone(s.environ), envPrefix+"RETENTION_FILE="+file), []string{"prune", "--apply", "--force", "--json", "--site", s.site})
	result := raceUnknown
	if err == nil {
		result = raceDone
	}
	for line := range bytes.Lines(out) {
		var l struct{ Type, Build, Action string }
		if json.Unmarshal(line, &l) == nil && l.Type == "build" && l.Action == pruneRemoved {
			args = append(args, l.Build)
		}
	}
	s.record("prune", args, start, result)
}

// pruneHere runs the command in this process.
func pruneHere(environ, args []string) ([]byte, error) {
	var out bytes.Buffer
	err := run(context.Background(), args, environ, &out, io.Discard)
	return out.Bytes(), err
}

// TestLabelRaces races over two services that share a directory, with lost replies.
func TestLabelRaces(t *testing.T) {
	base := t.TempDir()
	r := &labelRaces{environ: []string{envPrefix + "NFS_BASE_PATH=" + base}, prune: pruneHere}
	for range 2 {
		s := startServer(t, "NFS_BASE_PATH="+base, "ACCESS_LOG=false")
		r.replicas = append(r.replicas, func() string { return "http://" + s.addr })
	}
	for _, mix := range raceMixes {
		t.Run(mix.name, func(t *testing.T) {
			for range labelRaceRounds {
				r.round(t, mix, nil)
			}
		})
	}
	r.report(t, "a directory")
}
