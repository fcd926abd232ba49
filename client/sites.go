package client

import (
	"context"
	"encoding/json"
	"net/url"

	"github.com/spf13/pflag"
)

var sitesCommand = Command{
	Name: "sites", Summary: "list the sites", Args: "",
	Details: `Lists the sites that have a build, a log or a label, one in a line. With access control these
are the sites that the token may read.

Examples:
  pagewright-storage sites
  pagewright-storage sites --prefix preview- --json | jq -r '.sites[].site_id'`,
	run: sites,
	flags: func(fs *pflag.FlagSet) {
		fs.String("prefix", "", "list only the sites whose ids begin with `P`")
	},
}

func sites(ctx context.Context, c *call) error {
	query := url.Values{}
	if prefix := c.text("prefix"); prefix != "" {
		query.Set("prefix", prefix)
	}
	all := []json.RawMessage{}
	t := table{}
	err := c.service.pages(ctx, "sites", query, 0, func(reply *reply) (int, error) {
		var page struct{ Sites []json.RawMessage }
		if err := reply.decode(&page); err != nil {
			return 0, err
		}
		if page.Sites == nil {
			return 0, reply.foreign("which has a list of sites")
		}
		for _, text := range page.Sites {
			var site struct {
				ID string `json:"site_id"`
			}
			if err := json.Unmarshal(text, &site); err != nil {
				return 0, reply.foreign("it is other JSON")
			}
			t.row(site.ID)
		}
		all = append(all, page.Sites...)
		return len(page.Sites), nil
	})
	if err != nil {
		return err
	}
	if len(all) == 0 {
		if prefix := query.Get("prefix"); prefix != "" {
			c.note("there are no sites whose ids begin with %s", prefix)
		} else {
			c.note("there are no sites")
		}
	}
	return c.list(map[string]any{"sites": all}, t)
}
