package main

import (
	"cmp"
	_ "embed"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/template"
	"time"

	"golang.org/x/sys/unix"
)

// The names of the servers, in the order of the report.
const (
	pagewright = "pagewright"
	directory  = "pagewright, BACKENDS=nfs" // the build for a directory alone
	plain      = "plain net/http"
	nginx      = "nginx"
	nginxCache = "nginx, open_file_cache"
	before     = "before" // another build of the service, to see what a change is worth
	limit      = "limit"  // what the machine does without HTTP

	// The same servers with their access log on, to a file. No other server writes one.
	pagewrightLog = "pagewright, access log"
	nginxLog      = "nginx, access log"

	// The same servers with digests: sent by the client, or computed of every upload.
	pagewrightSent   = "pagewright, digest sent"
	pagewrightAlways = "pagewright, DIGEST=always"
	plainHash        = "plain net/http, SHA-256"

	pagewrightTLS = "pagewright, TLS"
	nginxTLS      = "nginx, TLS"

	rcloneServer = "rclone, its WebDAV" // rclone serve webdav
)

// durability of the writes of each.
var durability = map[string]string{
	pagewright: "file fsync, rename, directory fsync before the answer",
	directory:  "file fsync, rename, directory fsync before the answer",
	plain:      "file fsync, rename, directory fsync before the answer",
	nginx:      "none: no fsync at all",
	nginxCache: "none: no fsync at all; answers GET from open files it has kept for up to 60 s",
	limit:      "file fsync, rename, directory fsync, without HTTP",
}

// server is a running server. All of them know the same paths.
type server struct {
	name string
	dir  string
	addr unix.SockaddrInet4
	cmd  *exec.Cmd
	log  *os.File
}

func (s *server) pid() int { return s.cmd.Process.Pid }

// artifact is where the file behind a path of the HTTP API is.
func (s *server) stored(site, build string) string {
	data := s.dir
	suffix := ".tar.gz"
	if strings.HasPrefix(s.name, "nginx") {
		data, suffix = filepath.Join(s.dir, "data"), ""
	}
	return filepath.Join(data, "sites", site, "artifacts", build+suffix)
}

//go:embed nginx/nginx.conf
var nginxConf string

// start starts the named server on an empty directory below dir and waits until
// it answers. started is how long that took.
func (b *bench) start(name string) (s *server, started time.Duration, err error) {
	b.serial++
	dir := filepath.Join(b.dir, fmt.Sprintf("%d-%s", b.serial, strings.Fields(name)[0]))
	if err := os.MkdirAll(dir, 0o777); err != nil {
		return nil, 0, err
	}
	return b.startIn(name, dir)
}

// startIn is start on a directory that may hold something.
func (b *bench) startIn(name, dir string) (s *server, started time.Duration, err error) {
	port, err := freePort()
	if err != nil {
		return nil, 0, err
	}
	s = &server{name: name, dir: dir, addr: unix.SockaddrInet4{Port: port, Addr: [4]byte{127, 0, 0, 1}}}
	s.cmd, err = b.command(name, dir, port)
	if err != nil {
		return nil, 0, err
	}
	if s.log, err = os.Create(filepath.Join(b.scratch, filepath.Base(dir)+".log")); err != nil {
		return nil, 0, err
	}
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	s.cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	begin := time.Now()
	if err := s.cmd.Start(); err != nil {
		return nil, 0, err
	}
	for time.Since(begin) < 20*time.Second {
		if answers(port) {
			return s, time.Since(begin), nil
		}
		time.Sleep(200 * time.Microsecond)
	}
	s.stop()
	said, _ := os.ReadFile(s.log.Name())
	return nil, 0, fmt.Errorf("%s does not answer: %s", name, said)
}

func (b *bench) command(name, dir string, port int) (*exec.Cmd, error) {
	address := fmt.Sprintf("127.0.0.1:%d", port)
	var cert, key string // of TLS; empty: none
	if isTLS(name) {
		var err error
		if cert, key, err = b.certificate(); err != nil {
			return nil, err
		}
	}
	switch name {
	case pagewright, pagewrightLog, pagewrightTLS, pagewrightSent, pagewrightAlways, directory, before:
		cmd := exec.Command(cmp.Or(map[string]string{directory: b.directory, before: b.before}[name], b.product))
		cmd.Env = append(os.Environ(), "PAGEWRIGHT_LISTEN=127.0.0.1", "PAGEWRIGHT_PORT="+strconv.Itoa(port),
			"PAGEWRIGHT_NFS_BASE_PATH="+dir, "PAGEWRIGHT_ACCESS_LOG="+strconv.FormatBool(name == pagewrightLog))
		cmd.Env = append(cmd.Env, b.env...)
		if name == pagewrightAlways {
			cmd.Env = append(cmd.Env, "PAGEWRIGHT_DIGEST=always")
		}
		if isTLS(name) {
			cmd.Env = append(cmd.Env, "PAGEWRIGHT_TLS_CERT="+cert, "PAGEWRIGHT_TLS_KEY="+key)
		}
		return cmd, nil
	case plain:
		return exec.Command(b.plain, address, dir), nil
	case plainHash:
		return exec.Command(b.plain, "-sha256", address, dir), nil
	case rcloneServer:
		return exec.Command(b.rclone, "serve", "webdav", dir, "--addr", address, "--config", ""), nil
	case limit:
		return exec.Command(b.self, "-discard", address, b.source), nil
	}
	for _, d := range []string{"data", "temp", "unused"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o777); err != nil {
			return nil, err
		}
	}
	me, err := user.Current()
	if err != nil {
		return nil, err
	}
	f, err := os.Create(filepath.Join(dir, "nginx.conf"))
	if err != nil {
		return nil, err
	}
	defer f.Close()
	accessLog := "off"
	if name == nginxLog {
		accessLog = filepath.Join(b.scratch, filepath.Base(dir)+".access.log") // beside that of the service
	}
	err = template.Must(template.New("").Parse(nginxConf)).Execute(f, map[string]any{
		"AccessLog": `"` + accessLog + `"`, "Cert": cert, "Key": key,
		"Dir": dir, "Port": port, "User": me.Username, "Cache": name == nginxCache})
	return exec.Command("nginx", "-e", "stderr", "-c", f.Name()), err
}

// stop ends the server and waits for it.
func (s *server) stop() {
	_ = s.cmd.Process.Signal(syscall.SIGTERM)
	timer := time.AfterFunc(10*time.Second, func() { _ = s.cmd.Process.Kill() })
	_ = s.cmd.Wait()
	timer.Stop()
	_ = s.log.Close()
}

func freePort() (int, error) {
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		return 0, err
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).Port, nil
}

// answers reports whether something speaks HTTP on port. A server of TLS answers 400.
func answers(port int) bool {
	conn, err := net.DialTimeout("tcp4", fmt.Sprintf("127.0.0.1:%d", port), time.Second)
	if err != nil {
		return false
	}
	defer conn.Close()
	fmt.Fprint(conn, "GET /health HTTP/1.1\r\nHost: bench\r\nConnection: close\r\n\r\n")
	_ = conn.SetReadDeadline(time.Now().Add(time.Second))
	buf := make([]byte, 12)
	_, err = io.ReadFull(conn, buf)
	return err == nil && string(buf[:5]) == "HTTP/"
}

// discard is the limit of a download: it answers every request with the file,
// by sendfile(2), and does nothing else.
func discard(address, file string) error {
	l, err := net.Listen("tcp4", address)
	if err != nil {
		return err
	}
	for {
		conn, err := l.Accept()
		if err != nil {
			return err
		}
		go func() {
			defer conn.Close()
			f, err := os.Open(file)
			if err != nil {
				return
			}
			defer f.Close()
			info, err := f.Stat()
			if err != nil {
				return
			}
			if _, err := conn.Read(make([]byte, 4096)); err != nil {
				return
			}
			fmt.Fprintf(conn, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n", info.Size())
			_, _ = io.Copy(conn, f)
		}()
	}
}
