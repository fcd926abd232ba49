//go:build torture

package memory

const torture = true
