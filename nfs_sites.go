package main

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// ListSites implements SiteLister. Its use of memory does not grow with the number of sites.
func (n *nfs) ListSites(prefix, after string, limit int, want func(siteID string) bool) ([]string, error) {
	if err := n.checkMounted(); err != nil {
		return nil, err
	}
	var sites []string
	for limit > 0 {
		names, err := n.siteNames(prefix, after, limit, want)
		if err != nil {
			return nil, err
		}
		for _, site := range names {
			used, err := n.isUsed(site)
			if err != nil {
				return nil, err
			}
			if used {
				if sites = append(sites, site); len(sites) == limit {
					return sites, nil
				}
			}
		}
		if len(names) < limit {
			return sites, n.checkMounted() // what is missing may be so because the store is
		}
		after = names[len(names)-1]
	}
	return nil, nil
}

// siteNames returns the first limit names with that prefix, after the name after, that can be
// those of sites and that want, if it is not nil, accepts, in order.
func (n *nfs) siteNames(prefix, after string, limit int, want func(siteID string) bool) (first []string, err error) {
	dir, err := n.disk.openDir(n.base + "/" + sitesDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	err = eachName(dir, func(name string) error {
		full := len(first) == limit
		if name <= after || !strings.HasPrefix(name, prefix) || full && name >= first[limit-1] || checkID(name) != nil || want != nil && !want(name) {
			return nil
		}
		if full {
			first = first[:limit-1]
		}
		i, _ := slices.BinarySearch(first, name)
		first = slices.Insert(first, i, name)
		return nil
	})
	return first, err
}

// isUsed reports whether a site has a build, a log or a label. A site that cannot be read may
// have one, and its list shows why.
func (n *nfs) isUsed(siteID string) (bool, error) {
	for _, kind := range []string{artifactsDir, logsDir, labelsDir} {
		used := false
		dir, err := n.openBuilds(siteID, kind)
		if err == nil {
			used, err = hasFile(dir, kind)
			dir.Close()
		}
		var link *linkError
		switch {
		case err == nil, errors.Is(err, fs.ErrNotExist), errors.Is(err, ErrOccupied), errors.As(err, &link): // as in lists
		case errors.Is(err, ErrDenied):
			used = true
		default:
			return false, err
		}
		if used {
			return true, nil
		}
	}
	return false, nil
}

// errEnough ends eachName.
var errEnough = errors.New("enough")

// hasFile reports whether the file of a build or a label is in dir, also under an interim name.
func hasFile(dir *os.File, kind string) (bool, error) {
	err := eachName(dir, func(name string) error {
		var st unix.Stat_t
		if isSiteFile(name, kind) && statAt(dir, name, &st) == nil && st.Mode&unix.S_IFMT == unix.S_IFREG {
			return errEnough
		}
		return nil
	})
	if err == errEnough {
		return true, nil
	}
	return false, err
}

// isSiteFile reports whether name is one that the file of a build, or of a label, can have.
func isSiteFile(name, kind string) bool {
	if of, ok := isInterimName(name); ok {
		name = of
	}
	id, ok := buildOfFile(name, suffixOf(kind))
	return ok && (kind != labelsDir || checkLabel(id) == nil)
}

// ForeignFiles implements ForeignLister. Names are paths below the base.
func (n *nfs) ForeignFiles(siteID string, report func(name, what string) error) error {
	if err := n.checkMounted(); err != nil {
		return err
	}
	if siteID == "" {
		return n.foreignBeside(report)
	}
	for _, kind := range []string{"", artifactsDir, logsDir, digestsDir, labelsDir} {
		if err := n.foreignIn(siteID, kind, report); err != nil {
			return err
		}
	}
	return nil
}

// foreignIn is ForeignFiles of one directory of a site, or of that of the site itself.
func (n *nfs) foreignIn(siteID, kind string, report func(name, what string) error) error {
	dir, err := n.openBuilds(siteID, kind)
	var link *linkError
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, ErrOccupied) || errors.As(err, &link) {
		return nil // what is there instead is reported by the directory above
	}
	if err != nil {
		return err
	}
	return foreignFiles(dir, path.Join(sitesDir, siteID, kind), report, func(name string, mode uint32) bool { return isOwnFile(kind, name, mode) })
}

// foreignBeside is ForeignFiles of the directory of the sites.
func (n *nfs) foreignBeside(report func(name, what string) error) error {
	dir, err := n.disk.openDir(n.base + "/" + sitesDir)
	if err != nil {
		return ignoreNotExist(err)
	}
	return foreignFiles(dir, sitesDir, report, func(name string, mode uint32) bool {
		return mode&unix.S_IFMT == unix.S_IFDIR && (checkID(name) == nil || isTempName(name)) // the latter of the command doctor
	})
}

// foreignFiles reports the files in dir that are not the service's own, and closes it.
func foreignFiles(dir *os.File, below string, report func(name, what string) error, isOwn func(name string, mode uint32) bool) error {
	defer dir.Close()
	return eachName(dir, func(name string) error {
		var st unix.Stat_t
		if err := statAt(dir, name, &st); err != nil {
			return ignoreNotExist(err)
		}
		if isOwn(name, st.Mode) {
			return nil
		}
		return report(path.Join(below, name), kindOfFile(st.Mode))
	})
}

// isOwnFile reports whether the service could have created name in a directory of a site.
func isOwnFile(kind, name string, mode uint32) bool {
	switch mode & unix.S_IFMT {
	case unix.S_IFDIR:
		return kind == "" && (name == artifactsDir || name == logsDir || name == digestsDir || name == labelsDir)
	case unix.S_IFREG:
		return isTempName(name) || isSillyName(name) || kind == "" && name == lockName || kind != "" && isSiteFile(name, kind)
	}
	return false
}

// kindOfFile returns what a file of that mode is, for people.
func kindOfFile(mode uint32) string {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return "file"
	case unix.S_IFDIR:
		return "directory"
	case unix.S_IFLNK:
		return "symbolic link"
	case unix.S_IFIFO:
		return "FIFO"
	case unix.S_IFSOCK:
		return "socket"
	}
	return "device"
}
