package proxy

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// wire is one connection, a client's or an instance's, without a buffer of its
// own: whoever waits on it holds none, and takes one when bytes are there.
//
// It has one owner at a time, who alone reads, writes and closes it. Everybody
// else may only interrupt the owner's wait (which is a hint: the owner then
// looks at what has changed, and goes on waiting if that is nothing).
//
// On Linux a connection in clear is read and written by system calls of our
// own that never block, and waited for inside syscall.RawConn: there the
// runtime keeps what became ready while the owner worked, so that no read is
// made just to be told that there is nothing. TLS, and other systems, take the
// ordinary Read and Write of the same conn. docs/design/engine.md has the whole story.
type wire struct {
	conn  net.Conn
	tcp   net.Conn // conn, or what TLS runs over
	owner wireOwner
	raw   syscall.RawConn    // nil: ordinary reads and writes
	fd    int                // of raw; good until the owner closes
	poll  func(uintptr) bool // calls wait.ready; made once, so that waiting allocates nothing
	wait  waiter

	// The peer has ended its side. In edge-triggered polling an end that came
	// together with the last bytes is announced once; this remembers it.
	hup     atomic.Bool
	watched hangupSlot
	carried carriage

	mu     sync.Mutex
	handed bool // to a tunnel, which is not interrupted; guarded by mu

	cut atomic.Int64 // see cutOff; no write waits longer, by monotonic(); 0: it was not

	stirred bool // an ordinary read was interrupted

	// One timer serves all deadlines of a connection: it is left running when
	// the deadline moves, looks at it when it fires, and starts again. A
	// deadline that moves with every read costs one store.
	due   atomic.Int64 // deadline, by monotonic(); 0 none
	fires atomic.Int64 // when the timer does; 0 it does not run
	timer *time.Timer
}

// wireOwner is told what happens to a wire by those who watch it.
type wireOwner interface {
	// hungUp: the peer has ended its side, or (broken) both; wire.hup is set.
	hungUp(broken bool)
	// alarm: the deadline has passed.
	alarm()
}

// waiter is what waits for bytes of a wire.
type waiter interface {
	// ready is called when bytes may be there, and reads them. It returns true
	// when it has what it waits for, false to wait for more.
	ready() bool
	// woken is called after an interruption. An error ends the wait.
	woken() error
}

// errDeadline is what an interrupted wait returns.
var errDeadline = os.ErrDeadlineExceeded

// errAgain says that there is nothing to read, or no room to write, now.
var errAgain = errors.New("not now")

var epoch = time.Now()

// monotonic is a clock that only goes forward, in nanoseconds, never 0.
func monotonic() int64 { return int64(time.Since(epoch)) + 1 }

// clock is monotonic as it was at a time that was read before.
func clock(t time.Time) int64 { return int64(t.Sub(epoch)) + 1 }

func (w *wire) init(conn, tcp net.Conn, owner wireOwner) {
	w.conn, w.tcp, w.owner = conn, tcp, owner
	w.timer = time.AfterFunc(time.Hour, w.fire)
	w.timer.Stop()
	if conn == tcp {
		w.initRaw()
	}
}

// await blocks until t has what it waits for, or gives up. It does not close
// the wire. The owner only may call it; calls nest for different wires.
func (w *wire) await(t waiter) error {
	if w.raw == nil {
		return w.awaitPlain(t)
	}
	before := w.wait
	w.wait = t
	defer func() { w.wait = before }()
	for {
		err := w.raw.Read(w.poll)
		if err == nil {
			return nil
		}
		if !errors.Is(err, errDeadline) {
			return err
		}
		// The deadline goes first: an interruption from here on sets it again.
		_ = w.conn.SetReadDeadline(time.Time{})
		if err := t.woken(); err != nil {
			return err
		}
	}
}

func (w *wire) awaitPlain(t waiter) error {
	for !t.ready() {
		if w.stirred {
			w.stirred = false
			_ = w.conn.SetReadDeadline(time.Time{})
			if err := t.woken(); err != nil {
				return err
			}
		}
	}
	return nil
}

// read reads what is there. errAgain: nothing is. Only ordinary reads block.
func (w *wire) read(p []byte) (int, error) {
	if w.raw != nil {
		return w.readRaw(p)
	}
	n, err := w.conn.Read(p)
	if n == 0 && err != nil && errors.Is(err, errDeadline) {
		w.stirred = true
		return 0, errAgain
	}
	if n > 0 {
		return n, nil // the error comes again
	}
	return 0, err
}

// drained reports whether nothing more is there after a read of n bytes into
// room for so many: then the next bytes will be announced.
func (w *wire) drained(n, room int) bool {
	return !w.watched.none() && w.raw != nil && n < room && !w.hup.Load()
}

// write writes all of p, waiting for a peer that is slow for as long as
// patience between two bytes that it takes. It returns how much was taken.
func (w *wire) write(p []byte, patience time.Duration) (int, error) {
	if w.raw == nil {
		w.allow(patience)
		return w.conn.Write(p)
	}
	n, err := w.writeRaw(p)
	if err == nil {
		return n, nil
	}
	if err != errAgain {
		return n, err
	}
	more, err := w.writeSlowly(p[n:], patience)
	return n + more, err
}

// writeSlowly writes to a peer that did not take all at once.
func (w *wire) writeSlowly(p []byte, patience time.Duration) (done int, err error) {
	var fault error
	w.allow(patience)
	err = w.raw.Write(func(uintptr) bool {
		n, err := w.writeRaw(p[done:])
		done += n
		if err == errAgain {
			if n > 0 {
				w.allow(patience)
			}
			return false
		}
		fault = err
		return true
	})
	if err != nil {
		return done, err
	}
	return done, fault
}

// interrupt wakes the owner if it waits to read. It may be called by anybody
// at any time.
func (w *wire) interrupt() {
	w.mu.Lock()
	if !w.handed {
		_ = w.conn.SetReadDeadline(aLongTimeAgo)
	}
	w.mu.Unlock()
	w.carried.call(w)
}

// allow gives a write its time, as far as the wire was not cut off.
func (w *wire) allow(patience time.Duration) {
	_ = w.conn.SetWriteDeadline(time.Now().Add(patience))
	if until := w.cut.Load(); until != 0 { // it may have come just before
		_ = w.conn.SetWriteDeadline(epoch.Add(time.Duration(until)))
	}
}

// cutGrace is how long the last words on a wire that was cut off may take.
const cutGrace = 100 * time.Millisecond

// cutOff is interrupt also for an owner that waits to write. What it writes
// from here on is meant to be an end, and waits for cutGrace at most.
func (w *wire) cutOff() {
	w.cut.Store(monotonic() + int64(cutGrace))
	_ = w.conn.SetDeadline(aLongTimeAgo)
}

var aLongTimeAgo = time.Unix(1, 0)

// expect sets the deadline to d from now.
func (w *wire) expect(d time.Duration) { w.expectAt(monotonic() + int64(d)) }

func (w *wire) expectAt(due int64) {
	w.due.Store(due)
	for {
		fires := w.fires.Load()
		if fires != 0 && fires <= due {
			return // it will look
		}
		if w.fires.CompareAndSwap(fires, due) {
			w.start(due)
			return
		}
	}
}

// start makes the timer fire when fires says.
func (w *wire) start(due int64) {
	for due != 0 {
		w.timer.Reset(time.Duration(due - monotonic()))
		now := w.fires.Load()
		if now == due {
			return
		}
		due = now // somebody else was at it, too: who comes last must not have an old time
	}
}

// relax takes the deadline away.
func (w *wire) relax() { w.due.Store(0) }

// readable reports whether something is there that was not read: bytes, or an end.
func (w *wire) readable() bool { return !silentConn(w.tcp, false) }

// expired reports whether the deadline has passed.
func (w *wire) expired() bool {
	due := w.due.Load()
	return due != 0 && monotonic() >= due
}

func (w *wire) fire() {
	// First this: a deadline set from here on starts the timer by itself.
	w.fires.Store(0)
	due := w.due.Load()
	if due == 0 {
		return
	}
	if now := monotonic(); now < due {
		if w.fires.CompareAndSwap(0, due) {
			w.start(due)
		}
		return
	}
	w.owner.alarm()
}

// silent reports whether an idle connection is as it should be: open, with
// nothing to read.
func (w *wire) silent() bool {
	switch {
	case w.hup.Load():
		return false
	case w.raw != nil:
		return silentFD(w.fd, false)
	case w.conn != w.tcp:
		return w.silentTLS()
	}
	return silentConn(w.tcp, false)
}

// silentTLS is silent behind TLS, where what was read along with the last
// answer waits inside the conn, and what waits in the kernel may be a session
// ticket: only reading tells.
func (w *wire) silentTLS() bool {
	until := aLongTimeAgo // what the conn holds is looked at all the same
	if !silentConn(w.tcp, false) {
		until = time.Now().Add(time.Millisecond)
	}
	_ = w.conn.SetReadDeadline(until)
	var b [1]byte
	n, err := w.conn.Read(b[:])
	_ = w.conn.SetReadDeadline(time.Time{})
	return n == 0 && errors.Is(err, errDeadline)
}

// close closes the connection. The owner only may call it.
func (w *wire) close() {
	w.relax()
	w.timer.Stop()
	w.watched.forget()
	_ = w.conn.Close()
}
