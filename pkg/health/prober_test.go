package health

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"slices"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

var (
	good = answer{outcome: Success, reason: "status 200"}
	bad  = answer{outcome: Failure, reason: "status 500"}
	deny = answer{outcome: Rejection, reason: "status 401"}
)

// fixture is a Prober whose instances answer from a table, by host name of their URL. Use in a synctest bubble.
type fixture struct {
	*Prober
	t       *testing.T
	stop    func()
	mu      sync.Mutex
	answers map[string]func(context.Context) answer // by host; missing: good
	asked   map[string][]time.Time
	reports []string // app/instance: health
	flying  int
	most    int
}

func newFixture(t *testing.T, opts Options) *fixture {
	f := &fixture{t: t, answers: make(map[string]func(context.Context) answer), asked: make(map[string][]time.Time)}
	if opts.Report == nil {
		opts.Report = func(app, instance string, v Verdict) {
			f.mu.Lock()
			defer f.mu.Unlock()
			f.reports = append(f.reports, fmt.Sprintf("%s/%s: %s", app, instance, v.Health))
		}
	}
	f.Prober = NewProber(opts)
	f.ask = f.answer
	return f
}

func (f *fixture) answer(ctx context.Context, q *question) answer {
	host := q.url.Hostname()
	f.mu.Lock()
	f.asked[host] = append(f.asked[host], time.Now())
	f.flying++
	f.most = max(f.most, f.flying)
	reply := f.answers[host]
	f.mu.Unlock()
	defer func() {
		f.mu.Lock()
		f.flying--
		f.mu.Unlock()
	}()
	if reply == nil {
		return good
	}
	return reply(ctx)
}

func (f *fixture) reply(host string, a answer) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[host] = func(context.Context) answer { return a }
}

func (f *fixture) hang(host string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[host] = func(ctx context.Context) answer {
		<-ctx.Done()
		return answer{outcome: Failure, timedOut: true, reason: "no answer"}
	}
}

// start runs the Prober until stop or the end of the test.
func (f *fixture) start() {
	ctx, cancel := context.WithCancel(f.t.Context())
	done := make(chan error)
	go func() { done <- f.Run(ctx) }()
	f.stop = sync.OnceFunc(func() {
		cancel()
		if err := <-done; err != nil {
			f.t.Error(err)
		}
	})
}

func (f *fixture) health(instance string) Health {
	return f.Verdicts()[ID{"a", instance}].Health
}

func (f *fixture) wantReports(want ...string) {
	f.t.Helper()
	f.mu.Lock()
	defer f.mu.Unlock()
	if !slices.Equal(f.reports, want) {
		f.t.Errorf("reports %q, want %q", f.reports, want)
	}
	f.reports = nil
}

func (f *fixture) probes(host string) int {
	f.mu.Lock()
	defer f.mu.Unlock()
	return len(f.asked[host])
}

func target(instance string) Target {
	return Target{App: "a", Instance: instance, URL: "http://" + instance, Check: Check{Interval: 10 * time.Second}}
}

func TestProber_ReportsTransitionsOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		f.SetTargets([]Target{target("i")}, nil)
		f.start()
		defer f.stop()
		time.Sleep(1100 * time.Millisecond)
		f.wantReports("a/i: healthy")
		time.Sleep(2 * time.Minute)
		f.wantReports()
		f.reply("i", bad)
		time.Sleep(2 * time.Minute)
		f.wantReports("a/i: unhealthy")
		if v := f.Verdicts()[ID{"a", "i"}]; v.Reason != "status 500" || time.Since(v.Since) > 2*time.Minute || time.Since(v.Since) < time.Minute || v.Probes < 20 {
			t.Errorf("%+v", v)
		}
		f.reply("i", deny)
		time.Sleep(2 * time.Minute)
		f.wantReports("a/i: token_rejected")
		f.reply("i", good)
		time.Sleep(2 * time.Minute)
		f.wantReports("a/i: healthy")
	})
}

func TestProber_FirstProbeWithinASecondThenInIntervals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		var targets []Target
		for i := range 200 {
			targets = append(targets, target("i"+strconv.Itoa(i)))
		}
		quick := target("quick")
		quick.Check.Interval = 100 * time.Millisecond
		f.start()
		defer f.stop()
		time.Sleep(time.Hour) // an idle Prober takes new targets at once
		begin := time.Now()
		f.SetTargets(append(targets, quick), nil)
		time.Sleep(10 * time.Minute)
		f.mu.Lock()
		defer f.mu.Unlock()
		if first := f.asked["quick"][0].Sub(begin); first >= 100*time.Millisecond {
			t.Errorf("an interval of 100 ms is probed first after %v", first)
		}
		var early, late int
		for host, times := range f.asked {
			if host == "quick" {
				continue
			}
			first := times[0].Sub(begin)
			if first >= time.Second {
				t.Fatalf("%s is probed first after %v", host, first)
			}
			if first < 500*time.Millisecond {
				early++
			} else {
				late++
			}
			for i := 1; i < len(times); i++ {
				if d := times[i].Sub(times[i-1]); d < 9*time.Second || d > 11*time.Second {
					t.Fatalf("%s: %v between probes", host, d)
				}
			}
			if n := len(times); n < 58 || n > 63 {
				t.Errorf("%s: %d probes in ten minutes", host, n)
			}
		}
		if early < 60 || late < 60 {
			t.Errorf("first probes are not spread: %d in the first half second, %d in the second", early, late)
		}
	})
}

func TestProber_KnowsTheLatestProbe(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		f.reply("b", bad)
		f.SetTargets([]Target{target("x"), target("b")}, nil)
		if v := f.Verdict("a", "x"); !v.At.IsZero() || v.Seq != 0 {
			t.Errorf("before any probe: %+v", v)
		}
		f.start()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		a, b := f.Verdict("a", "x"), f.Verdict("a", "b")
		if a.Latest != "status 200" || b.Latest != "status 500" || a.At.IsZero() || a.At.After(time.Now()) || a.Seq == b.Seq {
			t.Errorf("%+v and %+v", a, b)
		}
		seq := max(a.Seq, b.Seq)
		f.Since(seq, func(id ID, _ Verdict) { t.Errorf("%v was not probed since", id) })
		time.Sleep(20 * time.Second)
		synctest.Wait()
		if v := f.Verdict("a", "b"); !v.At.After(b.At) || v.Seq <= b.Seq {
			t.Errorf("it was probed again: %+v, before %+v", v, b)
		}
		n := 0
		f.Since(seq, func(ID, Verdict) { n++ })
		if n != 2 {
			t.Errorf("%d were probed since", n)
		}
		if v := f.Verdict("a", "unknown"); v != (Verdict{}) {
			t.Errorf("of none: %+v", v)
		}
		f.stop()
	})
}

func TestProber_FlappingIsNoTransition(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		n := 0
		f.answers["i"] = func(context.Context) answer {
			if n++; n%2 == 0 {
				return bad
			}
			return good
		}
		f.SetTargets([]Target{target("i")}, nil)
		f.start()
		defer f.stop()
		time.Sleep(time.Hour)
		f.wantReports("a/i: healthy")
	})
}

func TestProber_TakesOverWithoutTurningAnythingOver(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		since := time.Now().Add(-time.Hour)
		initial := map[ID]Verdict{
			{"a", "up"}:      {Health: Healthy, Since: since, Reason: "status 200", Probes: 99},
			{"a", "down"}:    {Health: Unhealthy, Since: since, Reason: "status 500"},
			{"a", "denied"}:  {Health: TokenRejected, Since: since},
			{"b", "removed"}: {Health: Unhealthy, Since: since},
		}
		f.reply("down", bad)
		f.reply("denied", deny)
		f.hang("new")
		f.SetTargets([]Target{target("up"), target("down"), target("denied"), target("new")}, initial)
		for id, v := range f.Verdicts() {
			if want := initial[id]; want.Health != "" && (v.Health != want.Health || !v.Since.Equal(since) || v.Reason != want.Reason || v.Probes != 0) {
				t.Errorf("%s: %+v", id, v)
			}
		}
		if len(f.Verdicts()) != 4 || f.health("new") != Unknown {
			t.Errorf("%v", f.Verdicts())
		}
		f.start()
		time.Sleep(15 * time.Second)
		f.wantReports()
		time.Sleep(time.Minute)
		f.wantReports("a/new: unhealthy")
		f.stop()

		// Another prober was elected meanwhile, and learnt other things.
		f.SetTargets([]Target{target("up"), target("down"), target("denied"), target("new")}, map[ID]Verdict{{"a", "down"}: {Health: Healthy}})
		if f.health("down") != Healthy || f.health("up") != Healthy || f.health("denied") != TokenRejected {
			t.Errorf("%v", f.Verdicts())
		}
		f.reply("down", good)
		f.start()
		defer f.stop()
		time.Sleep(time.Minute)
		f.wantReports()
		f.SetTargets([]Target{target("down")}, map[ID]Verdict{{"a", "down"}: {Health: Unhealthy}})
		if f.health("down") != Healthy {
			t.Error("initial verdicts replaced what a running prober knew")
		}
	})
}

func TestProber_ChangedAddressIsProbedAtOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		tg := target("old")
		tg.Instance = "i"
		tg.Check.Interval, tg.Check.Timeout = time.Hour, 30*time.Minute
		f.reply("old", deny)
		f.SetTargets([]Target{tg}, map[ID]Verdict{{"a", "i"}: {Health: TokenRejected}})
		f.start()
		defer f.stop()
		time.Sleep(2 * time.Second)

		f.hang("old")
		time.Sleep(time.Hour + 10*time.Minute) // a probe hangs now
		asked := f.probes("old")
		tg.URL = "http://new"
		f.SetTargets([]Target{tg}, nil)
		if f.health("i") != TokenRejected {
			t.Error("the verdict went with the address")
		}
		synctest.Wait()
		if f.probes("new") != 1 || f.probes("old") != asked {
			t.Errorf("%d probes of the new address at once", f.probes("new"))
		}
		f.wantReports("a/i: healthy")
		if v := f.Verdicts()[ID{"a", "i"}]; v.Latest != "status 200" {
			t.Errorf("the answer of the old address counted: %+v", v)
		}

		tg.Token = "other"
		f.SetTargets([]Target{tg}, nil)
		synctest.Wait()
		if f.probes("new") != 2 {
			t.Error("a changed token is not probed at once")
		}
		f.SetTargets([]Target{tg}, nil)
		time.Sleep(time.Minute)
		if f.probes("new") != 2 {
			t.Error("probed without a change")
		}
	})
}

// lastWord makes host answer well, but only once its probe is given up.
func (f *fixture) lastWord(host string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.answers[host] = func(ctx context.Context) answer {
		<-ctx.Done()
		return good
	}
}

func TestProber_AnswersToOldQuestionsDoNotCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		f.lastWord("old")
		f.lastWord("removed")
		f.reply("new", bad)
		tg, removed := target("old"), target("removed")
		tg.Check.Timeout, removed.Check.Timeout = time.Minute, time.Minute
		f.SetTargets([]Target{tg, removed}, nil)
		f.start()
		defer f.stop()
		time.Sleep(2 * time.Second)
		if n := f.Progress().Running; n != 2 {
			t.Fatalf("%d probes under way", n)
		}
		tg.URL = "http://new"
		f.SetTargets([]Target{tg}, nil)
		synctest.Wait()
		f.wantReports()
		if f.health("old") != Unknown || f.probes("new") != 1 {
			t.Errorf("%v, %d probes of the new address", f.Verdicts(), f.probes("new"))
		}
	})
}

func TestProber_ChangedPaceAndThresholdsKeepTheCount(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		tg := target("i")
		tg.Check.Interval, tg.Check.UnhealthyThreshold = time.Hour, 5
		f.reply("i", bad)
		f.SetTargets([]Target{tg}, map[ID]Verdict{{"a", "i"}: {Health: Healthy}})
		f.start()
		defer f.stop()
		time.Sleep(2 * time.Hour)
		had := f.probes("i")
		tg.Check.Interval, tg.Check.UnhealthyThreshold = 10*time.Second, had+1
		f.SetTargets([]Target{tg}, nil)
		time.Sleep(11 * time.Second)
		if f.probes("i") <= had {
			t.Error("a shorter interval waits for the end of the long one")
		}
		f.wantReports("a/i: unhealthy")
	})
}

func TestProber_TimeoutDoesNotCountWhileAnswersFlow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var live atomic.Bool
		live.Store(true)
		f := newFixture(t, Options{Live: func(app, instance string) bool {
			return app == "a" && instance == "full" && live.Load()
		}})
		f.SetTargets([]Target{target("full"), target("dead")}, nil)
		f.start()
		defer f.stop()
		time.Sleep(5 * time.Second)
		f.mu.Lock()
		f.reports = nil
		f.mu.Unlock()
		f.hang("full")
		f.hang("dead")
		time.Sleep(5 * time.Minute)
		f.wantReports("a/dead: unhealthy")
		if v := f.Verdicts()[ID{"a", "full"}]; v.Latest != "no answer, not counted" {
			t.Errorf("%+v", v)
		}
		live.Store(false)
		time.Sleep(time.Minute)
		f.wantReports("a/full: unhealthy")

		f.reply("full", good)
		time.Sleep(time.Minute)
		f.wantReports("a/full: healthy")
		live.Store(true)
		f.reply("full", bad) // an answer is an answer, also while others flow
		time.Sleep(time.Minute)
		f.wantReports("a/full: unhealthy")
	})
}

func TestProber_OwnLatenessIsNoFailure(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		f.answers["i"] = func(ctx context.Context) answer {
			time.Sleep(20 * time.Second) // as after SIGSTOP: the timeout of 3 s is noticed much later
			return answer{outcome: Failure, timedOut: true}
		}
		f.SetTargets([]Target{target("i")}, map[ID]Verdict{{"a", "i"}: {Health: Healthy}})
		f.start()
		defer f.stop()
		time.Sleep(10 * time.Minute)
		f.wantReports()
	})
}

func TestProber_NothingAfterTheEndOfTheRun(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		f.answers["i"] = func(ctx context.Context) answer {
			<-ctx.Done()
			return good // came in just as the election was lost
		}
		f.SetTargets([]Target{target("i")}, nil)
		f.start()
		time.Sleep(1100 * time.Millisecond)
		if f.Progress().Running != 1 {
			t.Fatal("no probe under way")
		}
		f.stop()
		f.wantReports()
		if pr := f.Progress(); f.health("i") != Unknown || pr.Running != 0 || pr.Probes != 0 {
			t.Errorf("%v, %+v", f.Verdicts(), pr)
		}
		asked := f.probes("i")
		time.Sleep(time.Hour)
		if f.probes("i") != asked {
			t.Error("probed after the end")
		}
		f.reply("i", good)
		f.start()
		time.Sleep(time.Second)
		f.stop()
		f.wantReports("a/i: healthy")
	})
}

func TestProber_RefusesToRunTwice(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		f.start()
		defer f.stop()
		synctest.Wait()
		if err := f.Run(t.Context()); err == nil {
			t.Error("no error")
		}
	})
}

func TestProber_NoneIsUnknownAndNotProbed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		tg := target("i")
		tg.Check.Type = CheckNone
		f.SetTargets([]Target{tg}, nil)
		f.start()
		defer f.stop()
		time.Sleep(time.Minute)
		f.wantReports()
		if v := f.Verdicts()[ID{"a", "i"}]; v.Health != Unknown || v.Reason != "not probed" || f.probes("i") != 0 {
			t.Errorf("%+v", v)
		}
		f.reply("i", bad)
		f.SetTargets([]Target{target("i")}, nil)
		time.Sleep(time.Minute)
		f.wantReports("a/i: unhealthy")
		f.SetTargets([]Target{tg}, nil)
		synctest.Wait()
		f.wantReports("a/i: unknown")
		asked := f.probes("i")
		time.Sleep(time.Hour)
		if f.probes("i") != asked {
			t.Error("still probed")
		}
	})
}

func TestProber_RemovedTargetsAreForgotten(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{})
		f.reply("bad", bad)
		f.SetTargets([]Target{target("bad"), target("hang")}, nil)
		f.hang("hang")
		f.start()
		defer f.stop()
		time.Sleep(35 * time.Second)
		f.mu.Lock()
		f.reports = nil
		f.mu.Unlock()
		for f.Progress().Running == 0 {
			time.Sleep(100 * time.Millisecond)
		}
		f.SetTargets(nil, nil)
		if n := len(f.Verdicts()); n != 0 {
			t.Errorf("%d verdicts", n)
		}
		// Back while its last probe is still being given up: it starts anew.
		f.SetTargets([]Target{target("hang")}, nil)
		if f.health("hang") != Unknown {
			t.Errorf("%v", f.Verdicts())
		}
		synctest.Wait()
		f.SetTargets(nil, nil)
		synctest.Wait()
		if pr := f.Progress(); pr.Targets != 0 || pr.Running != 0 || len(f.due) != 0 {
			t.Errorf("%+v", pr)
		}
		time.Sleep(time.Hour)
		f.wantReports()
	})
}

func TestProber_ReportsOfOneInstanceNeverOverlap(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var mu sync.Mutex
		reporting := make(map[string]bool)
		var most, n int
		f := newFixture(t, Options{Report: func(_, instance string, _ Verdict) {
			mu.Lock()
			if reporting[instance] {
				t.Errorf("two reports of %s at a time", instance)
			}
			reporting[instance] = true
			n++
			most = max(most, len(reporting))
			mu.Unlock()
			time.Sleep(25 * time.Second)
			mu.Lock()
			delete(reporting, instance)
			mu.Unlock()
		}})
		rng := rand.New(rand.NewPCG(2, 2))
		f.ask = func(context.Context, *question) answer {
			if rand.IntN(2) == 0 {
				return bad
			}
			return good
		}
		f.start()
		for range 300 {
			var targets []Target
			for i := range 5 {
				if rng.IntN(4) == 0 {
					continue // removed, and back the next time
				}
				tg := target("i" + strconv.Itoa(i))
				tg.Check.UnhealthyThreshold, tg.Check.HealthyThreshold = 1, 1
				tg.Revision = strconv.Itoa(rng.IntN(3))
				if rng.IntN(5) == 0 {
					tg.Check.Type = CheckNone
				}
				targets = append(targets, tg)
			}
			f.SetTargets(targets, nil)
			time.Sleep(time.Duration(rng.IntN(20)) * time.Second)
		}
		f.stop()
		if n < 50 || most < 2 {
			t.Errorf("%d reports, at most %d at a time: this test tested nothing", n, most)
		}
	})
}

func TestProber_ThousandsOfTargetsWithBoundedConcurrency(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		const n = 5000
		f := newFixture(t, Options{Concurrency: 100})
		f.answers = nil // all good, after 20 ms
		f.ask = func(ctx context.Context, q *question) answer {
			time.Sleep(20 * time.Millisecond)
			return f.answer(ctx, q)
		}
		var targets []Target
		for i := range n {
			targets = append(targets, target("i"+strconv.Itoa(i)))
		}
		f.SetTargets(targets, nil)
		f.start()
		defer f.stop()
		time.Sleep(100 * time.Second)
		pr := f.Progress()
		if pr.Targets != n || pr.Running > 100 || pr.Behind != 0 || time.Since(pr.Last) > time.Second {
			t.Errorf("%+v", pr)
		}
		f.mu.Lock()
		defer f.mu.Unlock()
		if len(f.reports) != n {
			t.Errorf("%d reports of %d instances", len(f.reports), n)
		}
		for host, times := range f.asked {
			if len(times) < 9 || len(times) > 12 {
				t.Errorf("%s was probed %d times in 100 s", host, len(times))
			}
		}
		if f.most > 100 {
			t.Errorf("%d probes at a time", f.most)
		}
	})
}

func TestProber_HangingInstancesDelayButDoNotConvictOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f := newFixture(t, Options{Concurrency: 10})
		var targets []Target
		for i := range 100 {
			host := "i" + strconv.Itoa(i)
			if i < 90 {
				f.hang(host)
			}
			targets = append(targets, target(host))
		}
		f.SetTargets(targets, nil)
		f.start()
		defer f.stop()
		time.Sleep(10 * time.Minute)
		for i := range 100 {
			want := Unhealthy
			if i >= 90 {
				want = Healthy
			}
			if got := f.health("i" + strconv.Itoa(i)); got != want {
				t.Errorf("i%d is %s, want %s", i, got, want)
			}
		}
		if f.Progress().Behind == 0 {
			t.Error("Behind does not show that probes are late")
		}
	})
}

// The whole of it over real connections: an instance hangs, refuses, comes back, changes its mind about the token.
func TestProber_RealInstance(t *testing.T) {
	var mode atomic.Value
	mode.Store("ok")
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch mode.Load() {
		case "hang":
			<-r.Context().Done()
		case "reset":
			c, _, err := w.(http.Hijacker).Hijack()
			if err == nil {
				c.(*net.TCPConn).SetLinger(0)
				c.Close()
			}
		case "denied":
			w.WriteHeader(http.StatusUnauthorized)
		}
	}))
	defer srv.Close()
	reports := make(chan Health, 10)
	p := NewProber(Options{Report: func(_, _ string, v Verdict) { reports <- v.Health }})
	p.SetTargets([]Target{{App: "a", Instance: "i", URL: srv.URL, Token: testToken, Check: Check{
		SendToken: true, Interval: 20 * time.Millisecond, Timeout: 100 * time.Millisecond,
	}}}, nil)
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- p.Run(ctx) }()
	for _, step := range []struct {
		mode string
		want Health
	}{{"ok", Healthy}, {"hang", Unhealthy}, {"ok", Healthy}, {"reset", Unhealthy}, {"denied", TokenRejected}, {"ok", Healthy}} {
		mode.Store(step.mode)
		if got := <-reports; got != step.want {
			t.Errorf("%s: reported %s, want %s", step.mode, got, step.want)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Error(err)
	}
}

func BenchmarkProber(b *testing.B) {
	targets := make([]Target, 50000)
	for i := range targets {
		targets[i] = target("i" + strconv.Itoa(i))
	}
	b.Run("SetTargets of 50,000, one changed", func(b *testing.B) {
		p := NewProber(Options{})
		p.SetTargets(targets, nil)
		b.ReportAllocs()
		for i := 0; b.Loop(); i++ {
			targets[0].Revision = strconv.Itoa(i)
			p.SetTargets(targets, nil)
		}
	})
	b.Run("probe over loopback", func(b *testing.B) {
		srv := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) {}))
		defer srv.Close()
		a := newAsker(nil, nil)
		q := newQuestion(Target{URL: srv.URL})
		b.ReportAllocs()
		for b.Loop() {
			if ans := a.ask(b.Context(), &q); ans.outcome != Success {
				b.Fatal(ans.reason)
			}
		}
	})
}

// BenchmarkProber_Schedule measures what one probe costs beside the asking, with 50,000 targets in the heap.
func BenchmarkProber_Schedule(b *testing.B) {
	p := NewProber(Options{})
	var n atomic.Int64
	done := make(chan struct{})
	p.ask = func(context.Context, *question) answer {
		if n.Add(1) == int64(b.N) {
			close(done)
		}
		return good
	}
	targets := make([]Target, 50000)
	for i := range targets {
		targets[i] = target("i" + strconv.Itoa(i))
		targets[i].Check.Interval = minInterval
	}
	p.SetTargets(targets, nil)
	b.ReportAllocs()
	ctx, cancel := context.WithCancel(b.Context())
	ended := make(chan error)
	b.ResetTimer()
	go func() { ended <- p.Run(ctx) }()
	<-done
	cancel()
	<-ended
}
