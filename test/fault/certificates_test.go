package fault

import (
	"crypto/tls"
	"errors"
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"difylb/pkg/standin"
	"difylb/test/testbed"
)

// shortLived is how long certificates live that are to run out.
const shortLived = 4 * time.Second

// Certificates run out on every wire that has them.
func TestFault_Certificates(t *testing.T) {
	t.Parallel()
	c := newCluster(t, shape{etcd: 1, admins: 1, proxies: 2, secure: true})
	c.play(t,
		fault{
			name: "the certificate that clients see is renewed before it runs out", promise: "nothing fails, no restart",
			run: func(s *story) {
				p := s.papers
				p.issue(p.ca, "front", shortLived)
				out := time.Now().Add(shortLived)
				for _, proxy := range s.proxies {
					s.shows(proxy, out)
				}
				s.load.rest(s.t, shortLived/4)
				p.issue(p.ca, "front", longLived)
				for _, proxy := range s.proxies {
					s.shows(proxy, time.Now().Add(longLived))
				}
				s.load.rest(s.t, time.Until(out)+2*time.Second)
				s.mend()
			},
		},
		fault{
			name: "the certificate that clients see runs out, and is renewed late", promise: "only new connections fail, refused by the clients; those that there are go on", long: true,
			run: func(s *story) {
				p := s.papers
				s.excuse(func(r reply) bool {
					return strings.Contains(r.failure, "certificate has expired") && (s.mended.IsZero() || r.begun.Before(s.mended.Add(2*time.Second)))
				})
				p.issue(p.ca, "front", shortLived)
				out := time.Now().Add(shortLived)
				s.load.rest(s.t, time.Until(out)+3*time.Second)
				p.issue(p.ca, "front", longLived)
				s.mend()
			},
		},
		fault{
			name: "the certificates of lb-proxies and lb-admin for etcd run out", promise: "nothing fails; proxies stay ready and tell their lag, changes are refused with 503; whole when new ones are there, no restart", long: true, within: 40 * time.Second,
			run: func(s *story) {
				s.runOut("to-etcd", "etcd")
				for _, p := range s.proxies {
					s.await(30*time.Second, p.Name+" tells its lag", func() error {
						lag, err := testbed.Metric(p.base, "difylb_config_lag_seconds")
						if err == nil && lag == 0 {
							err = errors.New("it shows none")
						}
						return err
					})
					if err := p.ready(); err != nil {
						s.t.Errorf("%s is not ready: %s", p.Name, err)
					}
					s.names(p, "a certificate has run out")
				}
				_, err := s.change(s.admins[0])
				var r *refused
				if !errors.As(err, &r) || r.status != http.StatusServiceUnavailable {
					s.t.Errorf("a change ends with %v, want 503", err)
				}
				s.load.rest(s.t, 3*time.Second)
				s.serving()
				s.papers.issue(s.papers.ca, "to-etcd", longLived)
				s.mend()
			},
		},
		fault{
			name: "etcd gets a certificate of another authority", promise: "nothing fails, changes go through by way of both authorities, no restart", long: true,
			run: func(s *story) {
				p := s.papers
				next := testbed.NewCA(s.root, "the next")
				p.write("ca-of-etcd", p.ca.PEM+next.PEM)
				p.issue(next, "etcd", longLived)
				time.Sleep(certificatesLooked)
				s.resetTo("etcd")
				s.changed("with two authorities", 20*time.Second)
				p.write("ca-of-etcd", next.PEM)
				time.Sleep(certificatesLooked)
				s.resetTo("etcd")
				s.changed("with the new authority alone", 20*time.Second)
				s.mend()
			},
		},
		fault{
			name: "the certificates between lb-proxies and lb-admin run out", promise: "nothing fails, counters are exact when new ones are there, no restart", exact: true, long: true, within: 40 * time.Second,
			run: func(s *story) {
				s.runOut("to-admin", "admin")
				s.unheard("a certificate has run out") // lb-admin refuses the proxies'
				s.papers.issue(s.papers.ca, "to-admin", longLived)
				s.await(30*time.Second, "the figures are complete again", s.hale)
				s.runOut("admin", "admin")
				s.unheard("certificate has expired") // the proxies refuse lb-admin's
				s.papers.issue(s.papers.ca, "admin", longLived)
				s.mend()
			},
		},
		fault{
			name: "an https instance's certificate runs out", promise: "nothing fails: its users are served by the next, the reason is told; they return when it is renewed", long: true,
			run: func(s *story) {
				in := s.instances[0]
				s.spoil(in, standin.Fault{Kind: standin.CloseAfter, Path: "/v1/"}) // so that each request wants a new connection
				s.load.rest(s.t, time.Second)
				s.absent(in)
				s.papers.renew(-time.Minute)
				s.await(20*time.Second, "probes tell why", func() error {
					r, err := s.store.Get(s.limited(), "/difylb/health/"+app+"/"+in.Name)
					if err == nil && (len(r.Kvs) != 1 || !strings.Contains(string(r.Kvs[0].Value), "certificate has expired")) {
						err = fmt.Errorf("it is %v", r.Kvs)
					}
					return err
				})
				for _, p := range s.proxies {
					s.names(p, "certificate has expired")
				}
				s.load.rest(s.t, 5*time.Second)
				s.papers.renew(longLived)
				s.mend()
				s.spoil(in)
			},
		},
	)
}

// certificatesLooked is how often programs look at their files, and more.
const certificatesLooked = 1200 * time.Millisecond

// shows waits until a proxy shows clients a certificate that runs out at a time.
func (s *story) shows(p *node, out time.Time) {
	s.t.Helper()
	s.await(5*time.Second, p.Name+" shows its new certificate", func() error {
		c, err := tls.Dial("tcp", strings.TrimPrefix(p.front, "https://"), &tls.Config{RootCAs: s.papers.pool})
		if err != nil {
			return err
		}
		defer c.Close()
		if is := c.ConnectionState().PeerCertificates[0].NotAfter; is.Sub(out).Abs() > 3*time.Second {
			return fmt.Errorf("it runs out at %s, want %s", is, out)
		}
		return nil
	})
	told, err := testbed.Metric(p.base, "difylb_certificate_expiry_timestamp_seconds", `shown_to="clients"`)
	if off := time.Unix(int64(told), 0).Sub(out).Abs(); err != nil || off > 3*time.Second {
		s.t.Errorf("%s tells that it runs out %s beside the truth, %v", p.Name, off, err)
	}
}

// runOut has somebody's certificate run out, and every connection to those who
// ask for it, or show it, be made anew.
func (s *story) runOut(whose, at string) {
	s.t.Helper()
	s.papers.issue(s.papers.ca, whose, shortLived)
	out := time.Now().Add(shortLived)
	time.Sleep(certificatesLooked)
	s.resetTo(at)
	s.load.rest(s.t, time.Until(out)+time.Second)
	s.cutTo(at) // unless who was cut before has waited so long that he found it run out
}

// resetTo cuts all connections to processes whose names begin so; there must be some.
func (s *story) resetTo(name string) {
	s.t.Helper()
	if s.cutTo(name) == 0 {
		s.t.Errorf("there was no connection to %s", name)
	}
}

// cutTo cuts them and returns how many there were.
func (s *story) cutTo(name string) (cut int) {
	for wire, r := range s.wires {
		if _, to, _ := strings.Cut(wire, ">"); strings.HasPrefix(to, name) {
			n, _ := r.count()
			cut += n
			r.reset()
		}
	}
	return cut
}

// unheard waits until no proxy has a link to an lb-admin any more, and somebody says why.
func (s *story) unheard(why string) {
	s.t.Helper()
	for _, p := range s.proxies {
		s.await(20*time.Second, p.Name+" has no link", func() error {
			n, err := testbed.Metric(p.base, "difylb_admins_connected")
			if err == nil && n > 0 {
				err = fmt.Errorf("%v lb-admins are connected", n)
			}
			return err
		})
		s.names(p, why)
	}
	s.load.rest(s.t, 2*time.Second)
	s.serving()
}

// names waits until a process has logged why.
func (s *story) names(n *node, why string) {
	s.t.Helper()
	s.await(15*time.Second, n.Name+" says why", func() error {
		if !strings.Contains(n.Log(), why) {
			return fmt.Errorf("nothing in its log says %q", why)
		}
		return nil
	})
}
