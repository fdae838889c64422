package proxy

import (
	"runtime/debug"
	"sync/atomic"

	"difylb/pkg/h1"
)

// carriage is how a stream goes on without a goroutine, whose stack would be
// most of the memory that it takes: while nothing comes, nothing waits for it
// but an entry in the poller of its instance's connection. When bytes come
// that poller's goroutine passes them on. It never waits: what a slow client does
// not take at once, an interruption, and the stream's end are left to a goroutine
// that is started for them (clientConn.resume).
//
// It is part of the instance's wire. The zero value carries nothing.
type carriage struct {
	state  atomic.Uint32
	stream *clientConn // owned by whom the state says
}

// States of a carriage.
const (
	carriesNot  uint32 = iota // the stream, if there is one, belongs to a goroutine
	carryWaits                // it belongs to who changes the state
	carryServes               // it belongs to the poller
	carryCalled               // likewise, and was interrupted meanwhile
)

// serve passes on what has come for the stream; false where none is carried.
// The poller calls it.
func (k *carriage) serve(w *wire) bool {
	if !k.state.CompareAndSwap(carryWaits, carryServes) {
		return false
	}
	c := k.stream
	c.done = c.feed()
	if !c.done && len(c.unsent) == 0 && k.state.CompareAndSwap(carryServes, carryWaits) {
		return true
	}
	k.state.Store(carriesNot)
	k.drop(w)
	return true
}

// call tells the stream to look at what has changed.
func (k *carriage) call(w *wire) {
	for {
		switch k.state.Load() {
		case carryWaits:
			if k.state.CompareAndSwap(carryWaits, carriesNot) {
				k.drop(w)
				return
			}
		case carryServes:
			if k.state.CompareAndSwap(carryServes, carryCalled) {
				return
			}
		default:
			return
		}
	}
}

// drop gives the stream to a goroutine. Whoever took it from its state calls it.
func (k *carriage) drop(w *wire) {
	c := k.stream
	k.stream = nil
	w.watched.unlisten(w)
	go c.guard(c.resume) // counted by open, as the connection is
}

// carry leaves the stream that has begun on c to the poller. When it returns true
// nothing of c may be touched any more.
func (c *clientConn) carry() bool {
	if c.raw == nil {
		return false // its writes wait
	}
	c.x.attempt.rest()
	w, line := &c.x.attempt.conn.wire, &c.lifeline
	c.riding, c.done = true, false
	w.carried.stream = c
	w.carried.state.Store(carryWaits)
	if !w.watched.listen(w) {
		w.carried.state.Store(carriesNot) // nobody has seen it, but who interrupts
		w.carried.stream = nil
		c.riding = false
		return false
	}
	// What was to interrupt the wait may have come before there was one.
	if line.over() || w.expired() {
		w.carried.call(w)
	}
	return true
}

// feed passes on what has come, and reports whether the stream is over.
func (c *clientConn) feed() (over bool) {
	defer func() {
		if v := recover(); v != nil {
			c.s.p.log.Error().Interface("panic", v).Str("stack", string(debug.Stack())).Msg("request handler panicked")
			c.broken, over = true, true
			c.x.attempt.err = h1.ErrUnsafe
		}
	}()
	return c.x.attempt.ready()
}

// resume does for a carried stream what may wait, ends it if that is due, and
// serves on.
func (c *clientConn) resume() {
	c.riding = false
	a := &c.x.attempt
	if p := c.unsent; len(p) > 0 {
		c.unsent, a.clogged = nil, false
		if err := c.send(p); err != nil {
			a.err, c.done = err, true
		}
	}
	if !c.done {
		if c.x.line.over() {
			a.err = errInterrupted
		} else if a.err = a.woken(); a.err == nil {
			c.away = true // on it goes
			return
		}
	}
	if c.x.endStream(); c.endOne() {
		c.serveAll()
	}
}
