package main

// VersionDeleter is a store that can remove all of a build: the artifact, its digest and its log.
type VersionDeleter interface {
	// DeleteVersion durably removes the artifact, the digest and the log of the build, in this
	// order, if of holds. If there is nothing, it succeeds, unless of requires something. If a
	// part was removed before it failed, it may be called again.
	DeleteVersion(siteID, buildID string, of VersionCondition) error
}

// VersionCondition is what must hold for DeleteVersion.
type VersionCondition struct {
	Artifact Precondition // of the artifact; Absent: there must be none
	// LogTag, if it is not empty, is the Version.logTag that the log must still have; otherwise
	// DeleteVersion fails with ErrPrecondition. noLogTag: there must be no log.
	LogTag string
}

// noLogTag is the logTag of a build without a log.
const noLogTag = "-"
