package fault

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"difylb/test/testbed"
)

// Disks of which nothing is left.
func TestFault_Disks(t *testing.T) {
	t.Parallel()
	if !apart(t) {
		return
	}
	// etcd takes twice 64 MiB for its log at once.
	c := newCluster(t, shape{etcd: 1, admins: 1, proxies: 2, disks: map[string]int{"etcd-1": 160 << 20, "proxy-1": 16 << 20}})
	c.play(t,
		fault{
			name: "the disk of a proxy is full: its access log and its last good state", promise: "nothing fails; lines that are lost are counted, the last good state stays whole and is brought up to date when there is space",
			run: func(s *story) {
				p := s.proxies[0]
				dir := filepath.Join(s.dir, p.Name)
				saved := testbed.ReadFile(s.t, filepath.Join(dir, "last-good.json"))
				free := fillDisk(s.t, dir)
				s.load.rest(s.t, either(time.Second, 5*time.Second))
				revision, err := s.change(s.admins[0])
				if err != nil {
					s.t.Fatal(err)
				}
				s.await(10*time.Second, "the change is in force", func() error { return s.inForce(revision) })
				s.await(20*time.Second, "lost lines are counted", func() error {
					n, err := testbed.Metric(p.base, "difylb_access_log_dropped_total")
					if err == nil && n == 0 {
						err = fmt.Errorf("it counts none")
					}
					return err
				})
				s.names(p, "no space left on device")
				if now := testbed.ReadFile(s.t, filepath.Join(dir, "last-good.json")); now != saved {
					s.t.Error("the last good state was touched though there is no space for another")
				}
				free()
				s.mend()
				s.await(30*time.Second, "the last good state is up to date", func() error {
					if testbed.ReadFile(s.t, filepath.Join(dir, "last-good.json")) == saved {
						return fmt.Errorf("it is the one before")
					}
					return nil
				})
				s.await(10*time.Second, "the access log goes on", func() error {
					st, err := os.Stat(filepath.Join(dir, "access.log"))
					if err == nil && time.Since(st.ModTime()) > 2*time.Second {
						err = fmt.Errorf("written to at %s", st.ModTime())
					}
					return err
				})
				for line := range strings.Lines(testbed.ReadFile(s.t, filepath.Join(dir, "access.log"))) {
					if !strings.HasPrefix(line, "{") || strings.Count(line, `{"time"`) > 1 {
						s.t.Errorf("two lines of the access log have become one: %s", line)
					}
				}
			},
		},
		fault{
			name: "the disk of etcd is full", promise: "nothing fails; proxies stay ready; changes are refused until there is space and etcd was started again", long: true, within: 40 * time.Second,
			run: func(s *story) {
				m := s.members[0]
				free := fillDisk(s.t, filepath.Join(s.dir, m.Name))
				// Its file has room left in itself; some keys use that up.
				s.await(30*time.Second, "etcd takes no more", func() error {
					_, err := s.store.Put(s.limited(), "/stranger/"+fmt.Sprint(time.Now().UnixNano()), strings.Repeat("x", 512<<10))
					if err == nil {
						return fmt.Errorf("it does")
					}
					return nil
				})
				if _, err := s.change(s.admins[0]); err == nil {
					s.t.Error("a change went through")
				}
				s.load.rest(s.t, 5*time.Second)
				for _, p := range s.proxies {
					if err := p.ready(); err != nil {
						s.t.Errorf("%s is not ready: %s", p.Name, err)
					}
				}
				s.serving()
				free()
				if m.Running() {
					s.note("etcd goes on")
					s.end(m)
				} else {
					s.note("etcd ended by itself")
				}
				m.begin()
				s.await(20*time.Second, m.Name+" is back", m.ready)
				s.mend()
			},
		},
	)
}
