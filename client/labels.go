package client

import (
	"context"
	"encoding/json"
	"fmt"
	"net/http"
	"time"
)

// labelState is a label as the service describes it.
type labelState struct {
	Label     string    `json:"label"`
	BuildID   string    `json:"build_id"`
	Previous  string    `json:"previous"`
	ChangedAt time.Time `json:"changed_at"`
	By        string    `json:"by"`
}

var labelSetCommand = Command{
	Name: "label set", Summary: "create a label, or move it to a build", Args: "SITE LABEL BUILD",
	Details: `Makes the label name the build, and prints the build that it named before. The build must
exist. While a label names a build, the build can be neither deleted nor replaced.

If the response is lost, the command looks at the label before it tries again: it never moves
a label back that somebody else has moved since. It then exits with 6. A token without the
right "read" cannot look; the request is then repeated as it is.

Examples:
  pagewright-storage label set shop live 1042-1-3f2c9ab
  pagewright-storage label set shop live v2 --json | jq -r .previous`,
	min: 3, max: 3, run: labelSet,
}

var labelRemoveCommand = Command{
	Name: "label rm", Summary: "delete a label; its build stays", Args: "SITE LABEL",
	Details: `Deletes the label. It is no error if there is no such label.

Example:
  pagewright-storage label rm shop preview`,
	min: 2, max: 2, run: labelRemove,
}

var labelListCommand = Command{
	Name: "label list", Summary: "list the labels of a site", Args: "SITE",
	Details: `Lists the labels of a site with their builds, the builds before, when they were moved and by
whom. The list is empty if the site does not exist.

Examples:
  pagewright-storage label list shop
  pagewright-storage label list shop --json | jq -r '.labels[] | select(.label == "live").build_id'`,
	min: 1, max: 1, run: labelList,
}

var labelRollbackCommand = Command{
	Name: "label rollback", Summary: "move a label back to the build that it named before", Args: "SITE LABEL",
	Details: `Moves the label to the build that it named before, on the condition that nobody else moves it
meanwhile. Once is enough: a second rollback moves it forward again. To go further back, move
the label with "label set".

Exits with 3 if there is no such label, or the build before is gone, and with 6 if the label
named no build before, or somebody else has moved it.

Example:
  pagewright-storage label rollback shop live`,
	min: 2, max: 2, run: labelRollback,
}

func labelSet(ctx context.Context, c *call) error {
	site, name, build := c.args[0], c.args[1], c.args[2]
	if err := checkLabelArgs(site, name, build); err != nil {
		return err
	}
	l, err := setLabel(ctx, c.service, site, name, build)
	if err != nil {
		return err
	}
	return c.result(l, l.text(site))
}

// text describes the label in one line.
func (l labelState) text(site string) string {
	before := ""
	if l.Previous != "" {
		before = fmt.Sprintf(" (before: %s)", l.Previous)
	}
	return printable(fmt.Sprintf("%s: %s is %s%s", site, l.Label, l.BuildID, before))
}

func checkLabelArgs(site, name, build string) error {
	if err := checkID("site", site); err != nil {
		return err
	}
	if err := checkLabel(name); err != nil || build == "" {
		return err
	}
	return checkID("build", build)
}

// setLabel makes a label name a build. If others move it at the same time, the last one to
// begin wins, unless it is unknown who that is: then the error has the status exitConflict.
func setLabel(ctx context.Context, s *service, site, name, build string) (labelState, error) {
	for {
		condition, err := s.condition(ctx, http.MethodGet, labelPath(site, name))
		if err != nil {
			return labelState{}, err
		}
		l, lost, err := s.putLabel(ctx, site, name, build, condition)
		if lost || !hasStatus(err, http.StatusPreconditionFailed) {
			return l, err
		}
		// Somebody has moved it since it was read, so before this command moves it.
	}
}

// condition returns the condition under which a resource is still what it is now. It is empty if
// the resource cannot be read.
func (s *service) condition(ctx context.Context, method, path string) (http.Header, error) {
	reply, err := s.do(ctx, &request{method: method, path: path})
	switch {
	case err == nil && reply.header.Get("Etag") != "":
		return http.Header{"If-Match": {reply.header.Get("Etag")}}, nil
	case err == nil || hasStatus(err, http.StatusForbidden):
		return http.Header{}, nil
	case hasStatus(err, http.StatusNotFound):
		return http.Header{"If-None-Match": {"*"}}, nil
	}
	return nil, err
}

// putLabel moves a label if the condition holds, and finds out what happened if the response is
// lost. lost reports that a response was lost: if the condition fails then, the error tells where
// the label is.
func (s *service) putLabel(ctx context.Context, site, name, build string, condition http.Header) (l labelState, lost bool, err error) {
	r, err := jsonRequest(http.MethodPut, labelPath(site, name), map[string]string{"build_id": build})
	if err != nil {
		return l, false, err
	}
	for key, values := range condition {
		r.header[key] = values
	}
	for tries := s.newRetries(); ; {
		reply, err := s.once(ctx, r)
		if err == nil {
			l, err := reply.label(name, build)
			return l, lost, err
		}
		if lost && hasStatus(err, http.StatusPreconditionFailed) {
			l, err := s.whereIs(ctx, site, name, build)
			return l, lost, err
		}
		lost = lost || isTemporary(err)
		if err := tries.wait(ctx, err); err != nil {
			return l, lost, err
		}
	}
}

// whereIs returns the label if it names the build, which is then what a lost response said.
func (s *service) whereIs(ctx context.Context, site, name, build string) (l labelState, err error) {
	l, err = s.readLabel(ctx, site, name)
	switch {
	case hasStatus(err, http.StatusNotFound):
		return l, errorf(exitConflict, "the label %s was deleted meanwhile", name)
	case err == nil && l.BuildID != build:
		return l, errorf(exitConflict, "the label %s was moved to %s meanwhile", name, printable(l.BuildID))
	}
	return l, err
}

func (s *service) readLabel(ctx context.Context, site, name string) (l labelState, err error) {
	reply, err := s.do(ctx, &request{method: http.MethodGet, path: labelPath(site, name)})
	if err != nil {
		return l, err
	}
	return reply.label(name, "")
}

// label returns the label of the response, which must have that name; and name that build, unless
// build is empty.
func (r *reply) label(name, build string) (l labelState, err error) {
	if err := r.decode(&l); err != nil {
		return l, err
	}
	if l.Label != name || l.BuildID == "" || build != "" && l.BuildID != build {
		return l, r.foreign("which names the label and its build")
	}
	return l, nil
}

func labelRollback(ctx context.Context, c *call) error {
	site, name := c.args[0], c.args[1]
	if err := checkLabelArgs(site, name, ""); err != nil {
		return err
	}
	reply, err := c.service.do(ctx, &request{method: http.MethodGet, path: labelPath(site, name)})
	if err != nil {
		return err
	}
	now, err := reply.label(name, "")
	switch {
	case err != nil:
		return err
	case now.Previous == "":
		return errorf(exitConflict, "cannot roll back: the label %s named no build before %s", name, printable(now.BuildID))
	}
	l, _, err := c.service.putLabel(ctx, site, name, now.Previous, http.Header{"If-Match": {reply.header.Get("Etag")}})
	if err != nil {
		return err
	}
	return c.result(l, l.text(site))
}

func labelRemove(ctx context.Context, c *call) error {
	site, name := c.args[0], c.args[1]
	if err := checkLabelArgs(site, name, ""); err != nil {
		return err
	}
	if err := c.service.remove(ctx, labelPath(site, name), labelPath(site, name), http.MethodGet); err != nil {
		return err
	}
	return c.result(map[string]string{"site_id": site, "label": name}, fmt.Sprintf("%s: removed the label %s", site, name))
}

func labelList(ctx context.Context, c *call) error {
	site := c.args[0]
	if err := checkID("site", site); err != nil {
		return err
	}
	reply, err := c.service.do(ctx, &request{method: http.MethodGet, path: joinPath("sites", site, "labels")})
	if err != nil {
		return err
	}
	var all struct{ Labels []labelState }
	if err := reply.decode(&all); err != nil {
		return err
	}
	if all.Labels == nil {
		return reply.foreign("which has a list of labels")
	}
	if len(all.Labels) == 0 {
		c.note("site %s has no labels", site)
	}
	t := table{}
	t.row("LABEL", "BUILD", "BEFORE", "CHANGED", "BY")
	for _, l := range all.Labels {
		t.row(l.Label, l.BuildID, l.Previous, formatTime(l.ChangedAt), l.By)
	}
	return c.list(json.RawMessage(reply.body), t)
}
