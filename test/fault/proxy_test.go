package fault

import (
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"difylb/test/testbed"
)

// The proxies themselves, with one lb-admin that brings its own etcd.
func TestFault_Proxies(t *testing.T) {
	t.Parallel()
	c := newCluster(t, shape{admins: 1, proxies: 2, proxyFlags: orderly})
	c.play(t,
		fault{
			name: "a proxy is killed and started again", promise: "only what it had in hand fails",
			run: func(s *story) {
				p := s.proxies[0]
				p.Kill()
				killed := time.Now()
				s.excuse(func(r reply) bool { return r.proxy == p.Name && r.begun.Before(killed.Add(dying)) })
				s.load.rest(s.t, 2*time.Second)
				s.mend()
				p.begin()
			},
		},
		fault{
			name: "SIGTERM with streams open", promise: "nothing fails, no stream is cut, counters are exact", exact: true, within: 60 * time.Second,
			run: func(s *story) {
				p := s.proxies[1]
				p.Signal(syscall.SIGTERM)
				s.await(500*time.Millisecond, "it is not ready any more", func() error {
					if p.ready() == nil {
						return errors.New("it is")
					}
					return nil
				})
				s.ends(p, 75*time.Second)
				if code := p.ExitCode(); code != 0 {
					s.t.Errorf("%s ended with %d", p.Name, code)
				}
				s.mend()
				p.begin()
			},
		},
		fault{
			name: "a second SIGTERM", promise: "it ends at once, what it had in hand is cut, nothing else fails; counters are exact", exact: true,
			run: func(s *story) {
				p := s.proxies[0]
				p.Signal(syscall.SIGTERM)
				s.load.rest(s.t, 1200*time.Millisecond) // beyond --shutdown-delay: what is open now is what was
				second := time.Now()                    // before: it may be over before Signal is
				p.Signal(syscall.SIGTERM)
				s.excuse(func(r reply) bool { return r.proxy == p.Name && r.begun.Before(second) && r.ended.After(second) })
				s.ends(p, 5*time.Second)
				s.note("ended after %.1f s", time.Since(second).Seconds())
				s.mend()
				p.begin()
			},
		},
		fault{
			name: "etcd and lb-admin are killed, then a proxy is restarted without them", promise: "nothing fails; the proxy serves by its last good state within 6 s", within: 40 * time.Second,
			run: func(s *story) {
				a, p := s.admins[0], s.proxies[1]
				a.Kill()
				s.load.rest(s.t, either(time.Second, 20*time.Second))
				p.Signal(syscall.SIGTERM)
				s.ends(p, 75*time.Second)
				begun := time.Now()
				p.begin()
				s.await(20*time.Second, p.Name+" serves", p.ready)
				took := time.Since(begun)
				if took > 6*time.Second {
					s.t.Errorf("%s served after %s", p.Name, took)
				}
				s.note("served after %.1f s", took.Seconds())
				s.serving()
				a.begin()
				s.mend()
			},
		},
		fault{
			name: "the last good state of a proxy is damaged, and it is restarted without etcd and lb-admin", promise: "nothing fails; the proxy serves by the state before", long: true, within: 40 * time.Second,
			run: func(s *story) {
				a, p := s.admins[0], s.proxies[0]
				path := filepath.Join(s.dir, p.Name, "last-good.json")
				for range 2 { // so that there is one before
					saved := testbed.ReadFile(s.t, path)
					s.changed("before the fault", 10*time.Second)
					s.await(10*time.Second, "it is on disk", func() error {
						if testbed.ReadFile(s.t, path) == saved {
							return errors.New("it is not")
						}
						return nil
					})
				}
				a.Kill()
				p.Signal(syscall.SIGTERM)
				s.ends(p, 75*time.Second)
				whole := testbed.ReadFile(s.t, path)
				testbed.WriteFile(s.t, path, []byte(whole[:len(whole)/2]))
				begun := time.Now()
				p.begin()
				s.await(20*time.Second, p.Name+" serves", p.ready)
				s.note("served after %.1f s", time.Since(begun).Seconds())
				s.names(p, "last good state damaged, taking the one before")
				s.serving()
				s.load.rest(s.t, 3*time.Second)
				a.begin()
				s.mend()
			},
		},
		fault{
			name: "a proxy runs out of file descriptors", promise: "what finds a descriptor is served, the rest waits or gets 502 and 503; it does not spin", long: true, within: 40 * time.Second,
			run: func(s *story) {
				p := s.proxies[0]
				room := testbed.OpenFiles(s.t, p.Pid()) + 10
				testbed.LimitFiles(s.t, p.Pid(), uint64(room))
				begun := time.Now()
				s.excuse(func(r reply) bool { return r.proxy == p.Name && r.begun.Before(s.mended) && r.ended.After(begun) })
				for _, in := range s.instances {
					s.absent(in)
				}
				var crowd []net.Conn
				for range 100 {
					conn, err := net.DialTimeout("tcp", p.front[len("http://"):], 2*time.Second)
					if err != nil {
						s.t.Fatalf("connection %d: %s", len(crowd), err)
					}
					crowd = append(crowd, conn)
				}
				before := testbed.CPUTime(s.t, p.Pid())
				from := time.Now()
				s.load.rest(s.t, 5*time.Second)
				used := (testbed.CPUTime(s.t, p.Pid()) - before).Seconds() / time.Since(from).Seconds()
				s.note("it used %.0f %% of a core", 100*used)
				if used > 0.7 {
					s.t.Errorf("without descriptors it used %.0f %% of a core", 100*used)
				}
				for _, conn := range crowd {
					conn.Close()
				}
				testbed.LimitFiles(s.t, p.Pid(), 65536)
				s.mend()
			},
		},
	)
}

// ends waits until a process has ended.
func (s *story) ends(n *node, limit time.Duration) {
	s.t.Helper()
	s.await(limit, n.Name+" has ended", func() error {
		if n.Running() {
			return fmt.Errorf("it runs")
		}
		return nil
	})
}
