package main

import (
	"cmp"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"github.com/valyala/fasthttp"
)

const (
	removedAtOnce  = 100              // builds that a store removes in one call
	siteDeleteTime = 30 * time.Second // how long one request deletes a site: less than proxies wait
)

// deleteVersion removes a build with its log. The audit line always says that it was deleted: where
// there was no build, there may have been a log.
func (a *api) deleteVersion(_ *fasthttp.RequestCtx, d deletion) (response, error) {
	place, err := a.acquireWrite(d.conn, d.siteID, d.buildID)
	if err != nil {
		return response{}, err
	}
	defer place.release()
	start := time.Now()
	err = ErrUnsupported
	if b, ok := a.backend.(VersionDeleter); ok {
		err = b.DeleteVersions(d.siteID, []VersionDeletion{{BuildID: d.buildID, Artifact: d.cond}})[0]
	}
	a.metrics.call(callDelete, start, err)
	if err != nil {
		return response{}, &operationError{operation: "delete the version", siteID: d.siteID, buildID: d.buildID, err: err}
	}
	return response{status: fasthttp.StatusNoContent}, nil
}

// siteDeletion is a DELETE of a site.
type siteDeletion struct {
	siteRequest
	labels bool // its labels as well
}

func (a *api) parseSiteDeletion(ctx *fasthttp.RequestCtx) (d siteDeletion, err error) {
	if d.siteRequest, err = parseSiteRequest(ctx); err != nil {
		return d, err
	}
	if a.cfg.AppendOnly {
		return d, newHTTPError(fasthttp.StatusForbidden, "this store is append-only: sites cannot be deleted")
	}
	if err := checkQuery(ctx, "confirm", "labels"); err != nil {
		return d, err
	}
	// A plus sign that the client did not encode means a space, which no id has.
	if confirm := strings.ReplaceAll(string(ctx.QueryArgs().Peek("confirm")), " ", "+"); confirm != d.siteID {
		return d, badRequest("to delete the whole site, repeat its id: confirm=%s", d.siteID)
	}
	if cond, err := precondition(ctx); err != nil || !cond.IsZero() {
		return d, badRequest("a site has no ETag and no date, so it cannot be deleted on a condition")
	}
	if d.labels, err = queryBool(ctx, "labels", false); err == nil && d.labels && len(ctx.QueryArgs().Peek("labels")) == 0 {
		err = badRequest("labels must be true or false") // an unset variable of a script must not delete what is live
	}
	return d, err
}

// siteDeleted is the JSON of the response: what a request has removed.
type siteDeleted struct {
	Status   string `json:"status"` // "success"
	SiteID   string `json:"site_id"`
	Labels   int    `json:"labels"`
	Builds   int    `json:"builds"`
	Logs     int    `json:"logs"`
	Bytes    int64  `json:"bytes"`
	Complete bool   `json:"complete"` // else the time was over: repeat
}

// deleteSite removes the labels and the versions of a site. What arrives meanwhile may stay.
func (a *api) deleteSite(_ *fasthttp.RequestCtx, d siteDeletion) (response, error) {
	place, err := a.acquireSiteDeletion(d.conn, d.siteID)
	if err != nil {
		return response{}, err
	}
	defer place.release()
	done := siteDeleted{Status: "success", SiteID: d.siteID}
	err = a.removeSite(d, &done)
	d.conn.rec.audited = []any{slog.Int("labels", done.Labels), slog.Int("builds", done.Builds), slog.Int("logs", done.Logs),
		slog.Int64("bytes", done.Bytes), slog.Bool("complete", done.Complete)}
	if failureOfStore(err) != nil {
		err = &operationError{operation: "delete the site", siteID: d.siteID, err: &partlyDeleted{done, err}}
	}
	return jsonResponse(fasthttp.StatusOK, done), err
}

// partlyDeleted is the error of a site of which a part may have been deleted. Clients see it.
type partlyDeleted struct {
	done siteDeleted
	err  error
}

func (e *partlyDeleted) Error() string     { return e.text(e.err.Error()) }
func (e *partlyDeleted) Unwrap() error     { return e.err }
func (e *partlyDeleted) forClient() string { return e.text(reasonOf(e.err)) }

func (e *partlyDeleted) text(reason string) string {
	return fmt.Sprintf("%s; deleted so far: labels: %d, builds: %d, logs: %d", reason, e.done.Labels, e.done.Builds, e.done.Logs)
}

// removeSite deletes a site until the time is over, and counts in done. It lists each version once,
// the newest first, so that an upload meanwhile does not make it endless.
func (a *api) removeSite(d siteDeletion, done *siteDeleted) error {
	store, ok := a.backend.(VersionDeleter)
	if !ok {
		return ErrUnsupported
	}
	until := time.Now().Add(a.siteDeleteTime)
	if err := a.removeLabels(d, done); err != nil {
		return err
	}
	begun := false
	for page, err := range a.pages(d.siteRequest) {
		if err != nil {
			return err
		}
		for batch := range slices.Chunk(page.Versions, removedAtOnce) {
			if begun && (time.Now().After(until) || a.stopping()) {
				return nil
			}
			begun = true // each request removes something, however long the list took
			if err := a.removeVersions(store, d.siteID, batch, done); err != nil {
				return err
			}
		}
	}
	done.Complete = true
	return nil
}

// removeLabels removes the labels of a site, or refuses to if the client did not ask for it.
func (a *api) removeLabels(d siteDeletion, done *siteDeleted) error {
	labels, err := a.labelsOf(d.siteID)
	if err != nil || len(labels) == 0 {
		return err
	}
	if !d.labels {
		names := make([]string, len(labels))
		for i, l := range labels {
			names[i] = l.Name
		}
		return newHTTPError(fasthttp.StatusConflict, "the site has labels (%s): delete them first, or send labels=true", strings.Join(names, ", "))
	}
	for _, l := range labels {
		if err := a.removeLabel(a.backend.(LabelKeeper), d.siteID, l.Name, Precondition{}); err != nil {
			return err
		}
		done.Labels++
	}
	return nil
}

// removeVersions removes some versions of a site, and counts them in done.
func (a *api) removeVersions(store VersionDeleter, siteID string, versions []*Version, done *siteDeleted) (err error) {
	builds := make([]VersionDeletion, len(versions))
	for i, v := range versions {
		builds[i].BuildID = v.BuildID
	}
	start := time.Now()
	for i, failed := range store.DeleteVersions(siteID, builds) {
		if failed != nil {
			err = cmp.Or(err, failed)
			continue
		}
		v := versions[i]
		if v.SizeBytes > 0 {
			done.Builds++
			done.Bytes += v.SizeBytes
		}
		if v.Stored != nil || len(v.Logs) > 0 || v.LogsError != "" {
			done.Logs++
		}
	}
	a.metrics.call(callRemove, start, err)
	return err
}
