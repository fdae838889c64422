package limit

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

func gate(limit, size int) *Gate {
	g := NewGate()
	g.SetLimit(limit)
	g.SetQueue(size)
	return g
}

// checkEmpty is what every test ends in: nothing in, nobody waits, and no trace of those who did.
func checkEmpty(t *testing.T, g *Gate) {
	t.Helper()
	g.mu.Lock()
	defer g.mu.Unlock()
	if n := g.state.Load() & (inFlightMask | waitBit); n != 0 {
		t.Errorf("state %#x, want nothing in flight and no wait bit", n)
	}
	if q := &g.queue; q.len != 0 || len(q.users) != 0 || q.turns.Len() != 0 || len(q.byCount) != 0 {
		t.Errorf("queue is not empty: len %d, users %d, turns %d, byCount %d", q.len, len(q.users), q.turns.Len(), len(q.byCount))
	}
}

func TestGate_NoLimitLetsAllIn(t *testing.T) {
	g := NewGate()
	for range 1000 {
		if !g.TryAcquire() {
			t.Fatal("refused without a limit")
		}
	}
	if err := g.Acquire(t.Context(), "u", 0); err != nil {
		t.Fatal(err)
	}
	if g.InFlight() != 1001 || g.Waiting() != 0 {
		t.Errorf("in flight %d, waiting %d", g.InFlight(), g.Waiting())
	}
	for range 1001 {
		g.Release()
	}
	checkEmpty(t, g)
}

func TestGate_LimitAndForce(t *testing.T) {
	g := gate(2, 0)
	for i := range 3 {
		if got, want := g.TryAcquire(), i < 2; got != want {
			t.Fatalf("request %d at a limit of 2: let in = %v", i+1, got)
		}
	}
	g.Force()
	if g.InFlight() != 3 {
		t.Errorf("in flight %d after Force", g.InFlight())
	}
	g.Release()
	if g.TryAcquire() {
		t.Error("let in at the limit")
	}
	if err := g.Acquire(t.Context(), "u", time.Hour); err != ErrQueueFull {
		t.Errorf("without a queue: %v", err)
	}
	g.Release()
	if !g.TryAcquire() {
		t.Error("room not used")
	}
	g.Release()
	g.Release()
	checkEmpty(t, g)
}

func TestGate_ReleaseWithoutAcquirePanics(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("no panic")
		}
	}()
	NewGate().Release()
}

func TestGate_TimeoutAndCancel(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(1, 10)
		g.Force()
		start := time.Now()
		if err := g.Acquire(t.Context(), "u", 3*time.Second); err != ErrQueueTimeout {
			t.Errorf("got %v", err)
		}
		if d := time.Since(start); d != 3*time.Second {
			t.Errorf("timed out after %v", d)
		}
		cause := errors.New("client went away")
		ctx, cancel := context.WithCancelCause(t.Context())
		time.AfterFunc(time.Second, func() { cancel(cause) })
		if err := g.Acquire(ctx, "u", 0); err != cause {
			t.Errorf("got %v", err)
		}
		if d := time.Since(start); d != 4*time.Second {
			t.Errorf("cancelled after %v in all", d)
		}
		if err := g.Acquire(ctx, "u", 0); err != cause {
			t.Errorf("with a context that has ended: %v", err)
		}
		if g.state.Load()&waitBit != 0 {
			t.Error("the wait bit outlived the last waiter")
		}
		g.Release()
		checkEmpty(t, g)
	})
}

// lineUp starts one Acquire per user, in order, and returns where each writes its user once it is in.
func lineUp(t *testing.T, g *Gate, users ...string) (in chan string, errs chan error) {
	in, errs = make(chan string, len(users)), make(chan error, len(users))
	for _, u := range users {
		go func() {
			if err := g.Acquire(t.Context(), u, 0); err != nil {
				errs <- fmt.Errorf("%s: %w", u, err)
				return
			}
			in <- u
		}()
		synctest.Wait()
	}
	return in, errs
}

func TestGate_RoundRobinOverUsers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(1, 100)
		g.Force()
		in, _ := lineUp(t, g, "a1", "a1", "a1", "a1", "b", "b", "c")
		var order []string
		for range 7 {
			g.Release()
			order = append(order, <-in)
			synctest.Wait()
		}
		if want := []string{"a1", "b", "c", "a1", "b", "a1", "a1"}; !slices.Equal(order, want) {
			t.Errorf("order %v, want %v", order, want)
		}
		g.Release()
		checkEmpty(t, g)
	})
}

func TestGate_GreedyUserCannotStarveOthers(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(2, 50)
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		serve := func(user string) bool {
			if g.Acquire(ctx, user, 0) != nil {
				return false
			}
			time.Sleep(100 * time.Millisecond)
			g.Release()
			return true
		}
		for range 200 { // four times the queue
			wg.Go(func() {
				for ctx.Err() == nil {
					if !serve("greedy") {
						time.Sleep(10 * time.Millisecond)
					}
				}
			})
		}
		time.Sleep(time.Second)
		var slowest time.Duration
		for range 20 {
			start := time.Now()
			if !serve("modest") {
				t.Error("a modest user was sent away from a queue that one user fills")
			}
			slowest = max(slowest, time.Since(start))
			time.Sleep(300 * time.Millisecond)
		}
		if slowest > 300*time.Millisecond {
			t.Errorf("a modest user took up to %v, with 100 ms of its own and at most two turns before", slowest)
		}
		cancel()
		wg.Wait()
		checkEmpty(t, g)
	})
}

func TestGate_FullQueueDisplacesTheLongestLine(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(1, 4)
		g.Force()
		in, errs := lineUp(t, g, "a", "a", "a", "a")
		if err := g.Acquire(t.Context(), "a", 0); err != ErrQueueFull {
			t.Fatalf("the longest line's own user: %v", err)
		}
		inB, errsB := lineUp(t, g, "b")
		select {
		case err := <-errs:
			if !errors.Is(err, ErrQueueFull) {
				t.Fatal(err)
			}
		default:
			t.Fatal("nobody was displaced")
		}
		lineUp(t, g, "b") // 3 and 1: one more makes 2 and 2
		<-errs
		if err := g.Acquire(t.Context(), "b", 0); err != ErrQueueFull {
			t.Fatalf("equal lines: %v", err)
		}
		if err := g.Acquire(t.Context(), "a", 0); err != ErrQueueFull {
			t.Fatalf("equal lines: %v", err)
		}
		if g.Waiting() != 4 || len(errs) != 0 || len(errsB) != 0 {
			t.Errorf("waiting %d", g.Waiting())
		}
		g.SetLimit(0)
		synctest.Wait()
		if len(in) != 2 || len(inB) != 1 || g.InFlight() != 5 {
			t.Errorf("let in: %d of a, %d of the first b, %d in flight", len(in), len(inB), g.InFlight())
		}
		for range 5 {
			g.Release()
		}
		checkEmpty(t, g)
	})
}

func TestGate_LimitChangesWhileWaiting(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(1, 100)
		g.Force()
		in, _ := lineUp(t, g, "a", "b", "c", "d", "e")
		g.SetLimit(3)
		synctest.Wait()
		if len(in) != 2 || g.InFlight() != 3 || g.Waiting() != 3 {
			t.Fatalf("raised to 3: %d let in, %d in flight, %d waiting", len(in), g.InFlight(), g.Waiting())
		}
		g.SetLimit(1)
		g.SetQueue(0)
		if g.InFlight() != 3 || g.Waiting() != 3 {
			t.Fatal("lowering cut something")
		}
		g.Release()
		g.Release()
		synctest.Wait()
		if len(in) != 2 || g.InFlight() != 1 {
			t.Fatal("let in over the lowered limit")
		}
		g.SetLimit(-5)
		synctest.Wait()
		if len(in) != 5 || g.Waiting() != 0 {
			t.Fatal("no limit, but somebody waits")
		}
		for range 4 {
			g.Release()
		}
		checkEmpty(t, g)
	})
}

func TestGate_NobodyOvertakesTheQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(1, 10)
		g.Force()
		in, _ := lineUp(t, g, "a")
		if g.TryAcquire() {
			t.Error("TryAcquire overtook a waiting request")
		}
		g.Release()
		if g.TryAcquire() {
			t.Error("TryAcquire took the room that was handed on")
		}
		<-in
		in, _ = lineUp(t, g, "b")
		g.mu.Lock()
		g.state.Add(^uint64(0)) // a Release that has come half-way
		if g.TryAcquire() {
			t.Error("TryAcquire took the room that is being handed on")
		}
		g.settleLocked()
		g.mu.Unlock()
		<-in
		g.Release()
		checkEmpty(t, g)
	})
}

func TestGate_CancelledWaitersLeaveNoTrace(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(1, 1000)
		g.Force()
		ctx, cancel := context.WithCancel(t.Context())
		var wg sync.WaitGroup
		for i := range 1000 {
			wg.Go(func() { g.Acquire(ctx, fmt.Sprint(i%37), 0) })
		}
		synctest.Wait()
		if g.Waiting() != 1000 {
			t.Fatalf("%d waiting", g.Waiting())
		}
		cancel()
		wg.Wait()
		if g.Waiting() != 0 || g.InFlight() != 1 {
			t.Errorf("%d waiting, %d in flight", g.Waiting(), g.InFlight())
		}
		if !func() bool { g.Release(); return g.TryAcquire() }() {
			t.Error("room was lost to the cancelled")
		}
		g.Release()
		checkEmpty(t, g)
	})
}

// Everything at once: acquire, force, cancel, time out, change limit and size. The limit holds, and in the end every
// request has been let in or told why not: with a lost wake-up this test does not end.
func TestGate_Storm(t *testing.T) {
	g := gate(3, 20)
	const most = 5 // of all limits set below
	var inside, forced atomic.Int64
	var wg sync.WaitGroup
	stop := make(chan struct{})
	for w := range 16 {
		wg.Go(func() {
			rng := rand.New(rand.NewPCG(uint64(w), 7))
			for range 3000 {
				switch rng.IntN(10) {
				case 0:
					forced.Add(1)
					g.Force()
					g.Release()
					forced.Add(-1)
					continue
				case 1:
					if !g.TryAcquire() {
						continue
					}
				case 2:
					ctx, cancel := context.WithTimeout(t.Context(), time.Duration(rng.IntN(100))*time.Microsecond)
					err := g.Acquire(ctx, "c", 0)
					cancel()
					if err != nil {
						continue
					}
				case 3:
					if g.Acquire(t.Context(), "t", time.Duration(1+rng.IntN(100))*time.Microsecond) != nil {
						continue
					}
				default:
					if g.Acquire(t.Context(), fmt.Sprint(rng.IntN(5)), 0) != nil {
						continue
					}
				}
				if n := inside.Add(1); n > most {
					t.Errorf("%d inside, limit at most %d", n, most)
				}
				inside.Add(-1)
				g.Release()
			}
		})
	}
	changed := make(chan struct{})
	go func() {
		defer close(changed)
		rng := rand.New(rand.NewPCG(9, 9))
		for {
			select {
			case <-stop:
				return
			default:
				g.SetLimit(1 + rng.IntN(most))
				g.SetQueue(rng.IntN(30))
			}
		}
	}()
	wg.Wait()
	close(stop)
	<-changed
	checkEmpty(t, g)
}

func TestGate_ForcedCountTowardsTheLimit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := gate(2, 5)
		for range 4 {
			g.Force()
		}
		in, _ := lineUp(t, g, "a")
		for range 2 {
			g.Release()
			synctest.Wait()
			if len(in) != 0 {
				t.Fatal("let in while forced requests fill the limit")
			}
		}
		g.Release()
		<-in
		g.Release()
		g.Release()
		checkEmpty(t, g)
	})
}

// The queue against a plain model of it: a list of requests in order of arrival, looked through from the front.
func TestQueue_MatchesModel(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	for range 50 {
		var q queue
		var turns []string // users that wait, next first
		lines := make(map[string][]*waiter)
		drop := func(w *waiter, user string) {
			lines[user] = slices.DeleteFunc(lines[user], func(x *waiter) bool { return x == w })
			if len(lines[user]) == 0 {
				delete(lines, user)
				turns = slices.DeleteFunc(turns, func(u string) bool { return u == user })
			}
		}
		for range 2000 {
			user := fmt.Sprint(rng.IntN(1 + rng.IntN(12)))
			switch op := rng.IntN(6); {
			case op < 3 && q.len < 60:
				if lines[user] == nil {
					turns = append(turns, user)
				}
				lines[user] = append(lines[user], q.push(user))
			case op == 3 && q.len > 0:
				next := turns[0]
				turns = append(turns[1:], next)
				want := lines[next][0]
				if got := q.pop(); got != want {
					t.Fatal("wrong turn")
				}
				drop(want, next)
			case op == 4 && lines[user] != nil:
				w := lines[user][rng.IntN(len(lines[user]))]
				q.remove(w)
				drop(w, user)
			case op == 5:
				longest := 0
				for _, l := range lines {
					longest = max(longest, len(l))
				}
				w := q.displace(user)
				if (w != nil) != (longest > len(lines[user])+1) {
					t.Fatalf("displace = %v with the longest at %d and its own at %d", w != nil, longest, len(lines[user]))
				}
				if w == nil {
					break
				}
				for u, l := range lines {
					if l[len(l)-1] == w && len(l) == longest {
						drop(w, u)
						w = nil
						break
					}
				}
				if w != nil {
					t.Fatal("displaced one that is not the newest of a longest line")
				}
			}
			total := 0
			for u, l := range lines {
				total += len(l)
				if q.users[u] == nil || q.users[u].count != len(l) {
					t.Fatalf("line of %s is wrong", u)
				}
			}
			if q.len != total || len(q.users) != len(lines) {
				t.Fatalf("len %d, want %d", q.len, total)
			}
		}
	}
}

func BenchmarkGate(b *testing.B) {
	b.Run("no limit", func(b *testing.B) {
		g := NewGate()
		b.ReportAllocs()
		for b.Loop() {
			g.TryAcquire()
			g.Release()
		}
	})
	b.Run("room", func(b *testing.B) {
		g := gate(10, 10)
		ctx := context.Background()
		b.ReportAllocs()
		for b.Loop() {
			g.Acquire(ctx, "u", time.Second)
			g.Release()
		}
	})
	b.Run("room, parallel", func(b *testing.B) {
		g := gate(10, 10)
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				g.TryAcquire()
				g.Release()
			}
		})
	})
	b.Run("handed on", func(b *testing.B) {
		g := gate(1, 100)
		b.SetParallelism(8)
		b.ReportAllocs()
		b.RunParallel(func(pb *testing.PB) {
			for pb.Next() {
				if g.Acquire(context.Background(), "u", 0) == nil {
					g.Release()
				}
			}
		})
	})
	b.Run("refused with 10,000 waiting", func(b *testing.B) {
		g := gate(1, 10000)
		g.Force()
		for i := range 10000 {
			g.enqueue(fmt.Sprint(i % 100))
		}
		b.ReportAllocs()
		for b.Loop() {
			g.Acquire(context.Background(), "7", 0)
		}
	})
}
