package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"sync"

	"golang.org/x/sync/errgroup"
)

const (
	labelReaders = 16 // labels of a site that are read at once
	labelTries   = 3  // attempts to read a label that is replaced meanwhile
)

// GetLabel implements LabelKeeper.
func (s *objectStore) GetLabel(siteID, label string) (Label, error) {
	o, err := s.readLabel(context.Background(), siteID, label)
	if err != nil {
		return Label{}, err
	}
	if !o.shown() {
		return Label{}, fmt.Errorf("%w: the label %q", ErrNotFound, label)
	}
	return o.Label, nil
}

// readLabel returns the label, or nil if it has no object. It tries again if the label was replaced
// while it was read: some stores then end the body.
func (s *objectStore) readLabel(ctx context.Context, siteID, label string) (o *labelObject, err error) {
	for range labelTries {
		var opened bool
		if o, opened, err = s.readLabelOnce(ctx, siteID, label); !opened || !errors.Is(err, ErrUnavailable) {
			break
		}
	}
	return o, err
}

// readLabelOnce is one attempt of readLabel. It reports whether the store has begun to send the label.
func (s *objectStore) readLabelOnce(ctx context.Context, siteID, label string) (o *labelObject, opened bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	key := s.labelKey(siteID, label)
	r, err := s.open(ctx, key, "", 0, -1)
	if errors.Is(err, ErrNotFound) {
		return nil, false, nil
	}
	if err != nil {
		return nil, false, err
	}
	defer r.Close()
	data, err := io.ReadAll(io.LimitReader(r, maxLabelFile+1))
	if err != nil {
		return nil, true, err
	}
	l, err := parseLabel(label, data)
	if err != nil {
		return nil, true, fmt.Errorf("cannot read %q: %w", key, err)
	}
	return &labelObject{l, r.info.etag}, true, nil
}

// ListLabels implements LabelKeeper.
func (s *objectStore) ListLabels(siteID string) ([]Label, error) {
	labels, err := s.readLabels(context.Background(), siteID)
	return slices.DeleteFunc(labels, func(l Label) bool { return l.BuildID == "" }), err
}

// readLabels returns all labels of the site, by name, with those whose first move is under way or
// was interrupted.
func (s *objectStore) readLabels(ctx context.Context, siteID string) (labels []Label, err error) {
	names, err := s.labelNames(ctx, siteID)
	if err != nil {
		return nil, err
	}
	var mu sync.Mutex
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(labelReaders)
	for _, name := range names {
		g.Go(func() error {
			o, err := s.readLabel(ctx, siteID, name)
			mu.Lock()
			defer mu.Unlock()
			if o != nil { // not deleted since
				labels = append(labels, o.Label)
			}
			return err
		})
	}
	if err := g.Wait(); err != nil {
		return nil, err
	}
	slices.SortFunc(labels, func(a, b Label) int { return cmp.Compare(a.Name, b.Name) })
	return labels, nil
}

// labelNames returns the names of all objects of labels.
func (s *objectStore) labelNames(ctx context.Context, siteID string) (names []string, err error) {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	prefix := s.labelsPrefix(siteID)
	err = s.bucket.list(ctx, prefix, func(page []objectInfo) error {
		for _, o := range page {
			if name, ok := strings.CutSuffix(o.key[len(prefix):], labelSuffix); ok && checkLabel(name) == nil {
				names = append(names, name)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("cannot list %q: %w", prefix, err)
	}
	return names, nil
}
