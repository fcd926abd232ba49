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
	bad(`{"build_id":"b","build_id":"b","action":"a","status":"s"}`, "build_id is there twice")
	bad(`{"build_id":"b","action":"a","\u0061ction":"b","status":"s"}`, "action is there twice")
	bad(`{"build_id":"b","action":"a","status":null,"status":"s"}`, "status is there twice")
	bad(`{"build_id":"b","action":"a","status":"s","metadata":null,"metadata":{}}`, "metadata is there twice")
	bad(`{"build_id":"b","action":"`+long+`a","status":"s"}`, "action has 257 bytes, more than 256")
	bad(`{"build_id":"b","action":"a","status":"`+strings.Repeat("x", 257)+`"}`, "status has 257 bytes, more than 256")
	bad(`{"build_id":"\ud83d","action":"a","status":"s"}`, "/build_id has one half of a surrogate pair")
	bad(`{"build_id":"b","action":"\ude00","status":"s"}`, "/action has one half of a surrogate pair")
	bad(`{"build_id":"b","action":"a","status":"x\ud83d\ud83d\ude00"}`, "/status has one half of a surrogate pair")
	for metadata, want := range map[string]string{
		`{"s":"\ud83d"}`:                          "/metadata/s has one half",
		`{"a":{"b":[0,[],"\uDE00"]}}`:             "/metadata/a/b/2 has one half",
		`{"a":[{"x/y\ud83d":1}]}`:                 "/metadata/a/0/x~1y\ufffd has one half",
		`{"s":"\ud83d\\ude00"}`:                   "/metadata/s has one half",
		`{"s":"\ud83d\u0041"}`:                    "/metadata/s has one half",
		`{"n":1e999}`:                             "/metadata/n is a number that is too large",
		`{"a":[1,[-1.5E+400]]}`:                   "/metadata/a/1/0 is a number that is too large",
		`{"n":1` + strings.Repeat("0", 309) + `}`: "/metadata/n is a number that is too large",
		`{"n":1.7976931348623159e308}`:            "/metadata/n is a number that is too large",
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
	bad(`{"build_id":"b","action":"a","status":"s"}{}`, "something follows the object")
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
