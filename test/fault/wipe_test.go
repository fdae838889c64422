package fault

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	pb "go.etcd.io/etcd/api/v3/etcdserverpb"
	"go.etcd.io/etcd/api/v3/mvccpb"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap"

	"difylb/test/testbed"
)

// A store of one member that fills up, forgets, goes back in time and shuts
// its door.
func TestFault_Forgetful(t *testing.T) {
	t.Parallel()
	c := newCluster(t, shape{etcd: 1, etcdFlags: []string{"--quota-backend-bytes", "16777216"}, admins: 1, proxies: 2})
	c.play(t,
		fault{
			name: "etcd is full (NOSPACE)", promise: "nothing fails; changes are refused with 503, the alarm is shown", within: 40 * time.Second,
			run: func(s *story) {
				s.fill()
				_, err := s.change(s.admins[0])
				var r *refused
				if !errors.As(err, &r) || r.status != http.StatusServiceUnavailable {
					s.t.Errorf("a change in a full store ends with %v, want 503", err)
				}
				s.await(20*time.Second, "lb-admin shows the alarm", func() error {
					_, body, err := testbed.Get(s.admins[0].base + "/readyz")
					if err == nil && !bytes.Contains(body, []byte("NOSPACE")) {
						err = fmt.Errorf("it says %s", body)
					}
					return err
				})
				s.load.rest(s.t, either(time.Second, 20*time.Second))
				s.serving()
				s.empty()
				s.mend()
			},
		},
		fault{
			name: "etcd demands a password all of a sudden", promise: "nothing fails; all is well when it is opened again", within: 60 * time.Second,
			run: func(s *story) {
				cl := s.store
				for _, step := range []func() error{
					func() error { _, err := cl.RoleAdd(s.limited(), "root"); return err },
					func() error { _, err := cl.UserAdd(s.limited(), "root", "secret-of-the-test"); return err },
					func() error { _, err := cl.UserGrantRole(s.limited(), "root", "root"); return err },
					func() error { _, err := cl.AuthEnable(s.limited()); return err },
				} {
					if err := step(); err != nil {
						s.t.Fatal(err)
					}
				}
				if _, err := s.change(s.admins[0]); err == nil {
					s.t.Error("a change went through without a password")
				}
				s.load.rest(s.t, either(2*time.Second, 20*time.Second))
				s.serving()
				root, err := clientv3.New(clientv3.Config{Endpoints: cl.Endpoints(), DialTimeout: 5 * time.Second, Username: "root", Password: "secret-of-the-test", Logger: zap.NewNop()})
				if err != nil {
					s.t.Fatal(err)
				}
				defer root.Close()
				if _, err := root.AuthDisable(s.limited()); err != nil {
					s.t.Fatal(err)
				}
				s.mend()
			},
		},
		fault{
			name: "every key is deleted, behind lb-admin's back", promise: "nothing fails: proxies refuse to believe it, and say so", within: 60 * time.Second,
			run: func(s *story) {
				all, err := s.store.Get(s.limited(), "/difylb/", clientv3.WithPrefix())
				if err != nil {
					s.t.Fatal(err)
				}
				if _, err := s.store.Delete(s.limited(), "/difylb/", clientv3.WithPrefix()); err != nil {
					s.t.Fatal(err)
				}
				s.disbelieved()
				s.restore(all.Kvs)
				s.mend()
			},
		},
		fault{
			name: "etcd's directory is lost: it starts empty", promise: "nothing fails: proxies refuse to believe it, and say so; they follow when the old one is back", within: 60 * time.Second,
			run: func(s *story) {
				m := s.members[0]
				dir := filepath.Join(s.dir, m.Name)
				s.swap(m, func() {
					rename(s, dir, dir+".kept")
				})
				s.disbelieved()
				s.swap(m, func() {
					rename(s, dir, dir+".empty")
					rename(s, dir+".kept", dir)
				})
				s.mend()
			},
		},
		fault{
			name: "etcd is restored from an older copy", promise: "nothing fails; proxies follow it back and go on from there", within: 60 * time.Second,
			run: func(s *story) {
				m := s.members[0]
				dir := filepath.Join(s.dir, m.Name)
				s.swap(m, func() {
					if err := os.CopyFS(dir+".copy", os.DirFS(dir)); err != nil {
						s.t.Fatal(err)
					}
				})
				for range 30 {
					s.changed("after the copy was made", 20*time.Second)
				}
				s.swap(m, func() {
					rename(s, dir, dir+".newer")
					rename(s, dir+".copy", dir)
				})
				s.mend()
			},
		},
	)
}

// restore puts keys back, all that a proxy looks at in one step.
func (s *story) restore(kvs []*mvccpb.KeyValue) {
	s.t.Helper()
	var once []clientv3.Op
	for _, kv := range kvs {
		switch {
		case kv.Lease != 0: // made anew by who holds the lease
		case bytes.HasPrefix(kv.Key, []byte("/difylb/history/")):
			s.put(string(kv.Key), string(kv.Value))
		default:
			once = append(once, clientv3.OpPut(string(kv.Key), string(kv.Value)))
		}
	}
	if _, err := s.store.Txn(s.limited()).Then(once...).Commit(); err != nil {
		s.t.Fatal(err)
	}
}

// fill writes into etcd, beside difylb's keys, until it takes no more.
func (s *story) fill() {
	s.t.Helper()
	for i := range 1000 {
		_, err := s.store.Put(s.limited(), fmt.Sprintf("/stranger/%d", i), strings.Repeat("x", 256<<10))
		if err != nil && strings.Contains(err.Error(), "space exceeded") {
			return
		}
		if err != nil {
			s.t.Fatal(err)
		}
	}
	s.t.Fatal("etcd takes everything")
}

// empty is what an operator does about it.
func (s *story) empty() {
	s.t.Helper()
	if _, err := s.store.Delete(s.limited(), "/stranger/", clientv3.WithPrefix()); err != nil {
		s.t.Fatal(err)
	}
	r, err := s.store.Get(s.limited(), "x")
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.store.Compact(s.limited(), r.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.store.Defragment(s.limited(), s.store.Endpoints()[0]); err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.store.AlarmDisarm(s.limited(), &clientv3.AlarmMember{Alarm: pb.AlarmType_NONE}); err != nil {
		s.t.Fatal(err)
	}
}

// swap ends a member of etcd, lets its directory be changed, and starts it again.
func (s *story) swap(m *node, change func()) {
	s.t.Helper()
	s.end(m)
	change()
	m.begin()
	s.await(20*time.Second, m.Name+" is back", m.ready)
}

func rename(s *story, from, to string) {
	s.t.Helper()
	if err := os.Rename(from, to); err != nil {
		s.t.Fatal(err)
	}
}

// disbelieved waits until every proxy refuses what the store says, and serves on.
func (s *story) disbelieved() {
	s.t.Helper()
	for _, p := range s.proxies {
		s.await(30*time.Second, p.Name+" refuses", func() error {
			resp, err := testbed.Looker.Get(p.base + "/readyz")
			if err != nil {
				return err
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(resp.Body)
			if err == nil && (resp.StatusCode != http.StatusOK || !bytes.Contains(body, []byte(`"refused"`))) {
				err = fmt.Errorf("status %d: %s", resp.StatusCode, body)
			}
			return err
		})
	}
	s.load.rest(s.t, time.Second)
	s.serving()
}
