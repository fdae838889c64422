package fault

import (
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"

	"difylb/test/testbed"
)

const (
	// answersLive is the --resolver-valid of clusters whose instances have names.
	answersLive = 2 * time.Second
	// followed is what the documentation promises on top of it.
	followed = 2 * time.Second
)

// Instances have names, and whoever answers for these fails or changes his mind.
func TestFault_Names(t *testing.T) {
	t.Parallel()
	c := newCluster(t, shape{admins: 1, proxies: 2, named: true})
	c.play(t,
		fault{
			name: "name servers answer SERVFAIL, then say that there is no such name, then nothing at all", promise: "nothing fails, nobody moves; proxies tell that names fail",
			run: func(s *story) {
				for _, trouble := range []func(){s.dns.Fail, s.dns.Deny, s.dns.Silence} {
					trouble()
					s.load.rest(s.t, either(time.Second, 5*time.Second))
				}
				for _, p := range s.proxies {
					s.await(20*time.Second, p.Name+" tells", func() error {
						n, err := testbed.Metric(p.base, "difylb_names_failing")
						if err == nil && n != float64(len(s.instances)) {
							err = fmt.Errorf("%v names fail", n)
						}
						return err
					})
				}
				s.dns.Answer("127.0.0.1")
				s.mend()
				for _, n := range append(s.proxies[:len(s.proxies):len(s.proxies)], s.admins...) {
					s.await(20*time.Second, n.Name+" is content", func() error {
						left, err := testbed.Metric(n.base, "difylb_names_failing")
						if err == nil && left > 0 {
							err = fmt.Errorf("%v names fail", left)
						}
						return err
					})
				}
			},
		},
		fault{
			name: "an instance's name moves, its old address is closed", promise: "only what it had in hand there fails; its users are served by the next until the name is followed", long: true,
			run: func(s *story) {
				in := s.instances[0]
				s.absent(in)
				there := s.twin(in)
				begun := time.Now()
				s.dns.AnswerFor(in.Name+".test", "127.0.0.9")
				s.unplug(in)
				for _, w := range s.between("proxies", in.Name) {
					w.reset()
				}
				s.handful(in, begun, time.Now())
				s.arrives(there, begun)
				s.load.rest(s.t, 5*time.Second)
				s.mend()
				s.back(in)
			},
		},
		fault{
			name: "an instance's name moves, its old address answers on", promise: "nothing fails, nobody moves; nothing uses the old address any more", long: true,
			run: func(s *story) {
				in := s.instances[1]
				there := s.twin(in)
				begun := time.Now()
				s.dns.AnswerFor(in.Name+".test", "127.0.0.9")
				s.arrives(there, begun)
				s.await(45*time.Second, "streams at the old address have ended, and nothing else is there", func() error {
					for _, w := range s.between("proxies", in.Name) {
						if n, _ := w.count(); n > 0 {
							return fmt.Errorf("%d connections", n)
						}
					}
					return nil
				})
				s.mend()
				s.back(in)
			},
		},
		fault{
			name: "names with two addresses, of which one refuses or hangs", promise: "nothing fails, nobody moves", long: true,
			run: func(s *story) {
				_, port, _ := strings.Cut(s.instances[2].front, ":")
				restore := blackhole(s.t, "127.0.0.9:"+port)
				for _, in := range s.instances {
					s.dns.AnswerFor(in.Name+".test", "127.0.0.9", "127.0.0.1")
				}
				s.load.rest(s.t, 20*time.Second)
				for _, in := range s.instances {
					s.dns.AnswerFor(in.Name+".test", "127.0.0.1")
				}
				s.load.rest(s.t, 2*answersLive)
				restore()
				s.mend()
			},
		},
	)
}

// twin is the same instance at another address, with the same port.
func (s *story) twin(in *node) *relay {
	s.t.Helper()
	_, port, _ := strings.Cut(in.front, ":")
	return newRelayAt(s.t, "127.0.0.9:"+port, strings.TrimPrefix(in.base, "http://"))
}

// arrives waits until proxies come to where a name has moved.
func (s *story) arrives(there *relay, moved time.Time) {
	s.t.Helper()
	// The prober comes, too: it does so twice a second.
	s.await(30*time.Second, "the name is followed", func() error {
		if now, _ := there.count(); now < len(s.proxies) {
			return errors.New("few are there")
		}
		return nil
	})
	took := time.Since(moved)
	s.note("followed after %.1f s", took.Seconds())
	if most := answersLive + followed + 2*time.Second; took > most { // machines that test are busy
		s.t.Errorf("the name was followed after %s, promised are %s", took, most)
	}
}

// back moves a name to where it was.
func (s *story) back(in *node) {
	s.t.Helper()
	s.whole(30 * time.Second)
	s.damage(s.between("proxies", in.Name), goodWire)
	s.dns.AnswerFor(in.Name+".test", "127.0.0.1")
	s.await(45*time.Second, "it is used at its old address again, and there only", func() error {
		for _, w := range s.between("proxies", in.Name) {
			if n, _ := w.count(); n == 0 {
				return errors.New("nobody is there")
			}
		}
		return nil
	})
	s.load.rest(s.t, answersLive+followed)
}
