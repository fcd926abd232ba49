package client

import (
	"context"
	"encoding/json"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/pflag"
)

// pageSize is how many builds or sites are asked for at once.
const pageSize = 1000

var versionsCommand = Command{
	Name: "versions", Summary: "list the builds of a site", Args: "SITE",
	Details: `Lists the builds of a site, the newest first, with their sizes, labels and the last entry of
their logs. A build that has only a log, such as one that failed, has no size. The list is empty
if the site does not exist.

Examples:
  pagewright-storage versions shop --limit 10
  pagewright-storage versions shop --json | jq -r '.versions[] | select(.labels == []).build_id'`,
	min: 1, max: 1, run: versions,
	flags: func(fs *pflag.FlagSet) {
		fs.Uint("limit", 0, "list only the newest `N` builds; 0: all")
	},
}

// version is a build in a list.
type version struct {
	BuildID   string    `json:"build_id"`
	SizeBytes int64     `json:"size_bytes"`
	CreatedAt time.Time `json:"created_at"`
	Labels    []string  `json:"labels"`
	LogsError string    `json:"logs_error"`
	Logs      []struct {
		Action    string    `json:"action"`
		Status    string    `json:"status"`
		Timestamp time.Time `json:"timestamp"`
	} `json:"logs"`
}

func versions(ctx context.Context, c *call) error {
	site := c.args[0]
	if err := checkID("site", site); err != nil {
		return err
	}
	limit, _ := strconv.Atoi(c.text("limit"))
	all := []json.RawMessage{}
	t := table{}
	t.row("BUILD", "SIZE", "UPLOADED", "LABELS", "LAST LOG ENTRY", "AT")
	err := c.service.pages(ctx, joinPath("sites", site, "versions"), url.Values{"labels": {"true"}}, limit, func(reply *reply) (int, error) {
		var page struct{ Versions []json.RawMessage }
		if err := reply.decode(&page); err != nil {
			return 0, err
		}
		if page.Versions == nil {
			return 0, reply.foreign("which has a list of versions")
		}
		for _, text := range page.Versions {
			var v version
			if err := json.Unmarshal(text, &v); err != nil {
				return 0, reply.foreign("it is other JSON")
			}
			t.row(v.cells()...)
		}
		all = append(all, page.Versions...)
		return len(page.Versions), nil
	})
	if err != nil {
		return err
	}
	if len(all) == 0 {
		c.note("site %s has no builds", site)
	}
	return c.list(map[string]any{"site_id": site, "count": len(all), "versions": all}, t)
}

// cells returns the row of a build in the list for people.
func (v *version) cells() []string {
	size, last, at := "", "", ""
	if v.SizeBytes > 0 {
		size = formatSize(v.SizeBytes)
	}
	if n := len(v.Logs); n > 0 {
		last, at = v.Logs[n-1].Action+" "+v.Logs[n-1].Status, formatTime(v.Logs[n-1].Timestamp)
	}
	if v.LogsError != "" {
		last = "cannot be read"
	}
	return []string{v.BuildID, size, formatTime(v.CreatedAt), strings.Join(v.Labels, " "), last, at}
}

// pages reads a list page by page, and passes each page to add, which returns how many items it
// has. It ends after limit items; 0: at the end of the list.
func (s *service) pages(ctx context.Context, path string, query url.Values, limit int, add func(*reply) (int, error)) error {
	for left := limit; ; {
		size := pageSize
		if limit > 0 {
			size = min(size, left)
		}
		query.Set("limit", strconv.Itoa(size))
		reply, err := s.do(ctx, &request{method: http.MethodGet, path: path, query: query})
		if err != nil {
			return err
		}
		var page struct {
			Next string `json:"next_cursor"`
		}
		if err := reply.decode(&page); err != nil {
			return err
		}
		n, err := add(reply)
		if err != nil {
			return err
		}
		left -= n
		switch {
		case page.Next == "" || limit > 0 && left <= 0:
			return nil
		case page.Next == query.Get("cursor"):
			return errorf(exitFailure, "GET /%s: the service sent the same page twice", path)
		}
		query.Set("cursor", page.Next)
	}
}
