package daemon

import (
	"context"
	"testing"
	"testing/synctest"
	"time"
)

func TestReclaimer_FollowsLargeChangesOnly(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		freed := 0
		r := NewReclaimer()
		r.free = func() { freed++ }
		ctx, cancel := context.WithCancel(t.Context())
		done := make(chan error)
		go func() { done <- r.Run(ctx) }() // ends with ctx
		step := func(what string, objects int, wait time.Duration, want int) {
			t.Helper()
			r.Keeps(objects)
			time.Sleep(wait)
			synctest.Wait()
			if freed != want {
				t.Errorf("%s: freed %d times, want %d", what, freed, want)
			}
		}
		step("a small configuration", 100, time.Minute, 0)
		step("large, but a moment ago", 20_000, reclaimAfter-time.Millisecond, 0)
		step("it goes on growing", 25_000, time.Millisecond, 1)
		step("a fifth more", 30_000, time.Minute, 1)
		step("shrunk by less than half", 13_000, time.Minute, 1)
		step("shrunk by more", 12_000, time.Minute, 2)
		step("to nothing", 0, reclaimAfter, 3)
		// Within the least time between two: not at once, but not forgotten.
		step("large again", 30_000, reclaimEvery-reclaimAfter, 3)
		step("large still", 30_000, reclaimAfter, 4)
		// There and back between two looks: nothing to do.
		r.Keeps(1)
		step("back again", 30_000, time.Minute, 4)
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
}
