package fault

import (
	"errors"
	"fmt"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"difylb/test/testbed"
)

// With three members of etcd, two lb-admins and two lb-proxies.
func TestFault_Store(t *testing.T) {
	t.Parallel()
	c := newCluster(t, shape{etcd: 3, admins: 2, proxies: 2})
	c.play(t,
		fault{
			name: "a follower of etcd is killed", promise: "nothing fails, changes go through",
			run: func(s *story) {
				_, followers := s.etcdLeader()
				followers[0].Kill()
				s.mend() // nobody helps them
				s.changed("with a follower dead", 10*time.Second)
				followers[0].begin()
			},
		},
		fault{
			name: "etcd's leader is killed", promise: "nothing fails, changes go through again by themselves", within: 40 * time.Second,
			run: func(s *story) {
				leader, _ := s.etcdLeader()
				leader.Kill()
				s.mend()
				took := s.changed("with the leader dead", 20*time.Second)
				s.note("changes after %.1f s", took.Seconds())
				leader.begin()
			},
		},
		fault{
			name: "etcd loses its quorum", promise: "nothing fails; changes are refused with 503, reads say that they are stale", within: 40 * time.Second,
			run: func(s *story) {
				s.members[0].pause()
				s.members[1].pause()
				_, err := s.change(s.admins[0])
				var r *refused
				if !errors.As(err, &r) || r.status != http.StatusServiceUnavailable || !strings.Contains(r.body, "etcd") {
					s.t.Errorf("without a quorum a change ends with %v, want 503 and etcd's name", err)
				}
				s.await(30*time.Second, "reads say that they are stale", func() error {
					resp, err := s.rest(s.admins[0], "GET", "/apps/"+app, nil)
					if err == nil && resp.Header.Get("X-Config-Stale") == "" {
						err = errors.New("there is no X-Config-Stale")
					}
					return err
				})
				s.serving()
				s.members[0].resume()
				s.members[1].resume()
				s.mend()
			},
		},
		fault{
			name: "a proxy is cut off from etcd, silently", promise: "nothing fails; it stays ready and tells its lag", within: 40 * time.Second,
			run: func(s *story) {
				s.partition(s.proxies[0], silent)
			},
		},
		fault{
			name: "etcd's answers to a proxy are lost, its questions arrive", promise: "nothing fails; it stays ready and tells its lag", within: 40 * time.Second, long: true,
			run: func(s *story) {
				s.partition(s.proxies[0], oneWay)
			},
		},
		fault{
			name: "etcd is compacted past what a proxy has seen", promise: "nothing fails; it reads all anew and has the newest", within: 40 * time.Second,
			run: func(s *story) {
				p := s.proxies[0]
				wires := s.between(p.Name, "etcd")
				s.damage(wires, unplugged)
				for _, w := range wires {
					w.reset()
				}
				var last int64
				for range 20 {
					var err error
					if last, err = s.change(s.admins[0]); err != nil {
						s.t.Fatal(err)
					}
				}
				if n, err := testbed.Metric(p.base, "difylb_config_revision"); err != nil || int64(n) >= last {
					s.t.Fatalf("%s is not cut off: revision %v of %d, %v", p.Name, n, last, err)
				}
				resp, err := s.store.Get(s.limited(), "x")
				if err != nil {
					s.t.Fatal(err)
				}
				if _, err := s.store.Compact(s.limited(), resp.Header.Revision, clientv3.WithCompactPhysical()); err != nil {
					s.t.Fatal(err)
				}
				s.damage(wires, goodWire)
				s.mend()
				s.await(20*time.Second, p.Name+" has caught up", func() error { return s.inForce(last) })
			},
		},
		fault{
			name: "etcd's disk is slow: 200 ms for each fsync", promise: "nothing fails; changes go through, slowly", within: 60 * time.Second, long: true,
			run: func(s *story) {
				for _, m := range s.members {
					slowDisk(s.t, m, 200*time.Millisecond)
				}
				var slowest time.Duration
				for range 10 {
					slowest = max(slowest, s.changed("with slow disks", 30*time.Second))
				}
				s.note("the slowest of 10 changes took %.1f s", slowest.Seconds())
			},
		},
		fault{
			name: "a key of the configuration holds rubbish", promise: "nothing fails; its last good value stays, other changes go through",
			run: func(s *story) {
				key := "/difylb/instances/" + app + "/" + s.instances[0].Name
				was, err := s.store.Get(s.limited(), key)
				if err != nil || len(was.Kvs) != 1 {
					s.t.Fatalf("%s: %v", key, err)
				}
				s.put(key, `{"weight": "rubbish`)
				for _, p := range s.proxies {
					s.await(10*time.Second, p.Name+" tells of the key", func() error { return is(p, "difylb_config_faulty_keys", 1) })
				}
				s.changed("beside a poisoned key", 10*time.Second)
				s.serving()
				s.put(key, string(was.Kvs[0].Value))
				s.mend()
			},
		},
		fault{
			name: "keys of a newer release: unknown fields, unknown words", promise: "nothing fails; fields are ignored, objects with unknown words keep their last good value",
			run: func(s *story) {
				field, word := "/difylb/instances/"+app+"/"+s.instances[0].Name, "/difylb/instances/"+app+"/"+s.instances[1].Name
				was := make(map[string]string)
				for _, key := range []string{field, word} {
					r, err := s.store.Get(s.limited(), key)
					if err != nil || len(r.Kvs) != 1 {
						s.t.Fatalf("%s: %v", key, err)
					}
					was[key] = string(r.Kvs[0].Value)
				}
				s.put(field, strings.Replace(was[field], "{", `{"flavour_of_the_future": {"sweet": true}, `, 1))
				newer := strings.Replace(was[word], `"state":"active"`, `"state":"hibernating"`, 1)
				if newer == was[word] {
					s.t.Fatalf("the state is not where it was: the fields of the value have changed")
				}
				s.put(word, newer)
				for _, p := range s.proxies {
					s.await(10*time.Second, p.Name+" tells of one key", func() error { return is(p, "difylb_config_faulty_keys", 1) })
				}
				s.serving()
				s.put(field, was[field])
				s.put(word, was[word])
				s.mend()
			},
		},
		fault{
			name: "1,000 changes, one after the other", promise: "nothing fails, nobody moves", within: 60 * time.Second,
			run: func(s *story) {
				const changes = 1000
				begun := time.Now()
				for i := range changes {
					if _, err := s.change(s.admins[i%2]); err != nil {
						s.t.Fatalf("change %d: %s", i, err)
					}
				}
				took := time.Since(begun)
				s.mend()
				s.note("%.0f changes a second", changes/took.Seconds())
			},
		},
		fault{
			name: "up to 1,000 puts a second into etcd, past lb-admin, for 10 s", promise: "nothing fails, nobody moves", within: 60 * time.Second, long: true,
			run: func(s *story) {
				key := "/difylb/apps/" + app
				was, err := s.store.Get(s.limited(), key)
				if err != nil || len(was.Kvs) != 1 {
					s.t.Fatalf("%s: %v", key, err)
				}
				puts, begun := 0, time.Now()
				for next := begun; time.Since(begun) < 10*time.Second; next = next.Add(time.Millisecond) {
					time.Sleep(time.Until(next)) // the pace is the point
					s.put(key, strings.Replace(string(was.Kvs[0].Value), `"size":`, `"size":1`+strconv.Itoa(puts%10), 1))
					puts++
				}
				s.note("%d puts in %.0f s", puts, time.Since(begun).Seconds())
				s.put(key, string(was.Kvs[0].Value))
				s.mend()
			},
		},
		fault{
			name: "a proxy stands still and misses changes", promise: "nothing fails where that is shorter than the read timeout: what it has in hand waits; it catches up", within: 60 * time.Second, exact: true,
			run: func(s *story) {
				p := s.proxies[0]
				p.pause()
				for range either(20, 500) {
					if _, err := s.change(s.admins[0]); err != nil {
						s.t.Fatal(err)
					}
				}
				s.load.rest(s.t, either(3*time.Second, 10*time.Second))
				p.resume()
				s.mend()
			},
		},
		fault{
			name: "10,000 applications with 100,000 tokens appear", promise: "nothing fails, nobody moves", within: 2 * time.Minute, long: true,
			run: func(s *story) {
				s.manyApplications(10_000, 10)
			},
		},
	)
}

// changed repeats a change until it goes through and returns how long that took.
func (s *story) changed(when string, limit time.Duration) time.Duration {
	s.t.Helper()
	begun := time.Now()
	s.await(limit, "changes go through "+when, func() error { _, err := s.change(s.admins[0]); return err })
	return time.Since(begun)
}

// serving asks every proxy for a user of every instance, while something is wrong.
func (s *story) serving() {
	s.t.Helper()
	if err := s.home(); err != nil {
		s.t.Errorf("meanwhile: %s", err)
	}
}

// partition damages a proxy's wires to etcd until it says so, and mends them.
func (s *story) partition(p *node, d damage) {
	s.t.Helper()
	wires := s.between(p.Name, "etcd")
	s.damage(wires, d)
	s.await(40*time.Second, p.Name+" tells its lag", func() error {
		lag, err := testbed.Metric(p.base, "difylb_config_lag_seconds")
		if err == nil && lag == 0 {
			err = errors.New("it shows none")
		}
		return err
	})
	if err := p.ready(); err != nil {
		s.t.Errorf("without etcd: %s", err)
	}
	s.serving()
	s.changed("by the others", 10*time.Second)
	s.damage(wires, goodWire)
	s.mend()
}

// is returns nil when a metric of a process has a value.
func is(n *node, metric string, want float64) error {
	v, err := testbed.Metric(n.base, metric)
	if err == nil && v != want {
		err = fmt.Errorf("%s of %s is %v, want %v", metric, n.Name, v, want)
	}
	return err
}

// put writes a key behind lb-admin's back.
func (s *story) put(key, value string) {
	s.t.Helper()
	if _, err := s.store.Put(s.limited(), key, value); err != nil {
		s.t.Fatalf("put %s: %s", key, err)
	}
}

// slowDisk makes a process's writes to disk slow until the case ends: by strace, or
// where there is none by stopping it again and again.
func slowDisk(t testing.TB, n *node, delay time.Duration) {
	t.Helper()
	ended := make(chan struct{})
	path, err := exec.LookPath("strace")
	if err != nil {
		done := make(chan struct{})
		go func() { // ends with the case
			defer close(ended)
			for {
				n.pause()
				time.Sleep(delay)
				n.resume()
				select {
				case <-done:
					return
				case <-time.After(delay / 2):
				}
			}
		}()
		t.Cleanup(func() { close(done); <-ended })
		return
	}
	us := strconv.FormatInt(delay.Microseconds(), 10)
	trace := exec.Command(path, "-f", "-qq", "-o", "/dev/null", "-e", "trace=fdatasync,fsync", "-e", "inject=fdatasync,fsync:delay_enter="+us, "-p", strconv.Itoa(n.Pid()))
	if err := trace.Start(); err != nil {
		t.Fatal(err)
	}
	go func() { // ends with the case
		defer close(ended)
		_ = trace.Wait()
	}()
	t.Cleanup(func() {
		_ = trace.Process.Signal(syscall.SIGTERM)
		<-ended
	})
}

// manyApplications declares so many with so many tokens each, and takes them away again.
func (s *story) manyApplications(n, tokens int) {
	s.t.Helper()
	const batch = 1000
	begun := time.Now()
	for from := 0; from < n; from += batch {
		apps := make(map[string]any)
		for i := from; i < min(from+batch, n); i++ {
			var list []any
			for k := range tokens {
				list = append(list, fmt.Sprintf("usertoken--crowd-%d-%d", i, k))
			}
			apps[fmt.Sprintf("crowd-%d", i)] = map[string]any{
				"user_tokens": list, "health_check": map[string]any{"type": "none"},
				"instances": []any{map[string]any{"name": "a", "url": "http://127.0.0.1:9", "token": "app-of-the-crowd"}},
			}
		}
		if _, err := s.rest(s.admins[0], "POST", "/apply", map[string]any{"applications": apps}); err != nil {
			s.t.Fatalf("applications from %d on: %s", from, err)
		}
	}
	grown := time.Since(begun)
	slowest := 0.0
	for _, p := range s.proxies {
		took, err := testbed.Metric(p.base, "difylb_config_apply_seconds")
		if err != nil {
			s.t.Fatal(err)
		}
		slowest = max(slowest, took)
	}
	if _, err := s.rest(s.admins[0], "POST", "/apply?prune=true", map[string]any{"applications": map[string]any{app: s.declaration()}}); err != nil {
		s.t.Fatal(err)
	}
	s.note("declared in %.0f s, put in force in %.2f s", grown.Seconds(), slowest)
	s.mend()
}
