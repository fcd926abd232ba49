package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"syscall"
	"time"
)

// The loads of programs that transfer builds: the client of the service, and what people use
// instead. Each transfer is a process of its own, to or from a file in memory.

const (
	uploadLoad   = "upload by a program"
	downloadLoad = "download by a program"
)

var transferMetrics = []string{"MB/s", "ms", "client CPU ms", "server CPU ms", "client peak MB"}

// program is a way to transfer the file $4 as the build $3 of the site $2 at the URL $1. Its
// commands are run by a shell.
type program struct {
	name             string
	upload, download string // empty: it cannot
}

// programsOf returns the programs that use a server. rclone uploads to no URL but to stores
// that it knows, so it is measured with its own WebDAV server too.
func (b *bench) programsOf(server string) []program {
	rclone := b.rclone + ` copyto -q --config "" `
	if server == rcloneServer {
		return []program{{rcloneServer,
			rclone + `--webdav-url "$1" "$4" ":webdav:sites/$2/artifacts/$3.tar.gz"`,
			rclone + `--webdav-url "$1" ":webdav:sites/$2/artifacts/$3.tar.gz" "$4"`}}
	}
	client := `PAGEWRIGHT_URL="$1" exec ` + b.directory
	all := []program{
		{"push, pull", client + ` push -q "$4" "$2" "$3"`, client + ` pull -q "$2" "$3" -o "$4"`},
		{"curl", `exec curl -fsS -T "$4" "$1/sites/$2/artifacts/$3"`, `exec curl -fsS -o "$4" "$1/sites/$2/artifacts/$3"`},
		{"curl, openssl", `sum=$(openssl dgst -sha256 -binary "$4" | base64) &&
			curl -fsS -H "Repr-Digest: sha-256=:$sum:" -T "$4" "$1/sites/$2/artifacts/$3"`,
			`curl -fsS -o "$4" "$1/sites/$2/artifacts/$3" && openssl dgst -sha256 "$4" >/dev/null`},
	}
	if b.rclone != "" {
		all = append(all, program{"rclone, http", "", rclone + `--http-url "$1" ":http:sites/$2/artifacts/$3" "$4"`})
	}
	return all
}

// transfers: each program uploads and downloads a small and a large file.
func (b *bench) transfers() error {
	small := filepath.Join(b.scratch, "small")
	data, err := b.bytes(4 << 10)
	if err == nil {
		err = os.WriteFile(small, data, 0o644)
	}
	if err != nil {
		return err
	}
	servers := []string{pagewright}
	if b.rclone != "" {
		servers = append(servers, rcloneServer)
	}
	return b.turns(servers, b.rounds, func(s *server, round int) error {
		if s.name == before {
			return nil
		}
		all := b.programsOf(s.name)
		for i := range all {
			p := all[(i+round)%len(all)]
			for size, file := range map[int64]string{4 << 10: small, b.large: b.source} {
				if err := b.transfer(s, p, file, size, round); err != nil {
					return fmt.Errorf("%s, %d bytes: %w", p.name, size, err)
				}
			}
		}
		return nil
	})
}

// transfer uploads file with p, or with curl if p cannot, downloads it with p, and deletes it.
func (b *bench) transfer(s *server, p program, file string, size int64, round int) error {
	const site, build = "programs", "b"
	stored := s.stored(site, build)
	if p.upload != "" {
		b.settle()
		values, err := measure(s, p.upload, size, site, build, file)
		if err != nil {
			return err
		}
		b.add(uploadLoad, float64(size), p.name, round, values)
	} else if err := put(s.addr, artifactPath(site, build), file, size, ""); err != nil {
		return err
	}
	got := b.source + ".got"
	defer os.Remove(got)
	b.settle()
	values, err := measure(s, p.download, size, site, build, got)
	if err != nil {
		return err
	}
	b.add(downloadLoad, float64(size), p.name, round, values)
	info, err := os.Stat(got)
	if err == nil && info.Size() != size {
		err = fmt.Errorf("%d bytes were downloaded, not %d", info.Size(), size)
	}
	return errors.Join(err, os.Remove(stored))
}

// measure runs command with the arguments of a program, and measures both ends.
func measure(s *server, command string, size int64, site, build, file string) (map[string]float64, error) {
	cmd := exec.Command("sh", "-c", command, "sh", s.url(""), site, build, file)
	cpu, start := cpuSeconds(s.pid()), time.Now()
	out, err := cmd.CombinedOutput()
	if err != nil {
		return nil, fmt.Errorf("%w: %s", err, out)
	}
	took := time.Since(start).Seconds()
	client := (cmd.ProcessState.UserTime() + cmd.ProcessState.SystemTime()).Seconds()
	return map[string]float64{
		"MB/s": float64(size) / mb / took, "ms": took * 1e3,
		"client CPU ms": client * 1e3, "server CPU ms": (cpuSeconds(s.pid()) - cpu) * 1e3,
		"client peak MB": float64(cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss) * 1024 / mb,
	}, nil
}
