package main

import (
	"bytes"
	"net/netip"
	"slices"
	"strings"

	"github.com/valyala/fasthttp"
)

// maxForwardedEntries is how many entries of the header are read at most.
const maxForwardedEntries = 32

// remoteOf returns the address of the client for the service log. If a trusted proxy gave an
// address other than its own, peer is the address of the connection; otherwise peer is empty.
func remoteOf(cfg *Config, h *fasthttp.RequestHeader, c *conn) (remote, peer string) {
	if !c.proxy {
		return c.remoteText(), ""
	}
	from := peerOf(c.TCPConn)
	if client := clientAddress(cfg.ClientAddressHeader, forwardedLines(h, cfg.ClientAddressHeader), cfg.TrustedProxies, from); client != from {
		return client.String(), c.remoteText()
	}
	return c.remoteText(), ""
}

// forwardedLines returns the lines of a header in their order. PeekAll would also return
// those of the trailer, which a client chooses: proxies do not change it.
func forwardedLines(h *fasthttp.RequestHeader, name string) (lines [][]byte) {
	for key, value := range h.All() {
		if string(key) == name {
			lines = append(lines, value)
		}
	}
	return lines
}

// clientAddress returns the address of the client of a request from peer, a trusted proxy.
// Each proxy adds the address of its own peer at the end of the header (X-Forwarded-For, or
// Forwarded of RFC 7239). So clientAddress reads from right to left, and only what a trusted
// proxy wrote: it ends at the first address that is not trusted. Before an entry without a
// valid address, and past maxForwardedEntries, it returns the last address that it read.
func clientAddress(name string, lines [][]byte, trusted addressRanges, peer netip.Addr) netip.Addr {
	last, parse := lastEntry, parseForwardedFor
	if name == headerForwarded {
		last, parse = lastElement, parseForwarded
	}
	client, entries := peer, 0
	for _, rest := range slices.Backward(lines) {
		for len(rest) > 0 {
			var entry []byte
			rest, entry = last(rest)
			if entries++; entries > maxForwardedEntries {
				return client
			}
			if entry = bytes.Trim(entry, " \t"); len(entry) == 0 {
				continue // a recipient ignores empty elements (RFC 9110, section 5.6.1.2)
			}
			addr, ok := parse(entry)
			if !ok {
				return client
			}
			client = addr
			if !trusted.contains(client) {
				return client
			}
		}
	}
	return client
}

// lastEntry splits a list at its last comma.
func lastEntry(list []byte) (rest, last []byte) {
	i := bytes.LastIndexByte(list, ',')
	return list[:max(i, 0)], list[i+1:]
}

// lastElement splits a list at its last comma that is not in a quoted string. It reads from
// the right, so that a quote that a client did not close has no effect on what a proxy
// added after it.
func lastElement(list []byte) (rest, last []byte) {
	quoted := false
	for i := len(list) - 1; i >= 0; i-- {
		switch list[i] {
		case '"':
			escapes := 0
			for i > 0 && list[i-1] == '\\' {
				i--
				escapes++
			}
			if escapes%2 == 0 {
				quoted = !quoted
			}
		case ',':
			if !quoted {
				return list[:i], list[i+1:]
			}
		}
	}
	return nil, list
}

// parseForwardedFor parses an entry of X-Forwarded-For: an address with or without a port.
func parseForwardedFor(entry []byte) (netip.Addr, bool) {
	if addr, err := netip.ParseAddr(string(entry)); err == nil && addr.Is6() { // without brackets
		return addr.Unmap(), addr.Zone() == ""
	}
	return parseNode(string(entry))
}

// parseForwarded returns the address in the parameter "for" of a forwarded-element (RFC
// 7239, section 4). Spaces around the semicolon are not in the RFC, but are common.
func parseForwarded(element []byte) (addr netip.Addr, ok bool) {
	node, found := "", false
	for rest := element; len(rest) > 0; {
		pair := bytes.TrimLeft(rest, " \t")
		name, after := cutToken(pair)
		if len(name) == 0 { // an empty pair
			if len(pair) > 0 && pair[0] != ';' {
				return addr, false
			}
			rest = pair[min(1, len(pair)):]
			continue
		}
		if len(after) == 0 || after[0] != '=' {
			return addr, false
		}
		value, after, ok := cutValue(after[1:])
		after = bytes.TrimLeft(after, " \t")
		if !ok || len(after) > 0 && after[0] != ';' {
			return addr, false
		}
		if bytes.EqualFold(name, []byte("for")) {
			if found {
				return addr, false
			}
			node, found = string(value), true
		}
		rest = after
	}
	return parseNode(node)
}

// parseNode parses a node of RFC 7239, section 6: an IPv4 address or an IPv6 address in
// brackets, each with or without a port. It fails for "unknown" and for obfuscated names.
func parseNode(node string) (addr netip.Addr, ok bool) {
	host, port, found := strings.Cut(node, ":")
	inner, bracket := strings.CutPrefix(node, "[")
	if bracket {
		var after string
		if host, after, ok = strings.Cut(inner, "]"); !ok {
			return addr, false
		}
		if port, found = strings.CutPrefix(after, ":"); !found && after != "" {
			return addr, false
		}
	}
	if found && !isPort(port) {
		return addr, false
	}
	addr, err := netip.ParseAddr(host)
	if err != nil || addr.Zone() != "" || addr.Is6() != bracket {
		return netip.Addr{}, false
	}
	return addr.Unmap(), true
}

// isPort reports whether s is a node-port of RFC 7239, section 6.
func isPort(s string) bool {
	digits := len(s) <= 5
	obfuscated := strings.HasPrefix(s, "_") && len(s) > 1
	for i := range len(s) {
		c := s[i]
		digits = digits && '0' <= c && c <= '9'
		obfuscated = obfuscated && (isAlphanumeric(c) || c == '.' || c == '_' || c == '-')
	}
	return s != "" && (digits || obfuscated)
}

// cutToken cuts a token (RFC 9110, section 5.6.2) off the front of b.
func cutToken(b []byte) (token, rest []byte) {
	n := 0
	for n < len(b) && (isAlphanumeric(b[n]) || strings.IndexByte("!#$%&'*+-.^_`|~", b[n]) >= 0) {
		n++
	}
	return b[:n], b[n:]
}

// cutValue cuts a token or a quoted string (RFC 9110, section 5.6.4) off the front of b,
// and returns it without quotes and escapes.
func cutValue(b []byte) (value, rest []byte, ok bool) {
	if len(b) == 0 || b[0] != '"' {
		value, rest = cutToken(b)
		return value, rest, len(value) > 0
	}
	for i := 1; i < len(b); i++ {
		switch {
		case b[i] == '"':
			return value, b[i+1:], true
		case b[i] == '\\' && i+1 < len(b):
			i++
		}
		value = append(value, b[i])
	}
	return nil, nil, false
}

func isAlphanumeric(c byte) bool {
	return 'a' <= c|0x20 && c|0x20 <= 'z' || '0' <= c && c <= '9'
}
