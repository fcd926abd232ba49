package main

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"testing"
	"unicode/utf8"

	"github.com/go-json-experiment/json/jsontext"
)

// strictly reports what strict decoders say of a JSON value: of numbers the standard
// library, of strings jsontext.
func strictly(raw []byte) error {
	if err := json.Unmarshal(raw, new(any)); err != nil {
		return err
	}
	dec := jsontext.NewDecoder(bytes.NewReader(raw), jsontext.AllowDuplicateNames(true))
	if _, err := dec.ReadValue(); err != nil {
		return err
	}
	if _, err := dec.ReadToken(); err != io.EOF {
		return fmt.Errorf("something follows: %v", err)
	}
	return nil
}

func TestListable(t *testing.T) {
	f := func(raw, want string) {
		t.Helper()
		was := strings.Clone(raw)
		got := listable([]byte(raw))
		if string(got) != want || raw != was {
			t.Errorf("%s is listed as %s, want %s", raw, got, want)
		}
		if err := strictly(got); err != nil {
			t.Errorf("%s is listed as %s: %v", raw, got, err)
		}
	}
	for _, same := range []string{
		`{}`, ` { "a" : [ ] } `, `null`, `[true,false]`, `"\\ud83d"`, `"\\\\ud83d"`, `"\ud83d\ude00"`, `"\uDBFF\uDFFF"`, `"\ud7ff\ue000\u00d8"`,
		`"\"\\\/\b\f\n\r\t"`, `"1e999"`, `{"1e999":"-1e999"}`, `"\"1e999"`, `[9007199254740993,-0,1e308,1.7976931348623157e308,1E-999,0e999,-1.5e+10]`,
		`[` + strings.Repeat("9", 308) + `]`, `{"ud83d":"d83d\\"}`, `"�"`,
	} {
		f(same, same)
	}
	f(`"\ud83d"`, `"\ufffd"`)
	f(`"\uDEAD"`, `"\ufffd"`)
	f(`{"\ud800":"\udfff"}`, `{"\ufffd":"\ufffd"}`)
	f(`"\ud83d\ud83d\ude00\ude00"`, `"\ufffd\ud83d\ude00\ufffd"`)
	f(`"\ude00\ud83d"`, `"\ufffd\ufffd"`)
	f(`"\ud83d\\ude00"`, `"\ufffd\\ude00"`)
	f(`"\\\ud83d\n\u0041"`, `"\\\ufffd\n\u0041"`)
	f(`"\ud83dx\ude00"`, `"\ufffdx\ufffd"`)
	f(`["\ud83d","\ude00"]`, `["\ufffd","\ufffd"]`)
	f(`1e999`, `"1e999"`)
	f(`{"a":[1,-1.5E+999 ,2]}`, `{"a":[1,"-1.5E+999" ,2]}`)
	f(`[1.7976931348623159e308]`, `["1.7976931348623159e308"]`)
	f(`[1`+strings.Repeat("0", 400)+`]`, `["1`+strings.Repeat("0", 400)+`"]`)
	f(`{"\ud83d":1e999,"x":"\ud83d"}`, `{"\ufffd":"1e999","x":"\ufffd"}`)
	f(`[1e99999999999999999999]`, `["1e99999999999999999999"]`)
}

// What is listed can be read by strict decoders, and what they can read is not touched.
func FuzzListable(f *testing.F) {
	for _, s := range []string{`{"a":"\ud83d\ude00"}`, `{"\ud83d":1e999}`, `["\\ud83d",-1e400]`, `"\ude00\ud83d\ud83d\ude00"`, ` 1E+309 `} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		if !utf8.Valid(raw) || !json.Valid(raw) {
			return
		}
		was := bytes.Clone(raw)
		got := listable(raw)
		if !bytes.Equal(raw, was) {
			t.Fatalf("%q was changed to %q", was, raw)
		}
		if err := strictly(got); err != nil {
			t.Fatalf("%q is listed as %q: %v", raw, got, err)
		}
		if strictly(raw) == nil && !bytes.Equal(got, raw) {
			t.Fatalf("%q is listed as %q", raw, got)
		}
		if again := listable(got); &again[0] != &got[0] {
			t.Fatalf("%q is listed as %q, and that as %q", raw, got, again)
		}
	})
}
