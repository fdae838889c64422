package fault

import (
	"fmt"
	"net/http"
	"net/netip"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"difylb/pkg/standin"
	"difylb/test/testbed"
)

// What is wrong with one instance is its own users' trouble and nobody else's.
func TestFault_Instances(t *testing.T) {
	t.Parallel()
	c := newCluster(t, shape{admins: 1, proxies: 2})
	c.play(t,
		fault{
			name: "an instance is killed and comes back", promise: "only what it had in hand fails; its users are served by the next and return",
			run: func(s *story) {
				in := s.instances[0]
				s.absent(in)
				begun := time.Now()
				s.unplug(in)
				in.Kill()
				s.handful(in, begun, time.Now())
				s.load.rest(s.t, 2*time.Second)
				in.begin()
				s.await(10*time.Second, in.Name+" is back", in.ready)
				s.plugIn(in)
			},
		},
		fault{
			name: "packets of new connections to an instance are dropped", promise: "nothing fails: what can't connect goes to the next",
			run: func(s *story) {
				in := s.instances[1]
				s.absent(in)
				s.unplug(in)
				restore := blackhole(s.t, in.front)
				s.load.rest(s.t, 3*time.Second)
				restore()
				s.plugIn(in)
			},
		},
		fault{
			name: "an instance hangs: it takes requests and answers nothing", promise: "only its own users' requests fail, with 504, until it is known; users of others notice nothing", within: 40 * time.Second,
			run: func(s *story) {
				in := s.instances[2]
				s.patch(map[string]any{"timeouts": map[string]any{"read": "2s"}})
				s.absent(in)
				var known atomic.Int64 // when; 0 while it is not
				s.excuse(func(r reply) bool {
					at := known.Load()
					return s.owner(r.user) == in.Name && (at == 0 || r.begun.UnixNano() < at)
				})
				begun := time.Now()
				in.pause()
				s.await(30*time.Second, "it is known to be unhealthy", func() error { return s.verdict(in, "unhealthy") })
				s.note("known after %.1f s", time.Since(begun).Seconds())
				s.await(5*time.Second, "both proxies know", func() error { return s.unusable(in) })
				known.Store(time.Now().UnixNano())
				s.load.rest(s.t, 2*time.Second)
				in.resume()
				s.mend()
				s.patch(map[string]any{"timeouts": map[string]any{"read": "20s"}})
			},
		},
		fault{
			name: "the wire to an instance trickles, 16 KiB a second", promise: "nothing fails; users of others do not wait for it",
			run: func(s *story) {
				in := s.instances[0]
				s.absent(in) // should the prober lose patience
				s.damage(s.between("proxies", in.Name), damage{rate: 16 << 10})
				begun := time.Now()
				s.load.rest(s.t, either(3*time.Second, 15*time.Second))
				s.damage(s.between("proxies", in.Name), goodWire)
				s.mend()
				slowest := time.Duration(0)
				for _, r := range s.load.so() {
					if r.begun.After(begun) && r.kind == call && s.owner(r.user) != in.Name {
						slowest = max(slowest, r.ended.Sub(r.begun))
					}
				}
				s.note("the slowest call of others took %d ms", slowest.Milliseconds())
				if slowest > 3*time.Second {
					s.t.Errorf("a call of another instance took %s", slowest)
				}
			},
		},
		fault{
			name: "the wire to an instance is slow, 75 ms each way", promise: "nothing fails, nobody moves", long: true,
			run: func(s *story) {
				s.damage(s.between("proxies", s.instances[0].Name), damage{delay: 75 * time.Millisecond})
				s.load.rest(s.t, 15*time.Second)
				s.damage(s.between("proxies", s.instances[0].Name), goodWire)
				s.mend()
			},
		},
		fault{
			name: "connections to an instance are reset, again and again", promise: "only what was under way on them fails",
			run: func(s *story) {
				in := s.instances[1]
				s.absent(in)
				for range either(5, 30) {
					begun := time.Now()
					for _, w := range s.between("proxies", in.Name) {
						w.reset()
					}
					s.handful(in, begun, time.Now())
					s.load.rest(s.t, 500*time.Millisecond)
				}
				s.mend()
			},
		},
		fault{
			name: "an instance answers what is not HTTP", promise: "only its own users' chat messages fail, with 502; users of others notice nothing",
			run: func(s *story) {
				s.misbehave(s.instances[2], standin.Fault{Kind: standin.Garbage, Path: "/v1/chat-messages"})
			},
		},
		fault{
			name: "an instance flaps: 503 for a second, fine for a second", promise: "only its own users' requests fail, and only with its 503",
			run: func(s *story) {
				in := s.instances[0]
				s.absent(in)
				s.excuse(func(r reply) bool { return s.owner(r.user) == in.Name && r.status == http.StatusServiceUnavailable })
				for range either(2, 10) {
					s.spoil(in, standin.Fault{Kind: standin.Status, Status: 503, Path: "/v1/"})
					s.load.rest(s.t, time.Second)
					s.spoil(in)
					s.load.rest(s.t, time.Second)
				}
				s.mend()
			},
		},
		fault{
			name: "an instance answers and then closes the kept connection, unannounced", promise: "nothing fails, nobody moves",
			run: func(s *story) {
				in := s.instances[1]
				s.spoil(in, standin.Fault{Kind: standin.CloseAfter, Path: "/v1/"})
				s.load.rest(s.t, either(3*time.Second, 20*time.Second))
				s.spoil(in)
				s.mend()
			},
		},
		fault{
			name: "an instance closes 5 kept connections just as a request arrives on them", promise: "at most those 5 fail, with 502: what may have begun is not sent twice",
			run: func(s *story) {
				in := s.instances[2]
				s.absent(in)
				spared := 5
				s.excuse(func(r reply) bool {
					spared--
					return s.owner(r.user) == in.Name && r.status == http.StatusBadGateway && spared >= 0
				})
				s.spoil(in, standin.Fault{Kind: standin.CloseOnReuse, Path: "/v1/", Count: 5})
				s.load.rest(s.t, 3*time.Second)
				s.spoil(in)
				s.mend()
			},
		},
		fault{
			name: "an instance resets every stream after its third event, and tells lengths that are not true", promise: "only its own users' requests are cut; users of others notice nothing", long: true,
			run: func(s *story) {
				in := s.instances[0]
				s.absent(in)
				s.excuse(func(r reply) bool { return s.owner(r.user) == in.Name })
				s.spoil(in, standin.Fault{Kind: standin.ResetMidStream, After: 3}, standin.Fault{Kind: standin.ShortBody, Path: "/v1/", Probability: 0.3},
					standin.Fault{Kind: standin.SurplusBytes, Path: "/v1/", Probability: 0.3})
				s.load.rest(s.t, 15*time.Second)
				s.spoil(in)
				s.mend()
			},
		},
		fault{
			name: "no probe succeeds any more, at no instance", promise: "nothing fails: fail open",
			run: func(s *story) {
				for _, in := range s.instances {
					s.absent(in) // while some are believed and others not yet
					s.spoil(in, standin.Fault{Kind: standin.Status, Status: 500, Path: "/v1/info"})
				}
				for _, in := range s.instances {
					s.await(15*time.Second, in.Name+" is unhealthy", func() error { return s.verdict(in, "unhealthy") })
				}
				s.load.rest(s.t, time.Second)
				if n, err := testbed.Metric(s.proxies[0].base, "difylb_fail_open_total"); err != nil || n == 0 {
					s.t.Errorf("nothing was counted as fail open: %v, %v", n, err)
				}
				for _, in := range s.instances {
					s.spoil(in)
				}
				s.mend()
			},
		},
		fault{
			name: "every instance is killed", promise: "requests are refused with 502 and 503, at once; whole soon after they are back", long: true,
			run: func(s *story) {
				s.excuse(func(r reply) bool { return r.cut || r.status == 502 || r.status == 503 })
				for _, in := range s.instances {
					s.absent(in)
					s.unplug(in)
					in.Kill()
				}
				s.load.rest(s.t, 5*time.Second)
				for _, in := range s.instances {
					in.begin()
					s.await(10*time.Second, in.Name+" is back", in.ready)
					s.plugIn(in)
				}
			},
		},
	)
}

// unplug makes an address refuse connections, as that of a dead process does.
func (s *story) unplug(in *node) {
	s.t.Helper()
	s.damage(s.between("proxies", in.Name), unplugged)
}

func (s *story) plugIn(in *node) {
	s.t.Helper()
	s.damage(s.between("proxies", in.Name), goodWire)
	s.mend()
}

// handful excuses what was under way on an instance at some time between the moments.
func (s *story) handful(in *node, from, to time.Time) {
	s.excuse(func(r reply) bool {
		return s.owner(r.user) == in.Name && r.begun.Before(to) && r.ended.After(from)
	})
}

// misbehave has one instance do something for a while that its users notice.
func (s *story) misbehave(in *node, f standin.Fault) {
	s.t.Helper()
	s.absent(in)
	s.excuse(func(r reply) bool { return s.owner(r.user) == in.Name && r.status == http.StatusBadGateway })
	s.spoil(in, f)
	s.load.rest(s.t, either(3*time.Second, 15*time.Second))
	s.spoil(in)
	s.mend()
}

// patch changes fields of the application, and waits until they are in force.
func (s *story) patch(fields map[string]any) {
	s.t.Helper()
	if _, err := s.rest(s.admins[0], "PATCH", "/apps/"+app, fields); err != nil {
		s.t.Fatal(err)
	}
	revision, err := s.change(s.admins[0])
	if err != nil {
		s.t.Fatal(err)
	}
	s.await(10*time.Second, "the change is in force", func() error { return s.inForce(revision) })
}

// verdict returns nil when the prober's word for an instance is this.
func (s *story) verdict(in *node, want string) error {
	r, err := s.store.Get(s.limited(), "/difylb/health/"+app+"/"+in.Name)
	if err == nil && (len(r.Kvs) != 1 || !strings.Contains(string(r.Kvs[0].Value), `"`+want+`"`)) {
		err = fmt.Errorf("it is %v", r.Kvs)
	}
	return err
}

// unusable returns nil when each proxy gives an instance's user to another.
func (s *story) unusable(in *node) error {
	for _, p := range s.proxies {
		u := s.resident(in)
		if r := s.client.send(call, u, 0, door{p.Name, p.front}); r.failure != "" || r.instance == in.Name {
			return fmt.Errorf("%s", r)
		}
	}
	return nil
}

// blackhole listens at an address so that connections to it are neither made
// nor refused: the queue of those that nobody accepts is full. The returned
// function frees the address.
func blackhole(t testing.TB, addr string) (restore func()) {
	t.Helper()
	ap := netip.MustParseAddrPort(addr)
	socket := func() int {
		fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		syscall.CloseOnExec(fd)
		return fd
	}
	at := &syscall.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	ln := socket()
	open := []int{ln}
	restore = func() {
		for _, fd := range open {
			syscall.Close(fd)
		}
		open = nil
	}
	t.Cleanup(func() { restore() })
	for _, err := range []error{
		syscall.SetsockoptInt(ln, syscall.SOL_SOCKET, syscall.SO_REUSEADDR, 1),
		syscall.Bind(ln, at), syscall.Listen(ln, 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for range 4 { // one more than any system queues for a backlog of nought
		fd := socket()
		open = append(open, fd)
		_ = syscall.SetNonblock(fd, true)
		_ = syscall.Connect(fd, at) // in progress for ever
	}
	return restore
}
