package fault

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"difylb/test/testbed"
)

// The lb-admins die, stand still and are cut off; on three members of etcd.
func TestFault_Control(t *testing.T) {
	t.Parallel()
	c := newCluster(t, shape{etcd: 3, admins: 2, proxies: 2})
	c.play(t,
		fault{
			name: "the elected lb-admin is killed", promise: "nothing fails, the other takes over, no verdict changes, counters are exact", exact: true,
			run: func(s *story) {
				leader, others := s.elected()
				verdicts := s.watchVerdicts()
				leader.Kill()
				s.mend()
				s.await(15*time.Second, others[0].Name+" is elected", func() error { return is(others[0], "difylb_admin_leader", 1) })
				s.note("the other led after %.1f s", time.Since(s.mended).Seconds())
				s.load.rest(s.t, 2*time.Second)
				leader.begin()
				s.await(20*time.Second, leader.Name+" is back", leader.ready)
				verdicts.none("while " + leader.Name + " was dead")
			},
		},
		fault{
			name: "the elected lb-admin stands still for longer than its lease", promise: "nothing fails, the other takes over, the old one writes nothing when it goes on, counters are exact", exact: true,
			run: func(s *story) {
				leader, others := s.elected()
				verdicts := s.watchVerdicts()
				leader.pause()
				s.await(15*time.Second, others[0].Name+" is elected", func() error { return is(others[0], "difylb_admin_leader", 1) })
				leader.resume()
				s.mend()
				s.await(10*time.Second, leader.Name+" has noticed", func() error { return is(leader, "difylb_admin_leader", 0) })
				s.load.rest(s.t, 2*time.Second)
				verdicts.none("while and after " + leader.Name + " stood still")
			},
		},
		fault{
			name: "the elected lb-admin is cut off from etcd only", promise: "nothing fails, the other takes over, no verdict changes, counters are exact", exact: true, within: 40 * time.Second,
			run: func(s *story) {
				leader, others := s.elected()
				verdicts := s.watchVerdicts()
				wires := s.between(leader.Name, "etcd")
				s.damage(wires, silent)
				s.await(20*time.Second, others[0].Name+" is elected", func() error { return is(others[0], "difylb_admin_leader", 1) })
				s.await(10*time.Second, leader.Name+" has noticed", func() error { return is(leader, "difylb_admin_leader", 0) })
				s.damage(wires, goodWire)
				s.mend()
				s.load.rest(s.t, 2*time.Second)
				verdicts.none("while and after " + leader.Name + " was cut off")
			},
		},
		fault{
			name: "statistics stall: the wires from proxies to lb-admins go silent", promise: "nothing fails, counters are exact when they flow again", exact: true,
			run: func(s *story) {
				wires := s.between("proxies", "admin")
				s.damage(wires, silent)
				s.await(20*time.Second, "the figures are known to be incomplete", func() error {
					d, err := s.status(s.admins[0].base)
					if err == nil && d.Complete {
						err = fmt.Errorf("complete, %+v", d.Nodes)
					}
					return err
				})
				s.serving()
				s.damage(wires, goodWire)
				s.mend()
			},
		},
		fault{
			name: "every lb-admin is killed", promise: "nothing fails; health and counters go on where they were", within: 40 * time.Second, exact: true,
			run: func(s *story) {
				verdicts := s.watchVerdicts()
				for _, a := range s.admins {
					a.Kill()
				}
				s.load.rest(s.t, either(2*time.Second, 20*time.Second))
				s.serving()
				for _, a := range s.admins {
					a.begin()
				}
				s.mend()
				for _, a := range s.admins {
					s.await(30*time.Second, a.Name+" is back", a.ready)
				}
				verdicts.none("while no lb-admin lived")
			},
		},
		fault{
			name: "an instance drains with streams open", promise: "nothing fails, its streams run to their end, it gets nothing new",
			run: func(s *story) {
				in := s.instances[1]
				s.await(10*time.Second, "it has streams", func() error {
					d, err := s.status(s.proxies[0].front)
					if err == nil && d.Applications[app].Instances[in.Name].Streams < 2 {
						err = fmt.Errorf("it has %d", d.Applications[app].Instances[in.Name].Streams)
					}
					return err
				})
				s.absent(in)
				if _, err := s.rest(s.admins[0], "POST", "/apps/"+app+"/instances/"+in.Name+"/drain?wait=60s", nil); err != nil {
					s.t.Fatalf("drain: %s", err)
				}
				before, err := in.served()
				if err != nil {
					s.t.Fatal(err)
				}
				s.load.rest(s.t, 2*time.Second)
				if now, err := in.served(); err != nil || now != before {
					s.t.Errorf("drained, and it was given %d requests, %v", now-before, err)
				}
				if _, err := s.rest(s.admins[0], "POST", "/apps/"+app+"/instances/"+in.Name+"/activate", nil); err != nil {
					s.t.Fatalf("activate: %s", err)
				}
				s.mend()
			},
		},
	)
}

// An upgrade: everything ends in order and starts again, one process at a time.
func TestFault_Upgrade(t *testing.T) {
	t.Parallel()
	c := newCluster(t, shape{etcd: 3, admins: 2, proxies: 2, proxyFlags: []string{"--shutdown-delay", "1s", "--shutdown-grace", "60s"}})
	c.play(t,
		fault{
			name: "rolling restart: every proxy, every lb-admin, every member of etcd", promise: "nothing fails, no stream is cut, counters are exact", within: 40 * time.Second, exact: true,
			run: func(s *story) {
				for _, n := range s.inOrder() {
					s.end(n)
					n.begin()
					s.await(30*time.Second, n.Name+" is back", n.ready)
					if strings.HasPrefix(n.Name, "proxy") {
						s.load.further(s.t, 20) // clients have found it again
					}
				}
				s.mend()
			},
		},
	)
}

// inOrder is everything in the order in which a careful operator restarts it.
func (s *story) inOrder() []*node {
	return slices.Concat(s.proxies, s.admins, s.members)
}

// end asks a process to end in order and waits until it has.
func (s *story) end(n *node) {
	s.t.Helper()
	n.Signal(syscall.SIGTERM)
	testbed.Within(s.t, 90*time.Second, n.Name+" has ended", func() bool { return !n.Running() })
	if code := n.ExitCode(); code != 0 && !strings.HasPrefix(n.Name, "etcd") { // etcd raises the signal anew
		s.t.Errorf("%s ended with %d after SIGTERM, want 0", n.Name, code)
	}
}

// verdicts notes every write of the prober.
type verdicts struct {
	s      *story
	cancel context.CancelFunc
	writes chan []string
}

// watchVerdicts begins to.
func (s *story) watchVerdicts() *verdicts {
	ctx, cancel := context.WithCancel(context.Background())
	s.t.Cleanup(cancel)
	v := &verdicts{s, cancel, make(chan []string, 1)}
	events := s.store.Watch(clientv3.WithRequireLeader(ctx), "/difylb/health/", clientv3.WithPrefix())
	go func() { // ends by cancel
		var writes []string
		for r := range events {
			for _, e := range r.Events {
				writes = append(writes, fmt.Sprintf("%s %s %s", e.Type, e.Kv.Key, e.Kv.Value))
			}
		}
		v.writes <- writes
	}()
	return v
}

// none ends it; there must have been nothing to note.
func (v *verdicts) none(when string) {
	v.s.t.Helper()
	v.cancel()
	for _, w := range <-v.writes {
		v.s.t.Errorf("%s a verdict was written: %s", when, w)
	}
}
