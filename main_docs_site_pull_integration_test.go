//go:build integration

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestIntegrationSitePull: site-pull switches to the build that the label names, leaves what is
// live as it is after any failure, and says why. It needs curl, openssl, tar and flock.
func TestIntegrationSitePull(t *testing.T) {
	dir := t.TempDir()
	token, entry := newTestToken(t, "--name", "web", "--allow", "read,write,label", "--sites", "shop")
	writeFile(t, dir+"/access.json", `{"tokens":[`+entry+`]}`)
	writeFile(t, dir+"/header", "Authorization: Bearer "+token+"\n")
	s := startServer(t, "ACCESS_FILE="+dir+"/access.json")
	credential := header("Authorization", "Bearer "+token)
	upload := func(build, body string, digest bool) {
		h := header("Authorization", "Bearer "+token)
		if digest {
			h.Set("Repr-Digest", sha256Field([]byte(body)))
		}
		s.do(t, 201, request{"PUT", "/sites/shop/artifacts/" + build, body, h})
	}
	for _, build := range []string{"v1", "v2", "v3", "v4", "damaged", "unknown"} {
		writeFile(t, dir+"/public/index.html", build)
		if err := os.Chmod(dir+"/public", 0o700); err != nil { // the archive has this mode too
			t.Fatal(err)
		}
		archive := mustMake(exec.Command("tar", "-C", dir+"/public", "-cz", ".").Output())
		upload(build, string(archive), build != "unknown")
	}
	upload("text", "not an archive", true)
	file := s.dir + "/sites/shop/artifacts/damaged.tar.gz"
	info := mustMake(os.Stat(file))
	bytes := mustMake(os.ReadFile(file))
	bytes[len(bytes)/2] ^= 1
	writeFile(t, file, string(bytes))
	if err := os.Chtimes(file, time.Time{}, info.ModTime()); err != nil {
		t.Fatal(err)
	}
	pull := func(addr string) (output, live string) {
		cmd := exec.Command("deploy/web-server/site-pull", "http://"+addr+"/sites/shop/labels/live/artifact", dir+"/www")
		cmd.Env = append(os.Environ(), "STORE_HEADER="+dir+"/header")
		out, err := cmd.CombinedOutput()
		if (err != nil) != (len(out) > 0 && !strings.Contains(string(out), " is live")) {
			t.Errorf("%v, but the output is %q", err, out)
		}
		page, err := os.ReadFile(dir + "/www/current/index.html")
		if err != nil {
			t.Fatal(err)
		}
		return string(out), string(page)
	}
	releases := func() []string { return mustMake(filepath.Glob(dir + "/www/releases/*")) }
	for _, c := range []struct {
		label string // the build that it is moved to; "": it is deleted
		says  string // "": nothing
		live  string
	}{
		{"v1", "v1 is live", "v1"},
		{"v1", "", "v1"},
		{"v2", "v2 is live", "v2"},
		{"damaged", "the digest of the build is wrong", "v2"},
		{"unknown", "or not known", "v2"},
		{"text", "not in gzip format", "v2"},
		{"", "404", "v2"},
		{"v2", "", "v2"},
		{"v1", "v1 is live", "v1"},
		{"v3", "v3 is live", "v3"},
		{"v4", "v4 is live", "v4"},
	} {
		const path = "/sites/shop/labels/live"
		if c.label == "" {
			s.do(t, 204, request{method: "DELETE", path: path, header: credential})
		} else {
			if r := mustMake(s.try(request{"PUT", path, `{"build_id":"` + c.label + `"}`, credential})); r.status/100 != 2 {
				t.Fatalf("label to %s: %d %s", c.label, r.status, r.body)
			}
		}
		before := releases()
		output, live := pull(s.addr)
		if after := releases(); !strings.Contains(c.says, "is live") && !slices.Equal(after, before) {
			t.Errorf("label at %q: the releases were %q, now %q", c.label, before, after)
		}
		if !strings.Contains(output, c.says) || c.says == "" && output != "" || live != c.live {
			t.Errorf("label at %q: %s is live, want %s; output %q, want %q", c.label, live, c.live, output, c.says)
		}
	}
	if output, live := pull("127.0.0.1:1"); !strings.Contains(output, "Failed to connect") || live != "v4" {
		t.Errorf("without the service: %s is live; output %q", live, output)
	}
	if kept := releases(); len(kept) != 3 {
		t.Errorf("the releases are %q, want 3", kept)
	}
	if mode := mustMake(os.Stat(dir + "/www/current/")).Mode().Perm(); mode != 0o755 {
		t.Errorf("the mode of the release is %o", mode)
	}
}
