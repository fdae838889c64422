package fault

import (
	"errors"
	"fmt"
	"net"
	"strconv"
	"sync/atomic"
	"testing"
	"time"

	"difylb/test/testbed"
)

// The kernel loses packets: some of them, those in one direction, or all.
func TestFault_Network(t *testing.T) {
	t.Parallel()
	if !*long {
		t.Skip("part of the long form only")
	}
	if !apart(t) {
		return
	}
	hasFilter(t)
	c := newCluster(t, shape{etcd: 1, admins: 1, proxies: 2})
	c.play(t,
		fault{
			name: "2 % of all packets are lost, everywhere", promise: "nothing fails", within: 40 * time.Second,
			run: func(s *story) {
				for _, in := range s.instances { // a lost SYN is sent again after a second, which is more than a probe may take, and timeouts.connect
					s.absent(in)
				}
				r := filter(s.t, []string{"-p", "tcp", "-m", "statistic", "--mode", "random", "--probability", "0.02", "-j", "DROP"})
				s.load.rest(s.t, 20*time.Second)
				r.forget()
				s.mend()
			},
		},
		fault{
			name: "an instance's machine vanishes: all packets from and to it are dropped", promise: "only its own users' requests fail, with 504, or are cut, until it is known; users of others notice nothing", long: true, within: 40 * time.Second,
			run: func(s *story) {
				in := s.instances[0]
				s.patch(map[string]any{"timeouts": map[string]any{"connect": "1s", "read": "2s"}})
				s.absent(in)
				var known atomic.Int64 // when; 0 while it is not
				s.excuse(func(r reply) bool {
					at := known.Load()
					return s.owner(r.user) == in.Name && (at == 0 || r.begun.UnixNano() < at) && (r.cut || r.status == 504)
				})
				begun := time.Now()
				dropped := s.drop(s.between("proxies", in.Name), true, true)
				s.await(30*time.Second, "it is known to be unhealthy", func() error { return s.verdict(in, "unhealthy") })
				s.note("known after %.1f s", time.Since(begun).Seconds())
				s.await(5*time.Second, "both proxies know", func() error { return s.unusable(in) })
				known.Store(time.Now().UnixNano())
				s.load.rest(s.t, 5*time.Second)
				dropped.forget()
				s.mend()
				s.patch(map[string]any{"timeouts": map[string]any{"connect": "1s", "read": "20s"}})
			},
		},
		fault{
			name: "all packets between a proxy and etcd are dropped", promise: "nothing fails; it stays ready and tells its lag", long: true, within: 40 * time.Second,
			run: func(s *story) {
				s.cutOff(s.proxies[0], true, true)
			},
		},
		fault{
			name: "packets from etcd to a proxy are dropped, those to etcd arrive", promise: "nothing fails; it stays ready and tells its lag", long: true, within: 40 * time.Second,
			run: func(s *story) {
				s.cutOff(s.proxies[1], false, true)
			},
		},
		fault{
			name: "all packets between lb-admin and etcd are dropped", promise: "nothing fails; no instance's health changes, it goes on when they flow again", long: true, within: 60 * time.Second,
			run: func(s *story) {
				a := s.admins[0]
				dropped := s.drop(s.between(a.Name, "etcd"), true, true)
				s.await(30*time.Second, "lb-admin says that it is cut off", func() error {
					if a.ready() == nil {
						return errors.New("it is ready")
					}
					return nil
				})
				s.load.rest(s.t, 5*time.Second)
				s.serving()
				dropped.forget()
				s.mend()
			},
		},
	)
}

// drop loses packets of relays: those towards them, and those that they answer with.
func (s *story) drop(wires []*relay, out, in bool) *rules {
	s.t.Helper()
	var list [][]string
	for _, w := range wires {
		_, port, err := net.SplitHostPort(w.addr)
		if err != nil {
			s.t.Fatal(err)
		}
		if _, err := strconv.Atoi(port); err != nil {
			s.t.Fatal(err)
		}
		if out {
			list = append(list, []string{"-p", "tcp", "--dport", port, "-j", "DROP"})
		}
		if in {
			list = append(list, []string{"-p", "tcp", "--sport", port, "-j", "DROP"})
		}
	}
	return filter(s.t, list...)
}

// cutOff drops a proxy's packets to and from etcd until it says so.
func (s *story) cutOff(p *node, out, in bool) {
	s.t.Helper()
	begun := time.Now()
	dropped := s.drop(s.between(p.Name, "etcd"), out, in)
	s.await(40*time.Second, p.Name+" tells its lag", func() error {
		lag, err := testbed.Metric(p.base, "difylb_config_lag_seconds")
		if err == nil && lag == 0 {
			err = fmt.Errorf("it shows none after %s", time.Since(begun))
		}
		return err
	})
	s.note("told after %.1f s", time.Since(begun).Seconds())
	if err := p.ready(); err != nil {
		s.t.Errorf("%s is not ready: %s", p.Name, err)
	}
	s.load.rest(s.t, 3*time.Second)
	s.serving()
	dropped.forget()
	s.mend()
}
