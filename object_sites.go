package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"
)

const (
	statusPrefix    = "status/" // below the prefix: results of maintenance
	maxStatusObject = 16 << 20  // bytes of a status that is read
	siteReaders     = 32        // sites that are looked into at once
	foreignWithin   = 10 * time.Minute
)

var (
	_ SiteLister    = (*objectStore)(nil)
	_ ForeignLister = (*objectStore)(nil)
	_ StatusKeeper  = (*objectStore)(nil)
)

// folderName returns the last name of key, which begins with dir and ends in a slash.
func folderName(dir, key string) string {
	return strings.TrimSuffix(strings.TrimPrefix(key, dir), "/")
}

// ListSites implements SiteLister.
func (s *objectStore) ListSites(prefix, after string, limit int, want func(siteID string) bool) ([]string, error) {
	var sites []string
	seen := map[string]bool{} // ids that were looked into
	fits := func(id string) bool { return strings.HasPrefix(id, prefix) && !seen[id] && (want == nil || want(id)) }
	for start := after; len(sites) < limit; {
		ids, err := s.listSiteFolders(prefix, after, start, limit, fits)
		if err != nil {
			return nil, err
		}
		complete := len(ids) < limit
		if len(ids) > 0 {
			last := ids[len(ids)-1]
			start = last + "0" // the character after the slash: behind all keys of the site
			ids = append(ids, smallerIDs(last, after, fits)...)
		}
		for _, id := range ids {
			seen[id] = true
		}
		used, err := s.usedSites(ids)
		if err != nil {
			return nil, err
		}
		sites = append(sites, used...)
		if complete {
			break
		}
	}
	slices.Sort(sites)
	return sites[:min(max(limit, 0), len(sites))], nil
}

// listSiteFolders returns up to limit ids of sites that begin with prefix, after the id after, that
// want accepts, and whose keys do not sort before start. They are in the order of their keys, which
// is not that of the ids: a-b/ sorts before a/.
func (s *objectStore) listSiteFolders(prefix, after, start string, limit int, want func(siteID string) bool) (ids []string, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	err = s.bucket.folders(ctx, s.sitesPrefix(), prefix, start, func(names []string) error {
		for _, id := range names {
			if id > after && id+"/" > start && checkID(id) == nil && want(id) {
				if ids = append(ids, id); len(ids) == limit {
					return errStopList
				}
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, errStopList) {
		return nil, fmt.Errorf("cannot list the sites: %w", err)
	}
	return ids, nil
}

// smallerIDs returns the ids after the id after that sort before last although their keys sort
// after those of last, as a and a-b do for a-b-c, and that want accepts.
func smallerIDs(last, after string, want func(siteID string) bool) (ids []string) {
	for i := range last {
		if id := last[:i]; last[i] < '/' && id > after && want(id) {
			ids = append(ids, id)
		}
	}
	return ids
}

// usedSites returns those of ids that have an artifact, a log or a label.
func (s *objectStore) usedSites(ids []string) (found []string, err error) {
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(context.Background())
	g.SetLimit(siteReaders)
	for _, id := range ids {
		g.Go(func() error {
			ctx, cancel := context.WithTimeout(ctx, storeTimeout)
			defer cancel()
			for _, dir := range []string{artifactsDir, logsDir, labelsDir} {
				used, err := s.hasAny(ctx, id, dir)
				if err != nil {
					return err
				}
				if used {
					mu.Lock()
					defer mu.Unlock()
					found = append(found, id)
					return nil
				}
			}
			return nil
		})
	}
	return found, g.Wait()
}

// hasAny reports whether the site has an object in dir that the service may have written.
func (s *objectStore) hasAny(ctx context.Context, siteID, dir string) (found bool, err error) {
	prefix := s.sitePrefix(siteID) + dir + "/"
	err = s.bucket.list(ctx, prefix, func(page []objectInfo) error {
		for _, o := range page {
			if found = isSiteKey(dir, o.key[len(prefix):]); found {
				return errStopList
			}
		}
		return nil
	})
	if err != nil && !errors.Is(err, errStopList) {
		return false, fmt.Errorf("cannot list %q: %w", prefix, err)
	}
	return found, nil
}

// ForeignFiles implements ForeignLister.
func (s *objectStore) ForeignFiles(siteID string, report func(name, what string) error) error {
	ctx, cancel := context.WithTimeout(context.Background(), foreignWithin)
	defer cancel()
	if siteID == "" { // a list of all keys would cost too much
		return nil
	}
	prefix := s.sitePrefix(siteID)
	var stopped error
	err := s.bucket.list(ctx, prefix, func(page []objectInfo) error {
		for _, o := range page {
			name := o.key[len(prefix):]
			if dir, file, _ := strings.Cut(name, "/"); isSiteKey(dir, file) {
				continue
			}
			what := "object"
			if strings.HasSuffix(name, "/") || name == "" {
				what = "folder object"
			}
			if stopped = report(name, what); stopped != nil {
				return stopped
			}
		}
		return nil
	})
	if stopped != nil {
		return stopped
	}
	if err != nil {
		return fmt.Errorf("cannot list %q: %w", prefix, err)
	}
	return nil
}

// isSiteKey reports whether the service writes objects of that name into dir of a site.
func isSiteKey(dir, name string) bool {
	switch dir {
	case artifactsDir, logsDir, digestsDir:
		_, ok := buildOfFile(name, suffixOf(dir))
		return ok
	case labelsDir:
		label, ok := strings.CutSuffix(name, labelSuffix)
		return ok && checkLabel(label) == nil
	case deletingDir:
		build, id, ok := strings.Cut(name, "/")
		return ok && checkID(build) == nil && checkID(id) == nil
	}
	return false
}

func (s *objectStore) statusKey(name string) string { return s.prefix + statusPrefix + name + ".json" }

// WriteStatus implements StatusKeeper.
func (s *objectStore) WriteStatus(name string, data []byte) error {
	if s.readOnly {
		return ErrReadOnly
	}
	return s.writeStatus(context.Background(), name, data)
}

func (s *objectStore) writeStatus(ctx context.Context, name string, data []byte) error {
	_, err := s.put(ctx, s.statusKey(name), data, putOptions{contentType: logType})
	return err
}

// ReadStatus implements StatusKeeper.
func (s *objectStore) ReadStatus(name string) ([]byte, error) {
	ctx, cancel := context.WithTimeout(context.Background(), storeTimeout)
	defer cancel()
	r, err := s.open(ctx, s.statusKey(name), "", 0, -1)
	if err != nil {
		return nil, err
	}
	defer r.Close()
	if size := r.Info().Size; size > maxStatusObject {
		return nil, fmt.Errorf("%w: the status %q has %d bytes", ErrDamaged, name, size)
	}
	return io.ReadAll(r)
}
