//go:build !no_gcs

package main

import (
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"mime"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"path"
	"strings"
	"sync"
	"testing"
	"time"
)

// gcsObjects is an HTTP server that behaves like the JSON API, as far as objects that are
// uploaded in one request go. Emulators ignore the conditions of a change of metadata, give
// the object a new generation, and return metadata from a GET, which the JSON API does not.
type gcsObjects struct {
	mu       sync.Mutex
	objects  map[string]*gcsObject
	made     int64
	requests []string
	onPatch  func() // called before the next change of metadata
	onStat   func() // called before the next stat
}

type gcsObject struct {
	data           []byte
	metadata       map[string]string
	generation     int64
	metageneration int64
}

// startGCS opens a store on the server, with digests.
func startGCS(t *testing.T) (*gcsObjects, *objectStore) {
	g := &gcsObjects{objects: map[string]*gcsObject{}}
	server := httptest.NewServer(g)
	t.Cleanup(server.Close)
	t.Setenv(gcsEmulator, server.URL)
	return g, openDigests(openGCSBucket(t))
}

// openGCSBucket opens the bucket of startGCS, as another process does.
func openGCSBucket(t *testing.T) *gcsBucket {
	b, err := newGCSBucket(t.Context(), gcsConfig{Bucket: "builds", ChunkSize: 8 << 20}, 64<<20)
	if err != nil {
		t.Fatal(err)
	}
	b.emulated = false
	return b
}

func (g *gcsObjects) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	g.mu.Lock()
	defer g.mu.Unlock()
	q := r.URL.Query()
	name := q.Get("name")
	if name == "" {
		_, name, _ = strings.Cut(r.URL.Path, "/b/builds/o/")
	}
	what := r.Method
	if q.Get("alt") == "media" {
		what += " media"
	}
	if r.Method != "DELETE" {
		g.requests = append(g.requests, what+" "+path.Base(name))
	}
	if r.Method == "PATCH" && g.onPatch != nil {
		g.onPatch()
		g.onPatch = nil
	}
	if what == "GET" && g.onStat != nil {
		g.onStat()
		g.onStat = nil
	}
	o := g.objects[name]
	var generation, metageneration int64
	if o != nil {
		generation, metageneration = o.generation, o.metageneration
	}
	for arg, now := range map[string]int64{"ifGenerationMatch": generation, "ifMetagenerationMatch": metageneration} {
		if q.Has(arg) && q.Get(arg) != fmt.Sprint(now) {
			http.Error(w, `{"error":{"code":412}}`, http.StatusPreconditionFailed)
			return
		}
	}
	switch {
	case name == "" || strings.HasSuffix(r.URL.Path, "/o") && r.Method == "GET":
		fmt.Fprint(w, `{"kind":"storage#objects"}`)
		return
	case r.Method == "POST":
		o = g.upload(r)
		g.objects[name] = o
	case o == nil:
		http.Error(w, `{"error":{"code":404}}`, 404)
		return
	case r.Method == "PATCH":
		var body struct{ Metadata map[string]string }
		_ = json.NewDecoder(r.Body).Decode(&body)
		maps.Copy(o.metadata, body.Metadata)
		o.metageneration++
	case q.Get("alt") == "media":
		w.Header().Set("X-Goog-Generation", fmt.Sprint(o.generation))
		w.Header().Set("X-Goog-Metageneration", fmt.Sprint(o.metageneration))
		w.Header().Set("Last-Modified", o.updated().Format(http.TimeFormat))
		w.Header().Set("Content-Length", fmt.Sprint(len(o.data)))
		_, _ = w.Write(o.data)
		return
	}
	_ = json.NewEncoder(w).Encode(map[string]any{
		"name": name, "bucket": "builds", "size": fmt.Sprint(len(o.data)), "metadata": o.metadata,
		"generation": fmt.Sprint(o.generation), "metageneration": fmt.Sprint(o.metageneration),
		"timeCreated": o.created(), "updated": o.updated(),
	})
}

func (o *gcsObject) created() time.Time {
	return time.Date(2026, 1, 1, 0, 0, int(o.generation), 0, time.UTC)
}

func (o *gcsObject) updated() time.Time {
	return o.created().Add(time.Hour * time.Duration(o.metageneration-1))
}

// upload reads a request with uploadType=multipart.
func (g *gcsObjects) upload(r *http.Request) *gcsObject {
	g.made++
	o := &gcsObject{metadata: map[string]string{}, generation: g.made, metageneration: 1}
	_, params, _ := mime.ParseMediaType(r.Header.Get("Content-Type"))
	parts := multipart.NewReader(r.Body, params["boundary"])
	if first, err := parts.NextPart(); err == nil {
		var attrs struct{ Metadata map[string]string }
		_ = json.NewDecoder(first).Decode(&attrs)
		maps.Copy(o.metadata, attrs.Metadata)
	}
	if second, err := parts.NextPart(); err == nil {
		o.data, _ = io.ReadAll(second)
	}
	return o
}

func (g *gcsObjects) want(t *testing.T, what string, want ...string) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if got := strings.Join(g.requests, ", "); got != strings.Join(want, ", ") {
		t.Errorf("%s: the store got %s, want %s", what, got, strings.Join(want, ", "))
	}
	g.requests = nil
}

// A digest that is not known in time comes by a change of the metadata, which changes neither
// the ETag nor the time of the build, and keeps its upload id.
func TestGCSPatchesDigests(t *testing.T) {
	const artifact, marker = "b.tar.gz", "digests.json"
	for _, c := range []struct {
		name      string
		size      int
		announced bool
		patched   bool
	}{
		{"small", 100_000, false, false},
		{"large", gcsChunkStep + 1, false, true},
		{"large, announced", gcsChunkStep + 1, true, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			g, s := startGCS(t)
			data := body(c.size, 1)
			want := digestOfBytes(data)
			announced := Digest{}
			if c.announced {
				announced = want
			}
			info, err := s.StoreArtifactIf("s", "b", announcedBody(data, announced), Precondition{})
			if err != nil || info.SHA256 != want {
				t.Fatalf("%+v, %v", info, err)
			}
			requests := []string{"GET " + artifact, "POST " + artifact, "GET " + marker, "POST " + marker}
			if c.patched {
				requests = append(requests, "GET "+artifact, "PATCH "+artifact)
			}
			g.want(t, "an upload", requests...)
			now, err := s.StatArtifact("s", "b")
			if err != nil || now != info {
				t.Errorf("it is %+v, and was stored as %+v, %v", now, info, err)
			}
			o := g.objects[artifactCall]
			if o.metadata[uploadIDKey] == "" || o.metadata[digestKey] != digestValue(want, int64(c.size)) || string(o.data) != string(data) {
				t.Errorf("the metadata is %v", o.metadata)
			}
			g.want(t, "a stat", "GET "+artifact)
			read := []string{"GET media " + artifact, "GET " + marker, "GET " + artifact}
			if c.patched {
				read = []string{"GET media " + artifact, "GET " + artifact}
			}
			for range 2 { // get has no metadata, and another time
				r, err := openDigests(openGCSBucket(t)).FetchArtifactRange("s", "b", "", 0, -1)
				if err != nil {
					t.Fatal(err)
				}
				r.Close()
				if r.Info() != info {
					t.Errorf("it is read as %+v, and was stored as %+v", r.Info(), info)
				}
				g.want(t, "a read by a new process", read...)
			}
		})
	}
}

// After a change of the metadata, a GET still has the time at which the build was stored, as a
// HEAD has, even if digests are off. It takes another request once for each change.
func TestGCSTimeOfPatchedBuild(t *testing.T) {
	const artifact = "b.tar.gz"
	for _, off := range []bool{false, true} {
		g, writer := startGCS(t)
		s := newObjectStore(openGCSBucket(t), "", quiet())
		if !off {
			s.useDigests()
			s.digests.lookFailed("no digest is looked for", ErrUnavailable)
		}
		read := func(what string, want ...string) {
			t.Helper()
			head, err := s.StatArtifact("s", "b")
			if err != nil {
				t.Fatal(err)
			}
			g.want(t, what+", HEAD", "GET "+artifact)
			r, err := s.FetchArtifactRange("s", "b", "", 0, -1)
			if err != nil {
				t.Fatal(err)
			}
			r.Close()
			if got := r.Info(); got != head || !got.ModTime.Equal(g.objects[artifactCall].created()) {
				t.Errorf("off=%t, %s: GET has %+v, HEAD has %+v", off, what, got, head)
			}
			g.want(t, what+", GET", want...)
		}
		for i := range int64(2) { // a build, and the one that replaces it
			mustHash(t, writer, "b", body(gcsChunkStep+1, 1)) // its digest comes by a patch
			g.requests = nil
			g.objects[artifactCall].metageneration += i // as often as the one before
			read("patched", "GET media "+artifact, "GET "+artifact)
			read("again", "GET media "+artifact)
			g.objects[artifactCall].metageneration++ // by a tool
			read("patched again", "GET media "+artifact, "GET "+artifact)
			read("again", "GET media "+artifact)
		}
		old := *g.objects[artifactCall]
		old.metageneration++
		g.objects[artifactCall] = &old
		g.onStat = func() {
			g.objects[artifactCall] = &gcsObject{generation: old.generation + 1, metageneration: old.metageneration, metadata: map[string]string{}}
		}
		r, err := s.FetchArtifactRange("s", "b", "", 0, -1)
		if err != nil {
			t.Fatal(err)
		}
		r.Close()
		if got := r.Info(); got.ETag != gcsETag(old.generation) || got.Size != int64(len(old.data)) {
			t.Errorf("off=%t: a build that was replaced meanwhile is %+v", off, got)
		}
	}
}

// Metadata that changes meanwhile is kept. The digest of a build that is replaced meanwhile
// does not reach the new one.
func TestGCSPatchConflicts(t *testing.T) {
	g, s := startGCS(t)
	data := body(gcsChunkStep+1, 1)
	g.onPatch = func() {
		o := g.objects[artifactCall]
		o.metadata["other"] = "kept"
		o.metageneration++
	}
	if _, err := s.StoreArtifactIf("s", "b", hashedBody(data), Precondition{}); err != nil {
		t.Fatal(err)
	}
	o := g.objects[artifactCall]
	if o.metadata["other"] != "kept" || o.metadata[digestKey] != digestValue(digestOfBytes(data), int64(len(data))) {
		t.Errorf("the metadata is %v", o.metadata)
	}
	g.onPatch = func() {
		g.made++
		g.objects[artifactCall] = &gcsObject{data: body(len(data), 2), metadata: map[string]string{}, generation: g.made, metageneration: 1}
	}
	if _, err := s.StoreArtifactIf("s", "b", hashedBody(data), Precondition{}); err != nil {
		t.Fatal(err)
	}
	if o := g.objects[artifactCall]; len(o.metadata) > 0 {
		t.Errorf("the metadata of the new build is %v", o.metadata)
	}
	info, err := s.StatArtifact("s", "b")
	if err != nil || info.SHA256.known() {
		t.Errorf("%+v, %v", info, err)
	}
	wantError(t, s.KeepDigest("s", "b", ArtifactInfo{ETag: `"1"`}, digestOfBytes(data)), ErrPrecondition)
}
