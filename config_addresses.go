package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
)

// addressRanges are ranges of IP addresses, parsed from addresses and CIDR ranges
// separated by commas: 10.0.0.0/8, 192.0.2.7, 2001:db8::/32. An IPv4 address is the same
// in its IPv4-mapped form (::ffff:192.0.2.7).
type addressRanges []netip.Prefix

const addressRangesForm = "addresses or CIDR ranges separated by commas, for example 10.0.0.0/8, 192.0.2.7 or 2001:db8::/32"

// UnmarshalText implements encoding.TextUnmarshaler.
func (r *addressRanges) UnmarshalText(text []byte) error {
	list := addressRanges{}
	for entry := range strings.SplitSeq(string(text), ",") {
		p, err := parseAddressRange(strings.TrimSpace(entry))
		if err != nil {
			return err
		}
		list = append(list, p)
	}
	*r = list
	return nil
}

// parseAddressRange refuses what is probably a mistake: a range with bits beyond its length, which
// may be meant as an address, and the range of all addresses.
func parseAddressRange(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	if err != nil {
		addr, err := netip.ParseAddr(s)
		if err != nil || addr.Zone() != "" {
			return netip.Prefix{}, errors.New("must be " + addressRangesForm)
		}
		p = netip.PrefixFrom(addr, addr.BitLen())
	}
	if p.Addr().Is4In6() {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	switch {
	case !p.IsValid():
		return netip.Prefix{}, fmt.Errorf("%s is not a range of IPv4 addresses", s)
	case p != p.Masked():
		return netip.Prefix{}, fmt.Errorf("%s has bits set beyond its length: write %s or %s", s, p.Masked(), p.Addr())
	case p.Bits() == 0:
		return netip.Prefix{}, fmt.Errorf("%s includes every address: any client could claim any address", s)
	}
	return p, nil
}

// contains reports whether addr is in one of the ranges. It ignores the zone of a
// link-local address.
func (r addressRanges) contains(addr netip.Addr) bool {
	if len(r) == 0 {
		return false
	}
	addr = addr.Unmap().WithZone("")
	for _, p := range r {
		if p.Contains(addr) {
			return true
		}
	}
	return false
}
