package main

import lru "github.com/hashicorp/golang-lru/v2"

// newLRU returns a cache of at most size entries. It panics unless size is positive.
func newLRU[K comparable, V any](size int) *lru.Cache[K, V] {
	cache, err := lru.New[K, V](size)
	if err != nil {
		panic(err)
	}
	return cache
}
