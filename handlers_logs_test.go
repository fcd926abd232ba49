package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParseEntry(t *testing.T) {
	good := func(body, build, action, status, metadata string) {
		t.Helper()
		e, err := parseEntry([]byte(body))
		if err != nil || e.BuildID != build || e.Action != action || e.Status != status || string(e.Metadata) != metadata {
			t.Errorf("%s is %+v, %v", body, e, err)
		}
	}
	good(`{"build_id":"b","action":"a","status":"s"}`, "b", "a", "s", "")
	good(" \n{\"status\":\"s\", \"action\" : \"a\",\"build_id\":\"b\"}\t", "b", "a", "s", "")
	good(`{"build_id":"b","action":"a","status":"s","metadata":null}`, "b", "a", "s", "")
	good(`{"build_id":"b","action":"a","status":"s","metadata": { "z" : 1e300, "a":[1, 2] } }`, "b", "a", "s", `{ "z" : 1e300, "a":[1, 2] }`)
	good(`{"build_id":"b","action":"\u00fc\n\"","status":"😀","extra":[{}]}`, "b", "ü\n\"", "😀", "")
	good(`{"build_id":"\u0062","action":"a","status":"s"}`, "b", "a", "s", "")
	good(`{"\u0062uild_id":"b","action":"a","status":"s"}`, "b", "a", "s", "")
	good(`{"build_id":"b","action":"a","status":"s","Status":"x","BUILD_ID":7,"meta\u0000data":1,"actıon":2}`, "b", "a", "s", "")
	good(`{"x":1,"build_id":"b","x":"\ud83d","action":"a","\udead":1e999,"status":"s"}`, "b", "a", "s", "")
	long := strings.Repeat("\\u00e9", 128) // 256 bytes of UTF-8
	good(`{"build_id":"b","action":"`+long+`","status":"`+long+`"}`, "b", strings.Repeat("é", 128), strings.Repeat("é", 128), "")
	for _, m := range []string{
		`{"n":9007199254740993,"m":-123456789012345678901234567890}`, `{"n":1.7976931348623157e308}`, `{"n":1e-999,"m":0e999}`,
		`{"s":"\ud83d\ude00\uD83D\uDE00","t":"\\ud83d","u":"1e999"}`, `{"a":1,"a":2}`, `{"\ud83d\ude00":[]}`, `{"e":{"E":[true,false,null]}}`,
	} {
		good(`{"build_id":"b","action":"a","status":"s","metadata":`+m+`}`, "b", "a", "s", m)
	}

	bad := func(body, want string) {
		t.Helper()
		if e, err := parseEntry([]byte(body)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%.200s is %+v, %v; want an error with %q", body, e, err, want)
		}
	}
	bad(``, "empty")
	bad(`{`, "not valid JSON")
	bad(`[]`, "not a JSON object")
	bad(`{}`, "build_id is missing")
	bad(`{"build_id":null,"action":"a","status":"s"}`, "build_id is missing")
	bad(`{"build_id":{},"action":"a","status":"s"}`, "build_id is not a string")
	bad(`{"build_id":"b","action":"a"}`, "status is missing")
	bad(`{"build_id":"b","action":1,"status":"s"}`, "action is not a string")
	bad(`{"build_id":"b","action":"","status":"s"}`, "action is empty")
	bad(`{"build_id":".b","action":"a","status":"s"}`, "build_id must begin with a letter or digit")
	bad(`{"build_id":"b","action":"a","status":"s","metadata":7}`, "metadata is not an object")
	bad("{\"build_id\":\"b\",\"action\":\"a\",\"status\":\"\xff\"}", "UTF-8")
	bad(`{"build_id":"b","action":"a","Status":"s"}`, "status is missing")
	bad(`{"BUILD_ID":"b","action":"a","status":"s"}`, "build_id is missing")
	bad(`{"build_id":"b","build_id":"b","action":"a","status":"s"}`, "build_id is specified more than once")
	bad(`{"build_id":"b","action":"a","\u0061ction":"b","status":"s"}`, "action is specified more than once")
	bad(`{"build_id":"b","action":"a","status":null,"status":"s"}`, "status is specified more than once")
	bad(`{"build_id":"b","action":"a","status":"s","metadata":null,"metadata":{}}`, "metadata is specified more than once")
	bad(`{"build_id":"b","action":"`+long+`a","status":"s"}`, "action is 257 bytes long; the maximum is 256")
	bad(`{"build_id":"b","action":"a","status":"`+strings.Repeat("x", 257)+`"}`, "status is 257 bytes long; the maximum is 256")
	bad(`{"build_id":"\ud83d","action":"a","status":"s"}`, "/build_id contains an unpaired surrogate")
	bad(`{"build_id":"b","action":"\ude00","status":"s"}`, "/action contains an unpaired surrogate")
	bad(`{"build_id":"b","action":"a","status":"x\ud83d\ud83d\ude00"}`, "/status contains an unpaired surrogate")
	for metadata, want := range map[string]string{
		`{"s":"\ud83d"}`:                          "/metadata/s contains an unpaired surrogate",
		`{"a":{"b":[0,[],"\uDE00"]}}`:             "/metadata/a/b/2 contains an unpaired surrogate",
		`{"a":[{"x/y\ud83d":1}]}`:                 "/metadata/a/0/x~1y\ufffd contains an unpaired surrogate",
		`{"s":"\ud83d\\ude00"}`:                   "/metadata/s contains an unpaired surrogate",
		`{"s":"\ud83d\u0041"}`:                    "/metadata/s contains an unpaired surrogate",
		`{"n":1e999}`:                             "/metadata/n is too large for a 64-bit float",
		`{"a":[1,[-1.5E+400]]}`:                   "/metadata/a/1/0 is too large for a 64-bit float",
		`{"n":1` + strings.Repeat("0", 309) + `}`: "/metadata/n is too large for a 64-bit float",
		`{"n":1.7976931348623159e308}`:            "/metadata/n is too large for a 64-bit float",
		`[]`:                                      "metadata is not an object",
		`nul`:                                     "not valid JSON",
		`{"a":1,}`:                                "not valid JSON",
		`{"a":01}`:                                "not valid JSON",
		"{\"a\":\"\n\"}":                          "not valid JSON",
		`{"a":]}`:                                 "not valid JSON",
		`{"a":"\ud8"}`:                            "not valid JSON",
		`{"` + strings.Repeat("n", 5000) + `":1e999}`: "/metadata/nnn",
	} {
		bad(`{"build_id":"b","action":"a","status":"s","metadata":`+metadata+`}`, want)
	}
	bad(`{"build_id":"b","action":"a","status":"s"}{}`, "trailing data after the object")
	bad(`{"build_id":"b","action":"a","status":"s"}]`, "not valid JSON")
	bad(`{"build_id":"b","action":"a","status":"s",}`, "not valid JSON")
	bad(`{"build_id":"b","action":"a","status":"s"`, "not valid JSON: unexpected EOF at byte 41")
	bad(`{"build_id":"b","action":"a","status":"s","x":{"y":tru}}`, "not valid JSON")
	deep := func(levels int) string {
		return `{"build_id":"b","action":"a","status":"s","metadata":{"}{\"":` + strings.Repeat("[", levels-1) + strings.Repeat("]", levels-1) + `}}`
	}
	bad(deep(maxNesting+1), "nested deeper than 50 levels")
	bad(deep(100_000), "nested deeper than 50 levels")
	if _, err := parseEntry([]byte(deep(maxNesting))); err != nil {
		t.Error(err)
	}
}

// FuzzEntry: what is taken can be written into a log, read again as it was and listed as
// it was, and strict decoders can read it.
func FuzzEntry(f *testing.F) {
	for _, s := range []string{
		`{"build_id":"b","action":"a","status":"s"}`, `{"build_id":"b","action":"a","status":"s","metadata":{"a":[1,{"b":null}]}}`,
		`[]`, `{"build_id":1}`, `{"build_id":"b","action":"\ud800","status":"s"}`, `{"build_id":"b","build_id":"c","action":"a","status":"s"}`,
		`{"Build_ID":"b","action":"a","status":"s"}`, "{\"metadata\":{\"a\":\"\u2028\"}}",
		`{"build_id":"b","action":"a","status":"s","metadata":{"a":"\ud83d\ude00","\udead":1}}`, `{"build_id":"b","action":"a","status":"s","metadata":{"a":[1e308,1e309]}}`,
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, body []byte) {
		e, err := parseEntry(body)
		if err != nil {
			return
		}
		if checkID(e.BuildID) != nil || e.Action == "" || e.Status == "" || !utf8.ValidString(e.Action+e.Status) {
			t.Errorf("%q is %+v", body, e)
		}
		if e.Metadata != nil && (!json.Valid(e.Metadata) || e.Metadata[0] != '{' || !bytes.Contains(body, e.Metadata)) {
			t.Errorf("%q has the metadata %q", body, e.Metadata)
		}
		if e.Metadata != nil {
			if err := strictly(e.Metadata); err != nil || !bytes.Equal(listable(e.Metadata), e.Metadata) {
				t.Errorf("%q has the metadata %q, listed as %q: %v", body, e.Metadata, listable(e.Metadata), err)
			}
		}
	})
}

// The rules of an Idempotency-Key, through the front door (draft-ietf-httpapi-idempotency-key-header,
// section 2.7).
func TestIdempotencyKey(t *testing.T) {
	for name, b := range map[string]Backend{"directory": openTestNFS(t, t.TempDir()), "objects": openMem(newMemBucket())} {
		t.Run(name, func(t *testing.T) {
			s, _ := startBackend(t, b)
			post := func(status int, body string, key ...string) {
				t.Helper()
				r := s.post(t, status, "/sites/s/logs", body, key...)
				if status == 201 && len(key) > 0 {
					var got success
					if r.into(t, &got); got.EntryID != key[1] {
						t.Errorf("%s has the entry id %q", body, got.EntryID)
					}
				}
				if status == 422 && !strings.Contains(string(r.body), "the Idempotency-Key was already used for a different entry") {
					t.Errorf("%s is answered %s", body, r.body)
				}
			}
			body := `{"build_id":"b","action":"deploy","status":"ok","metadata":{"n":1,"s":"x y"}}`
			post(201, body, "Idempotency-Key", "k")
			post(201, body, "Idempotency-Key", "k")
			post(201, "{ \"metadata\": { \"n\" : 1,\n\"s\":\"x y\"}, \"status\":\"ok\",\"action\":\"deploy\",\"build_id\":\"b\",\"x\":1 }", "Idempotency-Key", "k")
			post(422, strings.Replace(body, "deploy", "build", 1), "Idempotency-Key", "k")
			post(422, strings.Replace(body, "ok", "failed", 1), "Idempotency-Key", "k")
			post(422, strings.Replace(body, "1", "2", 1), "Idempotency-Key", "k")
			post(422, strings.Replace(body, "1", "1.0", 1), "Idempotency-Key", "k")
			post(422, strings.Replace(body, "x y", "xy", 1), "Idempotency-Key", "k")
			post(422, `{"build_id":"b","action":"deploy","status":"ok"}`, "Idempotency-Key", "k")
			post(422, `{"build_id":"b","action":"deploy","status":"ok","metadata":{}}`, "Idempotency-Key", "k")
			post(201, strings.Replace(body, `"b"`, `"c"`, 1), "Idempotency-Key", "k") // of another log
			post(201, strings.Replace(body, "ok", "failed", 1), "Idempotency-Key", "k2")
			post(201, strings.Replace(body, "ok", "failed", 1))
			v := s.versions(t, "/sites/s/versions?metadata=true")
			for _, b := range v.Versions {
				if want := map[string]int{"b": 3, "c": 1}[b.Build_ID]; len(b.Logs) != want {
					t.Errorf("%s has %d entries", b.Build_ID, len(b.Logs))
				}
			}
		})
	}
}

// oddMetadata is what older services took, and how it is listed.
var oddMetadata = [][2]string{
	{`{"s":"\ud83d"}`, `{"s":"\ufffd"}`},
	{`{"\uDE00":[{"\\ud83d":"\ud83d\ude00"}]}`, `{"\ufffd":[{"\\ud83d":"\ud83d\ude00"}]}`},
	{`{"n":1e999, "m" : [-1E+400,9007199254740993]}`, `{"n":"1e999", "m" : ["-1E+400",9007199254740993]}`},
	{`{"ok":1.50}`, `{"ok":1.50}`},
}

// Entries of older services are listed so that strict decoders can read the list, with
// the length that was announced, and stay as they are in the log.
func TestListOfOddMetadata(t *testing.T) {
	for name, b := range listStores(t) {
		s, svc := startBackend(t, b)
		for _, padding := range []int{0, keepMetadata} { // kept in memory, and not
			t.Run(fmt.Sprint(name, "/", padding), func(t *testing.T) {
				site := newSite()
				pad := strings.Repeat(" ", padding)
				var entries []LogEntry
				for i, m := range oddMetadata {
					e := entry(fmt.Sprint(i), "b", testTime)
					e.Metadata = json.RawMessage(m[0][:1] + pad + m[0][1:])
					entries = append(entries, e)
				}
				plantEntries(t, b, site, "b", entries)
				mustLog(t, b, site, entry("new", "b", testTime))
				if err := b.WriteLog(site, entries[0]); err != nil { // the log still has it
					t.Error(err)
				}
				for _, buffered := range []int64{0, 1 << 40} {
					svc.listBuffered = buffered
					r := s.get(t, 200, "/sites/"+site+"/versions?metadata=true")
					if err := strictly(r.body); err != nil || r.length != int64(len(r.body)) {
						t.Fatalf("%d bytes, announced as %d: %v", len(r.body), r.length, err)
					}
					var v versionsBody
					r.into(t, &v)
					for i, e := range v.Versions[0].Logs[:len(oddMetadata)] {
						want := oddMetadata[i][1]
						if string(e.Metadata) != want[:1]+pad+want[1:] {
							t.Errorf("%s is listed as %.100s", oddMetadata[i][0], e.Metadata)
						}
					}
					if n := len(v.Versions[0].Logs); n != len(oddMetadata)+1 {
						t.Errorf("%d entries are listed", n)
					}
				}
			})
		}
	}
}

// fixedList is a backend that lists what it is given, and has no pages.
type fixedList struct {
	Backend
	versions []*Version
}

func (f fixedList) ListVersions(string) ([]*Version, error) { return f.versions, nil }

// The list of a backend without pages is made listable by the service, which does not
// change the versions.
func TestListOfOddMetadataWithoutPages(t *testing.T) {
	v := &Version{BuildID: "b"}
	for _, m := range oddMetadata {
		e := entry("1", "b", testTime)
		e.Metadata = json.RawMessage(m[0])
		v.Logs = append(v.Logs, e)
	}
	s, _ := startBackend(t, fixedList{versions: []*Version{v}})
	for range 2 {
		r := s.get(t, 200, "/sites/s/versions?metadata=true")
		if err := strictly(r.body); err != nil || r.length != int64(len(r.body)) {
			t.Errorf("%d bytes, announced as %d: %v", len(r.body), r.length, err)
		}
		for i, e := range v.Logs {
			if string(e.Metadata) != oddMetadata[i][0] {
				t.Errorf("entry %d has become %s", i, e.Metadata)
			}
			if !bytes.Contains(r.body, []byte(oddMetadata[i][1])) {
				t.Errorf("entry %d is not listed as %s", i, oddMetadata[i][1])
			}
		}
	}
}

// The entity tags of both kinds of lists name their format and cover the metadata.
func TestETagOfListCoversMetadata(t *testing.T) {
	for name, b := range listStores(t) {
		t.Run(name, func(t *testing.T) {
			s, _ := startBackend(t, b)
			for _, size := range []int{20, 5 << 10} {
				seen := map[string]string{}
				for _, fill := range []string{"m", "n"} {
					site := newSite() // the tag does not name it
					e := withMetadata(entry("1", "b", testTime), size)
					e.Metadata = bytes.ReplaceAll(e.Metadata, []byte("m"), []byte(fill))
					plantEntries(t, b, site, "b", []LogEntry{e})
					for _, query := range []string{"", "?metadata=true"} {
						tag := s.get(t, 200, "/sites/"+site+"/versions"+query).header.Get("ETag")
						if was, ok := seen[tag]; ok || !strings.HasPrefix(tag, `"`+listFormat+"-") {
							t.Errorf("%d bytes of %s%s: the ETag is %s, and %q has it too", size, fill, query, tag, was)
						}
						seen[tag] = fill + query
					}
				}
			}
		})
	}
}
