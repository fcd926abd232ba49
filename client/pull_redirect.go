package client

import (
	"context"
	"net/http"
)

// follower is a service of which it is known whether it redirected the last request.
type follower struct {
	*service
	redirected string // the host to which the last request went; empty: to the service
}

// following returns the service as one that follows redirects to its store.
func (s *service) following() *follower {
	copied, client := *s, *s.http
	f := &follower{service: &copied}
	client.CheckRedirect = func(r *http.Request, via []*http.Request) error {
		if !sameOrigin(r.URL, via[0].URL) {
			f.redirected = r.URL.Host
			r.Header.Del("If-Match") // the ETag is one of the service: the store has others
		}
		return s.http.CheckRedirect(r, via)
	}
	copied.http = &client
	return f
}

// follow is try for a request that may be redirected.
func (f *follower) follow(ctx context.Context, r *request) (*http.Response, error) {
	f.redirected = ""
	return f.try(ctx, r)
}
