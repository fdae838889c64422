package e2e

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"testing"
	"time"

	"difylb/test/testbed"
)

// load is steady traffic: so many questions a second, whatever becomes of
// those before (an open loop), each with a user from a list.
type load struct {
	t       testing.TB
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu      sync.Mutex
	replies []reply // guarded by mu
}

// traffic says what a load is made of.
type traffic struct {
	token   string
	users   []string
	proxies func() []string // asked for each question: the first is tried first
	rate    int             // questions per second
	streams int             // every so many-th is a stream; 0: none
	tokens  int
	gap     time.Duration
	fresh   bool // each question on a connection of its own
}

// startLoad runs until stop. The test fails if it is not stopped.
func startLoad(t testing.TB, tr traffic) *load {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{t: t, cancel: cancel}
	l.running.Add(1)
	go func() { // ends by cancel
		defer l.running.Done()
		tick := time.NewTicker(time.Second / time.Duration(tr.rate))
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			q := question{token: tr.token, user: tr.users[n%len(tr.users)], tokens: tr.tokens, gap: tr.gap, fresh: tr.fresh}
			// Not n alone: else some users would stream only.
			q.stream = tr.streams > 0 && (n+n/len(tr.users))%tr.streams == 0
			proxies := tr.proxies()
			turn := (n + n/len(proxies)) % len(proxies)
			proxies = slices.Concat(proxies[turn:], proxies[:turn])
			l.running.Add(1)
			go func() { // ends with the answer
				defer l.running.Done()
				bound, done := context.WithTimeout(context.Background(), 30*time.Second)
				defer done()
				r := q.ask(bound, proxies...)
				l.mu.Lock()
				l.replies = append(l.replies, r)
				l.mu.Unlock()
			}()
		}
	}()
	t.Cleanup(cancel)
	return l
}

// stop ends the load, waits for the answers still to come, and returns all.
func (l *load) stop() []reply {
	l.cancel()
	l.running.Wait()
	return l.so()
}

// so returns what has come so far.
func (l *load) so() []reply {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.replies)
}

// await waits until n further questions have been answered.
func (l *load) await(n int) {
	l.t.Helper()
	want := len(l.so()) + n
	testbed.Within(l.t, 30*time.Second, fmt.Sprintf("%d further answers", n), func() bool { return len(l.so()) >= want })
}

// failures returns the replies that failed.
func failures(replies []reply) (bad []reply) {
	for _, r := range replies {
		if r.failure != "" {
			bad = append(bad, r)
		}
	}
	return bad
}

// noFailures reports each failed reply, up to a few.
func noFailures(t testing.TB, what string, replies []reply) {
	t.Helper()
	if len(replies) == 0 {
		t.Errorf("%s: there was no traffic", what)
	}
	bad := failures(replies)
	for i, r := range bad {
		if i == 5 {
			t.Errorf("%s: and %d more of %d", what, len(bad)-i, len(replies))
			break
		}
		t.Errorf("%s: %s", what, r)
	}
}

// after returns the replies to what was asked after the moment.
func after(replies []reply, moment time.Time) (out []reply) {
	for _, r := range replies {
		if r.begun.After(moment) {
			out = append(out, r)
		}
	}
	return out
}

// spread are figures of a set of durations.
type spread struct{ p50, p90, p99, max time.Duration }

func spreadOf(durations []time.Duration) spread {
	if len(durations) == 0 {
		return spread{}
	}
	d := slices.Sorted(slices.Values(durations))
	at := func(share float64) time.Duration { return d[min(int(share*float64(len(d))), len(d)-1)] }
	return spread{at(0.5), at(0.9), at(0.99), d[len(d)-1]}
}

func (s spread) String() string {
	r := func(d time.Duration) time.Duration { return d.Round(10 * time.Microsecond) }
	return fmt.Sprintf("p50 %s, p90 %s, p99 %s, max %s", r(s.p50), r(s.p90), r(s.p99), r(s.max))
}
