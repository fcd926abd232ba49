package main

import (
	"bytes"
	"encoding/json"
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
	good(`{"build_id":"b","action":"a","status":"s","metadata": { "z" : 1e400, "a":[1, 2] } }`, "b", "a", "s", `{ "z" : 1e400, "a":[1, 2] }`)
	good(`{"build_id":"b","action":"\u00fc\n\"","status":"😀","extra":[{}]}`, "b", "ü\n\"", "😀", "")
	good(`{"build_id":"\u0062","action":"a","status":"s"}`, "b", "a", "s", "")

	bad := func(body, want string) {
		t.Helper()
		if e, err := parseEntry([]byte(body)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s is %+v, %v; want an error with %q", body, e, err, want)
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
	deep := func(levels int) string {
		return `{"build_id":"b","action":"a","status":"s","metadata":{"}{\"":` + strings.Repeat("[", levels-1) + strings.Repeat("]", levels-1) + `}}`
	}
	bad(deep(maxNesting+1), "nested deeper than 50 levels")
	bad(deep(100_000), "not valid JSON")
	if _, err := parseEntry([]byte(deep(maxNesting))); err != nil {
		t.Error(err)
	}
}

// FuzzEntry: what is taken can be written into a log and read again as it was.
func FuzzEntry(f *testing.F) {
	for _, s := range []string{
		`{"build_id":"b","action":"a","status":"s"}`, `{"build_id":"b","action":"a","status":"s","metadata":{"a":[1,{"b":null}]}}`,
		`[]`, `{"build_id":1}`, `{"build_id":"b","action":"\ud800","status":"s"}`, `{"build_id":"b","build_id":"c","action":"a","status":"s"}`,
		`{"Build_ID":"b","action":"a","status":"s"}`, "{\"metadata\":{\"a\":\"\u2028\"}}",
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
	})
}
