//go:build integration || torture

package nfs

import (
	"context"
	"encoding/json"
	"fmt"
	"hash/fnv"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"
	"time"

	"pagewright/storage/test/vm"
)

const sites = "/srv/disk/export/sites"

// reply is an answer of the service.
type reply struct {
	status int
	body   string
	header http.Header
}

// ask sends one request. headers are names and values in turn.
func ask(t *testing.T, method, url, body string, headers ...string) reply {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), method, url, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	for i := 0; i < len(headers); i += 2 {
		req.Header.Set(headers[i], headers[i+1])
	}
	client := http.Client{Timeout: patience}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return reply{resp.StatusCode, string(text), resp.Header}
}

func logEntry(action string) string {
	return fmt.Sprintf(`{"id":%[1]q,"build_id":"b","action":%[1]q,"status":"ok","timestamp":"2026-01-02T03:04:05Z"}`, action)
}

// leave makes files in a site, on the server, as a cut leaves them. The site has
// its lock file: nobody replaces without it.
func (n *network) leave(t *testing.T, site string, files map[string]string) {
	t.Helper()
	script := fmt.Sprintf("set -e; mkdir -p %[1]s/%[2]s/artifacts %[1]s/%[2]s/logs; cd %[1]s/%[2]s; touch .lock", sites, site)
	for name, text := range files {
		script += fmt.Sprintf("; printf %%s '%s' >%s", text, name)
	}
	run(t, n.server, "%s", script)
}

// files are the names that the server has in a site, but for the lock file.
func (n *network) left(t *testing.T, site string) []string {
	t.Helper()
	names := strings.Fields(run(t, n.server, "cd %s/%s && find . -type f | sort", sites, site))
	return slices.DeleteFunc(names, func(s string) bool { return s == "./.lock" })
}

type listing struct {
	Versions []struct {
		BuildID   string            `json:"build_id"`
		SizeBytes int64             `json:"size_bytes"`
		Logs      []json.RawMessage `json:"logs"`
	}
}

func list(t *testing.T, url string) listing {
	t.Helper()
	r := ask(t, "GET", url+"/versions", "")
	var l listing
	if err := json.Unmarshal([]byte(r.body), &l); err != nil || r.status != 200 {
		t.Fatalf("list: status %d, %v: %s", r.status, err, r.body)
	}
	return l
}

// What a cut leaves while a name is missing is the build, or the log, to
// everybody: no luck is needed to find it.
func TestReplacementWithoutItsName(t *testing.T) {
	eachProtocol(t, func(t *testing.T, p protocol) {
		began := time.Now()
		n := p.connect(t, 1, map[string]string{vm.ServicePath: service})
		c := n.clients[0]
		base := startService(t, c) + "/sites/"
		cases := 0
		expect := func(t *testing.T, r reply, status int, body string) {
			t.Helper()
			if r.status != status || body != "" && r.body != body {
				t.Errorf("got %d %q, want %d %q", r.status, r.body, status, body)
			}
		}
		only := func(t *testing.T, site string, want ...string) {
			t.Helper()
			if got := n.left(t, site); !slices.Equal(got, want) {
				t.Errorf("the server has %q, want %q", got, want)
			}
		}
		pending := map[string]string{"artifacts/.new-b.tar.gz": "the build", "logs/.new-b.json": "[\n" + logEntry("first") + "\n]\n"}
		f := func(name string, test func(t *testing.T, site, url string)) {
			cases++
			t.Run(name, func(t *testing.T) {
				site := fmt.Sprintf("case-%d", cases)
				n.leave(t, site, pending)
				test(t, site, base+site+"/artifacts/b")
			})
		}
		f("GET", func(t *testing.T, _, url string) { expect(t, ask(t, "GET", url, ""), 200, "the build") })
		f("HEAD", func(t *testing.T, _, url string) {
			r := ask(t, "HEAD", url, "")
			expect(t, r, 200, "")
			if got := r.header.Get("Content-Length"); got != "9" {
				t.Errorf("Content-Length %q", got)
			}
			if tag := ask(t, "GET", url, "").header.Get("ETag"); tag == "" || tag != r.header.Get("ETag") {
				t.Errorf("HEAD says %q, GET %q", r.header.Get("ETag"), tag)
			}
		})
		f("list", func(t *testing.T, site, _ string) {
			l := list(t, base+site)
			if len(l.Versions) != 1 || l.Versions[0].BuildID != "b" || l.Versions[0].SizeBytes != 9 || len(l.Versions[0].Logs) != 1 {
				t.Errorf("got %+v", l)
			}
			only(t, site, "./artifacts/.new-b.tar.gz", "./logs/.new-b.json") // a reader changes nothing
		})
		f("create-only PUT", func(t *testing.T, site, url string) {
			expect(t, ask(t, "PUT", url, "another", "If-None-Match", "*"), 412, "")
			expect(t, ask(t, "GET", url, ""), 200, "the build")
		})
		f("PUT", func(t *testing.T, site, url string) {
			expect(t, ask(t, "PUT", url, "another"), 201, "")
			expect(t, ask(t, "GET", url, ""), 200, "another")
			only(t, site, "./artifacts/b.tar.gz", "./logs/.new-b.json")
		})
		f("PUT with If-Match", func(t *testing.T, site, url string) {
			tag := ask(t, "GET", url, "").header.Get("ETag")
			expect(t, ask(t, "PUT", url, "another", "If-Match", `"x"`), 412, "")
			expect(t, ask(t, "PUT", url, "another", "If-Match", tag), 201, "")
			expect(t, ask(t, "PUT", url, "a third", "If-Match", tag), 412, "")
			expect(t, ask(t, "GET", url, ""), 200, "another")
			only(t, site, "./artifacts/b.tar.gz", "./logs/.new-b.json")
		})
		f("append", func(t *testing.T, site, _ string) {
			expect(t, ask(t, "POST", base+site+"/logs", `{"build_id":"b","action":"second","status":"ok"}`), 201, "")
			l := list(t, base+site)
			if len(l.Versions) != 1 || len(l.Versions[0].Logs) != 2 || !strings.Contains(string(l.Versions[0].Logs[0]), `"first"`) {
				t.Errorf("got %+v", l)
			}
			only(t, site, "./artifacts/.new-b.tar.gz", "./logs/b.json")
		})
		deleted := ""
		f("DELETE", func(t *testing.T, site, url string) {
			deleted = site
			expect(t, ask(t, "DELETE", url, ""), 204, "")
			expect(t, ask(t, "GET", url, ""), 404, "")
			only(t, site, "./logs/.new-b.json")
		})
		f("DELETE with If-Match", func(t *testing.T, site, url string) {
			expect(t, ask(t, "DELETE", url, "", "If-Match", `"x"`), 412, "")
			tag := ask(t, "GET", url, "").header.Get("ETag")
			expect(t, ask(t, "DELETE", url, "", "If-Match", tag), 204, "")
			expect(t, ask(t, "GET", url, ""), 404, "")
			only(t, site, "./logs/.new-b.json")
		})
		f("under the former name", func(t *testing.T, site, url string) {
			run(t, n.server, "cd %s/%s; mv artifacts/.new-b.tar.gz artifacts/.old-b.tar.gz; mv logs/.new-b.json logs/.old-b.json", sites, site)
			expect(t, ask(t, "GET", url, ""), 200, "the build")
			if l := list(t, base+site); len(l.Versions) != 1 || l.Versions[0].SizeBytes != 9 || len(l.Versions[0].Logs) != 1 {
				t.Errorf("got %+v", l)
			}
			expect(t, ask(t, "PUT", url, "another", "If-None-Match", "*"), 412, "")
			expect(t, ask(t, "PUT", url, "another"), 201, "")
			expect(t, ask(t, "GET", url, ""), 200, "another")
			expect(t, ask(t, "POST", base+site+"/logs", `{"build_id":"b","action":"second","status":"ok"}`), 201, "")
			if l := list(t, base+site); len(l.Versions) != 1 || len(l.Versions[0].Logs) != 2 {
				t.Errorf("got %+v", l)
			}
			only(t, site, "./artifacts/b.tar.gz", "./logs/b.json")
		})
		f("beside its name", func(t *testing.T, site, url string) {
			n.leave(t, site, map[string]string{"artifacts/b.tar.gz": "the old one", "logs/b.json": "[\n" + logEntry("1") + ",\n" + logEntry("2") + "\n]\n"})
			expect(t, ask(t, "GET", url, ""), 200, "the old one")
			l := list(t, base+site)
			if len(l.Versions) != 1 || l.Versions[0].SizeBytes != 11 || len(l.Versions[0].Logs) != 2 {
				t.Errorf("got %+v", l)
			}
			expect(t, ask(t, "DELETE", url, ""), 204, "")
			expect(t, ask(t, "GET", url, ""), 404, "")
			only(t, site, "./logs/.new-b.json", "./logs/b.json")
		})
		f("a site that never was", func(t *testing.T, _, _ string) {
			expect(t, ask(t, "GET", base+"ghost/artifacts/b", ""), 404, "")
			expect(t, ask(t, "HEAD", base+"ghost/artifacts/b", ""), 404, "")
			if l := list(t, base+"ghost"); len(l.Versions) != 0 {
				t.Errorf("got %+v", l)
			}
			run(t, n.server, "[ ! -e %s/ghost ]", sites)
		})
		f("a build that never was, where nobody has locked", func(t *testing.T, site, _ string) {
			run(t, n.server, "rm %s/%s/.lock", sites, site)
			expect(t, ask(t, "GET", base+site+"/artifacts/ghost", ""), 404, "")
			expect(t, ask(t, "HEAD", base+site+"/artifacts/ghost", ""), 404, "")
			run(t, n.server, "[ ! -e %s/%s/.lock ]", sites, site)
		})
		f("its lock is held", func(t *testing.T, site, url string) {
			run(t, n.server, "rm %s/%s/artifacts/.new-b.tar.gz", sites, site)
			free := n.hold(t, site, "artifacts", "b")
			expect(t, ask(t, "GET", url, ""), 503, "")
			expect(t, ask(t, "GET", base+site+"/artifacts/other", ""), 404, "") // has a lock of its own
			free()
			expect(t, ask(t, "GET", url, ""), 404, "")
		})

		// The client remembers that there was no build, and waits for the lock of
		// the host that makes it.
		f("DELETE behind another host's create", func(t *testing.T, site, url string) {
			run(t, n.server, "rm %s/%s/artifacts/.new-b.tar.gz", sites, site)
			expect(t, ask(t, "GET", url, ""), 404, "")
			free := n.hold(t, site, "artifacts", "b")
			deleted := make(chan reply)
			go func() { deleted <- ask(t, "DELETE", url, "") }()
			metrics := strings.TrimSuffix(base, "/sites/") + "/metrics"
			waitFor(t, func() bool {
				return strings.Contains(ask(t, "GET", metrics, "").body, "pagewright_store_calls_in_flight 1\n")
			}, func() string { return "the DELETE does not wait for the lock" })
			n.leave(t, site, map[string]string{"artifacts/b.tar.gz": "made meanwhile"})
			free()
			expect(t, <-deleted, 204, "")
			only(t, site, "./logs/.new-b.json")
		})

		// The sweep of a service that starts.
		if err := c.Kill(t.Context(), port); err != nil {
			t.Fatal(err)
		}
		age, name := "touch -d @$(($(date +%s)-3600))", "0123456789abcdef0"
		old, young := name+"0000aaa", name+"0000bbb"
		n.leave(t, "swept", map[string]string{
			"artifacts/.new-b.tar.gz": "the build", "logs/.new-b.json": "[\n" + logEntry("first") + "\n]\n",
			"artifacts/old.tar.gz": "kept", "artifacts/.new-old.tar.gz": "left",
			"artifacts/.tmp-notes": "of a stranger", "artifacts/.nfs123": "of a stranger", "artifacts/.tmp-AAAAAAAAAAAAAAAAAAAAAAAAAA": "left",
			"artifacts/.nfs" + old: "left", "logs/.nfs" + old: "left",
		})
		run(t, n.server, "%s", fmt.Sprintf("set -e; cd %s/swept; %s artifacts/.new-old.tar.gz artifacts/.tmp-*", sites, age))
		// A change time can only be made old by the clock.
		run(t, n.server, "date -s @$(($(date +%%s)+3600)) >/dev/null")
		n.leave(t, "swept", map[string]string{
			"artifacts/young.tar.gz": "kept", "artifacts/.new-young.tar.gz": "under way",
			"artifacts/.nfs" + young: "of a download", "artifacts/.tmp-BBBBBBBBBBBBBBBBBBBBBBBBBB": "under way",
		})
		run(t, n.server, "%s", "touch -d @1 "+sites+"/swept/artifacts/.nfs"+young) // the time of the build, not of the removal
		base = startService(t, c, "TEMP_MAX_AGE=10m") + "/sites/"
		want := []string{
			"./artifacts/.new-young.tar.gz", "./artifacts/.nfs" + young, "./artifacts/.nfs123",
			"./artifacts/.tmp-BBBBBBBBBBBBBBBBBBBBBBBBBB", "./artifacts/.tmp-notes",
			"./artifacts/b.tar.gz", "./artifacts/old.tar.gz", "./artifacts/young.tar.gz", "./logs/b.json",
		}
		slices.Sort(want)
		var got []string
		t.Run("sweep", func(t *testing.T) {
			cases++
			waitFor(t, func() bool {
				got = n.left(t, "swept")
				slices.Sort(got)
				return slices.Equal(got, want)
			}, func() string { return fmt.Sprintf("the sweep leaves %q, want %q", got, want) })
			expect(t, ask(t, "GET", base+"swept/artifacts/b", ""), 200, "the build")
			expect(t, ask(t, "GET", base+deleted+"/artifacts/b", ""), 404, "") // it does not come back
		})
		failed := 0
		if t.Failed() {
			failed = 1
		}
		table.Add("what a cut leaves, put there by hand", p.name, fmt.Sprintf("%d cases", cases), failed, time.Since(began).Round(time.Second))
	})
}

// waitFor polls until so, and fails with why after a time that is long enough.
func waitFor(t *testing.T, so func() bool, why func() string) {
	t.Helper()
	for end := time.Now().Add(time.Minute); !so(); time.Sleep(100 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal(why())
		}
	}
}

// hold locks a file of a build on the server, as another service does that
// replaces it, until the function that it returns is called.
func (n *network) hold(t *testing.T, site, dir, build string) (free func()) {
	t.Helper()
	// The byte that lockRegion of the product gives.
	h := fnv.New64a()
	io.WriteString(h, dir+"/"+build)
	ctx, cancel := context.WithCancel(t.Context())
	r, w := io.Pipe()
	go func() {
		w.CloseWithError(n.server.Stream(ctx, fmt.Sprintf("guest hold %s/%s/.lock %d", sites, site, int64(h.Sum64()>>2)), w))
	}()
	line := make([]byte, len("locked\n"))
	if _, err := io.ReadFull(r, line); err != nil {
		t.Fatalf("cannot hold the lock: %s%v", line, err)
	}
	return func() {
		defer cancel()
		run(t, n.server, "touch /tmp/stop")
		io.Copy(io.Discard, r)
	}
}
