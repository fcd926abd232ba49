package main

import (
	"bytes"
	"crypto/sha256"
	"crypto/sha512"
	"encoding/base64"
	"fmt"
	"io"
	"net/http"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/valyala/fasthttp"
)

func sha256Field(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha-256=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

func sha512Field(data []byte) string {
	sum := sha512.Sum512(data)
	return "sha-512=:" + base64.StdEncoding.EncodeToString(sum[:]) + ":"
}

// A field is a dictionary of RFC 9651, in which sha-256 and sha-512 have the right size.
func TestParseDigests(t *testing.T) {
	data, other := []byte("x"), []byte("y")
	x256, x512 := sha256Field(data), sha512Field(data)
	s256, s512, o256 := sha256.Sum256(data), sha512.Sum512(data), sha256.Sum256(other)
	for _, c := range []struct {
		name  string
		lines []string
		want  announcedDigests
		err   string // part of the error
	}{
		{"sha-256", []string{x256}, announcedDigests{SHA256: &s256}, ""},
		{"sha-512", []string{x512}, announcedDigests{SHA512: &s512}, ""},
		{"both in one line", []string{x256 + "," + x512}, announcedDigests{&s256, &s512}, ""},
		{"both in two lines", []string{x512, x256}, announcedDigests{&s256, &s512}, ""},
		{"with parameters", []string{x256 + `;a;b="c, d";e=:AA==:`}, announcedDigests{SHA256: &s256}, ""},
		{"with white space", []string{"  " + x256 + " \t, \t" + x512 + "  "}, announcedDigests{&s256, &s512}, ""},
		{"an unknown algorithm", []string{"md5=:AA==:, crc32c=1, x=(a b), y, z=?0, " + x256}, announcedDigests{SHA256: &s256}, ""},
		{"only an unknown algorithm", []string{"md5=:AA==:"}, announcedDigests{}, ""},
		{"twice, of which the last counts", []string{x256, sha256Field(other)}, announcedDigests{SHA256: &o256}, ""},
		{"twice, of which the first is bad", []string{"sha-256=1, " + x256}, announcedDigests{SHA256: &s256}, ""},
		{"100,000 members", []string{manyMembers() + x256}, announcedDigests{SHA256: &s256}, ""},

		{"a token", []string{"sha-256=abc"}, announcedDigests{}, "sha-256 is not a byte sequence; the form is sha-256=:BASE64:"},
		{"a string", []string{`sha-512="abc"`}, announcedDigests{}, "sha-512 is not a byte sequence; the form is sha-512=:BASE64:"},
		{"no value", []string{"sha-256"}, announcedDigests{}, "sha-256 is not a byte sequence"},
		{"an inner list", []string{"sha-256=(:AA==:)"}, announcedDigests{}, "sha-256 is not a byte sequence"},
		{"empty", []string{"sha-256=::"}, announcedDigests{}, "sha-256 is the base64 of 0 bytes, not of 32"},
		{"too short", []string{"sha-512=:" + strings.Trim(x256, "sha-256=:") + "=:"}, announcedDigests{}, "sha-512 is the base64 of 32 bytes, not of 64"},
		{"too long", []string{"sha-256=:" + base64.StdEncoding.EncodeToString(s512[:]) + ":"}, announcedDigests{}, "sha-256 is the base64 of 64 bytes, not of 32"},
		{"hexadecimal", []string{"sha-256=:" + Digest(s256).String() + ":"}, announcedDigests{}, "sha-256 is the base64 of 48 bytes, not of 32; if it is hexadecimal, encode"},
		{"the base64 of hexadecimal", []string{"sha-256=:" + base64.StdEncoding.EncodeToString([]byte(Digest(s256).String()+"\n")) + ":"}, announcedDigests{}, "of 65 bytes, not of 32; if it is hexadecimal, encode"},
		{"a misspelt algorithm", []string{strings.Replace(x256, "sha-256", "sha256", 1)}, announcedDigests{}, "there is no algorithm sha256: write sha-256"},
		{"another one", []string{"md5=:AA==:, sha512=?1"}, announcedDigests{}, "there is no algorithm sha512: write sha-512"},
		{"not base64", []string{"sha-256=:a-b_:"}, announcedDigests{}, "sha-256: invalid binary format: character 10; the form is sha-256=:BASE64: (RFC 9530)"},
		{"as in RFC 3230", []string{"sha-256=X48E9qOokqqrvdts8nOJRJN3OWDUoyWxBf7kbu9DBPE="}, announcedDigests{}, "sha-256: invalid"},
		{"upper case", []string{strings.ToUpper(x256)}, announcedDigests{}, "SHA-256: invalid"},
		{"no end", []string{strings.TrimSuffix(x256, ":")}, announcedDigests{}, "sha-256: invalid"},
		{"a bad member after it", []string{x256 + ", MD5=1"}, announcedDigests{}, "invalid"},
		{"a comma at the end", []string{x256 + ","}, announcedDigests{}, "invalid"},
		{"no comma", []string{x256 + " " + x512}, announcedDigests{}, "invalid"},
		{"not ASCII", []string{x256 + ", é=1"}, announcedDigests{}, "invalid"},
	} {
		got, err := parseDigests(c.lines)
		if c.err != "" {
			if err == nil || !strings.Contains(err.Error(), c.err) {
				t.Errorf("%s: the error is %v, want %q", c.name, err, c.err)
			}
			continue
		}
		if err != nil || !sameDigests(got, c.want) {
			t.Errorf("%s: parsed to %v, %v", c.name, got, err)
		}
	}
}

func manyMembers() string {
	var b strings.Builder
	for i := range 100_000 {
		fmt.Fprintf(&b, "a%d=:AA==:,", i)
	}
	return b.String()
}

func sameDigests(a, b announcedDigests) bool {
	same := (a.SHA256 == nil) == (b.SHA256 == nil) && (a.SHA512 == nil) == (b.SHA512 == nil)
	return same && (a.SHA256 == nil || *a.SHA256 == *b.SHA256) && (a.SHA512 == nil || *a.SHA512 == *b.SHA512)
}

// FuzzDigestHeader: a field that is accepted has digests of the right size, and they parse to
// the same when they are written again.
func FuzzDigestHeader(f *testing.F) {
	x := []byte("x")
	for _, s := range []string{"", " ", sha256Field(x), sha512Field(x), sha256Field(x) + ", " + sha512Field(x), sha256Field(x) + ",",
		sha256Field(x) + ";a=1", "sha-256", "sha-256=::", "sha-256=:AA==:", "sha-256=X48E=", "SHA-256=:AA==:", "md5=:AA==:", "a=(1 2);b, c=?0",
		`a="\"", b=1.5, c=@12, d=%"f%c3%bc"`, "sha-256=:\x00:", ",,", "é"} {
		f.Add(s, "")
	}
	f.Add(sha256Field(x), sha256Field([]byte("y")))
	f.Fuzz(func(t *testing.T, one, two string) {
		got, err := parseDigests([]string{one, two})
		if err != nil {
			return
		}
		var again []string
		if got.SHA256 != nil {
			again = append(again, string(appendDigest(nil, *got.SHA256)))
		}
		if got.SHA512 != nil {
			again = append(again, "sha-512=:"+base64.StdEncoding.EncodeToString(got.SHA512[:])+":")
		}
		if back, err := parseDigests(again); err != nil || !sameDigests(got, back) {
			t.Errorf("%q, %q: %v becomes %v, %v", one, two, got, back, err)
		}
	})
}

// onBothStores runs test with a service over a directory, and one over a bucket.
func onBothStores(t *testing.T, test func(*testing.T, *testServer), vars ...string) {
	t.Run("directory", func(t *testing.T) { test(t, startServer(t, vars...)) })
	t.Run("bucket", func(t *testing.T) {
		store := openMem(newMemBucket())
		store.useDigests()
		s, _ := startBackend(t, store, vars...)
		test(t, s)
	})
}

// TestDigestHeaders: what the header of a request says about digests is judged before its
// body is read, and the body at its end.
func TestDigestHeaders(t *testing.T) { onBothStores(t, digestHeaders) }

func digestHeaders(t *testing.T, s *testServer) {
	body := []byte(`{"build_id":"b","action":"a","status":"s"}`)
	right256, right512 := sha256Field(body), sha512Field(body)
	wrong256, wrong512 := sha256Field([]byte("x")), sha512Field([]byte("x"))
	const early, late = true, false
	for _, c := range []struct {
		header string
		status int
		when   bool   // of a refusal: before the body
		text   string // of it
	}{
		{"Repr-Digest: " + right256, 201, late, ""},
		{"Content-Digest: " + right256, 201, late, ""},
		{"repr-digest: \t" + right512 + " ", 201, late, ""},
		{"Repr-Digest: " + right256 + "\r\nContent-Digest: " + right512, 201, late, ""},
		{"Repr-Digest: " + right256 + "\r\nContent-Digest: " + right256, 201, late, ""},
		{"Repr-Digest: " + right512 + "\r\nREPR-DIGEST: " + right256, 201, late, ""},
		{"Repr-Digest:", 201, late, ""},
		{"Repr-Digest:\r\nRepr-Digest: " + right256 + "\r\nContent-Digest: ", 201, late, ""},
		{"Repr-Digest: md5=:AA==:, unixsum=1", 201, late, ""},
		{"Trailer: X-Digest", 201, late, ""},

		{"Repr-Digest: " + wrong256, 400, late, `"algorithm":"sha-256"`},
		{"Content-Digest: " + wrong256, 400, late, `"algorithm":"sha-256"`},
		{"Repr-Digest: " + wrong512, 400, late, `"algorithm":"sha-512"`},
		{"Content-Digest: " + right256 + ", " + wrong512, 400, late, `"algorithm":"sha-512"`},
		{"Repr-Digest: " + right256 + "\r\nContent-Digest: " + wrong512, 400, late, `"algorithm":"sha-512"`},
		{"Repr-Digest: " + right512 + "\r\nContent-Digest: " + wrong256, 400, late, `"algorithm":"sha-256"`},

		{"Repr-Digest: " + right256 + "\r\nContent-Digest: " + wrong256, 400, early, "Repr-Digest and Content-Digest have different values for sha-256"},
		{"Content-Digest: " + wrong512 + "\r\nRepr-Digest: " + right512, 400, early, "different values for sha-512"},
		{"Repr-Digest: sha-256=:AA==:", 400, early, "Repr-Digest: sha-256 is the base64 of 1 bytes, not of 32"},
		{"Content-Digest: sha-512=1", 400, early, "Content-Digest: sha-512 is not a byte sequence"},
		{"Content-Digest: " + right256 + ";", 400, early, "Content-Digest: sha-256: invalid"},
		{"Repr-Digest: " + right256 + "\r\nContent-Digest: =", 400, early, "Content-Digest: invalid"},
		{"Trailer: Repr-Digest", 400, early, "Repr-Digest in a trailer is not checked: send it as a header"},
		{"Trailer: x, content-digest\r\nRepr-Digest: " + right256, 400, early, "Content-Digest in a trailer"},
		{"Digest: sha-256=AA==", 400, early, "Digest is not supported: send Repr-Digest (RFC 9530)"},
		{"Content-MD5: AA==\r\nRepr-Digest: " + right256, 400, early, "Content-MD5 is not supported: send Repr-Digest (RFC 9530)"},
	} {
		sum := sha256.Sum256(body)
		for i, request := range []string{"PUT /sites/a/artifacts/" + newSite(), "POST /sites/" + newSite() + "/logs"} {
			head := fmt.Sprintf("%s HTTP/1.1\r\nHost: h\r\n%s\r\nContent-Length: %d\r\n", request, c.header, len(body))
			r := answerTo(t, s.addr, head+"\r\n"+string(body))
			if r.status != c.status || !strings.Contains(string(r.body), c.text) {
				t.Errorf("%s, %s: %d %s; want %d %q", request, c.header, r.status, r.body, c.status, c.text)
			}
			if r.status == 201 && i == 0 {
				want := ""
				if strings.Contains(c.header, "sha-") {
					want = Digest(sum).String()
				}
				var json success
				r.into(t, &json)
				if got := r.header.Get("Repr-Digest"); json.SHA256 != want || (got != "") != (want != "") || got != "" && got != right256 {
					t.Errorf("%s: the response has sha256 %q and Repr-Digest %q; want %q", c.header, json.SHA256, got, want)
				}
			}
			if c.status == 201 {
				continue
			}
			if c.when == early { // it does not wait for the body
				r = answerTo(t, s.addr, strings.Replace(head, "Content-Length", "Expect: 100-continue\r\nContent-Length", 1)+"\r\n")
				if r.status != c.status || !strings.Contains(string(r.body), c.text) {
					t.Errorf("%s, %s, expecting: %d %s; want %d %q", request, c.header, r.status, r.body, c.status, c.text)
				}
				continue
			}
			var json failure
			r.into(t, &json)
			sum512 := sha512.Sum512(body)
			if want := map[string]string{"sha-256": Digest(sum).String(), "sha-512": fmt.Sprintf("%x", sum512)}[json.Algorithm]; json.Got != want || len(json.Expected) != len(want) {
				t.Errorf("%s, %s: %s", request, c.header, r.body)
			}
		}
	}
}

// A digest in a trailer is not checked, so that the request is refused, also if its header does
// not announce the trailer. Nothing is stored, and the connection is used again:
// the body was read.
func TestDigestInATrailer(t *testing.T) { onBothStores(t, digestInATrailer) }

func digestInATrailer(t *testing.T, s *testServer) {
	body := `{"build_id":"b","action":"a","status":"s"}`
	for _, size := range []int{len(body), 200, 3 << 20} { // the larger ones are spliced
		body := body + strings.Repeat(" ", size-len(body))
		for _, c := range []struct {
			header, trailer string
			status          int
		}{
			{"", "", 201},
			{"", "X-Digest: a\r\n", 201},
			{"", "Repr-Digest: " + sha256Field([]byte(body)) + "\r\n", 400},
			{"", "X: a\r\ncontent-digest: \r\n", 400},
			{"Trailer: X\r\nRepr-Digest: " + sha256Field([]byte(body)) + "\r\n", "CONTENT-DIGEST: md5=:AA==:\r\n", 400},
			{"Trailer: Repr-Digest\r\n", "", 400},
		} {
			site := newSite()
			for path, request := range map[string]string{"artifacts/b": "PUT", "logs": "POST"} {
				if request == "POST" && size > maxEntrySize {
					continue
				}
				raw := fmt.Sprintf("%s /sites/%s/%s HTTP/1.1\r\nHost: h\r\n%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n0\r\n%s\r\n",
					request, site, path, c.header, len(body), body, c.trailer)
				r := answerTo(t, s.addr, raw)
				if r.status != c.status || r.status == 400 && !strings.Contains(string(r.body), "-Digest in a trailer is not checked: send it as a header") {
					t.Errorf("%s of %d bytes, header %q, trailer %q: %d %s, want %d", request, size, c.header, c.trailer, r.status, r.body, c.status)
				}
				if c.trailer != "" && size < maxDrained {
					want := fmt.Sprintf("%d 200", c.status)
					if got := exchangeRaw(t, s.addr, raw+"GET /health HTTP/1.1\r\nHost: h\r\n\r\n"); got != want {
						t.Errorf("%s of %d bytes, header %q, trailer %q: %s, want %s", request, size, c.header, c.trailer, got, want)
					}
				}
			}
			if c.status == 400 {
				s.get(t, 404, "/sites/"+site+"/artifacts/b")
			}
		}
	}
}

// TestDamagedBodies: a body of which one byte differs is refused, wherever the byte is and
// however the body is sent. The build that was there stays, and nothing else.
func TestDamagedBodies(t *testing.T) { onBothStores(t, damagedBodies) }

func damagedBodies(t *testing.T, s *testServer) {
	const path = "/sites/a/artifacts/b"
	for _, size := range []int{1, 15 << 10, 2<<20 + 1} {
		data := randomBytes(size)
		old := s.put(t, 201, path, "old").header.Get("ETag")
		for _, at := range []int{0, size / 2, size - 1} {
			bad := bytes.Clone(data)
			bad[at] ^= 1
			for _, field := range []string{sha256Field(data), sha512Field(data)} {
				for _, h := range []http.Header{header("Repr-Digest", field), header("Content-Digest", field), header("Repr-Digest", field, "Expect", "100-continue")} {
					for _, body := range []any{bad, unsized(bad)} {
						if got := statusOr(s.try(request{"PUT", path, body, h})); got != 400 {
							t.Errorf("%d bytes, byte %d, %v: status %v, want 400", size, at, h, got)
						}
					}
				}
			}
		}
		if r := s.get(t, 200, path); string(r.body) != "old" || r.header.Get("ETag") != old {
			t.Errorf("the build is %d bytes with the ETag %s, want the old one", len(r.body), r.header.Get("ETag"))
		}
		if s.dir != "" {
			for _, name := range filesBelow(t, filepath.Join(s.dir, "sites")) {
				if strings.Contains(name, ".tmp") {
					t.Errorf("a file is left: %s", name)
				}
			}
		}
		for _, body := range []any{data, unsized(data)} {
			s.put(t, 201, path, body, "Repr-Digest", sha256Field(data), "Content-Digest", sha512Field(data))
			if r := s.get(t, 200, path); !bytes.Equal(r.body, data) {
				t.Error("the build is not what was sent")
			}
		}
	}
}

// TestDigestModes: PAGEWRIGHT_DIGEST and PAGEWRIGHT_REQUIRE_DIGEST.
func TestDigestModes(t *testing.T) {
	x, wrong := []byte("x"), sha256Field([]byte("y"))
	sum := sha256.Sum256(x)
	for _, c := range []struct {
		vars, header, value string
		status              int
		hashed              bool
		wanted              string // Want-Repr-Digest
	}{
		{"DIGEST=client", "", "", 201, false, ""},
		{"DIGEST=client", "Repr-Digest", sha256Field(x), 201, true, ""},
		{"DIGEST=client", "Repr-Digest", sha512Field(x), 201, true, ""},
		{"DIGEST=client", "Repr-Digest", wrong, 400, false, ""},
		{"DIGEST=client", "Repr-Digest", "=", 400, false, ""},
		{"DIGEST=always", "", "", 201, true, ""},
		{"DIGEST=always", "Repr-Digest", wrong, 400, false, ""},
		{"DIGEST=off", "", "", 201, false, ""},
		{"DIGEST=off", "Repr-Digest", sha256Field(x), 201, false, ""},
		{"DIGEST=off", "Repr-Digest", wrong, 201, false, ""},
		{"DIGEST=off", "Repr-Digest", "=", 201, false, ""},
		{"DIGEST=off", "Trailer", "Repr-Digest", 201, false, ""},
		{"REQUIRE_DIGEST=true", "", "", 400, false, "sha-256=10"},
		{"REQUIRE_DIGEST=true", "Repr-Digest", "", 400, false, "sha-256=10"},
		{"REQUIRE_DIGEST=true", "Repr-Digest", "md5=:AA==:", 400, false, "sha-256=10"},
		{"REQUIRE_DIGEST=true", "Repr-Digest", "=", 400, false, ""},
		{"REQUIRE_DIGEST=true", "Content-Digest", sha512Field(x), 201, true, ""},
		{"REQUIRE_DIGEST=true", "Repr-Digest", sha256Field(x), 201, true, ""},
	} {
		s := startServer(t, c.vars)
		h := http.Header{}
		if c.header != "" {
			h.Set(c.header, c.value)
		}
		r := s.do(t, c.status, request{"PUT", "/sites/a/artifacts/b", x, h})
		var json success
		r.into(t, &json)
		if got := r.header.Get("Repr-Digest"); (got == sha256Field(x)) != c.hashed || (json.SHA256 == Digest(sum).String()) != c.hashed {
			t.Errorf("%s, %s: %s: Repr-Digest %q, sha256 %q", c.vars, c.header, c.value, got, json.SHA256)
		}
		if got := r.header.Get("Want-Repr-Digest"); got != c.wanted {
			t.Errorf("%s, %s: %s: Want-Repr-Digest %q, want %q", c.vars, c.header, c.value, got, c.wanted)
		}
		s.post(t, 201, "/sites/a/logs", `{"build_id":"b","action":"a","status":"s"}`) // none is required
		if err := s.stop(); err != nil {
			t.Error(err)
		}
	}
}

// TestOrderOfChecks: what is cheap, and what concerns rights, is judged first; a digest only
// when the body could be stored.
func TestOrderOfChecks(t *testing.T) {
	token := newToken()
	s := startServer(t, "MAX_ARTIFACT_SIZE=10", "ACCESS_FILE="+writeAccess(t, testRule{name: "a", token: token, allow: "write", sites: "a"}))
	for _, c := range []struct {
		site, build string
		header      []string
		body        string
		status      int
	}{
		{"b", "..", []string{"If-Match", "x", "Repr-Digest", "="}, strings.Repeat("x", 11), 403},
		{"a", "..", []string{"If-Match", "x", "Repr-Digest", "="}, strings.Repeat("x", 11), 400},
		{"a", "b", []string{"If-Match", "x", "Repr-Digest", "="}, strings.Repeat("x", 11), 400},
		{"a", "b", []string{"If-Match", `"x"`, "Repr-Digest", "="}, strings.Repeat("x", 11), 400},
		{"a", "b", []string{"If-Match", `"x"`, "Repr-Digest", sha256Field(nil)}, strings.Repeat("x", 11), 413},
		{"a", "b", []string{"If-Match", `"x"`, "Repr-Digest", sha256Field(nil)}, "x", 412},
		{"a", "b", []string{"Repr-Digest", sha256Field(nil)}, "x", 400},
	} {
		c.header = append(c.header, "Authorization", "Bearer "+token)
		path := "/sites/" + c.site + "/artifacts/" + strings.Replace(c.build, "..", "%2e%2e", 1)
		r := s.put(t, c.status, path, c.body, c.header...)
		if late := strings.Contains(string(r.body), "algorithm"); late != (len(c.header) == 4 && c.status == 400 && c.build == "b") {
			t.Errorf("%v: %s", c, r.body)
		}
	}
	if files := filesBelow(t, filepath.Join(s.dir, "sites")); len(files) != 0 {
		t.Errorf("files are left: %v", files)
	}
}

// memDigests is the part of a store that keeps digests, in memory, by ETag.
type memDigests struct {
	mu   sync.Mutex
	sums map[string]Digest
	kept int // calls of KeepDigest
	fail error

	begins chan struct{} // gets a value when a store begins to read a body; nil: it does not
}

func (k *memDigests) fill(info ArtifactInfo) ArtifactInfo {
	k.mu.Lock()
	defer k.mu.Unlock()
	info.SHA256 = k.sums[info.ETag]
	return info
}

func (k *memDigests) keep(info ArtifactInfo, sum Digest) error {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.kept++
	if k.fail == nil {
		k.sums[info.ETag] = sum
	}
	return k.fail
}

func (k *memDigests) calls() int {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.kept
}

// notice returns r, as a reader whose first Read sends to begins.
func (k *memDigests) notice(r io.Reader) io.Reader {
	if k.begins == nil {
		return r
	}
	return &noticedReader{r: r, begins: k.begins}
}

type noticedReader struct {
	r      io.Reader
	begins chan struct{}
}

func (n *noticedReader) Read(p []byte) (int, error) {
	if n.begins != nil {
		n.begins <- struct{}{}
		n.begins = nil
	}
	return n.r.Read(p)
}

// describedReader describes its artifact with the digest.
type describedReader struct {
	ArtifactReader
	info ArtifactInfo
}

func (r describedReader) Info() ArtifactInfo { return r.info }

// digestNFS and digestBucket are stores that keep digests in memory.
type digestNFS struct {
	*nfs
	*memDigests
	reads func(r ArtifactReader) ArtifactReader // nil: as it is
}

func (d *digestNFS) StatArtifact(siteID, buildID string) (ArtifactInfo, error) {
	info, err := d.nfs.StatArtifact(siteID, buildID)
	return d.fill(info), err
}

func (d *digestNFS) FetchArtifact(siteID, buildID string) (io.ReadCloser, error) {
	r, err := d.nfs.FetchArtifact(siteID, buildID)
	if err != nil {
		return nil, err
	}
	described := struct {
		describedReader
		io.Seeker
	}{describedReader{r.(ArtifactReader), d.fill(r.(ArtifactReader).Info())}, r.(io.Seeker)}
	if d.reads != nil {
		return d.reads(described), nil
	}
	return described, nil
}

func (d *digestNFS) StoreArtifactIf(siteID, buildID string, r io.Reader, cond Precondition) (ArtifactInfo, error) {
	return d.nfs.StoreArtifactIf(siteID, buildID, d.notice(r), cond)
}

func (d *digestNFS) KeepDigest(_, _ string, of ArtifactInfo, sum Digest) error {
	return d.keep(of, sum)
}
func (d *digestNFS) KeptDigest(_, _ string) (KeptDigest, error) { return KeptDigest{}, ErrNotFound }
func (d *digestNFS) ListDigests(_ string, v []*Version) ([]Digest, error) {
	return make([]Digest, len(v)), nil
}

type digestBucket struct {
	*objectStore
	*memDigests
}

func (d *digestBucket) StatArtifact(siteID, buildID string) (ArtifactInfo, error) {
	info, err := d.objectStore.StatArtifact(siteID, buildID)
	return d.fill(info), err
}

func (d *digestBucket) FetchArtifactRange(siteID, buildID, etag string, offset, length int64) (ArtifactReader, error) {
	r, err := d.objectStore.FetchArtifactRange(siteID, buildID, etag, offset, length)
	if err != nil {
		return nil, err
	}
	return describedReader{r, d.fill(r.Info())}, nil
}

func (d *digestBucket) StoreArtifactIf(siteID, buildID string, r io.Reader, cond Precondition) (ArtifactInfo, error) {
	return d.objectStore.StoreArtifactIf(siteID, buildID, d.notice(r), cond)
}

func (d *digestBucket) KeepDigest(_, _ string, of ArtifactInfo, sum Digest) error {
	return d.keep(of, sum)
}
func (d *digestBucket) KeptDigest(_, _ string) (KeptDigest, error) { return KeptDigest{}, ErrNotFound }
func (d *digestBucket) ListDigests(_ string, v []*Version) ([]Digest, error) {
	return make([]Digest, len(v)), nil
}

func newMemDigests() *memDigests { return &memDigests{sums: map[string]Digest{}} }

// TestDigestOfAResponse: the response has the digest of the whole build where it is known,
// unless it is an error, a redirect or a 304.
func TestDigestOfAResponse(t *testing.T) {
	for name, open := range digestStores(t) {
		b, kept := open()
		s, _ := startBackend(t, b)
		for _, size := range []int{10, 20_000, 100_000} {
			path, data := fmt.Sprintf("/sites/a/artifacts/b%d", size), randomBytes(size)
			tag := s.put(t, 201, path, data).header.Get("ETag")
			if got := s.get(t, 200, path).header.Get("Repr-Digest"); got != "" {
				t.Errorf("%s: the digest %q is not known", name, got)
			}
			if err := kept.keep(ArtifactInfo{ETag: tag}, sha256.Sum256(data)); err != nil {
				t.Fatal(err)
			}
			for _, c := range []struct {
				method string
				header []string
				status int
			}{
				{"GET", nil, 200}, {"HEAD", nil, 200},
				{"GET", []string{"Range", "bytes=2-3"}, 206},
				{"GET", []string{"Range", "bytes=-3"}, 206},
				{"GET", []string{"Range", "bytes=2-3", "If-Match", "*"}, 206},
				{"GET", []string{"If-None-Match", tag}, 304}, {"HEAD", []string{"If-None-Match", tag}, 304},
				{"GET", []string{"If-Match", `"x"`}, 412}, {"HEAD", []string{"If-Match", `"x"`}, 412},
				{"GET", []string{"Range", "bytes=1000000-"}, 416},
			} {
				want := ""
				if c.status < 300 {
					want = sha256Field(data)
				}
				r := s.do(t, c.status, request{c.method, path, nil, header(c.header...)})
				if got := r.header.Values("Repr-Digest"); strings.Join(got, "|") != want {
					t.Errorf("%s: %s %v: Repr-Digest %q, want %q", name, c.method, c.header, got, want)
				}
			}
		}
		if r := s.do(t, 404, request{"GET", "/sites/a/artifacts/none", nil, nil}); r.header.Get("Repr-Digest") != "" {
			t.Errorf("%s: a 404 with a digest", name)
		}
	}
}

// TestDigestHeaderAllocatesNothing: a digest in a response costs no allocation.
func TestDigestHeaderAllocatesNothing(t *testing.T) {
	var h fasthttp.ResponseHeader
	d := Digest{1}
	write := func() {
		var value [64]byte
		h.SetCanonical(reprDigest, appendDigest(value[:0], d))
	}
	write()
	if n := testing.AllocsPerRun(100, write); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
