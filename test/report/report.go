// Package report prints what the tests counted as one table at the end of a run.
package report

import (
	"fmt"
	"io"
	"strings"
	"sync"
	"text/tabwriter"
)

// Table collects rows. It is safe for concurrent use.
type Table struct {
	Head []string

	mu   sync.Mutex
	rows [][]any
}

// Add adds a row, of as many cells as the head has.
func (t *Table) Add(row ...any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.rows = append(t.rows, row)
}

// Print writes the table, if it has any row.
func (t *Table) Print(w io.Writer) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.rows) == 0 {
		return
	}
	tw := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintf(tw, "\n%s\n", strings.Join(t.Head, "\t"))
	for _, row := range t.rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(tw, "\t")
			}
			fmt.Fprint(tw, cell)
		}
		fmt.Fprintln(tw)
	}
	tw.Flush()
}
