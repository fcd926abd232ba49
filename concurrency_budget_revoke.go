package main

import (
	"slices"
	"time"
)

// revokeUnfair revokes grants for requests that have waited for revokeAfter.
func (b *budget) revokeUnfair(now time.Time) {
	b.mu.Lock()
	var chosen []*grant
	if now.Sub(b.revoked) >= revokeAfter/4 { // one waiting request does it for all
		b.revoked = now
		chosen = b.chooseRevocations(now)
	}
	b.mu.Unlock()
	for _, g := range chosen {
		g.revoke()
		if b.onRevoked != nil {
			b.onRevoked()
		}
	}
}

// chooseRevocations chooses grants to revoke, until there is room for all requests that
// waited for revokeAfter, or until no client holds too much.
func (b *budget) chooseRevocations(now time.Time) (chosen []*grant) {
	held := make(map[string]int64, len(b.clients)) // per client, once all revoked grants are released
	room := b.limit - b.used
	for name, h := range b.clients {
		held[name] = h.n
		for _, g := range h.revocable {
			if !g.revokedAt.IsZero() && now.Sub(g.revokedAt) < revokeTime {
				held[name] -= g.n
				room += g.n
			}
		}
	}
	for _, w := range b.queue {
		g := w.grant
		if now.Sub(w.since) < revokeAfter || !b.belowCaps(g) || !b.fair(g) {
			continue
		}
		for room < g.n {
			least := min(b.limit/2, max(b.limit/4, held[g.client]+g.n))
			victim := b.newestOfLargest(held, least, g.client)
			if victim == nil {
				return chosen
			}
			victim.revokedAt = now
			chosen = append(chosen, victim)
			held[victim.client] -= victim.n
			room += victim.n
		}
		room -= g.n
		held[g.client] += g.n
	}
	return chosen
}

// newestOfLargest returns the newest revocable grant of the client that holds most according
// to held, except the client but. It returns nil if no client holds more than least.
func (b *budget) newestOfLargest(held map[string]int64, least int64, but string) (newest *grant) {
	for name, h := range b.clients {
		if name == "" || name == but || held[name] <= least {
			continue
		}
		for _, g := range slices.Backward(h.revocable) {
			if g.revokedAt.IsZero() && held[name] > g.n { // the last grant of a client stays
				newest, least = g, held[name]
				break
			}
		}
	}
	return newest
}
