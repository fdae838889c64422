package fault

import (
	"errors"
	"io"
	"net"
	"sync"
	"testing"
	"time"
)

// relay is a wire between two processes that the test can damage. What a real
// network would deliver late (a partition makes TCP send again) it holds back
// and delivers when the damage is mended; what a reset loses, is lost.
type relay struct {
	addr, target string

	mu      sync.Mutex
	changed *sync.Cond // mu; the damage, or the end of a connection
	damage  damage     // guarded by mu
	ln      net.Listener
	wires   map[*wire]bool // guarded by mu
	served  int            // connections; guarded by mu
	closed  bool           // guarded by mu
	running sync.WaitGroup
}

// damage is what is wrong with a relay. The zero value is a good wire.
type damage struct {
	holdOut, holdIn bool          // nothing goes towards the target, nothing comes back
	delay           time.Duration // of each piece, each way
	rate            int           // bytes per second each way; 0: no bound
	refuse          bool          // new connections are refused
}

var (
	goodWire  = damage{}
	silent    = damage{holdOut: true, holdIn: true} // half-open: both ends believe in the connection
	oneWay    = damage{holdIn: true}                // what is asked arrives, what is answered does not
	unplugged = damage{refuse: true}
)

// wire is one relayed connection.
type wire struct {
	in, out *net.TCPConn
	dead    bool // guarded by relay.mu
}

// newRelay listens on an address of its own for the target's clients until
// the test ends.
func newRelay(t testing.TB, target string) *relay {
	t.Helper()
	return newRelayAt(t, "127.0.0.1:0", target)
}

// newRelayAt is newRelay at a given address.
func newRelayAt(t testing.TB, addr, target string) *relay {
	t.Helper()
	r := &relay{target: target, wires: make(map[*wire]bool)}
	r.changed = sync.NewCond(&r.mu)
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	r.addr, r.ln = ln.Addr().String(), ln
	r.running.Add(1)
	go r.accept(ln) // ends with the listener
	t.Cleanup(func() {
		r.mu.Lock()
		r.closed = true
		if r.ln != nil {
			r.ln.Close()
		}
		r.mu.Unlock()
		r.reset()
		r.running.Wait()
	})
	return r
}

// count is how many connections there are now, and how many there have been.
func (r *relay) count() (now, ever int) {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.wires), r.served
}

// set puts the relay into a state; connections that there are stay.
func (r *relay) set(t testing.TB, d damage) {
	t.Helper()
	r.mu.Lock()
	defer r.mu.Unlock()
	r.damage = d
	r.changed.Broadcast()
	switch {
	case d.refuse && r.ln != nil:
		r.ln.Close()
		r.ln = nil
	case !d.refuse && r.ln == nil && !r.closed:
		ln, err := net.Listen("tcp", r.addr)
		if err != nil {
			t.Fatalf("the relay can't listen again: %s", err)
		}
		r.ln = ln
		r.running.Add(1)
		go r.accept(ln) // ends with the listener
	}
}

// reset cuts every connection that there is with a TCP reset to both sides.
func (r *relay) reset() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for w := range r.wires {
		r.killLocked(w)
	}
}

func (r *relay) killLocked(w *wire) {
	w.dead = true
	for _, c := range []*net.TCPConn{w.in, w.out} {
		_ = c.SetLinger(0) // a reset in place of a good-bye
		_ = c.Close()
	}
	delete(r.wires, w)
	r.changed.Broadcast()
}

func (r *relay) accept(ln net.Listener) {
	defer r.running.Done()
	for {
		in, err := ln.Accept()
		if err != nil {
			return
		}
		r.running.Add(1)
		go func() { // ends with the connection
			defer r.running.Done()
			r.serve(in.(*net.TCPConn))
		}()
	}
}

func (r *relay) serve(in *net.TCPConn) {
	out, err := net.DialTimeout("tcp", r.target, 5*time.Second)
	if err != nil {
		_ = in.SetLinger(0)
		in.Close()
		return
	}
	w := &wire{in: in, out: out.(*net.TCPConn)}
	r.mu.Lock()
	r.wires[w] = true
	r.served++
	if r.closed {
		r.killLocked(w)
	}
	r.mu.Unlock()
	back := make(chan struct{})
	go func() { // ends with the connection
		defer close(back)
		r.pump(w, w.in, w.out, func(d damage) bool { return d.holdIn })
	}()
	r.pump(w, w.out, w.in, func(d damage) bool { return d.holdOut })
	<-back
	r.mu.Lock()
	if !w.dead {
		delete(r.wires, w)
		w.in.Close()
		w.out.Close()
	}
	r.mu.Unlock()
}

// pump carries one direction until its end, and passes the end on.
func (r *relay) pump(w *wire, dst, src *net.TCPConn, held func(damage) bool) {
	buf := make([]byte, 16<<10)
	for {
		size := len(buf)
		if rate := r.state().rate; rate > 0 {
			size = min(size, max(rate/20, 1)) // twenty pieces a second
		}
		n, err := src.Read(buf[:size])
		d, alive := r.pass(w, held)
		if !alive {
			return
		}
		if n > 0 {
			pause := d.delay
			if d.rate > 0 {
				pause += time.Duration(n) * time.Second / time.Duration(d.rate)
			}
			time.Sleep(pause)
			if _, werr := dst.Write(buf[:n]); werr != nil {
				r.mu.Lock()
				r.killLocked(w)
				r.mu.Unlock()
				return
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			_ = dst.CloseWrite()
			return
		case err != nil: // a reset goes through, too
			r.mu.Lock()
			r.killLocked(w)
			r.mu.Unlock()
			return
		}
	}
}

func (r *relay) state() damage {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.damage
}

// pass waits until a direction is open; false: the connection has ended.
func (r *relay) pass(w *wire, held func(damage) bool) (damage, bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for held(r.damage) && !w.dead {
		r.changed.Wait()
	}
	return r.damage, !w.dead
}
