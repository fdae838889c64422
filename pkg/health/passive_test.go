package health

import (
	"sync"
	"sync/atomic"
	"testing"
	"time"
)

const failTimeout = 30 * time.Second

func TestPassive_EjectsAfterMaxFailsInWindow(t *testing.T) {
	sec := func(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }
	for _, tc := range []struct {
		name     string
		maxFails int
		timeout  time.Duration
		fails    []float64 // when, in seconds; the last one must eject, or none if never
		never    bool
	}{
		{"third", 3, failTimeout, []float64{0, 1, 2}, false},
		{"first", 1, failTimeout, []float64{0}, false},
		{"at one instant", 3, failTimeout, []float64{5, 5, 5}, false},
		{"just inside", 3, failTimeout, []float64{0, 15, 29.999}, false},
		{"just outside", 3, failTimeout, []float64{0, 15, 30}, true},
		{"slides", 3, failTimeout, []float64{0, 20, 40, 49}, false},
		{"slow drip", 3, failTimeout, []float64{0, 16, 32, 48, 64, 80}, true},
		{"max_fails 0", 0, failTimeout, []float64{0, 0, 0, 0, 0}, true},
		{"fail_timeout 0", 1, 0, []float64{0, 0, 0}, true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			for _, start := range []time.Time{time.Now(), time.Unix(0, 0), epoch.Add(1), epoch.Add(-failTimeout)} {
				var p Passive
				for i, at := range tc.fails {
					now := start.Add(sec(at))
					p.Success(now) // a success in between changes nothing
					want := !tc.never && i == len(tc.fails)-1
					if got := p.Fail(now, tc.maxFails, tc.timeout); got != want || p.Ejected(now) != want {
						t.Fatalf("failure %d at %v s: Fail %v, Ejected %v, want %v", i, at, got, p.Ejected(now), want)
					}
				}
			}
		})
	}
}

func eject(t *testing.T, p *Passive, now time.Time) {
	t.Helper()
	p.Fail(now, 2, failTimeout)
	if !p.Fail(now, 2, failTimeout) {
		t.Fatal("not ejected")
	}
}

func TestPassive_EjectionEndsAndTrialDecides(t *testing.T) {
	var p Passive
	now := time.Now()
	eject(t, &p, now)
	end := now.Add(failTimeout)
	if got := p.EjectedUntil(now.Add(time.Second)); !got.Equal(end) {
		t.Errorf("ejected until %v, want %v", got, end)
	}
	if !p.Ejected(end.Add(-1)) || p.Ejected(end) || !p.OnTrial(end) || !p.EjectedUntil(end).IsZero() {
		t.Fatal("the ejection does not last for fail_timeout")
	}
	if !p.Fail(end.Add(time.Hour), 2, failTimeout) || !p.Ejected(end.Add(time.Hour)) {
		t.Fatal("one failure on trial must eject again, however late")
	}
	back := end.Add(time.Hour + failTimeout)
	p.Success(back)
	if p.OnTrial(back) || p.Ejected(back) {
		t.Fatal("a success must end the trial")
	}
	if p.Fail(back, 2, failTimeout) {
		t.Fatal("after a trial the count starts anew")
	}
	if !p.Fail(back, 2, failTimeout) {
		t.Fatal("not ejected by max_fails failures")
	}
}

func TestPassive_TailOfOldRequestsCountsNeitherWay(t *testing.T) {
	var p Passive
	now := time.Now()
	eject(t, &p, now)
	p.Success(now.Add(time.Second))
	if !p.Ejected(now.Add(time.Second)) {
		t.Error("a success of a request from before ended the ejection")
	}
	for range 10 {
		if p.Fail(now.Add(failTimeout-1), 2, failTimeout) {
			t.Error("ejected twice")
		}
	}
	if p.Ejected(now.Add(failTimeout)) {
		t.Error("failures during the ejection prolonged it")
	}
}

func TestPassive_AdmitsOneOnTrial(t *testing.T) {
	var p Passive
	now := time.Now()
	if !p.Admit(now, failTimeout) {
		t.Fatal("in use, but not admitted")
	}
	eject(t, &p, now)
	if p.Admit(now.Add(failTimeout-1), failTimeout) {
		t.Fatal("admitted while ejected")
	}
	now = now.Add(failTimeout)
	var admitted atomic.Int64
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if p.Admit(now, failTimeout) {
				admitted.Add(1)
			}
		})
	}
	wg.Wait()
	if admitted.Load() != 1 {
		t.Fatalf("%d admitted on trial at once", admitted.Load())
	}
	if p.Admit(now.Add(failTimeout-1), failTimeout) || !p.Admit(now.Add(failTimeout), failTimeout) {
		t.Error("a trial without an end must lapse after fail_timeout")
	}
	p.Success(now.Add(failTimeout))
	for range 3 {
		if !p.Admit(now.Add(failTimeout), failTimeout) {
			t.Error("not admitted after the trial")
		}
	}
}

func TestPassive_Reset(t *testing.T) {
	var p Passive
	now := time.Now()
	eject(t, &p, now)
	p.Reset()
	if p.Ejected(now) || p.OnTrial(now) || p.Fail(now, 2, failTimeout) {
		t.Error("something is left after Reset")
	}
}

func TestPassive_MemoryIsBoundedByMaxFails(t *testing.T) {
	var p Passive
	now := time.Now()
	for i := range 100_000 {
		p.Fail(now.Add(time.Duration(i)*time.Second), 10, 5*time.Second)
	}
	if cap(p.failures) > 16 {
		t.Errorf("room for %d failures is kept, max_fails is 10", cap(p.failures))
	}
}

func TestPassive_ConcurrentUse(t *testing.T) {
	var p Passive
	var ejections atomic.Int64
	start := time.Now()
	var wg sync.WaitGroup
	for range 4 {
		wg.Go(func() {
			for i := range 10000 {
				now := start.Add(time.Duration(i) * time.Millisecond)
				if p.Fail(now, 5, 100*time.Millisecond) {
					ejections.Add(1)
				}
				p.Admit(now, 100*time.Millisecond)
				p.Success(now)
				p.Ejected(now)
			}
		})
	}
	wg.Wait()
	// Ten seconds hold at most 100 ejections of 100 ms one after the other; goroutines whose clocks differ may see
	// some more, but never one for each failure.
	if n := ejections.Load(); n == 0 || n > 4*101 {
		t.Errorf("%d ejections", n)
	}
}

func BenchmarkPassive(b *testing.B) {
	var p Passive
	now := time.Now()
	b.Run("Ejected", func(b *testing.B) {
		for b.Loop() {
			p.Ejected(now)
		}
	})
	b.Run("Success", func(b *testing.B) {
		for b.Loop() {
			p.Success(now)
		}
	})
}
