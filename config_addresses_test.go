package main

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestAddressRanges(t *testing.T) {
	for text, want := range map[string]string{
		"10.0.0.0/8":                        "10.0.0.0/8",
		"192.0.2.7":                         "192.0.2.7/32",
		"2001:db8::1":                       "2001:db8::1/128",
		" 10.0.0.0/8 ,\t2001:db8::/32 ":     "10.0.0.0/8 2001:db8::/32",
		"::ffff:192.0.2.7":                  "192.0.2.7/32",
		"::ffff:192.0.2.0/120":              "192.0.2.0/24",
		"10.0.0.0/8,10.0.0.0/8,172.16.0.1 ": "10.0.0.0/8 10.0.0.0/8 172.16.0.1/32",
	} {
		var r addressRanges
		if err := r.UnmarshalText([]byte(text)); err != nil {
			t.Errorf("%q: %v", text, err)
		}
		var got []string
		for _, p := range r {
			got = append(got, p.String())
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q is %q, want %q", text, got, want)
		}
	}
	for text, want := range map[string]string{
		"":                      "must be addresses or CIDR ranges",
		"proxy":                 "must be addresses or CIDR ranges",
		"10.0.0.0/8,":           "must be addresses or CIDR ranges",
		"10.0.0.0/8 172.16.0.1": "must be addresses or CIDR ranges",
		"10.0.0.0/33":           "must be addresses or CIDR ranges",
		"10.0.0.1:80":           "must be addresses or CIDR ranges",
		"010.0.0.1":             "must be addresses or CIDR ranges",
		"fe80::1%eth0":          "must be addresses or CIDR ranges",
		"10.0.0.1/8":            "write 10.0.0.0/8 or 10.0.0.1",
		"2001:db8::1/32":        "write 2001:db8::/32 or 2001:db8::1",
		"0.0.0.0/0":             "every address",
		"::/0":                  "every address",
		"::ffff:0.0.0.0/96":     "every address",
		"::ffff:0.0.0.0/90":     "is not a range of IPv4 addresses",
	} {
		if err := new(addressRanges).UnmarshalText([]byte(text)); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%q: %v, want %q", text, err, want)
		}
	}
}

func TestAddressRangesContain(t *testing.T) {
	var r addressRanges
	if err := r.UnmarshalText([]byte("10.0.0.0/8, 192.0.2.7, 2001:db8::/32, fe80::/10")); err != nil {
		t.Fatal(err)
	}
	var in []string
	for _, addr := range []string{"10.255.0.1", "::ffff:10.0.0.1", "192.0.2.7", "2001:db8::7", "fe80::1%eth0", "11.0.0.1", "192.0.2.8", "2001:db9::", "::10.0.0.1"} {
		if r.contains(netip.MustParseAddr(addr)) {
			in = append(in, addr)
		}
	}
	if want := []string{"10.255.0.1", "::ffff:10.0.0.1", "192.0.2.7", "2001:db8::7", "fe80::1%eth0"}; !slices.Equal(in, want) {
		t.Errorf("%q are in the ranges, want %q", in, want)
	}
	if (addressRanges)(nil).contains(netip.MustParseAddr("::1")) || r.contains(netip.Addr{}) {
		t.Error("an address is in no range, or no address in one")
	}
}
