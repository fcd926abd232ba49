package main

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"testing"
)

// Past maxRefusing at once a connection is closed without an answer.
func TestTurnedAwayWithoutAnAnswer(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	told := 0
	l := &listener{turnedAway: func() { told++ }, refusing: make(chan struct{}, 1)}
	l.refusing <- struct{}{} // as many as there may be
	client := dial(t, tcp.Addr().String())
	accepted, err := tcp.Accept()
	if err != nil {
		t.Fatal(err)
	}
	l.turnAway(accepted.(*net.TCPConn))
	if err := accepted.Close(); !errors.Is(err, net.ErrClosed) {
		t.Errorf("the connection was left open: closed again it fails with %v", err)
	}
	if got, err := io.ReadAll(client); len(got) > 0 || err != nil {
		t.Errorf("the client read %q, %v", got, err)
	}
	if told != 1 || len(l.refusing) != 1 {
		t.Errorf("counted %d, and %d are being told", told, len(l.refusing))
	}
}

// A connection that is closed twice, as at a shutdown, gives back one place.
func TestForgottenOnce(t *testing.T) {
	tcp, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer tcp.Close()
	l := &listener{perIP: 2, open: map[*conn]struct{}{}, peers: map[netip.Addr]int{}}
	client := func() *conn { return &conn{TCPConn: dial(t, tcp.Addr().String()), l: l} }
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
	if len(l.peers) != 0 {
		t.Errorf("addresses without a connection are kept: %v", l.peers)
	}
}
