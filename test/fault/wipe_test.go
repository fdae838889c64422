package fault

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strconv"
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
	c := newCluster(t, shape{etcd: 1, etcdFlags: []string{"--quota-backend-bytes", "16777216"}, admins: 1, proxies: 2, proxyFlags: orderly})
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
				all := s.wipe("/difylb/")
				s.disbelieved()
				s.restore(all)
				s.mend()
			},
		},
		fault{
			name: "only /difylb/apps/ is deleted, behind lb-admin's back", promise: "nothing fails: proxies refuse to believe it, and say so, whatever is changed behind it", within: 60 * time.Second,
			run: func(s *story) {
				all := s.wipe("/difylb/apps/")
				s.disbelieved()
				s.heldBack()
				s.bystander("an-honest-change", 1)
				s.heldBack()
				s.serving()
				s.restore(all)
				s.mend()
			},
		},
		fault{
			name: "most applications are deleted behind lb-admin's back, and that is meant", promise: "nothing fails: proxies keep all of them until an operator accepts the loss", within: 60 * time.Second,
			run: func(s *story) {
				before, err := testbed.Metric(s.proxies[0].base, "difylb_config_applications")
				if err != nil {
					s.t.Fatal(err)
				}
				s.bystander("going", 30)
				for _, dir := range []string{"apps/going", "instances/going", "tokens/"} {
					var once []clientv3.Op
					for _, key := range s.keysOf(dir, `"going-`) {
						once = append(once, clientv3.OpDelete(key))
					}
					if len(once) != 30 {
						s.t.Fatalf("%d keys under %s", len(once), dir)
					}
					if _, err := s.store.Txn(s.limited()).Then(once...).Commit(); err != nil {
						s.t.Fatal(err)
					}
				}
				s.disbelieved()
				for _, n := range s.heldBack() {
					if _, err := s.rest(s.admins[0], "POST", "/nodes/"+n.ID+"/accept", map[string]any{"refused_revision": n.RefusedRevision, "refused_epoch": n.RefusedEpoch}); err != nil {
						s.t.Fatal(err)
					}
				}
				for _, p := range s.proxies {
					s.await(10*time.Second, p.Name+" has accepted it", func() error { return is(p, "difylb_config_applications", before) })
				}
				s.mend()
			},
		},
		fault{
			name: "a proxy is started again while the store is empty", promise: "nothing fails: it goes by the last good state on its disk, and says so", within: 60 * time.Second,
			run: func(s *story) {
				all := s.wipe("/difylb/")
				s.disbelieved()
				p := s.proxies[0]
				s.end(p)
				p.begin()
				s.await(20*time.Second, p.Name+" is back", p.ready)
				s.disbelieved()
				s.restore(all)
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

// bystander declares applications that nobody asks for.
func (s *story) bystander(name string, n int) {
	s.t.Helper()
	apps := make(map[string]any)
	for i := range n {
		apps[fmt.Sprintf("%s-%d", name, i)] = map[string]any{
			"user_tokens": []any{fmt.Sprintf("usertoken--of-%s-%d", name, i)}, "health_check": map[string]any{"type": "none"},
			"instances": []any{map[string]any{"name": "a", "url": "http://127.0.0.1:9", "token": "app-of-a-bystander"}},
		}
	}
	resp, err := s.rest(s.admins[0], "POST", "/apply", map[string]any{"applications": apps})
	if err != nil {
		s.t.Fatal(err)
	}
	if n == 1 { // it is not in force where something is held back
		return
	}
	revision, err := strconv.ParseInt(strings.Trim(resp.Header.Get("ETag"), `"`), 10, 64)
	if err != nil {
		s.t.Fatal(err)
	}
	s.await(20*time.Second, "they are in force", func() error { return s.inForce(revision) })
}

// keysOf are the keys in a directory that name something or whose value does.
func (s *story) keysOf(dir, what string) (keys []string) {
	s.t.Helper()
	resp, err := s.store.Get(s.limited(), "/difylb/"+dir, clientv3.WithPrefix())
	if err != nil {
		s.t.Fatal(err)
	}
	for _, kv := range resp.Kvs {
		if bytes.Contains(kv.Value, []byte(what)) || !strings.HasSuffix(dir, "/") {
			keys = append(keys, string(kv.Key))
		}
	}
	return keys
}

// holding is what GET /nodes says of a proxy.
type holding struct {
	ID, Role        string
	State           string
	RefusedRevision int64  `json:"refused_revision"`
	RefusedEpoch    string `json:"refused_epoch"`
}

// heldBack waits until lb-admin shows that every proxy holds something back.
func (s *story) heldBack() (holds []holding) {
	s.t.Helper()
	s.await(20*time.Second, "lb-admin shows what is held back", func() error {
		_, body, err := s.restBody(s.admins[0], "GET", "/nodes", nil)
		var list struct{ Items []holding }
		if err == nil {
			err = json.Unmarshal(body, &list)
		}
		holds = nil
		for _, n := range list.Items {
			if n.State == "held_back" {
				holds = append(holds, n)
			}
		}
		if err == nil && len(holds) != len(s.proxies) {
			err = fmt.Errorf("%d of %d: %s", len(holds), len(s.proxies), body)
		}
		return err
	})
	return holds
}

// wipe deletes every key under a prefix, behind lb-admin's back, and returns
// what was there.
func (s *story) wipe(prefix string) []*mvccpb.KeyValue {
	s.t.Helper()
	all, err := s.store.Get(s.limited(), prefix, clientv3.WithPrefix())
	if err != nil {
		s.t.Fatal(err)
	}
	if _, err := s.store.Delete(s.limited(), prefix, clientv3.WithPrefix()); err != nil {
		s.t.Fatal(err)
	}
	return all.Kvs
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
