package main

import (
	"strings"
	"testing"
)

// Settings of TLS that make no sense, or that leave the API with less than they ask for,
// stop the start. The error names what is missing.
func TestTLSSettings(t *testing.T) {
	pair := []string{"TLS_CERT=c", "TLS_KEY=k"}
	with := func(more ...string) []string { return append(pair[:2:2], more...) }
	for _, c := range []struct {
		vars []string
		want string // in the error; empty: none
	}{
		{nil, ""},
		{with(), ""},
		{with("TLS_MIN=1.3"), ""},
		{with("TLS_CLIENT_CA=a"), ""},
		{with("TLS_CLIENT_CA=a", "TLS_CLIENT_AUTH=optional"), ""},
		{with("TLS_CLIENT_CA=a", "TLS_CLIENT_AUTH=require", "ADMIN_LISTEN=127.0.0.1:9090"), ""},
		{pair[:1], "PAGEWRIGHT_TLS_KEY must be set"},
		{pair[1:], "PAGEWRIGHT_TLS_CERT must be set"},
		{with("TLS_CLIENT_CA=a", "TLS_CLIENT_AUTH=require"), "PAGEWRIGHT_TLS_CLIENT_AUTH=require: requires PAGEWRIGHT_ADMIN_LISTEN"},
		{with("TLS_CLIENT_AUTH=require", "ADMIN_LISTEN=127.0.0.1:9090"), "requires PAGEWRIGHT_TLS_CLIENT_CA"},
		{with("TLS_CLIENT_AUTH=optional"), "requires PAGEWRIGHT_TLS_CLIENT_CA"},
		{with("TLS_CLIENT_CA=a", "TLS_CLIENT_AUTH=yes"), "must be optional or require"},
		{with("TLS_MIN=1.1"), "PAGEWRIGHT_TLS_MIN=1.1: must be 1.2 or 1.3"},
		{with("TLS_MIN=TLS1.2"), "must be 1.2 or 1.3"},
		{[]string{"TLS_CLIENT_CA=a"}, "PAGEWRIGHT_TLS_CLIENT_CA=a: requires PAGEWRIGHT_TLS_CERT"},
		{[]string{"TLS_CLIENT_AUTH=optional"}, "requires PAGEWRIGHT_TLS_CLIENT_CA"},
		{[]string{"TLS_MIN=1.3"}, "PAGEWRIGHT_TLS_MIN=1.3: requires PAGEWRIGHT_TLS_CERT"},
	} {
		var environ []string
		for _, v := range c.vars {
			environ = append(environ, envPrefix+v)
		}
		_, _, err := parseConfig(environ)
		switch {
		case c.want == "" && err != nil:
			t.Errorf("%v: %v", c.vars, err)
		case c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want) || exitStatus(err) != exitConfig):
			t.Errorf("%v: error %v, want one of the configuration with %q", c.vars, err, c.want)
		}
	}
}
