package standin

import (
	"context"
	"net"
	"strings"
	"sync"
	"time"
)

// gate is a listener that hands out no more connections than there are slots. A
// connection gives its slot back when it is closed. Without control connections
// the rest stay in the kernel's backlog, as those of gunicorn do; with them, the
// gate has to take connections to see what they are, and keeps the others
// waiting, in order and unanswered, which looks the same from outside.
type gate struct {
	net.Listener
	slots  chan struct{} // one element per slot taken; nil: no limit
	peeks  bool          // control connections pass
	ready  chan net.Conn // from run to Accept, if peeks
	done   chan struct{} // closed by Close
	counts *counters

	mu    sync.Mutex
	conns map[*slotConn]struct{} // guarded by mu; nil after Close
}

func newGate(ln net.Listener, slots int, peeks bool, counts *counters) *gate {
	g := &gate{Listener: ln, peeks: peeks && slots > 0, ready: make(chan net.Conn), done: make(chan struct{}), counts: counts, conns: make(map[*slotConn]struct{})}
	if slots > 0 {
		g.slots = make(chan struct{}, slots)
	}
	return g
}

// Accept returns the next connection that has a slot, or is a control connection.
func (g *gate) Accept() (net.Conn, error) {
	if g.peeks {
		select {
		case c := <-g.ready:
			return c, nil
		case <-g.done:
			return nil, net.ErrClosed
		}
	}
	if g.slots != nil {
		select {
		case g.slots <- struct{}{}:
		case <-g.done:
			return nil, net.ErrClosed
		}
	}
	nc, err := g.Listener.Accept()
	if err != nil {
		if g.slots != nil {
			<-g.slots
		}
		return nil, err
	}
	c := g.adopt(nc)
	c.slot = g.slots != nil
	return c, nil
}

// run takes connections and sorts them, if control connections may pass; else there
// is nothing to do for it. It returns when ctx is done or the listener is closed, with
// all waiting connections dealt with.
func (g *gate) run(ctx context.Context) {
	if !g.peeks {
		return
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		nc, err := g.Listener.Accept()
		if err != nil {
			if ctx.Err() != nil {
				return
			}
			select {
			case <-g.done:
				return
			case <-time.After(10 * time.Millisecond): // out of descriptors, say
				continue
			}
		}
		c := g.adopt(nc)
		select {
		case g.slots <- struct{}{}:
			c.slot = true
			g.pass(c)
		default:
			wg.Go(func() { g.park(c) })
		}
	}
}

// park keeps a connection until it gets a slot or turns out to be a control connection.
func (g *gate) park(c *slotConn) {
	control := make(chan bool, 1)
	go func() { control <- c.isControl() }()
	select {
	case g.slots <- struct{}{}:
		c.slot = true
		c.SetReadDeadline(time.Unix(1, 0))
		<-control
		c.SetReadDeadline(time.Time{})
	case is := <-control:
		if !is {
			select {
			case g.slots <- struct{}{}:
				c.slot = true
			case <-g.done:
				c.Close()
				return
			}
		}
	case <-g.done:
		c.Close()
		<-control
		return
	}
	g.pass(c)
}

func (g *gate) pass(c *slotConn) {
	select {
	case g.ready <- c:
	case <-g.done:
		c.Close()
	}
}

func (g *gate) adopt(nc net.Conn) *slotConn {
	c := &slotConn{Conn: nc, gate: g}
	g.counts.connection(+1)
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.conns == nil {
		nc.Close()
	} else {
		g.conns[c] = struct{}{}
	}
	return c
}

// Close closes the listener and every connection, those of hijackers included.
func (g *gate) Close() error {
	g.mu.Lock()
	conns := g.conns
	g.conns = nil
	g.mu.Unlock()
	if conns == nil {
		return nil
	}
	close(g.done)
	err := g.Listener.Close()
	for c := range conns {
		c.Conn.Close()
	}
	return err
}

// slotConn is a connection that may hold a slot.
type slotConn struct {
	net.Conn
	gate  *gate
	slot  bool // set before the connection is handed out
	close sync.Once
	head  []byte // read by isControl, not yet by Read
}

func (c *slotConn) Read(p []byte) (int, error) {
	if len(c.head) > 0 {
		n := copy(p, c.head)
		c.head = c.head[n:]
		return n, nil
	}
	return c.Conn.Read(p)
}

// Close closes the connection and gives its slot back, once.
func (c *slotConn) Close() error {
	err := net.ErrClosed
	c.close.Do(func() {
		err = c.Conn.Close()
		c.gate.mu.Lock()
		delete(c.gate.conns, c)
		c.gate.mu.Unlock()
		c.gate.counts.connection(-1)
		if c.slot {
			<-c.gate.slots
		}
	})
	return err
}

// CloseWrite lets net/http end an answer without cutting off what it has not read.
func (c *slotConn) CloseWrite() error {
	if tcp, ok := c.Conn.(interface{ CloseWrite() error }); ok {
		return tcp.CloseWrite()
	}
	return nil
}

// SetLinger is what a reset needs.
func (c *slotConn) SetLinger(sec int) error {
	if tcp, ok := c.Conn.(interface{ SetLinger(int) error }); ok {
		return tcp.SetLinger(sec)
	}
	return nil
}

var controlStarts = []string{"GET " + controlPrefix, "POST " + controlPrefix}

// isControl reads as much as it takes to tell whether the connection begins with a
// control request. What it read comes again from Read.
func (c *slotConn) isControl() bool {
	buf := make([]byte, 32)
	for {
		open := false
		for _, start := range controlStarts {
			if strings.HasPrefix(string(c.head), start) {
				return true
			}
			open = open || strings.HasPrefix(start, string(c.head))
		}
		if !open {
			return false
		}
		n, err := c.Conn.Read(buf)
		c.head = append(c.head, buf[:n]...)
		if err != nil {
			return false
		}
	}
}
