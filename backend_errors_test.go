package main

import (
	"fmt"
	"go/ast"
	"go/parser"
	"go/token"
	"log/slog"
	"strings"
	"testing"
)

func TestErrorClasses(t *testing.T) {
	const none = slog.Level(0)
	rows := map[string]bool{}
	for _, c := range []struct {
		name   string
		err    error
		status int
		kind   string
		log    slog.Level
		reason string
	}{
		{"errTooLarge", errTooLarge, 413, "client", none, "the body is too large"},
		{"errEmptyBody", errEmptyBody, 400, "client", none, "the body is empty"},
		{"errStalled", errStalled, 408, "client", none, "the client stalled"},
		{"tooSlow", tooSlow(7), 408, "client", none, "the client sent less than 7 bytes a second over the last minute"},
		{"errBodyCut", errBodyCut, 400, "client", none, "the body was cut short"},
		{"errBadChunk", errBadChunk, 400, "client", none, "the body has a malformed chunk"},
		{"errShutDown", errShutDown, 503, "shutdown", slog.LevelWarn, "the service is shutting down"},
		{"errRevoked", errRevoked, 503, "busy", slog.LevelWarn, errRevoked.Error()},
		{"ErrNotFound", ErrNotFound, 404, "not_found", none, "not found"},
		{"ErrPrecondition", ErrPrecondition, 412, "precondition", none, "precondition failed"},
		{"errNoMatch", errNoMatch, 412, "precondition", none, "precondition failed"},
		{"errModified", errModified, 412, "precondition", none, "precondition failed"},
		{"errMatch", errMatch, 412, "precondition", none, "precondition failed"},
		{"errExists", errExists, 412, "precondition", none, "precondition failed"},
		{"ErrNoSpace", ErrNoSpace, 507, "no_space", slog.LevelError, "no space left in the store"},
		{"ErrReadOnly", ErrReadOnly, 503, "read_only", slog.LevelError, "the store is read-only"},
		{"errDigest", errDigest, 400, "digest", none, "the body does not match its digest"},
		{"digestError", &digestError{"sha-256", []byte{1}, []byte{2}}, 400, "digest", none, "the sha-256 of the body is 02, but the client announced 01"},
		{"ErrTooLarge", ErrTooLarge, 413, "client", none, "the build is too large for the store"},
		{"tooLargeError", &tooLargeError{"larger than 7"}, 413, "client", none, "larger than 7"},
		{"ErrLogFull", ErrLogFull, 413, "log_full", none, "the log has reached its size limit"},
		{"ErrKeyReused", ErrKeyReused, 422, "key_reused", none, ErrKeyReused.Error()},
		{"ErrDamaged", ErrDamaged, 500, "damaged", slog.LevelError, ErrDamaged.Error()},
		{"ErrUnavailable", ErrUnavailable, 503, "unavailable", slog.LevelError, ErrUnavailable.Error()},
		{"ErrLocked", ErrLocked, 503, "unavailable", slog.LevelError, "the build is locked by another operation"},
		{"ErrBusy", ErrBusy, 503, "busy", slog.LevelWarn, "too many requests at once"},
		{"ErrDenied", ErrDenied, 502, "denied", slog.LevelError, "the store denied access"},
		{"ErrUnsupported", ErrUnsupported, 501, "unsupported", slog.LevelError, "not supported by this store"},
		{"ErrBadCursor", ErrBadCursor, 400, "client", none, "invalid cursor"},
		{"errRange", errRange, 500, "internal", slog.LevelError, "internal error"},
		{"ErrOccupied", ErrOccupied, 409, "occupied", slog.LevelWarn, ErrOccupied.Error()},
		{"ErrOccupied of a read", fmt.Errorf("%w: %w", ErrNotFound, ErrOccupied), 404, "not_found", slog.LevelWarn, "not found"},
		{"ErrOccupied in the place of the store", fmt.Errorf("%w: %w", ErrUnavailable, ErrOccupied), 503, "unavailable", slog.LevelError, ErrUnavailable.Error()},
		{"ErrNotFound with a body that is too large", fmt.Errorf("%w: %w", ErrNotFound, errTooLarge), 413, "client", none, "the body is too large"},
		{"any other", fmt.Errorf("/secret/path"), 500, "internal", slog.LevelError, "internal error"},
	} {
		rows[c.name] = true
		for _, err := range []error{c.err, fmt.Errorf(`cannot write "/secret/path": %w`, c.err)} {
			got := classify(err)
			if got.status != c.status || got.kind != c.kind || got.log != c.log || reasonOf(err) != c.reason || errorKind(err) != c.kind {
				t.Errorf("%s: %d %s %v %q, want %d %s %v %q", c.name, got.status, got.kind, got.log, reasonOf(err), c.status, c.kind, c.log, c.reason)
			}
		}
	}
	for _, file := range []string{"backend_errors.go", "backend_body.go", "backend_precondition.go"} {
		for _, name := range declaredErrors(t, file) {
			if !rows[name] {
				t.Errorf("%s has no line in this test", name)
			}
		}
	}
}

// declaredErrors returns the names of the error variables of a file.
func declaredErrors(t *testing.T, file string) (names []string) {
	t.Helper()
	f, err := parser.ParseFile(token.NewFileSet(), file, nil, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range f.Decls {
		g, ok := d.(*ast.GenDecl)
		if !ok || g.Tok != token.VAR {
			continue
		}
		for _, spec := range g.Specs {
			for _, name := range spec.(*ast.ValueSpec).Names {
				if n := name.Name; strings.HasPrefix(strings.ToLower(n), "err") && n != "errorClasses" {
					names = append(names, n)
				}
			}
		}
	}
	if len(names) == 0 {
		t.Fatal("no errors are declared in " + file)
	}
	return names
}
