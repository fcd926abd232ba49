package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"
)

const (
	maxCheckedLogs    = 2000 // sites and logs
	maxCheckedPerSite = 100  // logs of one site
)

// logs looks for files of the original API in logs/, each of which holds one entry. The
// service treats such a file as the damaged log of a build that does not exist.
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
		if found.sites+found.files >= maxCheckedLogs {
			found.more = true
			return errAllRead
		}
		found.sites++
		dir, err := c.n.disk.openDir(c.n.sitePath(site, logsDir))
		if err != nil {
			return nil // the site has no logs; or requests for them report the error
		}
		defer dir.Close()
		return found.site(dir)
	})
	if err != nil && err != errAllRead {
		return "", err
	}
	if found.notFiles > 0 {
		c.report(checkResult{what: "logs are files", warning: true, err: fmt.Errorf("%d logs (%s) are not regular files but symbolic links, directories or the like (first: %q): "+
			"the service does not follow links; these builds are listed with logs_error, and accept no log entries until you move these files away",
			found.notFiles, found, found.firstNotFile)})
	}
	if found.entries > 0 {
		return "", warning{fmt.Errorf("%d log files (%s) are in the original API's format, one entry per file (first: %q): "+
			"each is listed as a build with a damaged log; to convert them, see docs/operations.md", found.entries, found, found.first)}
	}
	return found.String(), nil
}

// logCount is the result of checking logs.
type logCount struct {
	sites, files, entries int    // checked; entries counts the files of the original API
	first                 string // the path of the first of them
	notFiles              int    // symbolic links, directories and the like in place of a log
	firstNotFile          string // the path of the first of them
	more                  bool   // not all were checked
}

func (l logCount) String() string {
	text := fmt.Sprintf("%d files in %d sites checked", l.files, l.sites)
	if l.more {
		text += "; there are more"
	}
	return text
}

// site checks the logs of one site.
func (l *logCount) site(dir *os.File) error {
	end := min(l.files+maxCheckedPerSite, maxCheckedLogs-l.sites)
	err := eachName(dir, func(name string) error {
		if _, ok := buildOfFile(name, logSuffix); !ok {
			return nil
		}
		if l.files >= end {
			l.more = true
			return errAllRead
		}
		data, st, err := readFile(dir, name, maxScanned)
		if errors.Is(err, unix.ELOOP) || errors.Is(err, ErrOccupied) || err == nil && st.Mode&unix.S_IFMT != unix.S_IFREG {
			l.files++
			if l.notFiles++; l.firstNotFile == "" {
				l.firstNotFile = dir.Name() + "/" + name
			}
			return nil
		}
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

// isEntry reports whether data is a single entry rather than an array of entries.
func isEntry(data []byte) bool {
	var e struct {
		BuildID *string `json:"build_id"`
	}
	return json.Unmarshal(data, &e) == nil && e.BuildID != nil
}
