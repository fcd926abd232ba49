//go:build integration || torture

// Package nfs proves the store on real NFS mounts: the kernel's server in one
// machine, the kernel's client and the services in another.
package nfs

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"pagewright/storage/test/history"
	"pagewright/storage/test/vm"
)

// The two services, and the mount that each of them has for itself.
var (
	ports  = []int{8080, 8081}
	mounts = []string{"/mnt/a", "/mnt/b"}
)

// patience is how long a test waits for what must come at last. The machines
// are emulated, and slow where the host is busy.
const patience = 3 * time.Minute

var (
	kit         *vm.Kit
	service     string // the product
	conformance string // its tests
)

func TestMain(m *testing.M) { os.Exit(prepareAndRun(m)) }

func prepareAndRun(m *testing.M) int {
	dir, err := os.MkdirTemp("", "nfs")
	if err == nil {
		defer os.RemoveAll(dir)
		kit, err = vm.NewKit(dir)
	}
	if err == nil {
		service, conformance = filepath.Join(dir, "service"), filepath.Join(dir, "conformance")
		err = errors.Join(vm.BuildService(service), vm.GoTestBuild(conformance, "pagewright/storage"))
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	code := m.Run()
	table.print()
	return code
}

// protocol is a version of NFS under test.
type protocol struct {
	name, kind, source, options string
}

// nosharecache: two mounts of one export in one machine that know as little of
// each other as two machines.
var protocols = []protocol{
	{"NFSv4.2", "nfs4", "10.9.0.1:/", "vers=4.2,addr=10.9.0.1,clientaddr=10.9.0.2,nosharecache,hard"},
	{"NFSv3", "nfs", "10.9.0.1:/srv/disk/export",
		"vers=3,proto=tcp,addr=10.9.0.1,mountproto=tcp,mountaddr=10.9.0.1,mountport=20048,nosharecache,hard"},
}

func eachProtocol(t *testing.T, test func(t *testing.T, p protocol)) {
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) { test(t, p) })
	}
}

// network is a server and a client with a cable between them.
type network struct {
	protocol
	disk           string
	serverEnd      *vm.Wire
	server, client *vm.Machine
}

// connect boots both machines and mounts the export twice.
func (p protocol) connect(t *testing.T, files map[string]string) *network {
	t.Helper()
	n := &network{protocol: p, disk: filepath.Join(t.TempDir(), "disk.img")}
	if err := os.WriteFile(n.disk, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(n.disk, 1<<30); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", n.disk).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	var clientEnd *vm.Wire
	var err error
	if n.serverEnd, clientEnd, err = vm.NewWire(); err != nil {
		t.Fatal(err)
	}
	n.startServer(t)
	n.client, err = kit.Start(t.Context(), vm.Config{Name: "client", Memory: 2048, Ports: ports, Files: files, Wire: clientEnd})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.client.Cut)
	run(t, n.client, "guest load nfs && rpcbind && rpc.statd")
	for _, m := range mounts {
		run(t, n.client, "guest mount %s %s %s %s", p.kind, p.source, m, p.options)
	}
	return n
}

const exportLine = `/srv/disk/export *(rw,fsid=0,no_root_squash,no_subtree_check,sync,insecure)`

// startServer boots the server. What it must know of its clients to give them
// their locks back after a crash is on its disk.
func (n *network) startServer(t *testing.T) {
	t.Helper()
	var err error
	n.server, err = kit.Start(t.Context(), vm.Config{Name: "server", Memory: 768,
		Drives: []string{vm.RawDrive(n.disk, false)}, Wire: n.serverEnd})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.server.Cut)
	run(t, n.server, `set -ex
guest load nfs
guest mount ext4 /dev/vda /srv/disk ''
mkdir -p /srv/disk/export /srv/disk/state
[ -e /srv/disk/state/etab ] || cp -a /var/lib/nfs/. /srv/disk/state/
mount -o bind /srv/disk/state /var/lib/nfs
guest mount nfsd nfsd /proc/fs/nfsd ''
echo '%s' >/etc/exports
rpcbind
rpc.statd
echo 10 >/proc/fs/nfsd/nfsv4leasetime
echo 10 >/proc/fs/nfsd/nfsv4gracetime
echo 10 >/proc/sys/fs/nfs/nlm_grace_period
exportfs -ra
rpc.mountd -p 20048
rpc.nfsd 8`, exportLine)
}

// serve starts a service on each of the mounts and gives their clients, who
// share one history.
func (n *network) serve(t *testing.T) []*history.Driver {
	t.Helper()
	h := &history.History{}
	var drivers []*history.Driver
	for i, port := range ports {
		url, err := n.client.Serve(t.Context(), port, mounts[i], "NFS_REQUIRE_MOUNT=true")
		if err != nil {
			t.Fatal(err)
		}
		drivers = append(drivers, history.NewDriver(url, h, patience))
	}
	return drivers
}

// load has workers write through every service until ctx ends or each has done
// limit requests.
func load(ctx context.Context, drivers []*history.Driver, workers, limit int) {
	var g sync.WaitGroup
	for i, d := range drivers {
		g.Go(func() { d.MixAll(ctx, "nfs", workers, limit, uint64(i)+1) })
	}
	g.Wait()
}

// judge compares the files, as the server has them, and what each service says
// with what was acknowledged.
func (n *network) judge(t *testing.T, drivers []*history.Driver) (violations int) {
	t.Helper()
	var inv history.Inventory
	if err := json.Unmarshal([]byte(run(t, n.server, "guest scan /srv/disk/export")), &inv); err != nil {
		t.Fatal(err)
	}
	found := append(drivers[0].History.Judge(&inv, history.Latest), drivers[0].History.JudgeCreates()...)
	for i, d := range drivers {
		front, err := d.JudgeFront(t.Context(), &inv)
		if err != nil {
			t.Fatalf("%v\n%s", err, n.client.ServiceLog(t.Context(), ports[i]))
		}
		found = append(found, front...)
	}
	for _, v := range found {
		t.Error(v)
	}
	return len(found)
}

func run(t *testing.T, m *vm.Machine, format string, args ...any) string {
	t.Helper()
	out, err := m.Run(t.Context(), fmt.Sprintf(format, args...))
	if err != nil {
		t.Fatalf(format+": %v\n%s", append(args, err, m.Console())...)
	}
	return out
}

// readiness is what /ready says.
type readiness struct {
	status int
	Writes bool
	Reason string
}

// ready asks /ready, which must answer however the store is.
func ready(t *testing.T, d *history.Driver) readiness {
	t.Helper()
	client := http.Client{Timeout: time.Minute}
	resp, err := client.Get(d.URL + "/ready")
	if err != nil {
		t.Fatalf("/ready hangs: %v", err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	r := readiness{status: resp.StatusCode}
	if err := json.Unmarshal(body, &r); err != nil {
		t.Fatalf("%v: %s", err, body)
	}
	return r
}

// eventually polls until what is so, and tells how long that took.
func eventually(t *testing.T, what string, so func() bool) time.Duration {
	t.Helper()
	began := time.Now()
	for !so() {
		if time.Since(began) > patience {
			t.Fatalf("%s: not within %s", what, patience)
		}
		time.Sleep(20 * time.Millisecond)
	}
	return time.Since(began)
}

// summary is the table at the end of a run.
type summary struct {
	mu   sync.Mutex
	rows [][]any
}

var table summary

func (s *summary) add(row ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.rows = append(s.rows, row)
}

func (s *summary) print() {
	w := tabwriter.NewWriter(os.Stdout, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nwhat\ton\tresult\tviolations\ttime")
	for _, row := range s.rows {
		for i, cell := range row {
			if i > 0 {
				fmt.Fprint(w, "\t")
			}
			fmt.Fprint(w, cell)
		}
		fmt.Fprintln(w)
	}
	w.Flush()
}
