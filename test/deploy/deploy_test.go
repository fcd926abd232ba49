//go:build integration

package deploy

import (
	"bufio"
	"bytes"
	"crypto/tls"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"pagewright/storage/test/service"
)

// front is a proxy in front of the real service.
type front struct {
	addresses
	proxy string
	base  string // directory of the store
	s     *service.Service
}

// TestProxies runs each proxy in front of the real service.
func TestProxies(t *testing.T) {
	bin := service.Build(t)
	for _, p := range proxies {
		t.Run(p.name, func(t *testing.T) {
			t.Parallel()
			f := &front{base: service.SharedDir(t), proxy: p.name}
			f.admin = freeAddress(t)
			f.s = service.Start(t, service.Options{Bin: bin, Base: f.base, Env: []string{"ADMIN_LISTEN=" + f.admin, "ACCESS_LOG=true",
				"STALL_TIMEOUT=1s", "MAX_ARTIFACT_SIZE=200MiB", "SHUTDOWN_DELAY=1h", "TRUSTED_PROXIES=127.0.0.1", "CLIENT_ADDRESS_HEADER=X-Forwarded-For"}})
			f.service = f.s.Addr
			f.addresses = p.start(t, f.addresses)
			service.Until(t, "a response through the proxy", func() bool { return f.status(t, "GET", "/sites/s/versions", "") == 200 })
			t.Run("only the API is passed on", f.onlyTheAPI)
			t.Run("uploads arrive while they are sent", f.uploadsStream)
			t.Run("downloads wait for their client", f.downloadsStream)
			t.Run("large builds pass whole", f.whole)
			t.Run("refusals pass unchanged", f.refusals)
			t.Run("Host passes with its port", f.host)
			t.Run("the service log has the client's address", f.clientAddress)
			t.Run("TLS", f.tls)
			if p.name == "haproxy" { // nginx has no active checks
				t.Run("a replica that is not ready gets nothing", f.notReady)
			}
		})
	}
}

// onlyTheAPI: whatever the spelling, nothing but /sites and what is below reaches the service.
func (f *front) onlyTheAPI(t *testing.T) {
	for _, c := range []struct {
		path   string
		status int
	}{
		{"/sites/s/versions", 200},
		{"/", 404},
		{"/sites", 200},
		{"/sitesx", 404},
		{"/health", 404},
		{"/ready", 404},
		{"/metrics", 404},
		{"/openapi.yaml", 404},
		{"//ready", 404},
		{"/sites/../ready", 404},
		{"/sites/%2e%2e/ready", 404},
		{"/sites/s/../../ready", 404},
		{"/ready?/sites/", 404},
	} {
		if got := f.status(t, "GET", c.path, ""); got != c.status {
			t.Errorf("GET %s: %d, want %d", c.path, got, c.status)
		}
	}
	// HAProxy does not decode it: the service refuses it as the id of a site.
	if got := f.status(t, "GET", "/sites/..%2fready", ""); got != 404 && got != 400 {
		t.Errorf("GET /sites/..%%2fready: %d, want 404 or 400", got)
	}
	if body := roundTrip(t, f.http, "GET", "/ready", "", nil).body; !json.Valid(body) {
		t.Errorf("the body of a 404 is %q, not JSON", body)
	}
}

// uploadsStream: the store has the first bytes of an upload before its client has sent the
// others.
func (f *front) uploadsStream(t *testing.T) {
	body := randomBytes(8 << 20)
	for _, framing := range []string{fmt.Sprintf("Content-Length: %d\r\n", len(body)), "Transfer-Encoding: chunked\r\n"} {
		name := strings.Split(framing, ":")[0]
		c := dial(t, f.http)
		fmt.Fprintf(c, "PUT /sites/stream/artifacts/%s HTTP/1.1\r\nHost: h\r\n%s\r\n", name, framing)
		chunked := strings.HasPrefix(framing, "Transfer")
		send := func(part []byte) {
			if chunked {
				fmt.Fprintf(c, "%x\r\n%s\r\n", len(part), part)
			} else {
				c.Write(part)
			}
		}
		send(body[:4<<20])
		service.Until(t, "the first MiB in the store: "+name, func() bool {
			for _, temp := range service.Temps(t, f.base) {
				if data, err := os.ReadFile(temp); err == nil && len(data) >= 1<<20 && bytes.Equal(data[:1<<20], body[:1<<20]) {
					return true
				}
			}
			return false
		})
		send(body[4<<20:])
		if chunked {
			io.WriteString(c, "0\r\n\r\n")
		}
		if r := readResponse(t, c, "PUT"); r.status != 201 {
			t.Errorf("%s: %d %s", name, r.status, r.body)
		}
		if r := roundTrip(t, f.http, "GET", "/sites/stream/artifacts/"+name, "", nil); !bytes.Equal(r.body, body) {
			t.Errorf("%s: %d other bytes than the %d sent", name, len(r.body), len(body))
		}
	}
}

// downloadsStream: if a client stops reading, the service notices, and cuts the download. A
// proxy that keeps bodies would take all of it.
func (f *front) downloadsStream(t *testing.T) {
	const path = "/sites/stream/artifacts/download"
	f.put(t, path, randomBytes(128<<20))
	c := dial(t, f.http)
	c.(*net.TCPConn).SetReadBuffer(64 << 10)
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: h\r\n\r\n", path)
	if _, err := io.ReadFull(c, make([]byte, 64<<10)); err != nil {
		t.Fatal(err)
	}
	if line := f.request(t, "GET", path); line["cut"] == nil {
		t.Errorf("the service sent the whole download, whose client had stopped: %v", line)
	}
}

// whole: a large build comes back as it was sent. nginx keeps up to 1 GiB in a file, unless
// the configuration says otherwise: see downloadsStream.
func (f *front) whole(t *testing.T) {
	const path = "/sites/whole/artifacts/b"
	body := randomBytes(64 << 20)
	f.put(t, path, body)
	if r := roundTrip(t, f.http, "GET", path, "", nil); r.status != 200 || !bytes.Equal(r.body, body) {
		t.Errorf("%d with %d other bytes than the %d sent", r.status, len(r.body), len(body))
	}
}

// refusals: the proxy passes a refusal on as the service sends it. With Expect, HAProxy asks
// the service before the body is sent; nginx sends the 100 itself.
func (f *front) refusals(t *testing.T) {
	const path = "/sites/refused/artifacts/b"
	f.put(t, path, []byte("x"))
	for _, c := range []struct {
		name, method, header string
		status               int
	}{
		{"too large", "PUT", "Content-Length: 300000000\r\n", 413},
		{"too large, asked first", "PUT", "Content-Length: 300000000\r\nExpect: 100-continue\r\n", 413},
		{"the condition fails", "PUT", "Content-Length: 5\r\nIf-None-Match: *\r\nExpect: 100-continue\r\n", 412},
		{"of another origin", "DELETE", "Sec-Fetch-Site: cross-site\r\n", 403},
		{"no such route", "GET", "X: y\r\n", 404},
	} {
		p := path
		if c.status == 404 {
			p = "/sites/refused/none"
		}
		var body []byte
		if c.method == "PUT" {
			body = []byte("12345")
		}
		direct := roundTrip(t, f.s.Addr, c.method, p, c.header, body)
		through := roundTrip(t, f.http, c.method, p, c.header, body)
		if direct.status != c.status || through.status != c.status || !bytes.Equal(direct.body, through.body) {
			t.Errorf("%s: %d %s; through the proxy: %d %s", c.name, direct.status, direct.body, through.status, through.body)
		}
	}
}

// TestProxiesPassTooManyConnectionsOn: also a response that is sent before the request was
// read passes unchanged.
func TestProxiesPassTooManyConnectionsOn(t *testing.T) {
	bin := service.Build(t)
	for _, p := range proxies {
		t.Run(p.name, func(t *testing.T) {
			admin := freeAddress(t)
			s := service.Start(t, service.Options{Bin: bin, Base: service.SharedDir(t), Env: []string{"ADMIN_LISTEN=" + admin, "MAX_CONNS_PER_IP=1"}})
			dial(t, s.Addr) // takes the only connection of the address, which is the proxy's too
			direct := roundTrip(t, s.Addr, "GET", "/sites/s/versions", "", nil)
			a := p.start(t, addresses{service: s.Addr, other: s.Addr, admin: admin})
			service.Until(t, "a response of the service", func() bool {
				return roundTrip(t, a.http, "GET", "/sites/s/versions", "", nil).status != 503
			})
			through := roundTrip(t, a.http, "GET", "/sites/s/versions", "", nil)
			if direct.status != 429 || through.status != 429 || !bytes.Equal(direct.body, through.body) ||
				through.header.Get("Retry-After") != direct.header.Get("Retry-After") {
				t.Errorf("%d %s; through the proxy: %d %v %s", direct.status, direct.body, through.status, through.header, through.body)
			}
		})
	}
}

// TestProxiesPassCredentialsOn: with access control the response through a proxy is the one
// that the service sends, with a token and without.
func TestProxiesPassCredentialsOn(t *testing.T) {
	bin := service.Build(t)
	out, err := exec.Command(bin, "token", "new", "--name", "ci", "--allow", "write", "--sites", "s").Output()
	token, entry, found := strings.Cut(strings.TrimSpace(string(out)), "\n")
	if err != nil || !found {
		t.Fatalf("%v: %q", err, out)
	}
	file := filepath.Join(t.TempDir(), "access.json")
	if err := os.WriteFile(file, []byte(`{"tokens":[`+entry+`]}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, p := range proxies {
		t.Run(p.name, func(t *testing.T) {
			admin := freeAddress(t)
			s := service.Start(t, service.Options{Bin: bin, Base: service.SharedDir(t), Env: []string{"ADMIN_LISTEN=" + admin, "ACCESS_FILE=" + file}})
			a := p.start(t, addresses{service: s.Addr, other: s.Addr, admin: admin})
			const length = "Content-Length: 3\r\n"
			put := func(addr, header string) response {
				return roundTrip(t, addr, "PUT", "/sites/s/artifacts/b", length+header, []byte("abc"))
			}
			service.Until(t, "a response of the service", func() bool { return put(a.http, "").status != 503 })
			for _, c := range []struct {
				name, header string
				status       int
			}{
				{"none", "", 401},
				{"Bearer", "Authorization: Bearer " + token + "\r\n", 201},
				{"Basic", "Authorization: Basic " + base64.StdEncoding.EncodeToString([]byte("ci:"+token)) + "\r\n", 201},
				{"wrong", "Authorization: Bearer " + token[:len(token)-1] + "\r\n", 401},
			} {
				direct, through := put(s.Addr, c.header), put(a.http, c.header)
				if direct.status != c.status || through.status != c.status || !bytes.Equal(direct.body, through.body) ||
					through.header.Get("WWW-Authenticate") != direct.header.Get("WWW-Authenticate") {
					t.Errorf("%s: %d %s; through the proxy: %d %v %s", c.name, direct.status, direct.body, through.status, through.header, through.body)
				}
			}
		})
	}
}

// TestHAProxyToReplicasWithTLS: with the words that haproxy.cfg names, HAProxy speaks TLS to a
// replica and verifies its certificate. The check of the admin address stays without TLS.
func TestHAProxyToReplicasWithTLS(t *testing.T) {
	bin, pair, other := service.Build(t), filepath.Join(t.TempDir(), "a.pem"), filepath.Join(t.TempDir(), "b.pem")
	writeCertificate(t, pair)
	writeCertificate(t, other)
	admin := freeAddress(t)
	s := service.Start(t, service.Options{Bin: bin, Base: service.SharedDir(t), Env: []string{"ADMIN_LISTEN=" + admin, "TLS_CERT=" + pair, "TLS_KEY=" + pair}})
	for ca, want := range map[string]int{pair: 200, other: 503} {
		server := s.Addr + " ssl verify required ca-file " + ca + " verifyhost storage.example.com sni str(storage.example.com)"
		a := proxies[0].start(t, addresses{service: server, other: server, admin: admin})
		service.Until(t, fmt.Sprint("status ", want), func() bool {
			return roundTrip(t, a.http, "GET", "/sites/s/versions", "", nil).status == want
		})
		if r := roundTrip(t, a.http, "GET", "/balancer", "", nil); r.status != 200 {
			t.Errorf("the check of the admin address: %d", r.status)
		}
	}
}

// TestNginxToAServiceWithTLS: the lines marked #service-tls make nginx speak TLS to the service
// and verify its certificate and its name.
func TestNginxToAServiceWithTLS(t *testing.T) {
	bin, pair, other := service.Build(t), filepath.Join(t.TempDir(), "a.pem"), filepath.Join(t.TempDir(), "b.pem")
	writeCertificate(t, pair)
	writeCertificate(t, other)
	s := service.Start(t, service.Options{Bin: bin, Base: service.SharedDir(t), Env: []string{"ADMIN_LISTEN=" + freeAddress(t), "TLS_CERT=" + pair, "TLS_KEY=" + pair}})
	const name = "storage.example.com;\n"
	for _, c := range []struct {
		name, ca, host string
		status         int
	}{
		{"the certificate that it trusts", pair, name, 200},
		{"another one", other, name, 502},
		{"another name", pair, "other.example.com;\n", 502},
	} {
		nginx := proxies[1]
		nginx.edits = func(a addresses) [][2]string {
			return append(proxies[1].edits(a), [2]string{"\t\t\tproxy_pass http://storage;\n", ""}, [2]string{"/etc/nginx/storage-ca.crt", c.ca},
				[2]string{"proxy_ssl_name " + name, "proxy_ssl_name " + c.host},
				[2]string{"#service-tls proxy_pass ", "proxy_pass "}, [2]string{"#service-tls proxy_ssl_verify ", "proxy_ssl_verify "},
				[2]string{"#service-tls proxy_ssl_trusted_certificate ", "proxy_ssl_trusted_certificate "},
				[2]string{"#service-tls proxy_ssl_name ", "proxy_ssl_name "}, [2]string{"#service-tls proxy_ssl_server_name ", "proxy_ssl_server_name "})
		}
		a := nginx.start(t, addresses{service: s.Addr})
		if r := roundTrip(t, a.http, "GET", "/sites/s/versions", "", nil); r.status != c.status {
			t.Errorf("%s: %d %s, want %d", c.name, r.status, r.body, c.status)
		}
	}
}

// host: a browser's POST for a page of the same origin is accepted, since the proxy passes
// on Host with its port.
func (f *front) host(t *testing.T) {
	entry := []byte(`{"build_id":"b","action":"deploy","status":"ok"}`)
	header := fmt.Sprintf("Content-Length: %d\r\nOrigin: http://%s\r\n", len(entry), f.http)
	if r := roundTrip(t, f.http, "POST", "/sites/host/logs", header, entry); r.status != 201 {
		t.Errorf("%d %s", r.status, r.body)
	}
}

// clientAddress: the proxy replaces what a client says of its address.
func (f *front) clientAddress(t *testing.T) {
	d := net.Dialer{LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 0, 0, 2)}} // not the address of the proxy
	c, err := d.Dial("tcp", f.http)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	const path = "/sites/address/artifacts/none"
	fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: h\r\nX-Forwarded-For: 192.0.2.1, 127.0.0.1\r\nX-Forwarded-For: 192.0.2.2\r\nForwarded: for=192.0.2.3\r\n\r\n", path)
	readResponse(t, c, "GET")
	line := f.request(t, "GET", path)
	if remote, _ := line["remote"].(string); remote != "127.0.0.2" && !strings.HasPrefix(remote, "127.0.0.2:") {
		t.Errorf("remote is %v, peer %v; the client is 127.0.0.2", line["remote"], line["peer"])
	}
}

// tls: the lines marked #tls make a server that speaks HTTP/2 too.
func (f *front) tls(t *testing.T) {
	client := http.Client{Timeout: time.Minute, Transport: &http.Transport{ForceAttemptHTTP2: true, TLSClientConfig: &tls.Config{InsecureSkipVerify: true}}}
	defer client.CloseIdleConnections()
	body := randomBytes(4 << 20)
	for _, method := range []string{"PUT", "GET"} {
		req, err := http.NewRequest(method, "https://"+f.https+"/sites/tls/artifacts/b", bytes.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		if method == "GET" {
			req.Body, req.ContentLength = nil, 0
		}
		res, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, err := io.ReadAll(res.Body)
		res.Body.Close()
		if err != nil || res.ProtoMajor != 2 || res.StatusCode >= 300 || method == "GET" && !bytes.Equal(got, body) {
			t.Errorf("%s: %s %s with %d bytes, %v", method, res.Proto, res.Status, len(got), err)
		}
	}
}

// notReady: a replica that is stopping gets no more requests, although it would still respond.
func (f *front) notReady(t *testing.T) {
	if err := f.s.Signal(); err != nil {
		t.Fatal(err)
	}
	service.Until(t, "503 of the proxy itself", func() bool {
		r := roundTrip(t, f.http, "GET", "/sites/s/versions", "", nil)
		return r.status == 503 && r.header.Get("Retry-After") != "" && json.Valid(r.body)
	})
	if got := f.statusAt(t, f.s.Addr, "GET", "/sites/s/versions", ""); got != 200 {
		t.Errorf("the service itself: %d", got)
	}
	if got := f.status(t, "GET", "/balancer", ""); got != 503 {
		t.Errorf("/balancer: %d", got)
	}
}

// TestProxiesNeverRepeatARequest: a server that takes a request and closes the connection
// may have done what was asked.
func TestProxiesNeverRepeatARequest(t *testing.T) {
	for _, p := range proxies {
		t.Run(p.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() { l.Close() })
			var deletes atomic.Int64
			go func() {
				for {
					c, err := l.Accept()
					if err != nil {
						return
					}
					req, err := http.ReadRequest(bufio.NewReader(c))
					switch {
					case err == nil && req.Method == "DELETE":
						deletes.Add(1)
					case err == nil:
						io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 0\r\nConnection: close\r\n\r\n")
					}
					c.Close()
				}
			}()
			server := l.Addr().String()
			a := p.start(t, addresses{service: server, other: server, admin: server})
			if r := roundTrip(t, a.http, "DELETE", "/sites/s/artifacts/b", "", nil); r.status != 502 {
				t.Errorf("status %d, want 502", r.status)
			}
			if n := deletes.Load(); n != 1 {
				t.Errorf("the servers got the request %d times", n)
			}
		})
	}
}

// TestProxiesReplaceTheAddressOfTheClient: an address that a client sends is not passed on, not
// even in front of the real one.
func TestProxiesReplaceTheAddressOfTheClient(t *testing.T) {
	for _, p := range proxies {
		t.Run(p.name, func(t *testing.T) {
			l, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			headers := make(chan http.Header, 1)
			s := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == "DELETE" {
					headers <- r.Header
				}
			})}
			go s.Serve(l)
			t.Cleanup(func() { s.Close() })
			a := p.start(t, addresses{service: l.Addr().String(), admin: l.Addr().String()})
			if r := roundTrip(t, a.http, "DELETE", "/sites/s/artifacts/b", "X-Forwarded-For: 192.0.2.1\r\nForwarded: for=192.0.2.2\r\n", nil); r.status != 200 {
				t.Fatalf("status %d: %s", r.status, r.body)
			}
			h := <-headers
			if got := h.Values("X-Forwarded-For"); len(got) != 1 || got[0] != "127.0.0.1" || len(h.Values("Forwarded")) > 0 {
				t.Errorf("X-Forwarded-For %q, Forwarded %q", got, h.Values("Forwarded"))
			}
		})
	}
}

// TestProxiesTryAgainWhatHasNotBegun: HAProxy uses the other replica if it cannot connect to
// one. nginx cannot do that without also retrying requests that have begun.
func TestProxiesTryAgainWhatHasNotBegun(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ok := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {})}
	go ok.Serve(l)
	t.Cleanup(func() { ok.Close() })
	a := proxies[0].start(t, addresses{service: freeAddress(t), other: l.Addr().String(), admin: l.Addr().String()})
	for range 10 {
		if r := roundTrip(t, a.http, "DELETE", "/sites/s/artifacts/b", "", nil); r.status != 200 {
			t.Fatalf("status %d: %s", r.status, r.body)
		}
	}
}

// TestProxiesWaitForNFSAndCloseIdleConnectionsFirst compares the times in the files. A
// restart of an NFS server takes 2 minutes to boot, 60 s until a client sends again, and
// 90 s of grace; the service closes idle connections after 120 s.
func TestProxiesWaitForNFSAndCloseIdleConnectionsFirst(t *testing.T) {
	const restart, idle = 120 + 60 + 90, 120
	for _, c := range []struct {
		file, setting string
		min, max      int
	}{
		{"haproxy.cfg", "timeout server", restart, 3600},
		{"haproxy.cfg", "timeout http-keep-alive", 1, idle - 1},
		{"nginx.conf", "proxy_read_timeout", restart, 3600},
		{"nginx.conf", "proxy_send_timeout", restart, 3600},
		{"nginx.conf", "keepalive_timeout", 1, idle - 1},
	} {
		text, err := os.ReadFile(filepath.Join("../../deploy/load-balancer", c.file))
		if err != nil {
			t.Fatal(err)
		}
		m := regexp.MustCompile(`(?m)^\s*`+c.setting+`\s+(\d+)s;?$`).FindAllSubmatch(text, -1)
		if len(m) != 1 {
			t.Errorf("%s: %q is set %d times", c.file, c.setting, len(m))
			continue
		}
		if n, _ := strconv.Atoi(string(m[0][1])); n < c.min || n > c.max {
			t.Errorf("%s: %s is %d s, want %d to %d", c.file, c.setting, n, c.min, c.max)
		}
	}
}

// response is a response that was read to its end.
type response struct {
	status int
	header http.Header
	body   []byte
}

// roundTrip sends one request on a connection of its own, and returns the response. If the
// header expects 100-continue, the body is sent when that arrives.
func roundTrip(t *testing.T, addr, method, path, header string, body []byte) response {
	t.Helper()
	c := dial(t, addr)
	defer c.Close()
	fmt.Fprintf(c, "%s %s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\n%s\r\n", method, path, addr, header)
	if !strings.Contains(header, "Expect:") {
		c.Write(body)
		body = nil
	}
	return readResponse(t, c, method, body...)
}

// readResponse reads a response. If a 100 comes first it sends body.
func readResponse(t *testing.T, c net.Conn, method string, body ...byte) response {
	t.Helper()
	r := bufio.NewReader(c)
	for {
		res, err := http.ReadResponse(r, &http.Request{Method: method})
		if err != nil {
			t.Fatalf("%s: %v", method, err)
		}
		if res.StatusCode == 100 {
			c.Write(body)
			continue
		}
		got, err := io.ReadAll(res.Body)
		if err != nil {
			t.Fatalf("%s: after %d bytes: %v", method, len(got), err)
		}
		return response{res.StatusCode, res.Header, got}
	}
}

func (f *front) status(t *testing.T, method, path, header string) int {
	t.Helper()
	return f.statusAt(t, f.http, method, path, header)
}

func (f *front) statusAt(t *testing.T, addr, method, path, header string) int {
	t.Helper()
	return roundTrip(t, addr, method, path, header, nil).status
}

// put stores a build through the proxy, with Expect: 100-continue as curl sends it.
func (f *front) put(t *testing.T, path string, body []byte) {
	t.Helper()
	c := dial(t, f.http)
	defer c.Close()
	fmt.Fprintf(c, "PUT %s HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\nExpect: 100-continue\r\n\r\n", path, len(body))
	const goOn = "HTTP/1.1 100 Continue\r\n\r\n"
	got := make([]byte, len(goOn))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != goOn {
		t.Fatalf("PUT %s: %q, %v, want a 100", path, got, err)
	}
	c.Write(body)
	if r := readResponse(t, c, "PUT"); r.status != 201 {
		t.Fatalf("PUT %s: %d %s", path, r.status, r.body)
	}
}

// request waits for the line of a request in the service log.
func (f *front) request(t *testing.T, method, path string) (found map[string]any) {
	t.Helper()
	service.Until(t, "the line of "+method+" "+path, func() bool {
		for line := range strings.Lines(f.s.Log()) {
			var l map[string]any
			if json.Unmarshal([]byte(line), &l) == nil && l["msg"] == "request" && l["method"] == method && l["path"] == path {
				found = l
			}
		}
		return found != nil
	})
	return found
}

func dial(t *testing.T, addr string) net.Conn {
	t.Helper()
	c, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	c.SetDeadline(time.Now().Add(time.Minute))
	t.Cleanup(func() { c.Close() })
	return c
}

func randomBytes(n int) []byte {
	b := make([]byte, n)
	rand.NewChaCha8([32]byte{1}).Read(b)
	return b
}
