package client

import (
	"regexp"
	"strings"
)

var (
	idForm    = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9._+~=@-]{0,127}$`)
	labelForm = regexp.MustCompile(`^[a-z0-9][a-z0-9-]{0,31}$`)
)

// checkID returns an error if id cannot be that of a site or a build. The service would say the
// same; but an empty id, or one with a slash, would be another path.
func checkID(what, id string) error {
	if !idForm.MatchString(id) {
		return usagef("%q is no %s id: it must have 1 to 128 characters of A-Z a-z 0-9 . _ + ~ = @ -, and begin with a letter or digit", id, what)
	}
	return nil
}

// checkLabel returns an error if label cannot be a label.
func checkLabel(label string) error {
	if !labelForm.MatchString(label) {
		return usagef("%q is no label: it must have 1 to 32 characters of a-z 0-9 -, and begin with a letter or digit", label)
	}
	return nil
}

// artifactPath, labelPath and so on are paths below the base URL. The ids are checked, so they
// need no escapes.
func artifactPath(site, build string) string { return joinPath("sites", site, "artifacts", build) }
func versionPath(site, build string) string  { return joinPath("sites", site, "versions", build) }
func labelPath(site, label string) string    { return joinPath("sites", site, "labels", label) }

func joinPath(parts ...string) string { return strings.Join(parts, "/") }
