package main

// VersionDeleter is a store that can remove all of a build: the artifact, its digest and its log.
type VersionDeleter interface {
	// DeleteVersions durably removes the artifact, the digest and the log, in this order, of each
	// of the builds whose conditions hold. It returns an error for each, in their order, nil if
	// nothing of the build is left. It fails with ErrPrecondition and labelledError, and may be
	// called again after any error. It may read the labels once for all builds, and removes no
	// build which a label protects.
	DeleteVersions(siteID string, builds []VersionDeletion) []error
}

// VersionDeletion is a build that DeleteVersions removes, and on which conditions.
type VersionDeletion struct {
	BuildID  string
	Artifact Precondition // of the artifact; Absent: there must be none
	// LogTag, if it is not empty, is the Version.logTag that the log must still have before
	// anything is removed. noLogTag: there must be no log.
	LogTag string
}

// noLogTag is the logTag of a build without a log.
const noLogTag = "-"
