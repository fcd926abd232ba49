package main

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
)

const (
	looksAtLogs = 2000 // sites and logs that a check looks at
	looksAtSite = 100  // logs of one site
)

// logs looks for the entries that the original of this API keeps in logs/, each in a
// file of its own. The service takes such a file for the damaged log of a build that
// does not exist.
func (c *diskCheck) logs() (string, error) {
	sites, err := c.n.disk.openDir(filepath.Join(c.n.base, sitesDir))
	if err != nil {
		return "no logs", ignoreNotExist(err)
	}
	defer sites.Close()
	var found logCount
	err = eachName(sites, func(site string) error {
		if checkID(site) != nil {
			return nil
		}
		if found.sites+found.files >= looksAtLogs {
			found.more = true
			return errAllRead
		}
		found.sites++
		dir, err := c.n.disk.openDir(c.n.sitePath(site, logsDir))
		if err != nil {
			return nil // the site has no logs, or requests that use them report the error
		}
		defer dir.Close()
		return found.site(dir)
	})
	if err != nil && err != errAllRead {
		return "", err
	}
	if found.entries > 0 {
		return "", warning{fmt.Errorf("%d files (%s) hold a single entry, the format of the original API (first: %q): "+
			"each is listed as a build with a damaged log; see docs/operations.md to convert them", found.entries, found, found.first)}
	}
	return found.String(), nil
}

// logCount is what a look at logs found.
type logCount struct {
	sites, files, entries int    // looked at; entries are files that hold one
	first                 string // the path of one of these
	more                  bool   // not all were looked at
}

func (l logCount) String() string {
	text := fmt.Sprintf("%d files of %d sites checked", l.files, l.sites)
	if l.more {
		text += ", more exist"
	}
	return text
}

// site looks at the logs of a site.
func (l *logCount) site(dir *os.File) error {
	end := min(l.files+looksAtSite, looksAtLogs-l.sites)
	err := eachName(dir, func(name string) error {
		if _, ok := buildOfFile(name, logSuffix); !ok {
			return nil
		}
		if l.files >= end {
			l.more = true
			return errAllRead
		}
		data, _, err := readFile(dir, name, maxScanned)
		if err != nil {
			return ignoreNotExist(err)
		}
		l.files++
		if isEntry(data) {
			if l.entries++; l.first == "" {
				l.first = dir.Name() + "/" + name
			}
		}
		return nil
	})
	if err == errAllRead {
		return nil
	}
	return err
}

// isEntry reports whether data is an entry by itself, and not an array of entries.
func isEntry(data []byte) bool {
	var e struct {
		BuildID *string `json:"build_id"`
	}
	return json.Unmarshal(data, &e) == nil && e.BuildID != nil
}
