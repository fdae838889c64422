// Package storetest gives tests a real store: an etcd server in the test's own
// process and a running Store over it. It knows how both are started and
// ended, and nothing of what is kept in them.
package storetest

import (
	"context"
	"fmt"
	"os"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/store"
	"difylb/pkg/store/embedded"
)

// shared is the one server of a test binary; tests keep apart by prefixes.
var shared struct {
	sync.Mutex
	server *embedded.Server
	dir    string
	users  int // tests that use it; the last one ends it
	serial atomic.Int64
}

// Etcd returns the client URL of an etcd server in this process. Tests of one
// binary that overlap share it; it is ended when the last of them has.
func Etcd(t testing.TB) string {
	t.Helper()
	shared.Lock()
	defer shared.Unlock()
	if shared.users == 0 {
		dir, err := os.MkdirTemp("", "difylb-etcd-")
		if err != nil {
			t.Fatal(err)
		}
		shared.dir, shared.server = dir, start(t, dir)
	}
	shared.users++
	t.Cleanup(func() {
		shared.Lock()
		defer shared.Unlock()
		if shared.users--; shared.users > 0 {
			return
		}
		if err := shared.server.Stop(); err != nil {
			t.Error(err)
		}
		os.RemoveAll(shared.dir)
	})
	return shared.server.Client()[0]
}

// Own starts an etcd server for this test alone, which it may stop, wipe or
// compact. dir is its data directory; empty means a new temporary one.
func Own(t testing.TB, dir string) *embedded.Server {
	t.Helper()
	if dir == "" {
		dir = t.TempDir()
	}
	return start(t, dir)
}

func start(t testing.TB, dir string) *embedded.Server {
	t.Helper()
	srv := embedded.New(embedded.Options{
		DataDir: dir, ListenClient: "http://127.0.0.1:0", ListenPeer: "http://127.0.0.1:0",
		Log: zerolog.New(zerolog.NewTestWriter(t)).Level(zerolog.ErrorLevel), NoSync: true,
	})
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	if err := srv.Start(ctx); err != nil {
		t.Fatal(err)
	}
	return srv
}

// Prefix returns a prefix that no other test of this binary uses.
func Prefix(t testing.TB) string {
	name := strings.NewReplacer("/", "_", " ", "_").Replace(t.Name())
	return fmt.Sprintf("/test/%s-%d", name, shared.serial.Add(1))
}

// Open returns a running, initialised Store of its own, over the shared
// server. It is ended with the test.
func Open(t testing.TB) *store.Store {
	t.Helper()
	return OpenAt(t, Etcd(t), Prefix(t))
}

// OpenAt is Open over the given server and prefix: two stores that share both
// see each other.
func OpenAt(t testing.TB, endpoint, prefix string) *store.Store {
	t.Helper()
	s, err := store.Open(store.Options{
		Endpoints: []string{endpoint}, Prefix: prefix, CheckInterval: 500 * time.Millisecond,
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	t.Cleanup(func() {
		cancel()
		<-done
		s.Close()
	})
	go func() {
		defer close(done)
		if err := s.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	wctx, wcancel := context.WithTimeout(ctx, 30*time.Second)
	defer wcancel()
	if err := s.Init(wctx); err != nil {
		t.Fatal(err)
	}
	for s.Current() == nil || (s.Current().Epoch == "" && len(s.Current().Faults) == 0) {
		changed, unsubscribe := s.Subscribe()
		select {
		case <-changed:
		case <-wctx.Done():
			t.Fatal("the store shows no snapshot")
		}
		unsubscribe()
	}
	return s
}
