package client

import (
	"io"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/dustin/go-humanize"
)

// printable returns s with the characters that are not printable escaped: a terminal must not
// obey what a file name or a service says.
func printable(s string) string {
	var b strings.Builder
	for i := 0; i < len(s); {
		r, n := utf8.DecodeRuneInString(s[i:])
		if char := s[i : i+n]; strconv.IsPrint(r) && (r != utf8.RuneError || n > 1) {
			b.WriteString(char)
		} else {
			b.WriteString(strings.Trim(strconv.Quote(char), `"`))
		}
		i += n
	}
	return b.String()
}

// formatSize returns a size for people.
func formatSize(n int64) string { return humanize.IBytes(uint64(max(0, n))) }

// formatTime returns a time for people: in UTC, to the second. The zero time is empty.
func formatTime(t time.Time) string {
	if t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02T15:04:05Z")
}

// table is a list for people: rows of cells.
type table struct{ rows [][]string }

// row adds a row. Its cells may have any characters; an empty one is shown as "-".
func (t *table) row(cells ...string) { t.rows = append(t.rows, cells) }

// print writes the table, in columns.
func (t *table) print(w io.Writer) error {
	tabs := tabwriter.NewWriter(w, 0, 8, 2, ' ', 0)
	for _, row := range t.rows {
		for i, cell := range row {
			if i > 0 {
				io.WriteString(tabs, "\t") // Flush returns its error
			}
			if cell == "" {
				cell = "-"
			}
			io.WriteString(tabs, printable(cell))
		}
		io.WriteString(tabs, "\n")
	}
	return tabs.Flush()
}

// list prints the result of a command that lists something: value with --json, otherwise t.
func (c *call) list(value any, t table) error {
	if c.json {
		return c.result(value, "")
	}
	return t.print(c.Stdout)
}
