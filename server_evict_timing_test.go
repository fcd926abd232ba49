package main

import (
	"fmt"
	"net"
	"testing"
	"time"
)

// BenchmarkIdle is what a request costs for its connection to be found when it is
// idle.
func BenchmarkIdle(b *testing.B) {
	for _, n := range []int{1, maxConnections} {
		b.Run(fmt.Sprint(n), func(b *testing.B) {
			i := &idleConns{}
			all := make([]*conn, n)
			for k := range all {
				all[k] = &conn{TCPConn: new(net.TCPConn)}
				i.add(all[k])
			}
			b.ReportAllocs()
			for k := 0; b.Loop(); k++ {
				c := all[k*7919%n]
				c.state.CompareAndSwap(connIdle, connBusy)
				i.add(c)
			}
		})
	}
}

// BenchmarkEvict is what a new connection costs at the limit, with all others idle,
// and with none.
func BenchmarkEvict(b *testing.B) {
	for _, idle := range []bool{true, false} {
		b.Run(fmt.Sprint("idle=", idle), func(b *testing.B) {
			i := &idleConns{}
			for range maxConnections {
				c := &conn{TCPConn: new(net.TCPConn), accepted: time.Now()}
				i.add(c)
				if !idle {
					c.state.Store(connBusy)
				}
			}
			b.ReportAllocs()
			for b.Loop() {
				if c := i.takeOldest(); c != nil {
					c.state.Store(connBusy)
					i.add(c)
				}
			}
		})
	}
}
