package main

import (
	"context"
	"errors"
	"fmt"
	"slices"
)

// eachSite calls do for each site from a position on. cursor is where in the site to begin.
func (v *verifier) eachSite(ctx context.Context, from verifyPosition, do func(ctx context.Context, site, cursor string) error) error {
	after := from.After
	if from.Site != "" {
		if err := do(ctx, from.Site, from.Cursor); err != nil {
			return err
		}
		after = from.Site
	}
	if v.matches == nil && len(v.options.Sites) > 0 {
		for _, site := range v.options.Sites {
			if site > after {
				if err := do(ctx, site, ""); err != nil {
					return err
				}
			}
		}
		return ctx.Err()
	}
	for {
		var sites []string
		err := v.retry(ctx, func() (err error) {
			sites, err = v.store.ListSites("", after, v.perPage, nil)
			return err
		})
		if err != nil {
			return fmt.Errorf("cannot list the sites: %w", err)
		}
		for _, site := range sites {
			if err := ctx.Err(); err != nil {
				return err
			}
			if v.matches != nil && !v.matches(site) {
				continue
			}
			if err := do(ctx, site, ""); err != nil {
				return err
			}
		}
		if len(sites) < v.perPage {
			return ctx.Err()
		}
		after = sites[len(sites)-1]
	}
}

// eachPage calls do for each page of the builds of a site that are recent enough. It reports
// whether the site has any.
func (v *verifier) eachPage(ctx context.Context, site, cursor string, do func(versions []*Version) error) (found bool, err error) {
	oldest := v.oldest()
	for {
		var page *VersionPage
		err := v.retry(ctx, func() (err error) {
			page, err = v.store.ListVersionsPage(site, VersionQuery{Limit: v.perPage, Cursor: cursor})
			return err
		})
		if errors.Is(err, ErrBadCursor) && cursor != "" { // of a damaged state
			cursor = ""
			continue
		}
		if err != nil {
			return found, err
		}
		found = found || len(page.Versions) > 0
		versions := page.Versions
		if i := slices.IndexFunc(versions, func(b *Version) bool { return b.CreatedAt.Before(oldest) }); i >= 0 {
			versions, page.NextCursor = versions[:i], "" // they are in the order of their times
		}
		if err := do(versions); err != nil {
			return found, err
		}
		if cursor = page.NextCursor; cursor == "" {
			return found, ctx.Err()
		}
		if err := ctx.Err(); err != nil {
			return found, err
		}
	}
}

// retry calls f again if it fails, except with ErrBadCursor.
func (v *verifier) retry(ctx context.Context, f func() error) error {
	for _, wait := range v.pauses {
		if err := f(); err == nil || errors.Is(err, ErrBadCursor) || !v.wait(ctx, wait) {
			return err
		}
	}
	return f()
}

// verifyTotal is how much there is to verify.
type verifyTotal struct {
	verifyPassed
	known bool
}

// count finds out how much there is to verify, for the progress line. It lists everything a
// second time, which is little beside reading it.
func (v *verifier) count(ctx context.Context, from verifyState) {
	sum := verifyTotal{from.Passed, false}
	err := v.eachSite(ctx, from.Position, func(ctx context.Context, site, cursor string) error {
		_, err := v.eachPage(ctx, site, cursor, func(versions []*Version) error {
			for _, b := range versions {
				sum.Builds++
				sum.Bytes += b.SizeBytes
			}
			return nil
		})
		return err
	})
	if sum.known = err == nil; sum.known { // otherwise verify itself reports why
		v.mu.Lock()
		v.total = sum
		v.mu.Unlock()
	}
}
