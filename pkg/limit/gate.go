package limit

import (
	"context"
	"errors"
	"sync"
	"sync/atomic"
	"time"
)

// What Acquire returns when the request cannot be let in.
var (
	// ErrQueueFull: as many wait already as the queue holds, or this request had waited and gave its place to a
	// user with fewer waiting requests.
	ErrQueueFull = errors.New("limit: queue is full")
	// ErrQueueTimeout: no room in the time given.
	ErrQueueTimeout = errors.New("limit: timed out in the queue")
)

// Gate caps the number of requests open at once, and lets a bounded number of others wait for room, fairly between
// users: room goes round among the users that wait, and to each user's requests in the order in which they came.
// When the queue is full, a user with clearly fewer requests in it takes the place of the newest request of the user
// with most, so that one user can neither hold up nor shut out the rest. Users are told apart by the string given to
// Acquire and by nothing else: a client that may choose it freely is many users.
//
// Safe for concurrent use. While there is room and nobody waits, entering and leaving are one compare-and-swap each.
type Gate struct {
	// state holds all that the fast paths need, so that each of them is one atomic step that sees a whole truth:
	// requests in flight (bits 0 to 31), whether somebody waits (bit 32), the limit (bits 33 to 63, noLimit = none).
	// The bit is only changed with mu held. With mu free, it is set if and only if queue.len > 0, and then
	// inFlight >= limit: whoever could make room sees the bit and comes through settleLocked.
	state atomic.Uint64

	mu    sync.Mutex // guards queue and size
	queue queue
	size  int

	refused atomic.Uint64
}

const (
	inFlightMask = 1<<32 - 1
	waitBit      = 1 << 32
	limitShift   = 33
	noLimit      = 1<<31 - 1
)

// NewGate makes a gate without limit and without queue.
func NewGate() *Gate {
	g := new(Gate)
	g.state.Store(noLimit << limitShift)
	return g
}

// SetLimit changes how many requests may be open at once; 0 or less is no limit. Raising it lets waiting requests in
// before it returns. Lowering it cuts nothing: nobody is let in until enough have left. It may be called at any time.
func (g *Gate) SetLimit(n int) {
	if n <= 0 {
		n = noLimit
	}
	g.setLimit(n)
}

// SetSlots is SetLimit for a share of a limit, which may be none: with 0 or less nobody is let in.
func (g *Gate) SetSlots(n int) { g.setLimit(min(max(0, n), noLimit-1)) }

func (g *Gate) setLimit(n int) {
	limit := uint64(min(n, noLimit)) << limitShift
	g.mu.Lock()
	defer g.mu.Unlock()
	for {
		s := g.state.Load()
		if g.state.CompareAndSwap(s, s&(1<<limitShift-1)|limit) {
			break
		}
	}
	g.settleLocked()
}

// SetQueue changes how many requests may wait; 0 or less is none. Lowering it sends nobody away.
func (g *Gate) SetQueue(size int) {
	g.mu.Lock()
	g.size = max(0, size)
	g.mu.Unlock()
}

// TryAcquire counts one request in if there is room and nobody waits for it. After true, Release is due once.
func (g *Gate) TryAcquire() bool {
	for {
		s := g.state.Load()
		if s&waitBit != 0 || !room(s) {
			return false
		}
		if g.state.CompareAndSwap(s, s+1) {
			return true
		}
	}
}

// Acquire counts one request in, waiting for room if there is none. After nil, Release is due once; after an error
// nothing is. It returns ErrQueueFull at once if the queue has no place for user (or later, if the place goes to
// another user), ErrQueueTimeout after timeout (0 or less: no limit but ctx), and ctx's cause when ctx ends first.
// user is kept while the request waits; requests without a user may share "".
func (g *Gate) Acquire(ctx context.Context, user string, timeout time.Duration) error {
	if g.TryAcquire() {
		return nil
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	w := g.enqueue(user)
	if w == nil {
		g.refused.Add(1)
		return ErrQueueFull
	}
	var expired <-chan time.Time
	if timeout > 0 {
		t := time.NewTimer(timeout)
		defer t.Stop()
		expired = t.C
	}
	select {
	case <-w.decided:
		return w.err
	case <-expired:
		if g.leave(w) {
			return ErrQueueTimeout
		}
		return w.err
	case <-ctx.Done():
		if !g.leave(w) && w.err == nil {
			g.Release()
		}
		return context.Cause(ctx)
	}
}

// Force counts one request in whatever the limit and the queue: for what must not wait, such as stops and probes.
// Release is due once.
func (g *Gate) Force() { g.state.Add(1) }

// Release counts one request out and lets the next waiting one in if that makes room. It panics if none is in.
func (g *Gate) Release() {
	for {
		s := g.state.Load()
		if s&inFlightMask == 0 {
			panic("limit: Release without Acquire")
		}
		if s&waitBit != 0 {
			break
		}
		if g.state.CompareAndSwap(s, s-1) {
			return
		}
	}
	g.mu.Lock()
	g.state.Add(^uint64(0))
	g.settleLocked()
	g.mu.Unlock()
}

// InFlight returns how many requests are in, those of Force included.
func (g *Gate) InFlight() int { return int(g.state.Load() & inFlightMask) }

// Waiting returns how many requests wait.
func (g *Gate) Waiting() int {
	if g.state.Load()&waitBit == 0 {
		return 0
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.queue.len
}

// Refused returns how many requests found neither room nor a place in the queue, since the gate was made.
func (g *Gate) Refused() uint64 { return g.refused.Load() }

// enqueue gives user a place in the queue, nil if there is none. The place may have been decided already when it
// returns, if there was room after all.
func (g *Gate) enqueue(user string) *waiter {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.size == 0 {
		return nil
	}
	if g.queue.len >= g.size {
		out := g.queue.displace(user)
		if out == nil {
			return nil
		}
		out.decide(ErrQueueFull)
	}
	w := g.queue.push(user)
	g.settleLocked()
	return w
}

// leave takes w out of the queue; false if its fate was decided before, and w.err may then be read.
func (g *Gate) leave(w *waiter) bool {
	g.mu.Lock()
	defer g.mu.Unlock()
	if w.line == nil {
		return false
	}
	g.queue.remove(w)
	g.settleLocked()
	return true
}

// settleLocked lets waiting requests in while there is room, and then makes the wait bit true to the queue. Setting
// the bit is a compare-and-swap on the very state that has no room: a Release just before it makes it fail, one just
// after it sees the bit. So no wake-up is lost.
func (g *Gate) settleLocked() {
	for {
		s := g.state.Load()
		next := s &^ waitBit
		enter := g.queue.len > 0 && room(s)
		if g.queue.len > 0 {
			next |= waitBit
		}
		if enter {
			next++
		}
		if next != s && !g.state.CompareAndSwap(s, next) {
			continue
		}
		if !enter {
			return
		}
		g.queue.pop().decide(nil)
	}
}

func room(s uint64) bool {
	return s&inFlightMask < s>>limitShift
}
