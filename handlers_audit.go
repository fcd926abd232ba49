package main

import (
	"cmp"
	"context"
	"log/slog"

	"github.com/valyala/fasthttp"
)

// Results of an audit line that are not an Outcome.
const (
	resultStored   = "stored"   // created or replaced: the store does not know which
	resultAppended = "appended" // to the log of a build
	resultFailed   = "failed"
	resultDenied   = "denied"
)

// audit writes the audit line of a request whose response is decided: of each that would
// change something, and of each that is refused because of who sent it. refusal is nil if
// the request succeeded. Without access control there are no such lines.
func (a *api) audit(ctx *fasthttp.RequestCtx, refusal *httpError) {
	c := connOf(ctx)
	reads := ctx.IsGet() || ctx.IsHead()
	if a.access == nil || c.rec.action == "" || reads && (refusal == nil || refusal.denied == "") {
		return
	}
	denied, result := "", auditResult(&c.rec)
	if refusal != nil {
		denied, result = refusal.denied, resultFailed
	}
	if denied != "" {
		result = resultDenied
	}
	remote, peer := remoteOf(a.cfg, &ctx.Request.Header, c)
	attrs := []any{"action", c.rec.action, "result", result, "status", ctx.Response.StatusCode()}
	build := cmp.Or(c.rec.build, pathText(ctx, "build_id"))
	for _, m := range [...]struct{ name, value string }{
		{"reason", denied}, {"actor", c.rec.actor}, {"actor_kind", c.rec.actorKind}, {"credential", c.rec.credential},
		{"certificate", c.rec.certificate}, {"site", clip(pathText(ctx, "site_id"))}, {"build", clip(build)},
		{"label", clip(pathText(ctx, "label"))}, {"peer", peer},
	} {
		if m.value != "" {
			attrs = append(attrs, m.name, m.value)
		}
	}
	attrs = append(append(attrs, c.rec.audited...), c.rec.ids(), "remote", remote)
	if refusal != nil && (c.rec.actor == "" || c.rec.stranger) { // anybody can cause any number
		a.floods.add("audit "+cmp.Or(denied, result), slog.LevelInfo, "audit", attrs...)
		return
	}
	a.log.Log(context.Background(), slog.LevelInfo, "audit", attrs...)
}

// auditedAs returns the action of a route in audit lines. A PUT is always "write": whether it
// creates or replaces is its result.
func auditedAs(need action) string {
	if need == actionCreate {
		need = actionWrite
	}
	for i, name := range actionNames {
		if need == 1<<i {
			return name
		}
	}
	return ""
}

// auditResult returns the result of a change that succeeded.
func auditResult(x *requestRecord) string {
	switch {
	case x.route == routeLogs && x.outcome != outcomeSame:
		return resultAppended
	case x.outcome != "":
		return string(x.outcome)
	case x.method == fasthttp.MethodDelete:
		return string(outcomeDeleted)
	}
	return resultStored
}
