package main

import (
	"context"
	"io"
	"log/slog"
	"net/url"
	"strconv"
	"strings"
	"sync"
	"time"
	"unicode/utf8"
)

// maxLoggedText is the maximum size in bytes of a text in an access line that clients
// choose or cause.
const maxLoggedText = 256

// accessLog writes the lines of requests.
type accessLog struct {
	w   io.Writer
	cfg *Config
}

var lineBuffers = sync.Pool{New: func() any { b := make([]byte, 0, 1<<10); return &b }}

// write writes the line of a request that ended at now, in one Write.
func (a *accessLog) write(x *requestRecord, now time.Time) {
	buf := lineBuffers.Get().(*[]byte)
	defer lineBuffers.Put(buf)
	line, ok := a.appendLine((*buf)[:0], x, now)
	*buf = line
	if ok {
		_, _ = a.w.Write(line)
		return
	}
	_ = lineHandler(a.cfg, a.w).Handle(context.Background(), accessRecord(x, now))
}

// optional returns the members that not every line has. Their texts may be long.
func (x *requestRecord) optional() [10]struct{ name, value string } {
	return [...]struct{ name, value string }{
		{"peer", x.peer}, {"user_agent", x.agent}, {"build", masked(x.build)}, {"outcome", string(x.outcome)}, {"error", masked(clip(x.refused))}, {"cut", x.cut},
		{"server_request_id", x.serverID}, {"actor", x.actor}, {"actor_kind", x.actorKind}, {"credential", x.credential},
	}
}

// known returns the method and the path, which a malformed request may not have.
func (x *requestRecord) known() [2]struct{ name, value string } {
	return [...]struct{ name, value string }{{"method", x.method}, {"path", x.path}}
}

// clip cuts s to at most maxLoggedText bytes, between two characters.
func clip[T string | []byte](s T) string {
	if len(s) <= maxLoggedText {
		return string(s)
	}
	n := maxLoggedText
	for n > maxLoggedText-utf8.UTFMax && !utf8.RuneStart(s[n]) {
		n--
	}
	return string(s[:n])
}

// loggedTarget returns a request target as logs may have it: without a user and a password,
// without its query if the name of an argument contains "token", and otherwise masked.
// Credentials belong into a header, but clients put them into URLs too.
func loggedTarget[T string | []byte](target T) string {
	text := string(target)
	if scheme, rest, absolute := strings.Cut(text, "://"); absolute && text[0] != '/' {
		// A password that is not encoded may have any character: all before the last @ goes.
		text = scheme + "://" + rest[strings.LastIndexByte(rest, '@')+1:]
	}
	if path, query, found := strings.Cut(text, "?"); found && namesToken(query) {
		text = path
	}
	return maskedTarget(text)
}

// namesToken reports whether the name of an argument of a query contains "token".
func namesToken(query string) bool {
	for pair := range strings.SplitSeq(query, "&") {
		name, _, _ := strings.Cut(pair, "=")
		if decoded, err := url.QueryUnescape(name); err == nil {
			name = decoded
		}
		if strings.Contains(strings.ToLower(name), "token") {
			return true
		}
	}
	return false
}

// accessRecord returns the line of a request for slog.
func accessRecord(x *requestRecord, now time.Time) slog.Record {
	r := slog.NewRecord(now, slog.LevelInfo, "request", 0)
	r.AddAttrs(slog.String("request_id", x.id))
	for _, m := range x.known() {
		if m.value != "" {
			r.AddAttrs(slog.String(m.name, m.value))
		}
	}
	r.AddAttrs(slog.Int("status", x.status), slog.Int64("bytes_in", x.in), slog.Int64("bytes_out", x.out),
		slog.Any("duration_ms", millis(now.Sub(x.start))), slog.String("remote", x.remote))
	for _, m := range x.optional() {
		if m.value != "" {
			r.AddAttrs(slog.String(m.name, m.value))
		}
	}
	return r
}

// appendLine appends the line that slog makes of accessRecord, at a tenth of the cost. It
// returns false if a text has characters that must be escaped: slog does that.
func (a *accessLog) appendLine(b []byte, x *requestRecord, now time.Time) (line []byte, ok bool) {
	l := members{b: b, text: a.cfg.LogFormat == "text"}
	if l.text {
		l.b = now.AppendFormat(append(l.b, "time="...), "2006-01-02T15:04:05.000Z07:00")
		l.b = append(l.b, " level=INFO msg=request"...)
	} else {
		l.b = now.AppendFormat(append(l.b, `{"time":"`...), time.RFC3339Nano)
		l.b = append(l.b, `","level":"INFO","msg":"request"`...)
	}
	l.string("request_id", x.id)
	for _, m := range x.known() {
		if m.value != "" {
			l.string(m.name, m.value)
		}
	}
	l.int("status", int64(x.status))
	l.int("bytes_in", x.in)
	l.int("bytes_out", x.out)
	l.name("duration_ms")
	l.b = millis(now.Sub(x.start)).append(l.b)
	l.string("remote", x.remote)
	for _, m := range x.optional() {
		if m.value != "" {
			l.string(m.name, m.value)
		}
	}
	if !l.text {
		l.b = append(l.b, '}')
	}
	return append(l.b, '\n'), !l.escapes
}

// members appends the members of a line.
type members struct {
	b       []byte
	text    bool // name=value, not JSON
	escapes bool // a text must be escaped
}

func (m *members) name(name string) {
	if m.text {
		m.b = append(append(append(m.b, ' '), name...), '=')
	} else {
		m.b = append(append(append(m.b, `,"`...), name...), `":`...)
	}
}

func (m *members) int(name string, n int64) {
	m.name(name)
	m.b = strconv.AppendInt(m.b, n, 10)
}

func (m *members) string(name, s string) {
	m.name(name)
	quote := !m.text || s == ""
	for i := range len(s) {
		switch c := s[i]; {
		case c < ' ', c > '~', c == '"', c == '\\':
			m.escapes = true
			return
		case c == ' ', c == '=':
			quote = true
		}
	}
	if quote {
		m.b = append(append(append(m.b, '"'), s...), '"')
	} else {
		m.b = append(m.b, s...)
	}
}
