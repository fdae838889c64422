package fault

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"difylb/pkg/standin"
	"difylb/test/testbed"
)

// orderly are the flags of proxies that end in order while clients are there.
var orderly = []string{"--shutdown-delay", shutdownDelay.String(), "--shutdown-grace", "60s"}

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
			name: "the elected lb-admin stands still for longer than its lease", promise: "nothing fails, the other takes over; what happens to an instance meanwhile is judged once, by the other; counters are exact", exact: true,
			run: func(s *story) {
				leader, others := s.elected()
				in := s.instances[0]
				verdicts := s.watchVerdicts()
				leader.pause()
				s.await(15*time.Second, others[0].Name+" is elected", func() error { return is(others[0], "difylb_admin_leader", 1) })
				s.absent(in)
				s.spoil(in, standin.Fault{Kind: standin.Status, Status: 500, Path: "/v1/info"})
				s.await(15*time.Second, in.Name+" is known to be unhealthy", func() error { return s.verdict(in, "unhealthy") })
				leader.resume()
				s.await(10*time.Second, leader.Name+" has noticed", func() error { return is(leader, "difylb_admin_leader", 0) })
				s.load.rest(s.t, 2*time.Second)
				s.spoil(in)
				s.mend()
				s.await(15*time.Second, in.Name+" is known to be healthy", func() error { return s.verdict(in, "healthy") })
				verdicts.are(others[0], "unhealthy", "healthy")
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
	c := newCluster(t, shape{etcd: 3, admins: 2, proxies: 2, proxyFlags: orderly})
	c.play(t,
		fault{
			name: "rolling restart: every proxy, every lb-admin, every member of etcd", promise: "nothing fails, no stream is cut, counters are exact and never go back", within: 40 * time.Second, exact: true,
			run: func(s *story) {
				watched := s.watchStatus()
				for _, n := range s.inOrder() {
					s.end(n)
					n.begin()
					s.await(30*time.Second, n.Name+" is back", n.ready)
					if strings.HasPrefix(n.Name, "proxy") {
						s.load.further(s.t, 20) // clients have found it again
					}
				}
				s.mend()
				if w := watched(); w.back > 0 || w.looked < 20 {
					s.t.Errorf("complete figures went back by %d, seen by %d looks", w.back, w.looked)
				}
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
	mu     sync.Mutex
	writes []string // guarded by mu
}

// watchVerdicts begins to, until the case ends.
func (s *story) watchVerdicts() *verdicts {
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	s.t.Cleanup(func() { cancel(); <-ended })
	v := &verdicts{s: s}
	events := s.store.Watch(ctx, "/difylb/health/", clientv3.WithPrefix())
	go func() { // ends by cancel
		defer close(ended)
		for r := range events {
			for _, e := range r.Events {
				v.mu.Lock()
				v.writes = append(v.writes, string(e.Kv.Value))
				v.mu.Unlock()
			}
		}
	}()
	return v
}

func (v *verdicts) so() []string {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.writes)
}

// none expects that there was nothing to note.
func (v *verdicts) none(when string) {
	v.s.t.Helper()
	for _, w := range v.so() {
		v.s.t.Errorf("%s a verdict was written: %s", when, w)
	}
}

// are expects that one lb-admin has written these words and nobody else anything.
func (v *verdicts) are(by *node, words ...string) {
	v.s.t.Helper()
	v.s.await(10*time.Second, "the verdicts are written", func() error {
		if n := len(v.so()); n < len(words) {
			return fmt.Errorf("%d of %d", n, len(words))
		}
		return nil
	})
	writes := v.so()
	ok := len(writes) == len(words)
	for i, w := range writes {
		ok = ok && strings.Contains(w, `"`+words[i]+`"`) && strings.Contains(w, `"`+by.Name+`"`)
	}
	if !ok {
		v.s.t.Errorf("verdicts are %q, want %q, all of %s", writes, words, by.Name)
	}
}
