package proxy

import (
	"errors"
	"net"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

// wire is one connection, a client's or an instance's, without a buffer of its
// own: whoever waits on it holds none, and takes one when bytes are there.
//
// It has one owner at a time, who alone reads, writes and closes it. Everybody
// else may only interrupt the owner's wait (which is a hint: the owner then
// looks at what has changed, and goes on waiting if that is nothing).
//
// On Linux a connection in clear is a descriptor of our own, which the runtime
// does not know: it is read and written by system calls that never block, and a
// poller of ours tells what has come for it (pollers). Its owner is a
// goroutine that waits for the bell, or nobody at all (carriage). TLS, and other
// systems, take the ordinary Read and Write of a net.Conn. docs/design/engine.md
// has the whole story.
type wire struct {
	conn  net.Conn // nil: fd is used
	tcp   net.Conn // conn, or what TLS runs over
	owner wireOwner
	raw   bool // fd is used
	fd    int  // good until the owner closes

	// The peer has ended its side. An end that came together with the last bytes
	// is announced once; this remembers it.
	hup     atomic.Bool
	watched pollSlot
	carried carriage

	// Of fd: what has happened since somebody last looked, and who waits for it.
	came    atomic.Bool // bytes, or an end
	called  atomic.Bool // an interruption
	room    atomic.Bool // room to write
	reads   bell        // rings for came and called
	writes  bell        // rings for room, and when the wire is cut off
	writing atomic.Bool // somebody waits for room

	mu     sync.Mutex // guards handed, and conn where both are there
	handed bool       // to a tunnel, which is not interrupted

	cut atomic.Int64 // see cutOff; no write waits longer, by monotonic(); 0: it was not

	stirred bool // an ordinary read was interrupted

	// One timer serves all deadlines of a connection: it is left running when
	// the deadline moves, looks at it when it fires, and starts again. A
	// deadline that moves with every read costs one store.
	due   atomic.Int64 // deadline, by monotonic(); 0 none
	fires atomic.Int64 // when the timer does; 0 it does not run
	timer *time.Timer
}

// bell wakes a goroutine that waits for something to change. The zero value is ready.
type bell struct{ ch atomic.Pointer[chan struct{}] }

// ring is due when what somebody may wait for has changed. It does not block.
func (b *bell) ring() {
	if ch := b.ch.Load(); ch != nil {
		select {
		case *ch <- struct{}{}:
		default:
		}
	}
}

// wait blocks until changed, or until the clock gives a sign, which may be nil.
// One goroutine at a time may call it.
func (b *bell) wait(changed func() bool, clock <-chan time.Time) (rang bool) {
	ch := b.ch.Load()
	if ch == nil {
		made := make(chan struct{}, 1)
		ch = &made
		b.ch.Store(ch)
	}
	for !changed() { // looked at behind the store: who changes it from here on rings
		select {
		case <-*ch:
		case <-clock:
			return false
		}
	}
	return true
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
}

// await blocks until t has what it waits for, or gives up. It does not close
// the wire. The owner only may call it; calls nest for different wires.
func (w *wire) await(t waiter) error {
	if !w.raw {
		return w.awaitPlain(t)
	}
	for {
		w.look()
		if t.ready() {
			return nil
		}
		if w.answered() {
			if err := t.woken(); err != nil {
				return err
			}
			continue
		}
		w.reads.wait(w.happened, nil)
	}
}

// look is due before everything that is there is read: what comes from then on
// will be told.
func (w *wire) look() {
	if w.came.Load() { // storing costs much more than looking
		w.came.Store(false)
	}
}

// answered reports whether there was an interruption, once.
func (w *wire) answered() bool { return w.called.Load() && w.called.Swap(false) }

// happened reports whether there is something to look at.
func (w *wire) happened() bool { return w.came.Load() || w.called.Load() }

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
	if w.raw {
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
	return w.raw && n < room && !w.hup.Load()
}

// write writes all of p, waiting for a peer that is slow for as long as
// patience between two bytes that it takes. It returns how much was taken.
func (w *wire) write(p []byte, patience time.Duration) (int, error) {
	if !w.raw {
		w.allow(patience)
		return w.conn.Write(p)
	}
	n, err := w.writeRaw(p)
	if err != errAgain {
		return n, err
	}
	more, err := w.writeSlowly(p[n:], patience)
	return n + more, err
}

// writeSlowly writes to a peer that did not take all at once.
func (w *wire) writeSlowly(p []byte, patience time.Duration) (done int, err error) {
	err = w.awaitRoom(patience, func() (progress, again bool, err error) {
		n, err := w.writeRaw(p[done:])
		if done += n; err == errAgain {
			return n > 0, true, nil
		}
		return true, false, err
	})
	return done, err
}

// awaitRoom calls try until it does not want to be called again, waiting for
// room in between, for as long as patience between two calls that made progress.
func (w *wire) awaitRoom(patience time.Duration, try func() (progress, again bool, err error)) error {
	w.writing.Store(true)
	w.watched.wantRoom(w, true)
	defer func() {
		w.watched.wantRoom(w, false)
		w.writing.Store(false)
	}()
	until := monotonic() + int64(patience)
	clock := time.NewTimer(patience)
	defer clock.Stop()
	for {
		w.room.Store(false)
		cut := w.cut.Load()
		progress, again, err := try()
		if !again || err != nil {
			return err
		}
		if progress {
			until = monotonic() + int64(patience)
		}
		due := until
		if cut != 0 {
			due = min(due, cut)
		}
		left := due - monotonic()
		if left <= 0 {
			return errDeadline
		}
		clock.Reset(time.Duration(left))
		w.writes.wait(func() bool { return w.room.Load() || w.cut.Load() != cut }, clock.C)
	}
}

// interrupt wakes the owner if it waits to read. It may be called by anybody
// at any time.
func (w *wire) interrupt() {
	if w.raw {
		w.called.Store(true)
		if c := w.carried.take(); c != nil {
			go c.run(false, false) // counted by open, as the connection is
		} else {
			w.reads.ring()
		}
		return
	}
	w.mu.Lock()
	if !w.handed {
		_ = w.conn.SetReadDeadline(aLongTimeAgo)
	}
	w.mu.Unlock()
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
	if w.raw {
		w.writes.ring()
		w.interrupt()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.conn != nil {
		_ = w.conn.SetDeadline(aLongTimeAgo)
	}
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
func (w *wire) readable() bool {
	if w.raw {
		return !silentFD(w.fd, false)
	}
	return !silentConn(w.tcp, false)
}

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
	case w.raw:
		w.look()
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
	if w.conn != nil {
		_ = w.conn.Close()
	} else {
		w.closeRaw()
	}
}
