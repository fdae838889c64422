package clustertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"difylb/pkg/lb"
	"difylb/pkg/store"
)

// member is one etcd process, ended by its own process id.
type member struct {
	name, dir, client, peer string
	cmd                     *exec.Cmd
	stopped                 bool
}

type cluster struct {
	t       *testing.T
	bin     string
	members []*member
}

func freeAddr(t *testing.T) string {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return "http://" + l.Addr().String()
}

func newCluster(t *testing.T) *cluster {
	t.Helper()
	c := &cluster{t: t, bin: filepath.Join(t.TempDir(), "etcd")}
	build := exec.Command("go", "build", "-o", c.bin, "difylb/test/etcd")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build etcd: %v\n%s", err, out)
	}
	for i := range 3 {
		c.members = append(c.members, &member{name: fmt.Sprintf("m%d", i), dir: t.TempDir(), client: freeAddr(t), peer: freeAddr(t)})
	}
	t.Cleanup(c.end)
	for _, m := range c.members {
		c.start(m)
	}
	return c
}

func (c *cluster) start(m *member) {
	c.t.Helper()
	var peers []string
	for _, p := range c.members {
		peers = append(peers, p.name+"="+p.peer)
	}
	m.cmd = exec.Command(c.bin, "--name", m.name, "--data-dir", m.dir,
		"--listen-client-urls", m.client, "--advertise-client-urls", m.client,
		"--listen-peer-urls", m.peer, "--initial-advertise-peer-urls", m.peer,
		"--initial-cluster", strings.Join(peers, ","), "--initial-cluster-state", "new", "--log-level", "error")
	m.cmd.SysProcAttr = diesWithUs()
	if err := m.cmd.Start(); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) end() {
	for _, m := range c.members {
		c.kill(m)
	}
}

func (c *cluster) kill(m *member) {
	if m.cmd == nil || m.cmd.Process == nil {
		return
	}
	m.cmd.Process.Kill() // also ends one that is stopped
	m.cmd.Wait()
	m.cmd, m.stopped = nil, false
}

func (c *cluster) signal(m *member, sig os.Signal) {
	c.t.Helper()
	if err := m.cmd.Process.Signal(sig); err != nil {
		c.t.Fatal(err)
	}
}

func (c *cluster) endpoints() []string {
	var all []string
	for _, m := range c.members {
		all = append(all, m.client)
	}
	return all
}

// leader asks the members who leads.
func (c *cluster) leader() *member {
	c.t.Helper()
	for deadline := time.Now().Add(20 * time.Second); time.Now().Before(deadline); time.Sleep(50 * time.Millisecond) {
		for _, m := range c.members {
			if m.cmd != nil && leads(m.client) {
				return m
			}
		}
	}
	c.t.Fatal("nobody leads")
	return nil
}

func leads(endpoint string) bool {
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		return false
	}
	defer cli.Close()
	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	st, err := cli.Status(ctx, endpoint)
	return err == nil && st.Leader != 0 && st.Leader == st.Header.MemberId
}

func open(t *testing.T, c *cluster) *store.Store {
	t.Helper()
	s, err := store.Open(store.Options{Endpoints: c.endpoints(), CheckInterval: 500 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); s.Run(ctx) }()
	t.Cleanup(func() { cancel(); <-done; s.Close() })
	return s
}

// grow adds an instance to the application; the caller keeps count.
func grow(ctx context.Context, s *store.Store, n int) error {
	_, err := s.Update(ctx, lb.Audit{Who: "test", Action: "grow"}, func(d *store.Draft) error {
		app := d.Application("shop")
		if app == nil {
			app = lb.NewApplication("shop")
		}
		app = app.Clone()
		in := lb.Instance{Name: fmt.Sprintf("in%d", n), Host: "10.0.0.1", Port: 80, Token: "app-token-of-an-instance"}
		in.SetDefaults()
		if old, _ := app.Instance(in.Name); old == nil {
			app.Instances = append(app.Instances, in)
		}
		d.Put(app)
		return nil
	})
	return err
}

func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	for deadline := time.Now().Add(30 * time.Second); !cond(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

func TestCluster_LosesNothing(t *testing.T) {
	if testing.Short() {
		t.Skip("starts three etcd processes")
	}
	c := newCluster(t)
	writer, reader := open(t, c), open(t, c)
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	eventually(t, "the cluster is up", func() bool { return writer.Init(ctx) == nil })
	n := 0
	write := func(s *store.Store) error {
		err := grow(ctx, s, n)
		if err == nil {
			n++
		}
		return err
	}
	for range 20 {
		if err := write(writer); err != nil {
			t.Fatal(err)
		}
	}

	// The leader dies while changes are made: each is made, later.
	leader := c.leader()
	c.kill(leader)
	begin := time.Now()
	if err := write(writer); err != nil {
		t.Errorf("after the leader's death: %v", err)
	}
	t.Logf("first write after the leader's death took %s", time.Since(begin))
	for range 20 {
		if err := write(writer); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "the reader has all", func() bool {
		app := reader.Current().Application("shop")
		return app != nil && len(app.Instances) == n
	})
	c.start(leader)
	eventually(t, "the dead one is back", func() bool {
		cli, err := clientv3.New(clientv3.Config{Endpoints: []string{leader.client}, Logger: zap.NewNop()})
		if err != nil {
			return false
		}
		defer cli.Close()
		gctx, cancel := context.WithTimeout(ctx, time.Second)
		defer cancel()
		_, err = cli.Get(gctx, "x")
		return err == nil
	})

	// Quorum is lost: writes fail in bounded time, what is known stays.
	before := reader.Current()
	for _, m := range c.members[:2] {
		c.signal(m, syscall.SIGSTOP)
	}
	begin = time.Now()
	err := write(writer)
	if d := time.Since(begin); !errors.Is(err, lb.ErrUnavailable) || d > 20*time.Second {
		t.Errorf("without quorum: %v after %s", err, d)
	}
	t.Logf("without quorum a write failed after %s: %v", time.Since(begin), err)
	if err := writer.Ping(ctx); !errors.Is(err, lb.ErrUnavailable) {
		t.Errorf("ping without quorum: %v", err)
	}
	eventually(t, "the reader knows that it is stale", func() bool { return !reader.Status().Connected })
	if now := reader.Current(); now == nil || now.Application("shop") != before.Application("shop") {
		t.Error("losing quorum changed the configuration")
	}
	for _, m := range c.members[:2] {
		c.signal(m, syscall.SIGCONT)
	}
	begin = time.Now()
	eventually(t, "writes are back", func() bool { return writer.Ping(ctx) == nil })
	t.Logf("back after %s", time.Since(begin))
	for range 10 {
		if err := write(writer); err != nil {
			t.Error(err)
		}
	}
	eventually(t, "the reader has caught up", func() bool {
		app := reader.Current().Application("shop")
		return len(app.Instances) == n && reader.Status().Connected
	})
	app := reader.Current().Application("shop")
	for i := range n {
		if in, _ := app.Instance(fmt.Sprintf("in%d", i)); in == nil {
			t.Errorf("change %d of %d is lost", i, n)
		}
	}
}
