//go:build integration || torture

// Package nfs proves the store on real NFS mounts: the kernel's server in one
// machine, the kernel's client and a service in each of two others.
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
	"time"

	"pagewright/storage/test/history"
	"pagewright/storage/test/report"
	"pagewright/storage/test/vm"
)

const (
	port  = 8080
	mount = "/mnt/store"
)

// patience is how long a test waits for what must come at last. The machines
// are emulated, and slow where the host is busy.
const patience = 3 * time.Minute

var (
	kit         *vm.Kit
	service     string // the product
	conformance string // its tests
)

func TestMain(m *testing.M) {
	os.Exit(vm.Run("nfs", m.Run, func(k *vm.Kit, dir string) error {
		kit, service, conformance = k, filepath.Join(dir, "service"), filepath.Join(dir, "conformance")
		return errors.Join(vm.BuildService(service), vm.GoTestBuild(conformance, "pagewright/storage"))
	}, &table))
}

// protocol is a version of NFS under test. The source and the options have %s
// where the addresses are to stand: of the server, and of the client.
type protocol struct {
	name, kind, source, options string
}

var protocols = []protocol{
	{"NFSv4.2", "nfs4", "%s:/", "vers=4.2,addr=%[1]s,clientaddr=%[2]s,hard"},
	{"NFSv3", "nfs", "%s:/srv/disk/export", "vers=3,proto=tcp,addr=%[1]s,mountproto=tcp,mountaddr=%[1]s,mountport=20048,hard"},
}

func eachProtocol(t *testing.T, test func(t *testing.T, p protocol)) {
	for _, p := range protocols {
		t.Run(p.name, func(t *testing.T) { test(t, p) })
	}
}

// network is a server and its clients, each on a cable of its own.
type network struct {
	protocol
	files      map[string]string // of the clients
	disk       string
	states     []string // of the clients: the disks for what NFSv3 must know after a boot
	serverEnds []*vm.Wire
	clientEnds []*vm.Wire
	server     *vm.Machine
	clients    []*vm.Machine
}

// connect boots a server and some clients, who mount what it exports.
func (p protocol) connect(t *testing.T, clients int, files map[string]string) *network {
	t.Helper()
	n := &network{protocol: p, files: files, disk: newDisk(t, 1<<30)}
	for i := range clients {
		s, c, err := vm.NewWire(i)
		if err != nil {
			t.Fatal(err)
		}
		n.serverEnds, n.clientEnds = append(n.serverEnds, s), append(n.clientEnds, c)
		n.states = append(n.states, newDisk(t, 16<<20))
	}
	n.clients = make([]*vm.Machine, clients)
	n.startServer(t)
	n.startClients(t)
	return n
}

// startClients boots the clients whose numbers are given, or all, at once.
func (n *network) startClients(t *testing.T, which ...int) {
	t.Helper()
	if len(which) == 0 {
		for i := range n.clients {
			which = append(which, i)
		}
	}
	errs := make([]error, len(which))
	var g sync.WaitGroup
	for k, i := range which {
		g.Go(func() { errs[k] = n.startClient(t, i) })
	}
	g.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

// newDisk makes an image with an empty file system.
func newDisk(t *testing.T, size int64) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "disk.img")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.Command("mkfs.ext4", "-q", "-F", path).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.ext4: %v: %s", err, out)
	}
	return path
}

// startClient boots a client and mounts the export.
func (n *network) startClient(t *testing.T, i int) error {
	c, err := kit.Start(t.Context(), vm.Config{Name: fmt.Sprintf("client%d", i), Memory: 1536, Ports: []int{port},
		Files: n.files, Wires: n.clientEnds[i : i+1], Drives: []string{vm.RawDrive(n.states[i], false)}})
	if err != nil {
		return err
	}
	t.Cleanup(c.Cut)
	n.clients[i] = c
	there, here := fmt.Sprintf("10.9.%d.1", i), fmt.Sprintf("10.9.%d.2", i)
	out, err := c.Run(t.Context(), `set -e
guest load nfs
guest mount ext4 /dev/vda /srv/state ''
[ -e /srv/state/nfs ] || cp -a /var/lib/nfs /srv/state/nfs
mount -o bind /srv/state/nfs /var/lib/nfs
rpcbind
rpc.statd
`+fmt.Sprintf("guest mount %s %s %s %s", n.kind, fmt.Sprintf(n.source, there), mount, fmt.Sprintf(n.options+"%[3]s", there, here, "")))
	if err != nil {
		return fmt.Errorf("client %d: %w\n%s\n%s", i, err, out, c.Console())
	}
	return nil
}

const exportLine = `/srv/disk/export *(rw,fsid=0,no_root_squash,no_subtree_check,sync,insecure)`

// startServer boots the server. What it must know of its clients to give them
// their locks back after a crash is on its disk.
func (n *network) startServer(t *testing.T) {
	t.Helper()
	var err error
	n.server, err = kit.Start(t.Context(), vm.Config{Name: "server", Memory: 768,
		Drives: []string{vm.RawDrive(n.disk, false)}, Wires: n.serverEnds})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(n.server.Cut)
	run(t, n.server, `set -e
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

// serve starts a service on each client and gives their clients in turn, who
// share one history.
func (n *network) serve(t *testing.T, env ...string) []*history.Driver {
	t.Helper()
	h := &history.History{}
	var drivers []*history.Driver
	for _, c := range n.clients {
		drivers = append(drivers, history.NewDriver(startService(t, c, env...), h, patience))
	}
	return drivers
}

// startService starts a service on a client and gives its URL.
func startService(t *testing.T, c *vm.Machine, env ...string) string {
	t.Helper()
	url, err := c.Serve(t.Context(), port, mount, append(env, "NFS_REQUIRE_MOUNT=true")...)
	if err != nil {
		t.Fatal(err)
	}
	return url
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
	inv := n.scan(t)
	found := append(drivers[0].History.Judge(inv, history.Latest), drivers[0].History.JudgeCreates()...)
	for i, d := range drivers {
		front, err := d.JudgeFront(t.Context(), inv)
		if err != nil {
			t.Fatalf("%v\n%s", err, n.clients[i].ServiceLog(t.Context(), port))
		}
		found = append(found, front...)
	}
	for _, v := range found {
		t.Error(v)
	}
	return len(found)
}

// scan takes the inventory of the files as the server has them.
func (n *network) scan(t *testing.T) *history.Inventory {
	t.Helper()
	var inv history.Inventory
	if err := json.Unmarshal([]byte(run(t, n.server, "guest scan /srv/disk/export")), &inv); err != nil {
		t.Fatal(err)
	}
	return &inv
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

// table is printed at the end of a run.
var table = report.Table{Head: []string{"what", "on", "result", "violations", "time"}}
