//go:build !no_s3

package main

import (
	"bytes"
	"cmp"
	"encoding/base64"
	"encoding/binary"
	"encoding/xml"
	"fmt"
	"hash/crc64"
	"io"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
)

// checksumStore is a server that behaves like S3 for uploads with and without a CRC64NVME.
type checksumStore struct {
	*httptest.Server
	ignores string                                 // what it does not compare with its checksum: "single", "part" or "whole"
	refuses int                                    // the status of requests with a checksum
	refused string                                 // the methods for which refuses counts; empty: all
	change  func(r *http.Request, b []byte) []byte // changes the bytes that arrive; may be nil
	join    func(parts [][]byte) (object [][]byte) // changes the order of parts; may be nil

	mu       sync.Mutex
	objects  map[string][]byte
	uploads  map[string]map[int][]byte
	made     int            // uploads ever begun
	requests []checksumSent // that have a body, or complete an upload
}

// checksumSent is what protects the bytes of a request.
type checksumSent struct{ what, payload, crc string }

// nvme is the table of CRC64NVME, from its polynomial in reversed bit order.
var nvme = crc64.MakeTable(0x9a6c_9329_ac4b_c9b5)

func crcOf(b []byte) string {
	return base64.StdEncoding.EncodeToString(binary.BigEndian.AppendUint64(nil, crc64.Checksum(b, nvme)))
}

func startChecksumStore(t *testing.T, tls bool) *checksumStore {
	t.Helper()
	f := &checksumStore{objects: map[string][]byte{}, uploads: map[string]map[int][]byte{}}
	if f.Server = httptest.NewUnstartedServer(f); tls {
		f.StartTLS()
		ca := filepath.Join(t.TempDir(), "ca.pem")
		putFile(t, ca, pemOf(f.Certificate().Raw))
		t.Setenv("AWS_CA_BUNDLE", ca)
	} else {
		f.Start()
	}
	t.Cleanup(f.Close)
	t.Setenv("AWS_ACCESS_KEY_ID", "test")
	t.Setenv("AWS_SECRET_ACCESS_KEY", "test")
	return f
}

func (f *checksumStore) open(t *testing.T) *objectStore {
	t.Helper()
	conf := s3Config{Bucket: "builds", Endpoint: f.URL, PathStyle: true, PartSize: 5 << 20, Concurrency: 2}
	b, err := openS3(t.Context(), conf, 64<<20, quiet())
	if err != nil {
		t.Fatal(err)
	}
	return b.(*objectStore)
}

// took returns what protected the requests since the last call.
func (f *checksumStore) took() (sent []checksumSent) {
	f.mu.Lock()
	defer f.mu.Unlock()
	sent, f.requests = f.requests, nil
	return sent
}

// left returns the keys of all objects and the number of unfinished uploads.
func (f *checksumStore) left() (keys []string, unfinished int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for key := range f.objects {
		keys = append(keys, key)
	}
	slices.Sort(keys)
	return keys, len(f.uploads)
}

func (f *checksumStore) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	got, _ := io.ReadAll(r.Body)
	f.mu.Lock()
	defer f.mu.Unlock()
	_, key, _ := strings.Cut(r.URL.Path, "/builds")
	key = strings.TrimPrefix(key, "/")
	query := r.URL.Query()
	id := query.Get("uploadId")
	parts := f.uploads[id]
	crc := r.Header.Get("X-Amz-Checksum-Crc64nvme")
	if f.refuses != 0 && r.Header.Get("X-Amz-Checksum-Crc64nvme")+r.Header.Get("X-Amz-Checksum-Algorithm") != "" &&
		(f.refused == "" || f.refused == r.Method) {
		f.fail(w, f.refuses, "Refused")
		return
	}
	note := func(what string) {
		f.requests = append(f.requests, checksumSent{what, r.Header.Get("X-Amz-Content-Sha256"), crc})
	}
	arrived := func(what string) (ok bool) {
		note(what)
		if f.change != nil && !strings.HasPrefix(key, checksDir) {
			got = f.change(r, got)
		}
		if ok = crc == "" || f.ignores == what || crc == crcOf(got); !ok {
			f.fail(w, 400, "BadDigest")
		}
		return ok
	}
	switch {
	case key == "":
		fmt.Fprint(w, `<ListBucketResult><Name>builds</Name><KeyCount>0</KeyCount><IsTruncated>false</IsTruncated></ListBucketResult>`)
	case r.Method == "POST" && id == "":
		f.made++
		id = strconv.Itoa(f.made)
		f.uploads[id] = map[int][]byte{}
		fmt.Fprintf(w, "<InitiateMultipartUploadResult><UploadId>%s</UploadId></InitiateMultipartUploadResult>", id)
	case id != "" && parts == nil:
		f.fail(w, 404, "NoSuchUpload")
	case r.Method == "DELETE" && id != "":
		delete(f.uploads, id)
		w.WriteHeader(204)
	case r.Method == "DELETE":
		delete(f.objects, key)
		w.WriteHeader(204)
	case r.Method == "PUT" && id != "":
		if arrived("part") {
			n, _ := strconv.Atoi(query.Get("partNumber"))
			parts[n] = got
			w.Header().Set("ETag", fakeETag(got))
		}
	case r.Method == "POST":
		note("whole")
		f.complete(w, key, id, parts, got, crc)
	case r.Method == "PUT":
		if arrived("single") {
			f.objects[key] = got
			w.Header().Set("ETag", fakeETag(got))
		}
	case f.objects[key] == nil:
		f.fail(w, 404, "NoSuchKey")
	default:
		w.Header().Set("ETag", fakeETag(f.objects[key]))
		w.Header().Set("Content-Length", strconv.Itoa(len(f.objects[key])))
		if r.Method == "GET" {
			_, _ = w.Write(f.objects[key])
		}
	}
}

// complete joins the parts that the request lists.
func (f *checksumStore) complete(w http.ResponseWriter, key, id string, parts map[int][]byte, request []byte, crc string) {
	var list struct {
		Part []struct {
			PartNumber        int
			ChecksumCRC64NVME string
		}
	}
	if err := xml.Unmarshal(request, &list); err != nil {
		f.fail(w, 400, "MalformedXML")
		return
	}
	var ordered [][]byte
	for _, p := range list.Part {
		if crc != "" && p.ChecksumCRC64NVME != crcOf(parts[p.PartNumber]) {
			f.fail(w, 400, "InvalidPart")
			return
		}
		ordered = append(ordered, parts[p.PartNumber])
	}
	if f.join != nil {
		ordered = f.join(ordered)
	}
	whole := bytes.Join(ordered, nil)
	if crc != "" && f.ignores != "whole" && crc != crcOf(whole) {
		f.fail(w, 400, "BadDigest")
		return
	}
	f.objects[key] = whole
	delete(f.uploads, id)
	fmt.Fprintf(w, "<CompleteMultipartUploadResult><ETag>%s</ETag></CompleteMultipartUploadResult>", fakeETag(whole))
}

func (f *checksumStore) fail(w http.ResponseWriter, status int, code string) {
	w.WriteHeader(status)
	fmt.Fprintf(w, "<Error><Code>%s</Code><Message>as the test wants it</Message></Error>", code)
}

// Uploads over TLS carry a checksum if the store refuses a wrong one of every kind. The check
// leaves nothing behind, costs few requests, and no upload fails whatever it finds.
func TestS3ChecksumsAreUsedIfTheStoreChecksThem(t *testing.T) {
	for _, c := range []struct {
		name    string
		plain   bool
		ignores string
		refuses int
		refused string
		used    bool
		calls   int    // of the check that carry a checksum
		says    string // in the line of doctor
	}{
		{"a store that checks", false, "", 0, "", true, 6, "ok   "},
		{"one that ignores all", false, "single", 0, "", false, 1, "warn "},
		{"one that ignores those of parts", false, "part", 0, "", false, 3, "warn "},
		{"one that ignores that of the whole object", false, "whole", 0, "", false, 5, "warn "},
		{"one that refuses the header", false, "", 400, "", false, 0, "warn "},
		{"one that has not implemented it", false, "", 501, "", false, 0, "warn "},
		{"one that denies it", false, "", 403, "", false, 0, "warn "},
		{"one that does not know it in parts", false, "", 400, "POST", false, 2, "warn "},
		{"without TLS", true, "", 0, "", false, 0, ""},
	} {
		t.Run(c.name, func(t *testing.T) {
			f := startChecksumStore(t, !c.plain)
			s := f.open(t)
			f.ignores, f.refuses, f.refused = c.ignores, c.refuses, c.refused
			r, err := s.checkChecksums()
			if sent := f.took(); err != nil || len(sent) != c.calls {
				t.Errorf("the check made the calls %v: %v", sent, err)
			}
			if keys, unfinished := f.left(); len(keys) > 0 || unfinished > 0 {
				t.Errorf("the check left %v and %d uploads", keys, unfinished)
			}
			if line := r.String(); c.says != "" && !strings.HasPrefix(line, c.says+checksumCheck) || c.says == "" && r.what != "" {
				t.Errorf("doctor says %q", line)
			}
			wantProtected(t, f, s, c.plain, c.used)
		})
	}
}

// wantProtected uploads bodies of all kinds, and checks that the signature of each request has
// a hash of its bytes without TLS only, and that each has a checksum if used.
func wantProtected(t *testing.T, f *checksumStore, s *objectStore, plain, used bool) {
	t.Helper()
	const step = 5 << 20
	for _, size := range []int{1, 15 << 10, step, step + 1, 2*step + 1000} {
		data := body(size, 7)
		for _, r := range []io.Reader{known(data), unknown(data)} {
			if err := s.StoreArtifact("s", "b", r); err != nil {
				t.Fatalf("%d bytes: %v", size, err)
			}
			if got := f.objects[s.artifactKey("s", "b")]; !bytes.Equal(got, data) {
				t.Fatalf("%d bytes: the store has %d", size, len(got))
			}
		}
	}
	f.took()
	mustStore(t, s, "s", "b", body(step+1, 1))
	mustStore(t, s, "s", "b", body(1, 1))
	if _, err := s.bucket.put(t.Context(), "log", bytes.NewReader([]byte("entry")), 5, putOptions{}); err != nil {
		t.Fatal(err)
	}
	sent := f.took()
	if len(sent) != 5 {
		t.Fatalf("the store got %v", sent)
	}
	for _, r := range sent {
		if (r.crc != "") != used {
			t.Errorf("%s: the checksum is %q", r.what, r.crc)
		}
		if r.what != "whole" && (r.payload == "UNSIGNED-PAYLOAD") == plain {
			t.Errorf("%s: signed is %q", r.what, r.payload)
		}
	}
}

// Bytes that change between the service and the store are refused with 503, and the build stays
// as it was.
func TestS3ChecksumsFindChangedBytes(t *testing.T) {
	f := startChecksumStore(t, true)
	s := assumeCapable(f.open(t))
	if r, err := s.checkChecksums(); err != nil || r.err != nil {
		t.Fatal(r, err)
	}
	server, _ := startBackend(t, s)
	const path, step = "/sites/s/artifacts/b", 5 << 20
	old := body(100, 1)
	server.put(t, 201, path, old)
	flip := func(at int) func(*http.Request, []byte) []byte {
		return func(r *http.Request, b []byte) []byte {
			n, _ := strconv.Atoi(cmp.Or(r.URL.Query().Get("partNumber"), "1"))
			if i := at - (n-1)*step; i >= 0 && i < len(b) {
				b[i] ^= 1
			}
			return b
		}
	}
	swap := func(parts [][]byte) [][]byte { parts[0], parts[1] = parts[1], parts[0]; return parts }
	drop := func(parts [][]byte) [][]byte { return parts[1:] }
	for _, c := range []struct {
		name   string
		size   int
		change func(*http.Request, []byte) []byte
		join   func([][]byte) [][]byte
	}{
		{"the only byte", 1, flip(0), nil},
		{"the first byte", 15 << 10, flip(0), nil},
		{"a middle byte", 15 << 10, flip(7000), nil},
		{"the last byte", 15 << 10, flip(15<<10 - 1), nil},
		{"the first byte of parts", 2*step + 9, flip(0), nil},
		{"a middle byte of parts", 2*step + 9, flip(step + 5), nil},
		{"the last byte of parts", 2*step + 9, flip(2*step + 8), nil},
		{"the order of parts", 2*step + 9, nil, swap},
		{"a part that is missing", 2*step + 9, nil, drop},
	} {
		f.change, f.join = c.change, c.join
		server.put(t, 503, path, body(c.size, 2))
		f.change, f.join = nil, nil
		if got := server.get(t, 200, path).body; !bytes.Equal(got, old) {
			t.Errorf("%s: the build has %d bytes", c.name, len(got))
		}
		if keys, unfinished := f.left(); len(keys) != 1 || unfinished > 0 {
			t.Errorf("%s: there are %v and %d uploads", c.name, keys, unfinished)
		}
	}
	eventually(t, "the log says why", func() bool {
		return strings.Contains(server.log.String(), "the bytes changed on their way to it")
	})
	server.put(t, 201, path, body(2*step+9, 2))
}
