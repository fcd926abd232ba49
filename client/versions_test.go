package client

import (
	"encoding/json"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"testing"
)

// paged serves a list of items in pages, as the member name of an object.
func paged(name string, items []string) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		limit, _ := strconv.Atoi(r.URL.Query().Get("limit"))
		start, _ := strconv.Atoi(r.URL.Query().Get("cursor"))
		end := min(start+limit, len(items))
		next := ""
		if end < len(items) {
			next = fmt.Sprintf(`,"next_cursor":"%d"`, end)
		}
		fmt.Fprintf(w, `{%q:[%s]%s}`, name, strings.Join(items[start:end], ","), next)
	}
}

func TestVersions(t *testing.T) {
	withFake(t, func(f *fake) {
		items := []string{
			`{"build_id":"v3","size_bytes":1234567,"created_at":"2026-01-03T03:04:05.678Z","labels":["live","next"],"logs":[{"action":"build","status":"ok","timestamp":"2026-01-03T03:04:06Z"},{"action":"deploy","status":"ok","timestamp":"2026-01-03T03:05:06.9Z"}],"more":{"a":1.0}}`,
			`{"build_id":"v2","size_bytes":0,"created_at":"2026-01-02T03:04:05Z","labels":[],"logs":[{"action":"build","status":"\u001b[31mfailed\n","timestamp":"2026-01-02T03:04:06Z"}]}`,
			`{"build_id":"v1","size_bytes":142,"created_at":"2026-01-01T03:04:05Z","labels":[],"logs":[],"logs_error":"damaged"}`,
		}
		f.hosts[serviceHost].handle = handler(paged("versions", items))
		const want = `BUILD  SIZE     UPLOADED              LABELS     LAST LOG ENTRY              AT
v3     1.2 MiB  2026-01-03T03:04:05Z  live next  deploy ok                   2026-01-03T03:05:06Z
v2     -        2026-01-02T03:04:05Z  -          build \x1b[31mfailed\n      2026-01-02T03:04:06Z
v1     142 B    2026-01-01T03:04:05Z  -          cannot be read              -
`
		if r := f.run("versions", "shop").want(t, 0); squeeze(r.stdout) != squeeze(want) {
			t.Errorf("stdout is\n%s\nwant\n%s", r.stdout, want)
		}
		r := f.run("versions", "shop", "--json", "--limit", "2").want(t, 0)
		if r.stdout != `{"count":2,"site_id":"shop","versions":[`+items[0]+","+items[1]+"]}\n" {
			t.Errorf("with --json stdout is %s", r.stdout)
		}
		f.run("versions", "shop", "--limit", "-1").want(t, exitUsage)
	})
}

// squeeze leaves one space of several.
func squeeze(s string) string {
	lines := strings.Split(s, "\n")
	for i, line := range lines {
		lines[i] = strings.Join(strings.Fields(line), " ")
	}
	return strings.Join(lines, "\n")
}

// Lists have all pages, and no more than were asked for.
func TestVersionsOfManyPages(t *testing.T) {
	withFake(t, func(f *fake) {
		items := []string{}
		for i := range 2*pageSize + 10 {
			items = append(items, fmt.Sprintf(`{"build_id":"v%d","size_bytes":1}`, i))
		}
		host := f.hosts[serviceHost]
		host.handle = handler(paged("versions", items))
		for limit, want := range map[int]struct{ builds, requests int }{
			0: {len(items), 3}, 1: {1, 1}, pageSize: {pageSize, 1}, pageSize + 1: {pageSize + 1, 2}, 5 * pageSize: {len(items), 3},
		} {
			before := len(host.requests())
			r := f.run("versions", "shop", "--json", "--limit", strconv.Itoa(limit)).want(t, 0)
			var list struct {
				Count    int
				Versions []version
			}
			if err := json.Unmarshal([]byte(r.stdout), &list); err != nil {
				t.Fatal(err)
			}
			if n := len(host.requests()) - before; n != want.requests || list.Count != want.builds || len(list.Versions) != want.builds {
				t.Errorf("limit %d: %d builds in %d requests, want %+v", limit, len(list.Versions), n, want)
			}
			for i, v := range list.Versions {
				if v.BuildID != "v"+strconv.Itoa(i) {
					t.Errorf("limit %d: build %d is %s", limit, i, v.BuildID)
					break
				}
			}
		}
		// A page that comes again and again ends the command.
		host.handle = handler(func(w http.ResponseWriter, r *http.Request) {
			fmt.Fprint(w, `{"versions":[{"build_id":"v1"}],"next_cursor":"1"}`)
		})
		f.run("versions", "shop").want(t, exitFailure)
		for _, text := range []string{"", "<html>", "null", "{}", "[]", `"x"`, `{"%s":[1]}`, `{"%s":3}`, `{"%s":null}`} {
			for name, args := range map[string][]string{"versions": {"versions", "shop"}, "sites": {"sites"}, "labels": {"label list", "shop"}} {
				host.handle = handler(func(w http.ResponseWriter, r *http.Request) {
					fmt.Fprint(w, strings.Replace(text, "%s", name, 1))
				})
				if r := f.run(args[0], args[1:]...).want(t, exitFailure); r.stdout != "" {
					t.Errorf("%s: %q", text, r.stdout)
				}
			}
		}
	})
}

func TestVersionsOfNoSite(t *testing.T) {
	withFake(t, func(f *fake) {
		f.hosts[serviceHost].handle = handler(paged("versions", nil))
		r := f.run("versions", "shop", "--json").want(t, 0)
		if r.stdout != `{"count":0,"site_id":"shop","versions":[]}`+"\n" || !strings.Contains(r.stderr, "no builds") {
			t.Errorf("stdout is %s, stderr %s", r.stdout, r.stderr)
		}
	})
}

func TestSites(t *testing.T) {
	withFake(t, func(f *fake) {
		f.hosts[serviceHost].handle = handler(paged("sites", []string{`{"site_id":"blog"}`, `{"site_id":"shop"}`}))
		if r := f.run("sites").want(t, 0); r.stdout != "blog\nshop\n" {
			t.Errorf("stdout is %q", r.stdout)
		}
		if r := f.run("sites", "--json", "--prefix", "s h&").want(t, 0); r.stdout != `{"sites":[{"site_id":"blog"},{"site_id":"shop"}]}`+"\n" {
			t.Errorf("stdout is %q", r.stdout)
		}
		got := f.hosts[serviceHost].requests()
		if want := "GET /base/sites?limit=1000&prefix=s+h%26"; got[1] != want {
			t.Errorf("the request is %s, want %s", got[1], want)
		}
		f.hosts[serviceHost].handle = handler(paged("sites", nil))
		if r := f.run("sites").want(t, 0); r.stdout != "" || !strings.HasSuffix(r.stderr, ": there are no sites\n") {
			t.Errorf("stdout is %q, stderr %q", r.stdout, r.stderr)
		}
		if r := f.run("sites", "--prefix", "zz").want(t, 0); r.stdout != "" || !strings.HasSuffix(r.stderr, " begin with zz\n") {
			t.Errorf("stdout is %q, stderr %q", r.stdout, r.stderr)
		}
		if r := f.run("sites", "x").want(t, exitUsage); !strings.Contains(r.err.Error(), `unexpected argument "x": it takes none;`) {
			t.Error(r.err)
		}
	})
}
