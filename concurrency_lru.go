package main

import (
	lru "github.com/hashicorp/golang-lru/v2"
	"github.com/hashicorp/golang-lru/v2/simplelru"
)

// newLRU returns a cache of at most size entries. It panics unless size is positive.
func newLRU[K comparable, V any](size int) *lru.Cache[K, V] {
	cache, err := lru.New[K, V](size)
	if err != nil {
		panic(err)
	}
	return cache
}

// newUnlockedLRU is newLRU for callers that hold a lock. It calls evicted, which may be
// nil, with each entry that leaves the cache.
func newUnlockedLRU[K comparable, V any](size int, evicted func(K, V)) *simplelru.LRU[K, V] {
	cache, err := simplelru.NewLRU(size, evicted)
	if err != nil {
		panic(err)
	}
	return cache
}
