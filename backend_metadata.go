package main

import (
	"bytes"
	"strconv"
)

// Metadata is stored as the client sent it. The grammar of JSON allows two things that make
// a strict decoder refuse the whole document (RFC 8259, sections 6 and 8.2; RFC 7493,
// sections 2.1 and 2.2): a lone surrogate in a string, and a number that is too large for
// binary64. New entries that have them are refused; lists replace them in older entries.

// listable replaces in valid JSON each lone surrogate by U+FFFD, and each number outside
// binary64 by a string of its digits. It returns raw itself if there is nothing to replace,
// and never changes raw. The result needs no further replacement.
func listable(raw []byte) []byte {
	var out []byte
	done := 0 // bytes of raw that were copied to out or replaced
	replace := func(from, to int, with ...string) {
		out = append(out, raw[done:from]...)
		for _, s := range with {
			out = append(out, s...)
		}
		done = to
	}
	for i := 0; i < len(raw); {
		switch c := raw[i]; {
		case c == '"':
			end := endOfString(raw, i)
			for at := loneSurrogate(raw[i:end], 0); at >= 0; at = loneSurrogate(raw[i:end], at+lenEscape) {
				replace(i+at, i+at+lenEscape, `\ufffd`)
			}
			i = end
		case c == '-', '0' <= c && c <= '9':
			end := i + 1
			for end < len(raw) && isNumber[raw[end]] {
				end++
			}
			if outsideBinary64(raw[i:end]) {
				replace(i, end, `"`, string(raw[i:end]), `"`)
			}
			i = end
		default:
			i++
		}
	}
	if done == 0 {
		return raw
	}
	return append(out, raw[done:]...)
}

// isNumber has the bytes that a JSON number may have after its first one.
var isNumber = [256]bool{'0': true, '1': true, '2': true, '3': true, '4': true, '5': true, '6': true, '7': true,
	'8': true, '9': true, '+': true, '-': true, '.': true, 'e': true, 'E': true}

// endOfString returns the end of the string that begins with the quote at raw[i].
func endOfString(raw []byte, i int) int {
	for i++; i < len(raw); i++ {
		switch raw[i] {
		case '"':
			return i + 1
		case '\\':
			i++
		}
	}
	return len(raw)
}

const lenEscape = len(`\uXXXX`)

// loneSurrogate returns the index of the first escaped lone surrogate at or after raw[at] in
// a valid JSON string, or -1. at must not be inside an escape.
func loneSurrogate(raw []byte, at int) int {
	for i := at; ; {
		next := bytes.IndexByte(raw[i:], '\\')
		if next < 0 {
			return -1
		}
		i += next
		switch first := surrogate(raw[i:]); {
		case first == 0: // another escape, whose second byte may be a backslash
			i += len(`\x`)
		case first < 'C' && surrogate(raw[i+lenEscape:]) >= 'C':
			i += 2 * lenEscape
		default:
			return i
		}
	}
}

// surrogate returns 0 unless raw begins with the escape of a surrogate. Otherwise it returns
// the second hex digit in upper case: 8 to B is the first half of a pair, C to F the second.
func surrogate(raw []byte) byte {
	if len(raw) < lenEscape || raw[0] != '\\' || raw[1] != 'u' || raw[2]|0x20 != 'd' {
		return 0
	}
	if c := raw[3] &^ 0x20; 'A' <= c && c <= 'F' {
		return c
	}
	if c := raw[3]; c == '8' || c == '9' {
		return c
	}
	return 0
}

// outsideBinary64 reports whether a JSON number is too large for binary64. A number that is
// too small is not outside: decoders round it to 0.
func outsideBinary64(number []byte) bool {
	const digits = 309 // of the largest number, 1.8e308
	if len(number) < digits && bytes.IndexByte(number, 'e') < 0 && bytes.IndexByte(number, 'E') < 0 {
		return false
	}
	_, err := strconv.ParseFloat(string(number), 64)
	return err != nil
}
