package fault

import (
	"math/rand/v2"
	"slices"
	"sync"
	"syscall"
	"testing"
	"time"
)

// Processes of all kinds are killed and asked to end at random, one of each
// kind at a time, and afterwards the counters are held against those of the
// instances.
func TestFault_Counters(t *testing.T) {
	t.Parallel()
	c := newCluster(t, shape{etcd: 3, admins: 2, proxies: 2, proxyFlags: orderly})
	c.play(t, fault{
		name:    "proxies, lb-admins and members of etcd end and are killed at random",
		promise: "kill -9 costs only what was in hand; of counters at most the last 5 s of what was killed; SIGTERM costs nothing; nothing is counted twice",
		within:  60 * time.Second,
		run: func(s *story) {
			before := s.tallyUnderLoad()
			watched := s.watchStatus()
			deaths := s.reap(either(10*time.Second, 60*time.Second))
			s.mend()
			for _, d := range deaths {
				if d.killed && slices.Contains(s.proxies, d.of) {
					s.excuse(func(r reply) bool {
						return r.proxy == d.of.Name && r.begun.Before(d.to.Add(dying)) && r.ended.After(d.from)
					})
				}
			}
			s.whole(60 * time.Second)
			s.lost(before, deaths, watched())
		},
	})
}

// dying is how long the kernel may take to close what a killed process held: until
// then a connection can still be made to it, and ends.
const dying = 250 * time.Millisecond

// death is the end of a process.
type death struct {
	of       *node
	from, to time.Time // it ended between
	killed   bool      // else it was asked to
}

// reap ends processes at random for a while, and starts them again.
func (s *story) reap(d time.Duration) (deaths []death) {
	s.t.Helper()
	var mu sync.Mutex
	var reapers sync.WaitGroup
	until := time.Now().Add(d)
	for _, kind := range [][]*node{s.proxies, s.admins, s.members} {
		reapers.Add(1)
		go func() { // ends after d and the start of the last victim
			defer reapers.Done()
			for time.Now().Before(until) && !s.t.Failed() {
				victim, kill := kind[rand.IntN(len(kind))], rand.IntN(2) == 0
				from := time.Now()
				if kill {
					victim.Kill()
				} else {
					victim.Signal(syscall.SIGTERM)
					for victim.Running() {
						time.Sleep(10 * time.Millisecond)
					}
				}
				mu.Lock()
				deaths = append(deaths, death{victim, from, time.Now(), kill})
				mu.Unlock()
				victim.begin()
				for begun := time.Now(); victim.ready() != nil; time.Sleep(20 * time.Millisecond) {
					if time.Since(begun) > 60*time.Second {
						s.t.Errorf("%s is not back: %s", victim.Name, victim.ready())
						return
					}
				}
				time.Sleep(time.Second + rand.N(2*time.Second)) // an arbitrary moment is what is wanted here
			}
		}()
	}
	reapers.Wait()
	slices.SortFunc(deaths, func(a, b death) int { return a.from.Compare(b.from) })
	for _, d := range deaths {
		s.t.Logf("%s: %s, killed: %t", d.to.Format("15:04:05.000"), d.of.Name, d.killed)
	}
	return deaths
}

// tallyUnderLoad is a tally for which the load pauses.
func (s *story) tallyUnderLoad() tally {
	s.t.Helper()
	s.earlier = append(s.earlier, s.load.stop()...)
	n := s.tally()
	s.load = startLoad(s.t, s.client, s.users, s.doors(), int(rate))
	s.load.rest(s.t, time.Second)
	return n
}

// watch is what somebody saw who looked at the status of every proxy all the time.
type watch struct {
	looked int
	// back is by how much complete figures went back, over all instances, on
	// the proxy where that was the most.
	back uint64
}

// watchStatus begins to look. The returned function ends that.
func (s *story) watchStatus() (end func() watch) {
	done, result := make(chan struct{}), make(chan watch)
	go func() { // ends by the returned function
		var w watch
		type figure struct{ proxy, instance string }
		last, back := make(map[figure]uint64), make(map[string]uint64)
		for {
			for _, d := range s.doors() {
				doc, err := s.status(d.url)
				if err != nil || !doc.Complete {
					continue
				}
				w.looked++
				for name, in := range doc.Applications[app].Instances {
					f := figure{d.name, name}
					back[d.name] += last[f] - min(last[f], in.Requests)
					last[f] = in.Requests
					w.back = max(w.back, back[d.name])
				}
			}
			select {
			case <-time.After(100 * time.Millisecond):
			case <-done:
				result <- w
				return
			}
		}
	}()
	return func() watch {
		close(done)
		return <-result
	}
}

// lost compares the counters. What they have lost must be no more than what
// deaths excuse, and what was shown must not have gone back.
func (s *story) lost(before tally, deaths []death, w watch) {
	s.t.Helper()
	const memory = 5 * time.Second
	after := s.tallyUnderLoad()
	mayBeLost := 0
	for _, r := range s.earlier {
		if slices.ContainsFunc(deaths, func(d death) bool {
			if d.of.Name != r.proxy || r.begun.After(d.to) || r.ended.Before(d.from.Add(-memory)) {
				return false
			}
			// What a proxy reports at its end dies with an lb-admin that had no time to store it.
			return d.killed || slices.ContainsFunc(deaths, func(a death) bool {
				return a.killed && slices.Contains(s.admins, a.of) && a.to.After(d.from.Add(-memory)) && a.from.Before(d.to.Add(memory))
			})
		}) {
			mayBeLost++
		}
	}
	shown, served := uint64(0), uint64(0)
	for _, in := range s.instances {
		a, b := after.shown[in.Name]-before.shown[in.Name], after.served[in.Name]-before.served[in.Name]
		if a > b {
			s.t.Errorf("/status counts %d requests for %s, it counted only %d itself", a, in.Name, b)
		}
		shown, served = shown+a, served+b
	}
	if lost := int(served - shown); served > shown && lost > mayBeLost {
		s.t.Errorf("%d of %d requests are not counted, at most %d may be lost", lost, served, mayBeLost)
	}
	// Whoever is left tells the others what was shown. Only what a proxy had told
	// one lb-admin, and not yet the other when it was killed, can go with that one.
	const between = 2
	if w.looked < 20 || w.back > between {
		s.t.Errorf("complete figures went back by %d, seen by %d looks", w.back, w.looked)
	}
	kills := 0
	for _, d := range deaths {
		if d.killed {
			kills++
		}
	}
	s.note("%d deaths, %d by kill -9; of %d requests %d not counted (%d might have been); went back by %d", len(deaths), kills, served, served-shown, mayBeLost, w.back)
}
