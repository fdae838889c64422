package embedded

import (
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"
	"go.etcd.io/bbolt"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"difylb/pkg/lb"
)

func options(t *testing.T, dir string) Options {
	return Options{DataDir: dir, ListenClient: "127.0.0.1:0", ListenPeer: "http://127.0.0.1:0", Log: zerolog.Nop(), NoSync: true}
}

func roundTrip(t *testing.T, endpoint string) error {
	t.Helper()
	cli, err := clientv3.New(clientv3.Config{Endpoints: []string{endpoint}, Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	if _, err := cli.Put(ctx, "k", "v"); err != nil {
		return err
	}
	resp, err := cli.Get(ctx, "k")
	if err == nil && len(resp.Kvs) != 1 {
		err = errors.New("what was put is not there")
	}
	return err
}

func TestRun_ServesUntilItsContextEnds(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	for range 2 { // and again over what it has written
		s := New(options(t, dir))
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- s.Run(ctx) }()
		select {
		case <-s.Ready():
		case err := <-done:
			t.Fatal(err)
		}
		if u := s.Client(); len(u) != 1 || strings.HasSuffix(u[0], ":0") {
			t.Errorf("client URLs %v", u)
		}
		if err := roundTrip(t, s.Client()[0]); err != nil {
			t.Error(err)
		}
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
	for _, d := range []string{dir, filepath.Join(dir, "etcd")} {
		if fi, err := os.Stat(d); err != nil || fi.Mode().Perm() != 0o700 {
			t.Errorf("%s: mode %v, %v", d, fi.Mode(), err)
		}
	}
}

func TestStart_OnAUnixSocket(t *testing.T) {
	dir, err := os.MkdirTemp("", "etcd") // short: a socket's path has at most some 100 bytes
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	opt := options(t, dir)
	opt.ListenClient, opt.ListenPeer = "unix://"+dir+"/c.sock", "unix://"+dir+"/p.sock"
	s := New(opt)
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer s.Stop()
	if err := roundTrip(t, s.Client()[0]); err != nil {
		t.Error(err)
	}
}

func TestStart_ErrorsSayWhatIsTheMatter(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	used := t.TempDir()
	holder := New(options(t, used))
	if err := holder.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	defer holder.Stop()
	for _, c := range []struct {
		name string
		edit func(*Options)
		kind error
		want string
	}{
		{"port taken", func(o *Options) { o.ListenClient = "http://" + l.Addr().String() }, lb.ErrUnavailable, "taken"},
		{"peer port taken", func(o *Options) { o.ListenPeer = "http://" + l.Addr().String() }, lb.ErrUnavailable, "taken"},
		{"directory in use", func(o *Options) { o.DataDir = used }, lb.ErrUnavailable, "in use by another process"},
		{"no directory", func(o *Options) { o.DataDir = "" }, lb.ErrInvalid, "data directory"},
		{"scheme", func(o *Options) { o.ListenClient = "ftp://x:1" }, lb.ErrInvalid, "scheme"},
		{"no port", func(o *Options) { o.ListenClient = "http://127.0.0.1" }, lb.ErrInvalid, "HOST:PORT"},
		{"relative socket", func(o *Options) { o.ListenPeer = "unix://run/x" }, lb.ErrInvalid, "absolute"},
	} {
		opt := options(t, t.TempDir())
		c.edit(&opt)
		begin := time.Now()
		err := New(opt).Start(t.Context())
		if !errors.Is(err, c.kind) || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v", c.name, err)
		}
		if d := time.Since(begin); d > 10*time.Second {
			t.Errorf("%s: took %s", c.name, d)
		}
	}
	// What failed left nothing behind that would keep the next one out.
	dir := t.TempDir()
	opt := options(t, dir)
	opt.ListenClient = "http://" + l.Addr().String()
	if err := New(opt).Start(t.Context()); err == nil {
		t.Fatal("started on a taken port")
	}
	s := New(options(t, dir))
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Error(err)
	}
}

func TestStart_DamagedDataIsAnError(t *testing.T) {
	dir := t.TempDir()
	s := New(options(t, dir))
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	db := filepath.Join(dir, "etcd", "member", "snap", "db")
	if err := os.WriteFile(db, []byte("not a database at all"), 0o600); err != nil {
		t.Fatal(err)
	}
	err := New(options(t, dir)).Start(t.Context())
	if err == nil || !strings.Contains(err.Error(), dir) || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("error %v", err)
	}
}

func TestStart_DataOfANewerVersionIsAnError(t *testing.T) {
	dir := t.TempDir()
	s := New(options(t, dir))
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := s.Stop(); err != nil {
		t.Fatal(err)
	}
	db, err := bbolt.Open(filepath.Join(dir, "etcd", "member", "snap", "db"), 0o600, nil)
	if err != nil {
		t.Fatal(err)
	}
	err = db.Update(func(tx *bbolt.Tx) error {
		return tx.Bucket([]byte("meta")).Put([]byte("storageVersion"), []byte("3.99.0"))
	})
	if err != nil {
		t.Fatal(err)
	}
	db.Close()
	if err := New(options(t, dir)).Start(t.Context()); err == nil || !strings.Contains(err.Error(), "3.99.0") {
		t.Errorf("error %v", err)
	}
}

func TestStop_DoesNotHangOnAnOpenWatch(t *testing.T) {
	s := New(options(t, t.TempDir()))
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	cli, err := clientv3.New(clientv3.Config{Endpoints: s.Client(), Logger: zap.NewNop()})
	if err != nil {
		t.Fatal(err)
	}
	defer cli.Close()
	w := cli.Watch(t.Context(), "k", clientv3.WithCreatedNotify())
	<-w
	begin := time.Now()
	if err := s.Stop(); err != nil {
		t.Log(err)
	}
	if d := time.Since(begin); d > stopTimeout+2*time.Second {
		t.Errorf("stopping took %s", d)
	}
}
