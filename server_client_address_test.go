package main

import (
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
)

// proxies are the trusted proxies of these tests; 10.0.0.1 is the peer.
func proxies(t testing.TB) (r addressRanges) {
	t.Helper()
	if err := r.UnmarshalText([]byte("10.0.0.0/8, 2001:db8:aaaa::/48")); err != nil {
		t.Fatal(err)
	}
	return r
}

// clientOfLines is clientAddress of a request from 10.0.0.1, with lines separated by \n.
func clientOfLines(t testing.TB, name, lines string) string {
	t.Helper()
	var header [][]byte
	for line := range strings.SplitSeq(lines, "\n") {
		header = append(header, []byte(line))
	}
	return clientAddress(name, header, proxies(t), netip.MustParseAddr("10.0.0.1")).String()
}

func TestClientAddressOfForwardedFor(t *testing.T) {
	const peer = "10.0.0.1"
	for _, c := range []struct{ name, lines, want string }{
		{"none", "", peer},
		{"one", "192.0.2.1", "192.0.2.1"},
		{"the last that is not trusted", "192.0.2.9, 192.0.2.1, 10.0.0.2", "192.0.2.1"},
		{"all trusted", "10.0.0.3, 10.0.0.2", "10.0.0.3"},
		{"a trusted IPv6 proxy", "192.0.2.1,2001:db8:aaaa::2", "192.0.2.1"},
		{"two lines", "192.0.2.9\n192.0.2.1, 10.0.0.2", "192.0.2.1"},
		{"the first of two lines", "192.0.2.1\n10.0.0.2", "192.0.2.1"},
		{"spaces and tabs", " \t192.0.2.1 \t", "192.0.2.1"},
		{"empty elements", ",192.0.2.1, ,10.0.0.2,,\n,", "192.0.2.1"},
		{"a port", "192.0.2.1:4711", "192.0.2.1"},
		{"IPv6", "2001:db8::1", "2001:db8::1"},
		{"IPv6 in brackets", "[2001:db8::1]", "2001:db8::1"},
		{"IPv6 and a port", "[2001:db8::1]:4711", "2001:db8::1"},
		{"IPv4-mapped", "::ffff:192.0.2.1", "192.0.2.1"},
		{"IPv4-mapped of a proxy", "192.0.2.1, ::ffff:10.0.0.2", "192.0.2.1"},
		{"IPv4-mapped in brackets", "[::ffff:192.0.2.1]:1", "192.0.2.1"},
		{"unknown", "unknown", peer},
		{"unknown before a proxy", "192.0.2.1, unknown, 10.0.0.2", "10.0.0.2"},
		{"a name", "192.0.2.1, proxy.example, 10.0.0.2", "10.0.0.2"},
		{"a zone", "fe80::1%eth0", peer},
		{"a zone with a line break", "fe80::1%x\\n", peer},
		{"quotes", `"192.0.2.1"`, peer},
		{"leading zeros", "192.0.2.01", peer},
		{"IPv4 in brackets", "[192.0.2.1]", peer},
		{"no bracket at the end", "[2001:db8::1", peer},
		{"text after the bracket", "[2001:db8::1]x", peer},
		{"no port", "192.0.2.1:", peer},
		{"a port that is not a number", "192.0.2.1:http", peer},
		{"a long port", "192.0.2.1:123456", peer},
		{"garbage before a client", "\x00\xff, 192.0.2.1, 10.0.0.2", "192.0.2.1"},
		{"as many entries as are read", "192.0.2.1" + strings.Repeat(", 10.0.0.2", maxForwardedEntries-1), "192.0.2.1"},
		{"more entries", "192.0.2.1" + strings.Repeat(", 10.0.0.2", maxForwardedEntries), "10.0.0.2"},
		{"more empty elements", "192.0.2.1" + strings.Repeat(",", maxForwardedEntries), peer},
	} {
		if got := clientOfLines(t, headerForwardedFor, c.lines); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

func TestClientAddressOfForwarded(t *testing.T) {
	const peer = "10.0.0.1"
	for _, c := range []struct{ name, lines, want string }{
		{"none", "", peer},
		{"one", "for=192.0.2.1", "192.0.2.1"},
		{"other parameters", "proto=http;FOR=192.0.2.1;by=203.0.113.43", "192.0.2.1"},
		{"spaces", " proto=http ; for=192.0.2.1\t;\tby=10.0.0.1 ", "192.0.2.1"},
		{"empty pairs", ";for=192.0.2.1;; ", "192.0.2.1"},
		{"the last that is not trusted", "for=192.0.2.9, for=192.0.2.1;proto=https, for=10.0.0.2", "192.0.2.1"},
		{"two lines", "for=192.0.2.9\nfor=192.0.2.1, for=10.0.0.2", "192.0.2.1"},
		{"quoted", `for="192.0.2.1"`, "192.0.2.1"},
		{"a port", `for="192.0.2.1:4711"`, "192.0.2.1"},
		{"an obfuscated port", `for="192.0.2.1:_a.b-c"`, "192.0.2.1"},
		{"IPv6", `For="[2001:db8:cafe::17]"`, "2001:db8:cafe::17"},
		{"IPv6 and a port", `For="[2001:db8:cafe::17]:4711"`, "2001:db8:cafe::17"},
		{"IPv4-mapped", `for="[::ffff:192.0.2.1]"`, "192.0.2.1"},
		{"escapes", `for="\1\9\2.0.2.1"`, "192.0.2.1"},
		{"commas and semicolons in a string", `for=192.0.2.1;x="a, for=192.0.2.9; \", b\\",for=10.0.0.2;by="a,b"`, "192.0.2.1"},
		{"unknown", "for=unknown", peer},
		{"unknown before a proxy", "for=192.0.2.1, for=unknown, for=10.0.0.2", "10.0.0.2"},
		{"obfuscated", `for=192.0.2.1, for="_SEVKISEK", for=10.0.0.2`, "10.0.0.2"},
		{"an entry without for", "for=192.0.2.1, proto=https, for=10.0.0.2", "10.0.0.2"},
		{"twice for", "for=192.0.2.1;for=192.0.2.2", peer},
		{"an address alone", "192.0.2.1", peer},
		{"no value", "for=", peer},
		{"an empty string", `for=""`, peer},
		{"unquoted IPv6", "for=[2001:db8::1]", peer},
		{"IPv6 without brackets", `for="2001:db8::1"`, peer},
		{"an unquoted port", "for=192.0.2.1:4711", peer},
		{"a zone", `for="[fe80::1%eth0]"`, peer},
		{"spaces around =", "for = 192.0.2.1", peer},
		{"text after the value", "for=192.0.2.1 x", peer},
		{"text after the string", `for="192.0.2.1"x`, peer},
		{"control characters", "for=\"192.0.2.1\x01\"", peer},
		{"a string without an end", `for="192.0.2.1`, peer},
		{"a string without an end before the client", `for="192.0.2.9, for=192.0.2.1`, "192.0.2.1"},
		{"a string without an end in the line before", "for=\"192.0.2.9\nfor=192.0.2.1", "192.0.2.1"},
		{"a string that ends with a backslash", `for="192.0.2.9\, for="192.0.2.1"`, "192.0.2.1"},
		{"more entries", "for=192.0.2.1" + strings.Repeat(",for=10.0.0.2", maxForwardedEntries), "10.0.0.2"},
	} {
		if got := clientOfLines(t, headerForwarded, c.lines); got != c.want {
			t.Errorf("%s: %s, want %s", c.name, got, c.want)
		}
	}
}

// FuzzClientAddress: whatever a client sends, it cannot change the address that a trusted
// proxy adds after it, in the same line or in one of its own.
func FuzzClientAddress(f *testing.F) {
	for _, s := range []string{"", ",", "192.0.2.9", "[2001:db8::9]:1", "unknown", `for="`, `for="\`, `"`, `\`, `for="192.0.2.9";x="\\"`, "for=_x;;", "fe80::1%x", "for=10.0.0.2"} {
		f.Add(s, s)
	}
	f.Fuzz(func(t *testing.T, sent, second string) {
		for name, forms := range map[string][]string{
			headerForwardedFor: {"192.0.2.1", "::ffff:192.0.2.1", "192.0.2.1:80", "192.0.2.1, 10.0.0.2"},
			headerForwarded:    {"for=192.0.2.1", `proto=https;for="192.0.2.1:80"`, `for="[::ffff:192.0.2.1]";x=",\""`, `for=192.0.2.1,for="10.0.0.2"`},
		} {
			for _, added := range forms {
				for _, lines := range [][]string{{sent + ", " + added}, {sent, added}, {sent, second + "," + added}} {
					if got := clientAddress(name, toBytes(lines), proxies(t), netip.MustParseAddr("10.0.0.1")); got.String() != "192.0.2.1" {
						t.Errorf("%s: %q is from %s", name, lines, got)
					}
				}
			}
			got := clientAddress(name, toBytes([]string{sent, second}), proxies(t), netip.MustParseAddr("10.0.0.1"))
			if !got.IsValid() || got.Zone() != "" || got.Is4In6() {
				t.Errorf("%s: %q, %q are from %s", name, sent, second, got)
			}
		}
	})
}

func toBytes(lines []string) (b [][]byte) {
	for _, line := range lines {
		b = append(b, []byte(line))
	}
	return b
}

// dialFrom connects to addr from a local address.
func dialFrom(t *testing.T, local, addr string) net.Conn {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.ParseIP(local)}}
	c, err := d.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

// TestRemoteIsTheClient: the service log has the address that a trusted proxy gave, in the
// header that is configured, and only there.
func TestRemoteIsTheClient(t *testing.T) {
	const proxy, other = "127.0.0.2", "127.0.0.3"
	for _, header := range []string{headerForwardedFor, headerForwarded} {
		s := startServer(t, "TRUSTED_PROXIES=127.0.0.2,10.0.0.0/8", "CLIENT_ADDRESS_HEADER="+header)
		value := func(addrs ...string) string {
			if header == headerForwarded {
				return header + ": for=" + strings.Join(addrs, ", for=") + "\r\n"
			}
			return header + ": " + strings.Join(addrs, ", ") + "\r\n"
		}
		notRead := headerForwardedFor + ": 192.0.2.66\r\n"
		if header == headerForwardedFor {
			notRead = "Forwarded: for=192.0.2.66\r\n"
		}
		notRead += "X-Real-Ip: 192.0.2.66\r\n"
		for i, c := range []struct{ from, request, remote string }{
			{proxy, "GET /sites/a/versions HTTP/1.1\r\nHost: h\r\n" + value("192.0.2.1"), "192.0.2.1"},
			{proxy, "GET /sites/a/versions HTTP/1.1\r\nHost: h\r\n" + strings.ToUpper(value("192.0.2.9")) + value("192.0.2.1", "10.1.2.3"), "192.0.2.1"},
			{proxy, "GET /sites/a/versions HTTP/1.1\r\nHost: h\r\n" + value("unknown"), ""},
			{proxy, "GET /sites/a/versions HTTP/1.1\r\nHost: h\r\n", ""},
			{proxy, "GET /sites/a/versions HTTP/1.1\r\nHost: h\r\n" + notRead, ""},
			{other, "GET /sites/a/versions HTTP/1.1\r\nHost: h\r\n" + value("192.0.2.1"), ""},
			{proxy, "GET /no/such/path HTTP/1.1\r\nHost: h\r\n" + value("192.0.2.1"), "192.0.2.1"},
			{proxy, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nContent-Length: 0\r\nExpect: 100-continue\r\n" + value("192.0.2.1"), "192.0.2.1"},
			// A client chooses its trailer, and a proxy passes it on.
			{proxy, "PUT /sites/a/artifacts/b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\nTrailer: Forwarded\r\n" + value("192.0.2.1") +
				"X-Request-Id: %s\r\n\r\n1\r\nx\r\n0\r\nForwarded: for=192.0.2.66", "192.0.2.1"},
		} {
			id := fmt.Sprintf("%s-%d", header, i)
			request := c.request + "X-Request-Id: " + id
			if strings.Contains(c.request, "%s") {
				request = fmt.Sprintf(c.request, id)
			}
			conn := dialFrom(t, c.from, s.addr)
			_, _ = io.WriteString(conn, request+"\r\n\r\n")
			if readStatus(conn) == 0 {
				t.Errorf("%s: no response", id)
			}
			conn.Close()
			var line struct{ Remote, Peer string }
			s.waitForLog(t, `"request_id":"`+id+`"`)
			for l := range strings.Lines(s.log.String()) {
				if strings.Contains(l, `"request_id":"`+id+`"`) {
					_ = json.Unmarshal([]byte(l), &line)
				}
			}
			remote, peer := conn.LocalAddr().String(), ""
			if c.remote != "" {
				remote, peer = c.remote, remote
			}
			if line.Remote != remote || line.Peer != peer {
				t.Errorf("%s: remote %q and peer %q, want %q and %q:\n%s", id, line.Remote, line.Peer, remote, peer, c.request)
			}
		}
	}
}

// TestTrustedProxiesHaveNoConnectionLimit: the others have it.
func TestTrustedProxiesHaveNoConnectionLimit(t *testing.T) {
	s := startServer(t, "TRUSTED_PROXIES=127.0.0.2", "CLIENT_ADDRESS_HEADER=Forwarded", "MAX_CONNS_PER_IP=2")
	status := func(from string) int {
		c := dialFrom(t, from, s.addr)
		_, _ = io.WriteString(c, "GET /health HTTP/1.1\r\nHost: h\r\nForwarded: for=192.0.2.1\r\n\r\n")
		return readStatus(c)
	}
	for i, want := range []int{200, 200, 429} {
		if got := status("127.0.0.3"); got != want {
			t.Errorf("connection %d of another client: %d, want %d", i, got, want)
		}
		for range 2 {
			if got := status("127.0.0.2"); got != 200 {
				t.Errorf("a proxy: %d, want 200", got)
			}
		}
	}
}

// TestRefusedRequestsNameTheClient: their line is often the only one that is read.
func TestRefusedRequestsNameTheClient(t *testing.T) {
	s, _ := startTuned(t, func(svc *service, _ *listener) { svc.api.stopping = func() bool { return true } },
		"TRUSTED_PROXIES=127.0.0.2", "CLIENT_ADDRESS_HEADER="+headerForwardedFor)
	conn := dialFrom(t, "127.0.0.2", s.addr)
	_, _ = io.WriteString(conn, "GET /ready HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 192.0.2.1\r\n\r\n")
	if status := readStatus(conn); status != 503 {
		t.Fatal(status)
	}
	if line := waitForLine(t, s, "requests refused"); line["remote"] != "192.0.2.1" {
		t.Errorf("got %v", line)
	}
}
