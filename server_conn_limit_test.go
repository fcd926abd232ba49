package main

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
)

// Past maxRejecting at once a connection is closed without an answer.
func TestTurnedAwayWithoutAnAnswer(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	l := &listener{rejecting: make(chan struct{}, 1)}
	l.rejecting <- struct{}{} // as many as there may be
	client := dial(t, tcp.Addr().String())
	accepted, err := tcp.Accept()
	if err != nil {
		t.Fatal(err)
	}
	l.reject(accepted.(*net.TCPConn), full)
	if err := accepted.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection was left open: closed again it fails with %v", err)
	}
	if got, err := io.ReadAll(client); len(got) > 0 || err != nil {
		t.Errorf("the client read %q, %v", got, err)
	}
	if len(l.rejecting) != 1 {
		t.Errorf("%d are being told", len(l.rejecting))
	}
}

// A connection that is closed twice, as at a shutdown, gives back one place.
func TestForgottenOnce(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	l := newListener(nil, 1, 0, quiet(), nil)
	l.perIP = 2
	client := func() *conn { return l.newConn(dial(t, tcp.Addr().String())) }
	one, two, three, four := client(), client(), client(), client()
	if !l.admit(one) || !l.admit(two) || l.admit(three) {
		t.Fatal("not two are admitted")
	}
	l.forget(one)
	l.forget(one)
	if !l.admit(three) || l.admit(four) {
		t.Errorf("one of two was closed, and not one is admitted: %d are open", l.connections())
	}
	for _, c := range []*conn{two, three} {
		l.forget(c)
	}
	if len(l.openPerIP) != 0 || len(l.clients) != 0 {
		t.Errorf("addresses without a connection are kept: %v, %v", l.openPerIP, l.clients)
	}
}

// A client is an address, or all of IPv6 that one client can use.
func TestClientOf(t *testing.T) {
	for addr, want := range map[string]string{
		"192.0.2.7":            "192.0.2.7",
		"::ffff:192.0.2.7":     "192.0.2.7", // as a socket for both kinds says it
		"2001:db8:1:2:3:4:5:6": "2001:db8:1:2::/64",
		"2001:db8:1:2:ffff::1": "2001:db8:1:2::/64",
		"2001:db8:1:3::1":      "2001:db8:1:3::/64",
		"fe80::1%eth0":         "fe80::/64",
		"::1":                  "::/64",
	} {
		if got := clientOf(netip.MustParseAddr(addr).Unmap()); got != want {
			t.Errorf("%s is %q, want %q", addr, got, want)
		}
	}
}
