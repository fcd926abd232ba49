//go:build integration && !torture

package memory

const torture = false
