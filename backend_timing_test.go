package main

import (
	"bytes"
	"fmt"
	"io"
	"testing"
	"time"
)

func BenchmarkBackend(b *testing.B) {
	m := newMemBucket()
	b.Run("memory", func(b *testing.B) { benchBackend(b, openMem(m)) })
	base := b.TempDir()
	b.Run("nfs", func(b *testing.B) { benchBackend(b, openTestNFS(b, base)) })
}

// benchBackend is one benchmark for every backend, so that they can be compared.
func benchBackend(b *testing.B, s store) {
	for _, size := range []int{16 << 10, largeBody} {
		data := body(size, 1)
		b.Run(fmt.Sprintf("store-%dKiB", size>>10), func(b *testing.B) {
			site := newSite()
			b.SetBytes(int64(size))
			for b.Loop() {
				if err := s.StoreArtifact(site, "b", sized{bytes.NewReader(data), int64(size)}); err != nil {
					b.Fatal(err)
				}
			}
		})
		b.Run(fmt.Sprintf("fetch-%dKiB", size>>10), func(b *testing.B) {
			site := newSite()
			if err := s.StoreArtifact(site, "b", known(data)); err != nil {
				b.Fatal(err)
			}
			b.SetBytes(int64(size))
			for b.Loop() {
				r, err := s.FetchArtifact(site, "b")
				if err != nil {
					b.Fatal(err)
				}
				n, err := io.Copy(io.Discard, r)
				if r.Close(); err != nil || n != int64(size) {
					b.Fatal(n, err)
				}
			}
		})
	}
	b.Run("log", func(b *testing.B) { // one of many builds each, as services do
		site, n := newSite(), 0
		for b.Loop() {
			n++
			if err := s.WriteLog(site, entry(fmt.Sprint(n), fmt.Sprint("b", n%100), time.Now())); err != nil {
				b.Fatal(err)
			}
		}
	})
	b.Run("list-500", func(b *testing.B) {
		site := newSite()
		for i := range 500 {
			if err := s.StoreArtifact(site, fmt.Sprint("b", i), known(body(16, 1))); err != nil {
				b.Fatal(err)
			}
			if err := s.WriteLog(site, entry("1", fmt.Sprint("b", i), time.Now())); err != nil {
				b.Fatal(err)
			}
		}
		for b.Loop() {
			if v, err := s.ListVersions(site); err != nil || len(v) != 500 {
				b.Fatal(len(v), err)
			}
		}
	})
}
