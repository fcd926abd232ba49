package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"
)

// memBucket is a bucket in memory, with a fault hook.
type memBucket struct {
	mu      sync.Mutex
	objects map[string]memObject
	made    int // objects ever made: each has an ETag of its own

	// fault is called before each operation, and its error is returned to the
	// caller. If apply is set, the change is made all the same, as if only its
	// reply was lost. May be nil.
	fault func(op, key string) (apply bool, err error)
	// blind reports whether the store ignores the condition, as some do for uploads in parts.
	blind func(opts putOptions) bool
	// unquoted: conditions with quotes fail until adapt is called.
	unquoted bool
	// early: metadata is sent before the body is read, as with an upload in parts.
	early bool
	// bare: get returns no metadata.
	bare bool
	// silent: put does not return the time.
	silent bool
	// ahead is how far the clock of the store is ahead.
	ahead time.Duration
	// hashes: an ETag is a hash of the bytes, as in S3.
	hashes bool
	// blindRemove: remove ignores its condition.
	blindRemove bool
}

type memObject struct {
	objectInfo
	data []byte
}

var _ bucket = (*memBucket)(nil)

func newMemBucket() *memBucket { return &memBucket{objects: map[string]memObject{}} }

// call calls the hook, and then do, unless the hook returns an error without apply.
func (m *memBucket) call(ctx context.Context, op, key string, do func() error) error {
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.fault != nil {
		if apply, err := m.fault(op, key); err != nil {
			if apply {
				_ = do()
			}
			return err
		}
	}
	return do()
}

func (m *memBucket) adapt() bool {
	m.mu.Lock()
	defer m.mu.Unlock()
	was := m.unquoted
	m.unquoted = false
	return was
}

func (m *memBucket) put(ctx context.Context, key string, body io.Reader, size int64, opts putOptions) (objectInfo, error) {
	if m.early {
		opts = opts.withDigest(size)
	}
	var b bytes.Buffer
	if size > 0 {
		b.Grow(int(size) + bytes.MinRead) // copying is slow with the race detector
	}
	_, err := b.ReadFrom(body)
	if err != nil {
		return objectInfo{}, err
	}
	data := b.Bytes()
	if !m.early {
		opts = opts.withDigest(int64(len(data)))
	}
	if size >= 0 && int64(len(data)) != size {
		return objectInfo{}, fmt.Errorf("%d bytes received of %d", len(data), size)
	}
	if err := opts.allowed(); err != nil {
		return objectInfo{}, err
	}
	var info objectInfo
	err = m.call(ctx, "put", key, func() error {
		old, there := m.objects[key]
		if m.blind == nil || !m.blind(opts) {
			switch {
			case opts.absent && there,
				opts.ifMatch != "" && (!there || old.etag != opts.ifMatch || m.unquoted):
				return fmt.Errorf("%w: put", ErrPrecondition)
			}
		}
		m.made++
		info = objectInfo{
			key: key, size: int64(len(data)), etag: fmt.Sprintf(`"mem-%d"`, m.made),
			modTime: time.Now().UTC().Add(m.ahead), uploadID: opts.uploadID, digest: opts.digest,
		}
		if m.hashes {
			info.etag = fakeETag(data)
		}
		m.objects[key] = memObject{info, data}
		return nil
	})
	if err != nil {
		return objectInfo{}, err
	}
	if m.silent {
		info.modTime = time.Time{}
	}
	return info, nil
}

func (m *memBucket) get(ctx context.Context, key, etag string, offset, length int64) (io.ReadCloser, objectInfo, error) {
	var o memObject
	err := m.call(ctx, "get", key, func() (err error) {
		o, err = m.find(key)
		if err == nil && etag != "" && o.etag != etag {
			err = fmt.Errorf("%w: get", ErrPrecondition)
		}
		return err
	})
	if err != nil {
		return nil, objectInfo{}, err
	}
	part := o.data[min(offset, o.size):]
	if length >= 0 {
		part = part[:min(length, int64(len(part)))]
	}
	if m.bare {
		o.bare, o.uploadID, o.digest = true, "", ""
	}
	return io.NopCloser(bytes.NewReader(part)), o.objectInfo, nil
}

func (m *memBucket) find(key string) (memObject, error) {
	o, ok := m.objects[key]
	if !ok {
		return o, fmt.Errorf("%w: %s", ErrNotFound, key)
	}
	return o, nil
}

func (m *memBucket) stat(ctx context.Context, key string) (info objectInfo, err error) {
	err = m.call(ctx, "stat", key, func() error {
		o, err := m.find(key)
		info = o.objectInfo
		return err
	})
	return info, err
}

func (m *memBucket) remove(ctx context.Context, key, etag string) error {
	return m.call(ctx, "remove", key, func() error {
		o, err := m.find(key)
		if err != nil {
			return err
		}
		if etag != "" && o.etag != etag && !m.blindRemove {
			return fmt.Errorf("%w: remove", ErrPrecondition)
		}
		delete(m.objects, key)
		return nil
	})
}

func (m *memBucket) list(ctx context.Context, prefix string, page func([]objectInfo) error) error {
	var all []objectInfo
	err := m.call(ctx, "list", prefix, func() error {
		for key, o := range m.objects {
			if strings.HasPrefix(key, prefix) {
				o.uploadID, o.digest = "", ""
				all = append(all, o.objectInfo)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	slices.SortFunc(all, func(a, b objectInfo) int { return strings.Compare(a.key, b.key) })
	for part := range slices.Chunk(all, 7) {
		if err := page(part); err != nil {
			return err
		}
	}
	return nil
}

func (m *memBucket) folders(ctx context.Context, dir, prefix, start string, page func([]string) error) error {
	seen := map[string]bool{}
	err := m.call(ctx, "folders", dir+prefix, func() error {
		for key := range m.objects {
			rest, ok := strings.CutPrefix(key, dir)
			name, _, folder := strings.Cut(rest, "/")
			if ok && folder && rest > start && strings.HasPrefix(name, prefix) {
				seen[name+"/"] = true
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	for part := range slices.Chunk(slices.Sorted(maps.Keys(seen)), 7) {
		for i := range part {
			part[i] = strings.TrimSuffix(part[i], "/")
		}
		if err := page(part); err != nil {
			return err
		}
	}
	return nil
}

func (m *memBucket) getsBare() bool { return m.bare }

// patchingBucket is a memBucket that can change metadata.
type patchingBucket struct{ *memBucket }

func (p patchingBucket) patchDigest(ctx context.Context, o objectInfo, digest string) error {
	return p.call(ctx, "patch", o.key, func() error {
		now, err := p.find(o.key)
		if err == nil && now.etag != o.etag {
			err = fmt.Errorf("%w: patch", ErrPrecondition)
		}
		if err == nil {
			now.digest = digest
			p.objects[o.key] = now
		}
		return err
	})
}

func (m *memBucket) presign(context.Context, string, time.Duration, string) (string, error) {
	return "", fmt.Errorf("%w: signed URLs", ErrUnsupported)
}
