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
	carryServes               // it belongs to who has changed the state
	carryCalled               // likewise, and something has happened meanwhile
)

// serve passes on what has come for the stream; false where none is carried.
// The poller calls it.
func (k *carriage) serve(w *wire) bool {
	for {
		switch k.state.Load() {
		case carryWaits:
			if k.state.CompareAndSwap(carryWaits, carryServes) {
				k.feed(w)
				return true
			}
		case carryServes: // it is being put here
			if k.state.CompareAndSwap(carryServes, carryCalled) {
				return true
			}
		case carryCalled:
			return true
		default:
			return false
		}
	}
}

// call has the stream looked at, whatever comes for it.
func (k *carriage) call(w *wire) {
	for {
		switch k.state.Load() {
		case carryWaits:
			if k.state.CompareAndSwap(carryWaits, carriesNot) {
				k.resume(w)
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

// feed passes on what has come and lets the stream wait for more, if that is
// all that is to be done. The stream is the caller's.
func (k *carriage) feed(w *wire) {
	c := k.stream
	for {
		if c.done = c.feed(); c.done || len(c.unsent) > 0 {
			break
		}
		if k.state.CompareAndSwap(carryServes, carryWaits) {
			return
		}
		k.state.Store(carryServes)
		if c.lifeline.over() || w.expired() {
			break
		}
	}
	k.state.Store(carriesNot)
	k.resume(w)
}

// resume gives the stream to a goroutine. The stream is the caller's.
func (k *carriage) resume(w *wire) {
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
	w := &c.x.attempt.conn.wire
	k := &w.carried
	c.riding, c.done = true, false
	k.stream = c
	k.state.Store(carryServes)
	switch {
	case !w.watched.listen(w):
		c.riding = false
		k.stream = nil
		k.state.Store(carriesNot)
		return false
	case c.lifeline.over() || w.expired(): // before there was a wait to be interrupted
		k.state.Store(carriesNot)
		k.resume(w)
	case !k.state.CompareAndSwap(carryServes, carryWaits):
		k.state.Store(carryServes)
		k.feed(w)
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
