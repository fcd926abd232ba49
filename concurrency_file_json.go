package main

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"unicode/utf8"

	"github.com/go-json-experiment/json"
	"github.com/go-json-experiment/json/jsontext"
)

// parseJSONFile reads a JSON file that an operator wrote into the struct file. It accepts nothing that
// could be a mistake: no unknown and no duplicate member, no null, no other type. The error
// begins with the place, as tokens[0].sha256[1], and for a file that is not JSON with line and
// column. It contains no whole token.
func parseJSONFile(data []byte, maxSize int, file any) error {
	if len(data) > maxSize {
		return fmt.Errorf("the file is %d bytes long; the maximum is %d", len(data), maxSize)
	}
	if err := checkJSON(data); err != nil {
		return err
	}
	if err := json.Unmarshal(data, file, json.RejectUnknownMembers(true)); err != nil {
		return memberError(err)
	}
	return nil
}

// checkJSON returns an error unless data is one JSON text in UTF-8 without duplicate members
// and without null, which could be a variable that was not set when the file was made.
func checkJSON(data []byte) error {
	if bytes.HasPrefix(data, []byte("\uFEFF")) {
		return errors.New("line 1, column 1: the file begins with a byte order mark; save it as UTF-8 without one")
	}
	if text := bytes.TrimLeft(data, jsonSpace); len(text) > 0 && text[0] != '{' {
		return fmt.Errorf("%s: not a JSON object, which begins with {", positionOf(data, len(data)-len(text)))
	}
	dec := jsontext.NewDecoder(bytes.NewBuffer(data)) // refuses duplicate members and invalid UTF-8
	for started := false; !started || dec.StackDepth() > 0; started = true {
		tok, err := dec.ReadToken()
		if err == io.EOF {
			return errors.New("the file is empty")
		}
		if err != nil {
			return jsonSyntaxError(data, err)
		}
		if tok.Kind() == jsontext.KindNull {
			return fmt.Errorf("%s: null is not allowed; leave it out", placeOf(dec.StackPointer()))
		}
	}
	rest := data[dec.InputOffset():]
	if more := bytes.TrimLeft(rest, jsonSpace); len(more) > 0 {
		return fmt.Errorf("%s: trailing data after the end of the JSON text", positionOf(data, len(data)-len(more)))
	}
	return nil
}

// jsonSyntaxError returns an error of jsontext with line and column, and with its place.
func jsonSyntaxError(data []byte, err error) error {
	var syntax *jsontext.SyntacticError
	if !errors.As(err, &syntax) {
		return err
	}
	position, place := positionOf(data, int(syntax.ByteOffset)), ""
	if syntax.JSONPointer != "" {
		place = placeOf(syntax.JSONPointer) + ": "
	}
	switch {
	case errors.Is(err, jsontext.ErrDuplicateName):
		return fmt.Errorf("%s: %sduplicate member", position, place)
	case errors.Is(err, io.ErrUnexpectedEOF):
		return fmt.Errorf("%s: %sthe file ends too early", position, place)
	case trailingComma(data[min(int(syntax.ByteOffset), len(data)):]):
		return fmt.Errorf("%s: %sa comma before ] or }", position, place)
	}
	return fmt.Errorf("%s: %s%v", position, place, syntax.Err)
}

// trailingComma reports whether text begins with a comma after which a list or an object ends.
func trailingComma(text []byte) bool {
	after, ok := bytes.CutPrefix(text, []byte(","))
	after = bytes.TrimLeft(after, jsonSpace)
	return ok && len(after) > 0 && (after[0] == ']' || after[0] == '}')
}

// positionOf returns line and column of a byte; columns count characters.
func positionOf(data []byte, offset int) string {
	before := data[:min(offset, len(data))]
	line := before[bytes.LastIndexByte(before, '\n')+1:]
	return fmt.Sprintf("line %d, column %d", bytes.Count(before, []byte("\n"))+1, utf8.RuneCount(line)+1)
}

// memberError returns an error of json.Unmarshal in words that do not need Go.
func memberError(err error) error {
	var semantic *json.SemanticError
	if !errors.As(err, &semantic) || semantic.GoType == nil {
		return err
	}
	if errors.Is(err, json.ErrUnknownName) {
		return fmt.Errorf("%s: unknown member; allowed here: %s", placeOf(semantic.JSONPointer), strings.Join(membersOf(semantic.GoType), ", "))
	}
	kinds := map[jsontext.Kind]string{
		jsontext.KindString: "a string", jsontext.KindNumber: "a number", jsontext.KindTrue: "true", jsontext.KindFalse: "false",
		jsontext.KindBeginObject: "an object", jsontext.KindBeginArray: "a list",
	}
	got := kinds[semantic.JSONKind]
	if number := string(semantic.JSONValue); semantic.JSONKind == jsontext.KindNumber && len(number) <= maxShown {
		got = cmp.Or(number, got)
	}
	return fmt.Errorf("%s: must be %s, not %s", placeOf(semantic.JSONPointer), kindOfType(semantic.GoType), got)
}

// membersOf returns the names that the members of a struct have in JSON.
func membersOf(t reflect.Type) (names []string) {
	for _, field := range reflect.VisibleFields(t) {
		if name := field.Tag.Get("json"); name != "" {
			names = append(names, name)
		}
	}
	return names
}

// kindOfType returns what a Go type is called in JSON.
func kindOfType(t reflect.Type) string {
	switch t.Kind() {
	case reflect.Pointer:
		return kindOfType(t.Elem())
	case reflect.String:
		return "a string"
	case reflect.Bool:
		return "true or false"
	case reflect.Int:
		return "a whole number"
	case reflect.Map:
		return "an object whose members are lists of strings"
	case reflect.Slice:
		if t.Elem().Kind() == reflect.String {
			return "a list of strings"
		}
		return "a list of objects"
	}
	return "an object"
}

// placeOf returns a JSON Pointer as people write a place, and as jq does without the first dot:
// tokens[0].sha256[1].
func placeOf(p jsontext.Pointer) string {
	var place strings.Builder
	for name := range p.Tokens() {
		if _, err := strconv.ParseUint(name, 10, 32); err == nil {
			place.WriteString("[" + name + "]")
		} else {
			place.WriteString(memberPlace(name))
		}
	}
	if place.Len() == 0 {
		return "the file"
	}
	return strings.TrimPrefix(place.String(), ".")
}

// memberPlace returns the part of a place for a member: .name, or ["a name"].
func memberPlace(name string) string {
	isWord := name != "" && !slices.ContainsFunc([]byte(name), func(c byte) bool {
		return c != '_' && (c < 'a' || c > 'z') && (c < 'A' || c > 'Z') && (c < '0' || c > '9')
	})
	if quoted := shown(name); !isWord || quoted != strconv.Quote(name) { // long, or a token
		return "[" + quoted + "]"
	}
	return "." + name
}

const (
	maxShown    = 64      // bytes of a value in an error
	tokenPrefix = "pwst_" // of the tokens of the service; a file may contain one by mistake
)

// shown returns the beginning of a value of the file in quotes, and nothing of a token's secret
// part.
func shown(s string) string {
	end := min(len(s), maxShown)
	if i := strings.Index(s, tokenPrefix); i >= 0 {
		end = min(end, i+len(tokenPrefix))
	}
	if end == len(s) {
		return strconv.Quote(s)
	}
	return strconv.Quote(strings.ToValidUTF8(s[:end], "") + "…")
}

// each calls use with each element of a list and its place, until there is an error.
func each[T any](list string, elements []T, use func(place string, element *T) error) error {
	for i := range elements {
		if err := use(fmt.Sprintf("%s[%d]", list, i), &elements[i]); err != nil {
			return err
		}
	}
	return nil
}

// checkGlobs checks a list of globs. what says what it lists.
func checkGlobs(place string, globs []string, what string) error {
	if err := checkStrings(place, globs, what); err != nil {
		return err
	}
	return each(place, globs, func(place string, glob *string) error {
		if strings.Contains(*glob, "**") {
			return fmt.Errorf("%s: %s contains **, which means the same as *; write *", place, shown(*glob))
		}
		return nil
	})
}

// checkStrings checks that neither a list nor a string in it is empty. what says what it lists.
func checkStrings(place string, list []string, what string) error {
	if len(list) == 0 {
		return fmt.Errorf("%s: missing or empty; %s", place, what)
	}
	return each(place, list, func(place string, s *string) error {
		if *s == "" {
			return fmt.Errorf("%s: empty", place)
		}
		return nil
	})
}

// named returns the place of an entry with its name.
func named(place, name string) string { return place + " " + shown(name) }
