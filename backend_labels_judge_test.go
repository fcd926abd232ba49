package main

import (
	"fmt"
	"slices"
	"strconv"
	"strings"
)

// raceOp is a request of a race, or something that was seen. The args of the verbs:
//
//	upload BUILD BYTES          move LABEL BUILD
//	delete BUILD                unlabel LABEL
//	remove BUILD                log BUILD ENTRY
//	delsite [labels]            prune [young] REMOVED...
//	see BUILD BYTES|-           label LABEL BUILD|-
//	fetch LABEL BUILD BYTES     stale LABEL
//	fetch LABEL -               logs BUILD ENTRY...
//
// remove deletes a build with its log. No two uploads have the same BYTES. young says that the
// grace of the prune is longer than the race. stale is a 304 by label for an ETag that the build
// does not have.
type raceOp struct {
	verb       string
	args       []string
	start, end int64 // by a clock of the race, which never shows the same time twice
	result     raceResult
}

type raceResult string

const (
	raceDone    raceResult = ""  // acknowledged
	raceRefused raceResult = "!" // it changed nothing
	raceUnknown raceResult = "?" // it may have been carried out, also in part, until end
)

func (o raceOp) String() string {
	return fmt.Sprintf("%s %s %d-%d%s", o.verb, strings.Join(o.args, " "), o.start, o.end, o.result)
}

// is reports whether o has the verb, and args that begin with args.
func (o raceOp) is(verb string, args ...string) bool {
	return o.verb == verb && len(o.args) >= len(args) && slices.Equal(o.args[:len(args)], args)
}

// mayActIn reports whether o may have changed something after from and before to.
func (o raceOp) mayActIn(from, to int64) bool {
	return o.result != raceRefused && o.end > from && o.start < to
}

// replacedLate begins the violation of a replacement that did not see a label.
const replacedLate = "build replaced after it was labelled"

// raceHistory is what happened to one site.
type raceHistory []raceOp

// parseHistory is the reverse of String of each op, for ops that are separated by semicolons.
func parseHistory(text string) (h raceHistory) {
	for _, op := range strings.Split(text, ";") {
		words := strings.Fields(op)
		last := words[len(words)-1]
		o := raceOp{verb: words[0], args: words[1 : len(words)-1]}
		times := strings.TrimRight(last, "!?")
		o.result = raceResult(last[len(times):])
		start, end, _ := strings.Cut(times, "-")
		o.start, _ = strconv.ParseInt(start, 10, 64)
		o.end, _ = strconv.ParseInt(end, 10, 64)
		h = append(h, o)
	}
	return h
}

// named returns the build that the label names without doubt from one time to another, or "".
func (h raceHistory) named(label string, from, to int64) string {
	var last *raceOp
	for i, o := range h {
		if o.is("move", label) && o.result == raceDone && o.end < from && (last == nil || o.start > last.start) {
			last = &h[i]
		}
	}
	if last == nil {
		return ""
	}
	for _, o := range h {
		changes := o.is("move", label) && o.args[1] != last.args[1] || o.is("unlabel", label) || o.is("delsite", "labels")
		if changes && o.mayActIn(last.start, to) {
			return ""
		}
	}
	return last.args[1]
}

// labelsOf returns the labels that name the build without doubt from one time to another.
func (h raceHistory) labelsOf(build string, from, to int64) (labels []string) {
	for _, o := range h {
		if o.is("move") && !slices.Contains(labels, o.args[0]) && h.named(o.args[0], from, to) == build {
			labels = append(labels, o.args[0])
		}
	}
	return labels
}

// uploadOf returns the upload of these bytes.
func (h raceHistory) uploadOf(bytes string) *raceOp {
	for i, o := range h {
		if o.is("upload") && o.args[1] == bytes {
			return &h[i]
		}
	}
	return nil
}

// isNewest reports whether the build was without doubt the newest while o ran.
func (h raceHistory) isNewest(build string, o raceOp) bool {
	for _, u := range h {
		if u.is("upload", build) && u.result == raceDone && u.end < o.start &&
			!slices.ContainsFunc(h, func(other raceOp) bool {
				return other.is("upload") && other.args[1] != u.args[1] && other.mayActIn(u.start, o.end)
			}) {
			return true
		}
	}
	return false
}

// mayRemove reports whether o is a request that may remove the build: the artifact, or its log.
func (h raceHistory) mayRemove(o raceOp, build string, log bool) bool {
	switch o.verb {
	case "delete":
		return !log && o.args[0] == build
	case "remove":
		return o.args[0] == build
	case "delsite":
		return true
	case "prune":
		return !o.is("prune", "young") && !h.isNewest(build, o) && h.labelsOf(build, o.start, o.end) == nil
	}
	return false
}

// hasRemoved reports whether o acknowledged that it removed the build: the artifact, or its log.
func (o raceOp) hasRemoved(build string, log bool) bool {
	if o.result != raceDone {
		return false
	}
	return o.is("delete", build) && !log || o.is("remove", build) || o.is("delsite") || o.is("prune") && slices.Contains(o.args, build)
}

// judge returns the violations of the contract in a history. What overlaps may have happened in
// any order, so it knows only those that no order explains.
func (h raceHistory) judge() (violations []string) {
	for _, o := range h {
		found := func(format string, args ...any) {
			violations = append(violations, fmt.Sprintf(format, args...)+": "+o.String())
		}
		switch o.verb {
		case "upload", "delete", "remove", "delsite", "prune":
			h.judgeChange(o, found)
		case "see":
			h.judgeBuild(o, o.args[0], o.args[1], found)
		case "logs":
			h.judgeLog(o, found)
		case "label", "fetch", "stale":
			h.judgeLabel(o, found)
		}
	}
	return violations
}

// judgeChange: what is acknowledged was allowed.
func (h raceHistory) judgeChange(o raceOp, found func(string, ...any)) {
	if o.result != raceDone {
		return
	}
	builds := o.args[:min(1, len(o.args))]
	switch o.verb {
	case "delsite":
		builds = nil
		for _, m := range h {
			if m.is("move") && h.named(m.args[0], o.start, o.end) != "" {
				found("site deleted in spite of its label %s", m.args[0])
			}
		}
	case "prune":
		if builds = o.args; o.is("prune", "young") {
			if builds = o.args[1:]; len(builds) > 0 {
				found("young build pruned")
			}
		}
		for _, b := range builds {
			if h.isNewest(b, o) {
				found("newest build %s pruned", b)
			}
		}
	}
	for _, b := range builds {
		if labels := h.labelsOf(b, o.start, o.end); labels != nil {
			found("labelled build changed, %s", labels)
		}
	}
}

// judgeBuild: o saw the build with these bytes, or did not find it.
func (h raceHistory) judgeBuild(o raceOp, build, bytes string, found func(string, ...any)) {
	if bytes == "-" {
		if labels := h.labelsOf(build, o.start, o.end); labels != nil {
			found("labelled build gone, %s", labels)
		}
		for _, u := range h {
			if u.is("upload", build) && u.result == raceDone && u.end < o.start && !slices.ContainsFunc(h, func(d raceOp) bool {
				return d.mayActIn(u.start, o.end) && h.mayRemove(d, build, false)
			}) {
				found("acknowledged build gone, %s", u)
			}
		}
		return
	}
	u := h.uploadOf(bytes)
	if u == nil || u.args[0] != build {
		found("bytes that nobody sent")
		return
	}
	for _, d := range h {
		if u.result == raceDone && u.end < d.start && d.end < o.start && d.hasRemoved(build, false) {
			found("deleted build still there, %s, %s", u, d)
		}
	}
}

// judgeLog: o saw the entries of a log.
func (h raceHistory) judgeLog(o raceOp, found func(string, ...any)) {
	build, entries := o.args[0], o.args[1:]
	for _, e := range h {
		if !e.is("log", build) || e.result != raceDone || e.end > o.start {
			continue
		}
		there := slices.Contains(entries, e.args[1])
		if !there && !slices.ContainsFunc(h, func(d raceOp) bool { return d.mayActIn(e.start, o.end) && h.mayRemove(d, build, true) }) {
			found("acknowledged entry lost, %s", e)
		}
		for _, d := range h {
			if there && e.end < d.start && d.end < o.start && d.hasRemoved(build, true) {
				found("deleted entry still there, %s, %s", e, d)
			}
		}
	}
}

// judgeLabel: o saw where a label is, or what it serves.
func (h raceHistory) judgeLabel(o raceOp, found func(string, ...any)) {
	named := h.named(o.args[0], o.start, o.end)
	switch {
	case o.is("stale"):
		if named != "" {
			found("%s, %s", replacedLate, named)
		}
		return
	case named != "" && o.args[1] == "-":
		found("label gone, or its build, %s", named)
	case named != "" && o.args[1] != named:
		found("move lost, %s", named)
	}
	if o.is("fetch") && o.args[1] != "-" {
		h.judgeBuild(o, o.args[1], o.args[2], found)
	}
}
