package fault

import (
	"errors"
	"fmt"
	"net/http"
	"path/filepath"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"difylb/test/testbed"
)

// etcd knows users: what they are given runs out, and is taken away.
func TestFault_Users(t *testing.T) {
	t.Parallel()
	if !*long {
		t.Skip("part of the long form only")
	}
	c := newCluster(t, shape{etcd: 1, etcdFlags: []string{"--auth-token-ttl", "3"}, admins: 1, proxies: 2, password: "secret-of-the-test"})
	c.play(t,
		fault{
			name: "tokens for etcd run out, again and again", promise: "nothing fails, changes go through",
			run: func(s *story) {
				for range 4 {
					s.load.rest(s.t, 4*time.Second)
					s.changed("with a new token", 10*time.Second)
				}
				s.mend()
			},
		},
		fault{
			name: "the cluster's user at etcd loses his rights", promise: "nothing fails; proxies stay ready and tell their lag, changes are refused with 503; whole when he has them again", within: 40 * time.Second,
			run: func(s *story) {
				if _, err := s.store.UserRevokeRole(s.limited(), clusterUser, clusterUser); err != nil {
					s.t.Fatal(err)
				}
				_, err := s.change(s.admins[0])
				var r *refused
				if !errors.As(err, &r) || r.status != http.StatusServiceUnavailable {
					s.t.Errorf("a change ends with %v, want 503", err)
				}
				s.resetTo("etcd") // a watch that there is goes on: etcd looks at rights when it begins
				for _, p := range s.proxies {
					s.await(30*time.Second, p.Name+" tells its lag", func() error {
						lag, err := testbed.Metric(p.base, "difylb_config_lag_seconds")
						if err == nil && lag == 0 {
							err = fmt.Errorf("it shows none")
						}
						return err
					})
					if err := p.ready(); err != nil {
						s.t.Errorf("%s is not ready: %s", p.Name, err)
					}
					s.names(p, "denied permission")
				}
				s.load.rest(s.t, 3*time.Second)
				s.serving()
				if _, err := s.store.UserGrantRole(s.limited(), clusterUser, clusterUser); err != nil {
					s.t.Fatal(err)
				}
				s.mend()
			},
		},
	)
}

// clusterUser is the user, and the role, of lb-admins and lb-proxies at etcd.
const clusterUser = "difylb"

// lock gives etcd users: root, and one for the cluster's keys.
func (c *cluster) lock() {
	c.t.Helper()
	cl, ctx := c.store, c.limited()
	for _, step := range []func() error{
		func() error { _, err := cl.RoleAdd(ctx, "root"); return err },
		func() error { _, err := cl.UserAdd(ctx, "root", c.password); return err },
		func() error { _, err := cl.UserGrantRole(ctx, "root", "root"); return err },
		func() error { _, err := cl.RoleAdd(ctx, clusterUser); return err },
		func() error {
			_, err := cl.RoleGrantPermission(ctx, clusterUser, "/difylb/", clientv3.GetPrefixRangeEnd("/difylb/"), clientv3.PermissionType(clientv3.PermReadWrite))
			return err
		},
		func() error { _, err := cl.UserAdd(ctx, clusterUser, c.password); return err },
		func() error { _, err := cl.UserGrantRole(ctx, clusterUser, clusterUser); return err },
		func() error { _, err := cl.AuthEnable(ctx); return err },
	} {
		if err := step(); err != nil {
			c.t.Fatal(err)
		}
	}
	c.locked = true
	testbed.WriteFile(c.t, c.passwordFile(), []byte(c.password+"\n"))
	c.open(cl.Endpoints())
}

func (c *cluster) passwordFile() string { return filepath.Join(c.dir, "etcd.password") }

// credentials are the flags of a program that proves itself to etcd.
func (c *cluster) credentials() []string {
	if !c.locked {
		return nil
	}
	return []string{"--etcd-user", clusterUser, "--etcd-password-file", c.passwordFile()}
}
