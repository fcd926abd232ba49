package history

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"
)

// What every log entry of a Driver says.
const (
	logAction = "deploy"
	logStatus = "success"
)

// Driver is the clients of a service: it sends requests and keeps their history.
type Driver struct {
	URL     string // of the service, without a slash at the end
	History *History
	Mark    func() int64 // see Op; nil: none
	Linger  bool         // Mix waits for the answers to its last requests
	Fresh   bool         // the service remembers no digests: it has stored nothing since its start
	client  *http.Client
	creates atomic.Int64
}

// NewDriver makes clients that give a request up after the timeout.
func NewDriver(url string, h *History, timeout time.Duration) *Driver {
	return &Driver{URL: url, History: h, client: &http.Client{
		Transport: &http.Transport{MaxIdleConnsPerHost: 64},
		Timeout:   timeout,
	}}
}

func (d *Driver) mark() int64 {
	if d.Mark == nil {
		return 0
	}
	return d.Mark()
}

// Do sends one request of the kind and notes what came of it. It returns the
// status, 0 if there was no answer.
func (d *Driver) Do(ctx context.Context, kind Kind, key string, size int) int {
	if kind == DeleteVersion {
		return d.deleteVersion(ctx, key)
	}
	return d.send(ctx, d.History.Begin(kind, key, size, d.mark()))
}

// RetryAppends sends every append again of which it is not known whether it was
// done, as a client would, and fails unless each is acknowledged.
func (d *Driver) RetryAppends(ctx context.Context) error {
	for _, op := range d.History.unknownAppends() {
		if status := d.send(ctx, op); status != http.StatusCreated {
			return fmt.Errorf("append %d to %s again: status %d", op.ID, op.Key, status)
		}
	}
	return nil
}

func (d *Driver) send(ctx context.Context, op *Op) int {
	kind, key := op.Kind, op.Key
	site, build, _ := strings.Cut(key, "/")
	method, url, body := "PUT", d.URL+"/sites/"+site+"/artifacts/"+build, []byte(nil)
	switch kind {
	case Put, Create:
		body = Body(op.ID, op.Size)
	case Delete:
		method = "DELETE"
	case Append:
		method, url = "POST", d.URL+"/sites/"+site+"/logs"
		body = fmt.Appendf(nil, `{"build_id":%q,"action":%q,"status":%q,"metadata":{"op":%d}}`, build, logAction, logStatus, op.ID)
	case Move:
		url, body = d.URL+labelPath(key), fmt.Appendf(nil, `{"build_id":%q}`, op.Build)
	case Unlabel:
		method, url = "DELETE", d.URL+labelPath(key)
	}
	req, err := http.NewRequestWithContext(ctx, method, url, bytes.NewReader(body))
	if err != nil {
		panic(err) // the url is ours
	}
	if kind == Create {
		req.Header.Set("If-None-Match", "*")
	}
	if op.hashed() {
		sum := sha256.Sum256(body)
		req.Header.Set("Repr-Digest", reprDigest(sum[:]))
	}
	if kind == Append {
		req.Header.Set("Idempotency-Key", fmt.Sprintf("op-%d", op.ID))
	}
	return d.exchange(req, op)
}

// exchange sends the request of ops and notes what came of them.
func (d *Driver) exchange(req *http.Request, ops ...*Op) int {
	status := 0
	if resp, err := d.client.Do(req); err == nil {
		_, err = io.Copy(io.Discard, resp.Body)
		resp.Body.Close()
		if err == nil || resp.StatusCode < 300 { // the head alone is the acknowledgement
			status = resp.StatusCode
		}
	}
	outcome := Unknown
	switch {
	case status >= 200 && status < 300:
		outcome = Done
	case status >= 400 && status < 500:
		outcome = Refused
	}
	for _, op := range ops {
		d.History.Finish(op, outcome, d.mark())
	}
	return status
}

// Mix is the load of one worker until ctx ends or it has done
// limit requests (0: no limit): uploads new and over each other, create-only
// uploads that all workers race for, appends to logs that all share, labels, deletes.
// Each worker has builds of its own too. It gives the number of requests that
// got no answer, or one of 500 and above.
func (d *Driver) Mix(ctx context.Context, prefix string, worker, limit int, seed uint64) (failed int) {
	rng := rand.New(rand.NewPCG(seed, uint64(worker)))
	begun := ctx
	if d.Linger {
		begun = context.WithoutCancel(ctx)
	}
	for i := 0; ctx.Err() == nil && (limit == 0 || i < limit); i++ {
		own := fmt.Sprintf("%s-%d/build-%d", prefix, worker, rng.IntN(8))
		shared := fmt.Sprintf("%s-shared/build-%d", prefix, rng.IntN(4))
		status := 0
		switch n := rng.IntN(100); {
		case n < 30:
			status = d.Do(begun, Put, own, someSize(rng))
		case n < 42:
			status = d.Do(begun, Put, shared, someSize(rng))
		case n < 54: // two workers for each number, at about the same time
			status = d.Do(begun, Create, fmt.Sprintf("%s-created/build-%d", prefix, d.creates.Add(1)/2), someSize(rng))
		case n < 66:
			status = d.Do(begun, Append, fmt.Sprintf("%s-shared/log-%d", prefix, rng.IntN(3)), 0)
		case n < 75:
			status = d.Do(begun, Append, own, 0)
		case n < 88:
			status = d.someOfLabels(begun, rng, []string{own, shared}[rng.IntN(2)])
		case n < 94:
			status = d.Do(begun, DeleteVersion, []string{own, own, shared}[rng.IntN(3)], 0)
		default:
			status = d.Do(begun, Delete, own, 0)
		}
		if status == 0 || status >= 500 {
			failed++
			select { // the service may be away: do not spin
			case <-ctx.Done():
			case <-time.After(20 * time.Millisecond):
			}
		}
	}
	return failed
}

// someSize is mostly small, at times large enough for each path of a write.
func someSize(rng *rand.Rand) int {
	switch n := rng.IntN(100); {
	case n < 70:
		return 16 + rng.IntN(16<<10)
	case n < 95:
		return rng.IntN(256 << 10)
	default:
		return 1<<20 + rng.IntN(1<<20)
	}
}

// MixAll runs Mix with all workers and waits for them.
func (d *Driver) MixAll(ctx context.Context, prefix string, workers, limit int, seed uint64) (failed int) {
	var wg sync.WaitGroup
	var mu sync.Mutex
	for w := range workers {
		wg.Go(func() {
			n := d.Mix(ctx, prefix, w, limit, seed)
			mu.Lock()
			failed += n
			mu.Unlock()
		})
	}
	wg.Wait()
	return failed
}

// JudgeFront compares what the service says with inv, taken while no client
// wrote: every build and log of every site is listed, nothing else, and every
// build downloads as the upload that it is, never with a digest of
// other bytes.
func (d *Driver) JudgeFront(ctx context.Context, inv *Inventory) ([]string, error) {
	var violations []string
	fault := func(format string, args ...any) { violations = append(violations, fmt.Sprintf(format, args...)) }
	sites := map[string]map[string]bool{} // the builds of each site
	note := func(key string) {
		site, build, _ := strings.Cut(key, "/")
		if sites[site] == nil {
			sites[site] = map[string]bool{}
		}
		sites[site][build] = true
	}
	for key := range inv.Builds {
		note(key)
	}
	for key := range inv.Logs {
		note(key)
	}
	for key := range inv.Labels {
		if site, _, _ := strings.Cut(key, "/"); sites[site] == nil {
			sites[site] = map[string]bool{}
		}
	}
	for site, builds := range sites {
		if err := d.judgeLabels(ctx, site, inv, fault); err != nil {
			return nil, err
		}
		list, err := d.versions(ctx, site)
		if err != nil {
			return nil, err
		}
		listed := map[string]bool{}
		for _, v := range list {
			key := site + "/" + v.BuildID
			if listed[v.BuildID] = true; !builds[v.BuildID] {
				fault("build %s is listed and not there", key)
			}
			if v.SizeBytes != inv.Builds[key].Size || len(v.Logs) != len(inv.Logs[key]) || v.LogsError != "" {
				fault("build %s is listed as %+v; there are %d bytes and %d entries", key, v, inv.Builds[key].Size, len(inv.Logs[key]))
			}
		}
		for build := range builds {
			if !listed[build] {
				fault("build %s/%s is there and not listed", site, build)
			}
		}
	}
	for key, b := range inv.Builds {
		site, build, _ := strings.Cut(key, "/")
		op, size, digest, err := d.fetch(ctx, site, build)
		if err != nil || op != b.Op || size != b.Size {
			fault("build %s downloads as upload %d of %d bytes (%v); it is upload %d of %d bytes", key, op, size, err, b.Op, b.Size)
		}
		if digest == wrong || d.Fresh && (digest == right) != (b.Digest == right) {
			fault("build %s, upload %d, downloads with a digest that is %s; that in the store is %s", key, op, digest, b.Digest)
		}
	}
	slices.Sort(violations)
	return violations, nil
}

type listedVersion struct {
	BuildID   string            `json:"build_id"`
	SizeBytes int64             `json:"size_bytes"`
	Logs      []json.RawMessage `json:"logs"`
	LogsError string            `json:"logs_error"`
}

func (d *Driver) versions(ctx context.Context, site string) ([]listedVersion, error) {
	resp, err := d.get(ctx, "/sites/"+site+"/versions")
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	var list struct {
		Count    int             `json:"count"`
		Versions []listedVersion `json:"versions"`
	}
	if err := json.NewDecoder(resp.Body).Decode(&list); err != nil {
		return nil, err
	}
	if list.Count != len(list.Versions) {
		return nil, fmt.Errorf("site %s: count is %d, of %d versions", site, list.Count, len(list.Versions))
	}
	return list.Versions, nil
}

// Listed gives the builds that a site lists, and the number of their log entries.
func (d *Driver) Listed(ctx context.Context, site string) (map[string]int, error) {
	list, err := d.versions(ctx, site)
	listed := map[string]int{}
	for _, v := range list {
		listed[v.BuildID] = len(v.Logs)
	}
	return listed, err
}

// Fetch downloads a build and returns the upload that it is, whole.
func (d *Driver) Fetch(ctx context.Context, site, build string) (op uint64, size int64, err error) {
	op, size, _, err = d.fetch(ctx, site, build)
	return op, size, err
}

// fetch is Fetch, and also compares the digest of the response with its bytes.
func (d *Driver) fetch(ctx context.Context, site, build string) (op uint64, size int64, digest string, err error) {
	resp, err := d.get(ctx, "/sites/"+site+"/artifacts/"+build)
	if err != nil {
		return 0, 0, "", err
	}
	defer resp.Body.Close()
	h := sha256.New()
	op, size, err = Identify(io.TeeReader(resp.Body, h))
	switch resp.Header.Get("Repr-Digest") {
	case "":
		digest = none
	case reprDigest(h.Sum(nil)):
		digest = right
	default:
		digest = wrong
	}
	return op, size, digest, err
}

// reprDigest is the value of the header for a SHA-256 (RFC 9530).
func reprDigest(sum []byte) string {
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum) + ":"
}

func (d *Driver) get(ctx context.Context, path string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, "GET", d.URL+path, nil)
	if err != nil {
		return nil, err
	}
	resp, err := d.client.Do(req)
	if err != nil {
		return nil, err
	}
	if resp.StatusCode != http.StatusOK {
		resp.Body.Close()
		return nil, fmt.Errorf("GET %s: %s", path, resp.Status)
	}
	return resp, nil
}
