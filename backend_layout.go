package main

import (
	"errors"
	"fmt"
	"strings"
)

// Where the files of a site are, on every backend:
//
//	{base}/sites/{site}/artifacts/{build}.tar.gz
//	{base}/sites/{site}/logs/{build}.json
//	{base}/sites/{site}/digests/{build}.sha256
//	{base}/sites/{site}/labels/{label}.json
//	{base}/sites/{site}/deleting/{build}/{id}	(an object store only: object_deleting.go)
//	{base}/sites/{site}/.lock	(a directory only)
//	{base}/status/{name}.json
//	{base}/status/{name}.lock	(a directory only)
//	{base}/status/{name}.lease.json	(an object store only)
const (
	sitesDir       = "sites"
	artifactsDir   = "artifacts"
	logsDir        = "logs"
	digestsDir     = "digests"
	labelsDir      = "labels"
	deletingDir    = "deleting"
	statusDir      = "status"
	artifactSuffix = ".tar.gz"
	logSuffix      = ".json"
	digestSuffix   = ".sha256"
	labelSuffix    = ".json"
	statusSuffix   = ".json"

	// lockName is the file whose bytes are locked. It is never replaced or removed:
	// a lock on a file that lost its name protects nothing.
	lockName = ".lock"
)

// suffixOf returns the suffix of the files in a directory of a site.
func suffixOf(dir string) string {
	switch dir {
	case logsDir:
		return logSuffix
	case digestsDir:
		return digestSuffix
	case labelsDir:
		return labelSuffix
	}
	return artifactSuffix
}

// fileName returns the name of a build's file in a directory of its site.
func fileName(dir, buildID string) string { return buildID + suffixOf(dir) }

// buildOfFile returns the build that a file of a site belongs to. ok is false for
// temporary files and for all other names that the service does not write.
func buildOfFile(name, suffix string) (id string, ok bool) {
	id, ok = strings.CutSuffix(name, suffix)
	return id, ok && checkID(id) == nil
}

// maxIDLen is the maximum length of an id in bytes.
const maxIDLen = 128

// checkID returns an error unless id can name a site or a build: 1 to maxIDLen of
// A-Z a-z 0-9 . _ + ~ = @ -, the first a letter or digit. So no id is hidden,
// names another directory, or needs escaping in a path or a header.
func checkID(id string) error {
	if id == "" {
		return errors.New("is empty")
	}
	if len(id) > maxIDLen {
		return fmt.Errorf("is longer than %d characters", maxIDLen)
	}
	for i := range len(id) {
		c := id[i]
		switch {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9':
		case i == 0:
			return errors.New("must begin with a letter or digit")
		case c == '.', c == '_', c == '+', c == '~', c == '=', c == '@', c == '-':
		default:
			return errors.New("must contain only A-Z a-z 0-9 . _ + ~ = @ -")
		}
	}
	return nil
}
