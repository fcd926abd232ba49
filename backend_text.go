package main

import "fmt"

// counted returns a number with its noun.
func counted(n int64, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

// formatSize returns a size with a binary unit.
func formatSize(n int64) string {
	if n < 1<<10 {
		return fmt.Sprintf("%d B", n)
	}
	value, unit := float64(n)/(1<<10), 0
	for ; value >= 1000 && unit < 4; unit++ {
		value /= 1 << 10
	}
	if value < 10 {
		return fmt.Sprintf("%.1f %ciB", value, "KMGTP"[unit])
	}
	return fmt.Sprintf("%.0f %ciB", value, "KMGTP"[unit])
}
