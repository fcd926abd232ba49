package client

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/spf13/pflag"
)

var logCommand = Command{
	Name: "log", Summary: "append an entry to the log of a build", Args: "SITE BUILD ACTION STATUS",
	Details: `Appends an entry, once, however often the request is repeated. The build need not exist. You
choose the values of ACTION and STATUS, such as "deploy" and "ok"; the service adds the time.

Examples:
  pagewright-storage log shop v2 deploy ok
  pagewright-storage log shop v3 build failed --metadata '{"step":"npm test","took_ms":1840}'`,
	min: 4, max: 4, run: appendEntry,
	flags: func(fs *pflag.FlagSet) {
		fs.String("metadata", "", "a `JSON` object to keep with the entry")
	},
}

// logEntry is the body of a POST to the log of a site.
type logEntry struct {
	BuildID  string          `json:"build_id"`
	Action   string          `json:"action"`
	Status   string          `json:"status"`
	Metadata json.RawMessage `json:"metadata,omitempty"`
}

func appendEntry(ctx context.Context, c *call) error {
	site := c.args[0]
	e := logEntry{BuildID: c.args[1], Action: c.args[2], Status: c.args[3]}
	if err := checkID("site", site); err != nil {
		return err
	}
	if err := e.check(); err != nil {
		return err
	}
	if c.given("metadata") {
		e.Metadata = json.RawMessage(c.text("metadata"))
		if text := bytes.TrimLeft(e.Metadata, " \t\r\n"); !json.Valid(e.Metadata) || !bytes.HasPrefix(text, []byte("{")) {
			return usagef("--metadata must be a JSON object, such as '{\"step\":\"test\"}'")
		}
	}
	id, err := appendLog(ctx, c.service, site, e, newIdempotencyKey())
	if err != nil {
		return err
	}
	return c.result(map[string]string{"site_id": site, "build_id": e.BuildID, "entry_id": id},
		printable(fmt.Sprintf("%s/%s: %s %s", site, e.BuildID, e.Action, e.Status)))
}

// check returns an error if the service cannot take the entry.
func (e logEntry) check() error {
	switch err := checkID("build", e.BuildID); {
	case err != nil:
		return err
	case e.Action == "" || e.Status == "":
		return usagef("the action and the status of a log entry must not be empty")
	}
	return nil
}

// appendLog appends an entry, once for the same key, and returns its id.
func appendLog(ctx context.Context, s *service, site string, e logEntry, key string) (entryID string, err error) {
	r, err := jsonRequest(http.MethodPost, joinPath("sites", site, "logs"), e)
	if err != nil {
		return "", err
	}
	r.header.Set("Idempotency-Key", key)
	reply, err := s.do(ctx, r)
	if err != nil {
		return "", err
	}
	var appended struct {
		ID string `json:"entry_id"`
	}
	if err = reply.decode(&appended); err == nil && appended.ID == "" {
		err = reply.foreign("which has an entry_id")
	}
	return appended.ID, err
}

func newIdempotencyKey() string { return rand.Text() }
