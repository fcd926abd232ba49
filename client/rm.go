package client

import (
	"context"
	"fmt"
	"net/http"
)

var removeCommand = Command{
	Name: "rm", Summary: "delete a build with its log", Args: "SITE BUILD",
	Details: `Deletes the build, its digest and its log. There is no way back. It is no error if there is no
such build. A build that has a label is not deleted: the command exits with 6.

If the response is lost, the request is repeated only as long as the build is the one that was
there at first: a build that somebody else has stored under the id since is not deleted (6).

Example:
  pagewright-storage rm shop 1041-1-77aa01c`,
	min: 2, max: 2, run: remove,
}

func remove(ctx context.Context, c *call) error {
	site, build := c.args[0], c.args[1]
	if err := checkID("site", site); err != nil {
		return err
	}
	if err := checkID("build", build); err != nil {
		return err
	}
	if err := c.service.remove(ctx, versionPath(site, build), artifactPath(site, build), http.MethodHead); err != nil {
		return err
	}
	return c.result(map[string]string{"site_id": site, "build_id": build}, fmt.Sprintf("removed %s/%s", site, build))
}

// remove deletes what is at path, if it is what was there at first. A request for seen, by method,
// returns the ETag of it.
func (s *service) remove(ctx context.Context, path, seen, method string) error {
	condition, err := s.condition(ctx, method, seen)
	if err != nil {
		return err
	}
	lost := false
	for tries := s.newRetries(); ; {
		reply, err := s.once(ctx, &request{method: http.MethodDelete, path: path, header: condition})
		switch {
		case err == nil && reply.status != http.StatusNoContent: // such as a login page
			return reply.foreign(fmt.Sprintf("which has the status 204, not %d", reply.status))
		case err == nil:
			return nil
		}
		if hasStatus(err, http.StatusPreconditionFailed) {
			now, failed := s.condition(ctx, method, seen)
			switch {
			case failed != nil:
				return failed
			case !lost || now.Get("If-None-Match") == "" || condition.Get("If-None-Match") != "":
				return errorf(exitConflict, "not removed: somebody else has changed /%s meanwhile", seen)
			}
			condition = now // an attempt whose response was lost has removed it; its log may still be there
			continue
		}
		lost = lost || isTemporary(err)
		if err := tries.wait(ctx, err); err != nil {
			return err
		}
	}
}
