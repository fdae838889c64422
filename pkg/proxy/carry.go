package proxy

import (
	"runtime/debug"
	"sync/atomic"

	"difylb/pkg/h1"
	"difylb/pkg/lb"
)

// carriage is how a connection goes on without a goroutine, whose stack would
// be most of the memory that it takes, and whose waking a good part of the time: while
// nothing comes, nothing waits for it but an entry in a poller. When something
// comes, that poller's goroutine goes on with it (clientConn.run). It never
// waits; what may have to is left to a goroutine that is started for it.
//
// It is part of the wire that the connection waits for: its own for the next
// request, its instance's for an answer. The zero value carries nothing.
type carriage struct {
	waits  atomic.Bool // client is here, and belongs to who takes it away
	client *clientConn
}

// take returns who waits here, nil for nobody. It is the caller's then.
func (k *carriage) take() *clientConn {
	if !k.waits.Load() || !k.waits.CompareAndSwap(true, false) {
		return nil
	}
	c := k.client
	k.client = nil
	return c
}

// park leaves the caller's c to who comes with the next event of the wire. False:
// something has come meanwhile, and c is the caller's still.
func (w *wire) park(c *clientConn) bool {
	k := &w.carried
	k.client = c
	k.waits.Store(true)
	// Who brings something from here on finds c; what came before is here to see.
	if w.happened() && k.waits.CompareAndSwap(true, false) {
		k.client = nil
		return false
	}
	return true
}

// step is what is due next for a connection.
type step uint8

const (
	toListen step = iota // for a request, or the rest of its head
	toServe              // the request that has come
	toWait               // for the instance: the exchange has left
	toGoOn               // with the exchange, on a goroutine that may wait
	toEnd                // the request is answered
	toLeave              // the connection is to be closed
)

// mostAtOnce is how many requests of one client are served before it is others' turn.
const mostAtOnce = 32

// run goes on with the connection, to where it waits for what is to come, or to
// its end. c is the caller's, and is not any more when run returns. riding: the
// caller is a poller, and nothing may wait. came: something may be there to read.
func (c *clientConn) run(riding, came bool) {
	defer c.rescue()
	if c.stuck && c.next == toWait {
		came = true // it had more than its turn
	}
	c.riding, c.stuck, c.most = riding, false, mostAtOnce
	if len(c.unsent) > 0 {
		came = c.catchUp()
	}
	for c.work(came) {
		if c.riding && (c.stuck || c.most == 0 || len(c.unsent) > 0) {
			go c.run(false, false) // counted by open
			return
		}
		came = false
	}
}

// catchUp writes what a poller could not, and reports whether the instance may
// have more.
func (c *clientConn) catchUp() (more bool) {
	p := c.unsent
	c.unsent = nil
	err := c.send(p)
	if c.next != toWait {
		return false // send has noted a fault
	}
	a := &c.x.attempt
	if a.clogged = false; err != nil {
		a.err = err
	}
	return true
}

// work does what is due. It returns false when c is not the caller's any more.
func (c *clientConn) work(came bool) bool {
	switch c.next {
	case toListen:
		return c.listen(came)
	case toWait:
		return c.waitForInstance(came)
	case toServe:
		c.quiet = false // its body has yet to be read
		c.serveOne()
	case toGoOn:
		c.goOn()
	case toEnd:
		if c.riding && !c.bodyEnd {
			c.stuck = true // there may be more to read
			break
		}
		c.endOne()
	case toLeave:
		if c.riding && c.lingers() {
			c.stuck = true
			break
		}
		c.finish()
		return false
	}
	return true
}

// rescue ends a connection that a fault of ours has met.
func (c *clientConn) rescue() {
	v := recover()
	if v == nil {
		return
	}
	c.s.p.log.Error().Interface("panic", v).Str("stack", string(debug.Stack())).Msg("request handler panicked")
	c.broken = true
	if x := c.x; x != nil && x.away && x.stage.waits() { // else it has its account
		a := &x.attempt
		x.away = false
		a.err, a.reason, x.reason = h1.ErrUnsafe, lb.ReasonInternal, lb.ReasonInternal
		a.account()
		x.finish()
	}
	c.finish()
}

// listen serves the requests that come, until one leaves, or none is left to serve.
func (c *clientConn) listen(came bool) bool {
	if !c.raw {
		c.unheard(c.await(c))
		return true
	}
	if came {
		c.quiet = false
		c.look()
	}
	for !c.serveReady() {
		if c.answered() {
			if err := c.woken(); err != nil {
				c.unheard(err)
				return true
			}
			continue
		}
		if c.park(c) {
			return false
		}
		c.quiet = false
		c.look()
	}
	return true
}

// unheard ends the connection when a wait for a request has ended without one.
func (c *clientConn) unheard(err error) {
	if err == nil {
		return
	}
	if err == errHeadSlow {
		c.refuse(&refusal{reason: lb.ReasonRequestTimeout, message: "the request head came too slowly"})
	}
	c.next = toLeave
}

// waitForInstance goes on with a request that has left, when there is
// something to go on with.
func (c *clientConn) waitForInstance(came bool) bool {
	a := &c.x.attempt
	w := &a.conn.wire
	for a.err == nil {
		if came {
			if w.look(); a.ready() {
				break
			}
			if c.stuck || len(c.unsent) > 0 {
				return true
			}
		}
		if w.answered() {
			a.err = a.woken()
			continue
		}
		if a.phase == phaseBody && a.stream {
			c.x.lighten()
		}
		if w.park(c) {
			return false
		}
		came = true
	}
	if c.riding && a.err != nil {
		c.next, c.stuck = toGoOn, true // the operator may have to be told
	} else {
		c.goOn()
	}
	return true
}

// goOn goes on with the exchange behind a wait.
func (c *clientConn) goOn() {
	c.x.goOn()
	c.leftOr(toEnd)
}

// leftOr says what is due behind a part of serving a request: to wait where the
// exchange has left, else what is given.
func (c *clientConn) leftOr(next step) {
	switch x := c.x; {
	case !x.away:
		c.next = next
	case x.stage.waits():
		c.next = toWait
	default:
		c.next, c.stuck = toGoOn, true
	}
}
