package main

import (
	"crypto/sha256"
	"encoding/base64"
	"fmt"
	"io"
	"os"
)

// The loads with digests of artifacts (RFC 9530).

const (
	digestPut      = "large PUT with digests"
	digestSmallPut = "small PUT (4 KiB) with digests"
	digestGet      = "small GET (4 KiB) with digests"
)

// digestOf returns the lines of a header that announce the first size bytes of the source.
func (b *bench) digestOf(size int64) (string, error) {
	f, err := os.Open(b.source)
	if err != nil {
		return "", err
	}
	defer f.Close()
	sum := sha256.New()
	_, err = io.CopyN(sum, f, size)
	return "Repr-Digest: sha-256=:" + base64.StdEncoding.EncodeToString(sum.Sum(nil)) + ":\r\n", err
}

// onlySent returns header for the server whose client sends a digest.
func (s *server) onlySent(header string) string {
	if s.name == pagewrightSent {
		return header
	}
	return ""
}

// digestPut uploads one large body at a time: without a digest, with one that the client sends,
// and with PAGEWRIGHT_DIGEST=always.
func (b *bench) digestPut() error {
	header, err := b.digestOf(b.large)
	if err != nil {
		return err
	}
	return b.turns([]string{pagewright, pagewrightSent, pagewrightAlways, plain, plainHash}, b.rounds, func(s *server, round int) error {
		build := fmt.Sprintf("b%d", round)
		if err := touchMemory(2 * b.large); err != nil {
			return err
		}
		r, err := each(s.pid(), 1, b.large, func(int) error {
			return put(s.addr, artifactPath("large", build), b.source, b.large, s.onlySent(header))
		})
		if rerr := os.Remove(s.stored("large", build)); err == nil {
			err = rerr
		}
		b.add(digestPut, 1, s.name, round, r.values())
		return err
	})
}

// digestSmall: PUT and GET of 4 KiB.
func (b *bench) digestSmall() error {
	const size = 4 << 10
	body, err := b.bytes(size)
	if err != nil {
		return err
	}
	header, err := b.digestOf(size)
	if err != nil {
		return err
	}
	err = b.turns([]string{pagewright, pagewrightSent, pagewrightAlways, plain, plainHash}, b.rounds, func(s *server, round int) error {
		site := fmt.Sprintf("small%d", round)
		r, err := (&small{addr: s.addr, conns: 64, status: 201, request: putRequest(site, body, s.onlySent(header)),
			warm: b.warm, duration: b.duration}).run(s.pid())
		b.add(digestSmallPut, 64, s.name, round, r.values())
		if err != nil {
			return err
		}
		return os.RemoveAll(s.siteDir(site))
	})
	if err != nil {
		return err
	}
	seeded := map[string]bool{}
	return b.turns([]string{pagewright, pagewrightSent}, 3*b.rounds, func(s *server, round int) error {
		if !seeded[s.name] {
			if err := seed(s, "site", smallFiles, body, s.onlySent(header)); err != nil {
				return err
			}
			seeded[s.name] = true
		}
		r, err := (&small{addr: s.addr, conns: 64, status: 200, warm: b.warm, duration: b.duration, request: get4K}).run(s.pid())
		b.add(digestGet, 64, s.name, round, r.values())
		return err
	})
}
