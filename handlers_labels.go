package main

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"time"

	"github.com/go-json-experiment/json/jsontext"
	"github.com/valyala/fasthttp"
)

// maxLabelBody is the maximum size in bytes of the body of a PUT of a label.
const maxLabelBody = 4 << 10

// labelJSON is the JSON of a label.
type labelJSON struct {
	Label     string    `json:"label"`
	BuildID   string    `json:"build_id"`
	Previous  string    `json:"previous"`
	ChangedAt time.Time `json:"changed_at"`
	By        string    `json:"by"`
}

func jsonOfLabel(l Label) labelJSON {
	return labelJSON{l.Name, l.BuildID, l.Previous, l.ChangedAt.UTC(), l.By}
}

// labelRequest is a request for a label.
type labelRequest struct {
	conn          *conn
	keeper        LabelKeeper
	siteID, label string
	cond          Precondition
	body          jsonBody // of a PUT
}

// parseLabelRequest returns what the path and the header of a request for a label say.
func (a *api) parseLabelRequest(ctx *fasthttp.RequestCtx) (p labelRequest, err error) {
	p.conn = connOf(ctx)
	if p.siteID, p.label, err = labelOfPath(ctx); err != nil {
		return p, err
	}
	if p.cond, err = precondition(ctx); err != nil {
		return p, err
	}
	p.keeper, err = a.labelKeeper(p.siteID)
	return p, err
}

// labelKeeper returns the store, if it keeps labels.
func (a *api) labelKeeper(siteID string) (LabelKeeper, error) {
	if keeper, ok := a.backend.(LabelKeeper); ok {
		return keeper, nil
	}
	return nil, &operationError{operation: "use labels", siteID: siteID, err: ErrUnsupported}
}

// budgetKey is what the places of changes of the label are counted under. It is no id of a build.
func (p *labelRequest) budgetKey() string { return "labels/" + p.label }

// failed returns the error of an operation that failed with err.
func (p *labelRequest) failed(operation, buildID string, err error) error {
	return &operationError{operation: operation, siteID: p.siteID, buildID: buildID, err: err}
}

func (a *api) parseMove(ctx *fasthttp.RequestCtx) (p labelRequest, err error) {
	if p, err = a.parseLabelRequest(ctx); err != nil {
		return p, err
	}
	p.body, err = a.announcedBody(ctx, "label", maxLabelBody)
	return p, err
}

// putLabel moves a label to the build that the body names, or creates it.
func (a *api) putLabel(ctx *fasthttp.RequestCtx, p labelRequest) (response, error) {
	body, memory, err := a.receive(ctx, p.body, p.siteID)
	if err != nil {
		return response{}, err
	}
	defer memory.release()
	buildID, err := parseMoveBody(body)
	if err != nil {
		return response{}, badRequest("%v", err)
	}
	rec := &p.conn.rec
	rec.build = buildID
	place, err := a.acquireWrite(p.conn, p.siteID, p.budgetKey())
	if err != nil {
		return response{}, err
	}
	defer place.release()
	var outcome Outcome
	p.cond.Outcome = &outcome
	start := time.Now()
	l, created, err := p.keeper.MoveLabel(p.siteID, LabelMove{Label: p.label, BuildID: buildID, By: clip(rec.actor), Cond: p.cond})
	a.metrics.call(callMoveLabel, start, err)
	if errors.Is(err, ErrNotFound) && !errors.Is(err, ErrOccupied) {
		err = &noBuildError{p.siteID, buildID, err}
	}
	if err != nil {
		return response{}, p.failed("move the label", buildID, err)
	}
	status := fasthttp.StatusOK
	switch {
	case created:
		status, rec.outcome = fasthttp.StatusCreated, outcomeCreated
	case outcome == outcomeSame:
		rec.outcome = outcomeSame
	default:
		rec.outcome = outcomeMoved
	}
	r := jsonResponse(status, jsonOfLabel(l))
	r.etag = l.ETag()
	return r, nil
}

// parseMoveBody returns the build that the body of a PUT names. Other members are refused: a
// misspelt condition must not be ignored.
func parseMoveBody(body []byte) (buildID string, err error) {
	err = parseObject(body, func(dec *jsontext.Decoder, name string) (known bool, err error) {
		if name != "build_id" {
			return false, fmt.Errorf("unknown member %.100q: only build_id is allowed", name)
		}
		buildID, err = memberText(dec, name, maxLabelBody)
		return true, err
	})
	switch {
	case err != nil:
		return "", err
	case buildID == "":
		return "", errors.New("build_id is missing")
	}
	if err := checkID(buildID); err != nil {
		return "", fmt.Errorf("build_id %w", err)
	}
	return buildID, nil
}

// noBuildError is the ErrNotFound of a build that a label should name.
type noBuildError struct {
	siteID, buildID string
	err             error
}

func (e *noBuildError) Error() string { return e.err.Error() }
func (e *noBuildError) Unwrap() error { return e.err }
func (e *noBuildError) forClient() string {
	return fmt.Sprintf("site %q has no build %q", e.siteID, e.buildID)
}

// getLabel returns a label.
func (a *api) getLabel(_ *fasthttp.RequestCtx, p labelRequest) (response, error) {
	place, err := a.acquireRead(p.conn)
	if err != nil {
		return response{}, err
	}
	defer place.release()
	l, err := a.readLabel(p.keeper, p.siteID, p.label)
	if err != nil {
		return response{}, err
	}
	switch evaluateRead(p.cond, time.Time{}, *l.info()) {
	case failed:
		return response{}, p.failed("read the label", "", ErrPrecondition)
	case notModified:
		return response{status: fasthttp.StatusNotModified, cacheControl: "no-cache", etag: l.ETag()}, nil
	}
	r := jsonResponse(fasthttp.StatusOK, jsonOfLabel(l))
	r.cacheControl, r.etag = "no-cache", l.ETag()
	return r, nil
}

// readLabel returns a label. The caller has a place among the reads.
func (a *api) readLabel(keeper LabelKeeper, siteID, label string) (Label, error) {
	start := time.Now()
	l, err := keeper.GetLabel(siteID, label)
	a.metrics.call(callGetLabel, start, err)
	if err != nil {
		return Label{}, &operationError{operation: "read the label", siteID: siteID, err: err}
	}
	return l, nil
}

// deleteLabel removes a label. Its build stays.
func (a *api) deleteLabel(_ *fasthttp.RequestCtx, p labelRequest) (response, error) {
	place, err := a.acquireWrite(p.conn, p.siteID, p.budgetKey())
	if err != nil {
		return response{}, err
	}
	defer place.release()
	p.cond.Outcome = &p.conn.rec.outcome
	if err := a.removeLabel(p.keeper, p.siteID, p.label, p.cond); err != nil {
		return response{}, p.failed("delete the label", "", err)
	}
	return response{status: fasthttp.StatusNoContent}, nil
}

func (a *api) removeLabel(keeper LabelKeeper, siteID, label string, cond Precondition) error {
	start := time.Now()
	err := keeper.DeleteLabel(siteID, label, cond)
	a.metrics.call(callDeleteLabel, start, err)
	return err
}

// labelListing is a GET or HEAD of the labels of a site.
type labelListing struct {
	conn        *conn
	siteID      string
	ifNoneMatch *ETagList
}

func parseLabelListing(ctx *fasthttp.RequestCtx) (l labelListing, err error) {
	l.conn = connOf(ctx)
	if l.siteID, err = pathID(ctx, "site_id"); err != nil {
		return l, err
	}
	if err := checkQuery(ctx); err != nil {
		return l, err
	}
	l.ifNoneMatch, err = headerETags(ctx, fasthttp.HeaderIfNoneMatch)
	return l, err
}

// getLabels lists the labels of a site.
func (a *api) getLabels(_ *fasthttp.RequestCtx, l labelListing) (response, error) {
	place, err := a.acquireList(l.conn, l.siteID)
	if err != nil {
		return response{}, err
	}
	defer place.release()
	labels, err := a.listLabels(l.siteID)
	if err != nil {
		return response{}, err
	}
	list := []labelJSON{}
	for _, l := range labels {
		list = append(list, jsonOfLabel(l))
	}
	r := jsonResponse(fasthttp.StatusOK, struct {
		SiteID string      `json:"site_id"`
		Labels []labelJSON `json:"labels"`
	}{l.siteID, list})
	sum := sha256.Sum256(r.body)
	r.cacheControl, r.etag = "no-cache", `"`+hex.EncodeToString(sum[:16])+`"`
	if m := l.ifNoneMatch; m != nil && (m.Any || m.matchWeak(r.etag)) {
		return response{status: fasthttp.StatusNotModified, cacheControl: r.cacheControl, etag: r.etag}, nil
	}
	return r, nil
}

// listLabels returns the labels of a site.
func (a *api) listLabels(siteID string) ([]Label, error) {
	keeper, err := a.labelKeeper(siteID)
	if err != nil {
		return nil, err
	}
	start := time.Now()
	labels, err := keeper.ListLabels(siteID)
	a.metrics.call(callListLabels, start, err)
	if err != nil {
		return nil, &operationError{operation: "list the labels", siteID: siteID, err: err}
	}
	return labels, nil
}
