package daemon

import (
	"context"
	"runtime/debug"
	"sync/atomic"
	"time"
)

const (
	// reclaimAfter is how long a Reclaimer waits for the rest of what is being
	// let go of: views, indexes and the other side of a link follow a change
	// within a second or two.
	reclaimAfter = 3 * time.Second
	// reclaimEvery is the least time between two collections that it forces.
	reclaimEvery = 15 * time.Second
	// reclaimLeast is how many objects a change of size must be about.
	reclaimLeast = 2000
)

// Reclaimer gives memory back to the system when what a process keeps has
// become much less, or much more, at once: then most of the heap is what the
// change left behind. Go's collector would find that at the next collection,
// but a process whose heap has just been large is allowed to let it grow as
// large again, which for one that is small now can take hours; and what it has
// freed it keeps for a while. Make one with NewReclaimer.
type Reclaimer struct {
	objects atomic.Int64
	moved   chan struct{} // size 1: objects has changed
	free    func()        // what Run does; tests replace it
}

// NewReclaimer returns one that does nothing until Run.
func NewReclaimer() *Reclaimer {
	return &Reclaimer{moved: make(chan struct{}, 1), free: debug.FreeOSMemory}
}

// Keeps says how many objects of a kind that counts the process keeps now. It
// costs next to nothing, and may be called by anyone at any time.
func (r *Reclaimer) Keeps(objects int) {
	if r.objects.Swap(int64(objects)) == int64(objects) {
		return
	}
	select {
	case r.moved <- struct{}{}:
	default:
	}
}

// Run collects garbage and gives memory back some seconds after the number of
// objects has halved or doubled since it did so last, by 2,000 at least, and at
// most once in 15 s. It blocks until ctx ends and returns nil.
func (r *Reclaimer) Run(ctx context.Context) error {
	last := int64(0)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.moved:
		}
		if !muchOther(last, r.objects.Load()) {
			continue
		}
		if !pause(ctx, reclaimAfter) {
			return nil
		}
		last = r.objects.Load()
		r.free()
		if !pause(ctx, reclaimEvery-reclaimAfter) {
			return nil
		}
	}
}

func muchOther(before, now int64) bool {
	small, large := min(before, now), max(before, now)
	return large >= 2*small && large-small >= reclaimLeast
}

// pause reports whether ctx is still alive afterwards.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
