//go:build integration || torture

package nfs

import (
	"context"
	"testing"
	"time"

	"pagewright/storage/test/history"
)

// A client is cut off in the middle of a replacement for longer than its lease:
// the server gives its lock to the other client, which replaces the build. Then
// the first one's requests arrive late. The build that the other was told of must
// stay.
func TestLateRequestsOnNFS(t *testing.T) {
	for _, at := range []string{".new-", ".old-"} { // that is there when the client is cut off
		t.Run(at, func(t *testing.T) { lateRequests(t, "+/srv/disk/export/sites/hot/artifacts/"+at+"build.tar.gz") })
	}
}

func lateRequests(t *testing.T, moment string) {
	began := time.Now()
	c := newCutter(t, protocols[0], service)
	keepOpen(t, c.clients[0], hotFile)
	ctx, stop := context.WithCancel(t.Context())
	loaded := make(chan struct{})
	go func() {
		defer close(loaded)
		for ctx.Err() == nil {
			c.drivers[0].Do(context.WithoutCancel(ctx), history.Put, hotKey, 1000)
		}
	}()
	if out, err := c.server.Run(t.Context(), "guest gap eth1 "+moment); err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	stop()
	// 503 as long as the server keeps the lock for the first one: until its lease ends.
	eventually(t, "the other client's replacement", func() bool {
		return c.drivers[1].Do(t.Context(), history.Put, hotKey, 2000) == 201
	})
	run(t, c.server, "guest links eth1 up")
	<-loaded
	for _, d := range c.drivers {
		eventually(t, "/ready", func() bool { return ready(t, d).status == 200 })
	}
	c.judge(t)
	all, done, _, unknown := c.drivers[0].History.Count()
	t.Logf("%d operations, %d acknowledged, %d unknown\n%s", all, done, unknown,
		run(t, c.server, "ls -la /srv/disk/export/sites/hot/artifacts"))
	table.Add("requests of a client that lost its lock arrive late", c.name, "1 replacement", len(c.violations), time.Since(began).Round(time.Second))
	failAll(t, c.violations)
}
