package main

import (
	"fmt"
	"testing"
	"time"
)

func BenchmarkBudget(b *testing.B) {
	for _, waiting := range []int{0, 100, maxQueue - 1} {
		b.Run(fmt.Sprint(waiting, " wait"), func(b *testing.B) {
			budget := newBudget(512, time.Hour)
			if waiting > 0 {
				for range 512 {
					_, _ = budget.acquire(budgetRequest{client: "a", n: 1, revoke: func() {}})
				}
			}
			for i := range waiting {
				go func() { _, _ = budget.acquire(budgetRequest{client: fmt.Sprint(i % 3), n: 400}) }()
			}
			for waits := 0; waits < waiting; {
				budget.mu.Lock()
				waits = len(budget.queue)
				budget.mu.Unlock()
			}
			b.ReportAllocs()
			for b.Loop() {
				if waiting > 0 {
					budget.mu.Lock()
					budget.grantWaiting()
					budget.mu.Unlock()
					continue
				}
				g, _ := budget.acquire(budgetRequest{client: "c", n: 1})
				g.release()
			}
		})
	}
}
