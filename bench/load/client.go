//go:build linux

// Package load is the load generator of the benchmark: clients of one proxy on
// one epoll loop, made to cost less than any proxy. It measures what clients
// see, and tells its caller when the measured time begins and ends, so that
// the caller can measure what the proxy uses meanwhile. It refuses to know
// which proxy it loads.
package load

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"runtime"
	"time"

	"difylb/bench/wire"
)

// Target is whom to load.
type Target struct {
	Addr netip.AddrPort
	// Token goes into Authorization: Bearer.
	Token string
	// UserHeader names the user in X-User-ID as well as in the body, for
	// proxies that can't see the body. The others get a header of the same
	// length that means nothing, so that all get as many bytes.
	UserHeader bool
}

// Window is told when the measured time begins and ends; nothing is sent or
// read during the calls. Nil fields are left out.
type Window struct {
	Begin, End func()
}

func (w Window) begin() {
	if w.Begin != nil {
		w.Begin()
	}
}

func (w Window) end() {
	if w.End != nil {
		w.End()
	}
}

// ErrBroken says that so much failed that nothing was measured.
var ErrBroken = errors.New("too many failures")

const maxFailures = 1000

// client is what all loads share: connections, and the bytes to and from them.
type client struct {
	target   Target
	loop     *wire.Loop
	conns    []*conn // by descriptor
	buf      []byte
	script   script
	failures int64
	last     error // why the last of them failed
}

// conn is one connection to the proxy.
type conn struct {
	fd   int
	msg  wire.Message // the answer under way
	out  []byte       // what is still to be written, before the script's refill
	busy bool         // an answer is awaited
	want bool         // the loop watches for room to write

	number int           // of the connection, from 0
	turn   int           // requests sent
	due    time.Duration // when its request should have gone out, since the start
	left   int64         // of the file that it uploads
	event  []byte        // the beginning of an event
	opened bool          // its first event has come
}

// script decides what a client does. All calls come from the client's loop.
type script interface {
	// refill sets c.out to more of the request, or leaves it empty.
	refill(c *conn)
	// body takes a part of the answer's body.
	body(c *conn, part []byte) error
	// answered is called when the answer is complete; good says that it is a 2xx.
	answered(c *conn, good bool)
	// ready is called after answered when the connection may be used again.
	ready(c *conn) error
	// broke is called after a connection was lost; c is of no use any more.
	broke(c *conn) error
}

// run calls f with a client on a thread of its own, and closes the client.
func run(target Target, f func(*client) error) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	wire.PreciseTimers()
	loop, err := wire.NewLoop()
	if err != nil {
		return err
	}
	cl := &client{target: target, loop: loop, buf: make([]byte, 256<<10)}
	defer func() {
		for _, c := range cl.conns {
			if c != nil {
				wire.Close(c.fd)
			}
		}
		loop.Close()
	}()
	return f(cl)
}

// connect opens the connection of that number.
func (cl *client) connect(number int) (*conn, error) {
	fd, err := wire.Connect(cl.target.Addr)
	if err != nil {
		return nil, err
	}
	for fd >= len(cl.conns) {
		cl.conns = append(cl.conns, nil)
	}
	c := &conn{fd: fd, number: number}
	cl.conns[fd] = c
	return c, cl.loop.Add(fd)
}

func (cl *client) forget(c *conn) {
	cl.conns[c.fd] = nil
	wire.Close(c.fd)
}

// fail counts one failure, and gives up after too many.
func (cl *client) fail(err error) error {
	cl.failures++
	if cl.last = err; cl.failures > maxFailures {
		return fmt.Errorf("%w, the last: %w", ErrBroken, err)
	}
	return nil
}

// lost ends a connection that failed.
func (cl *client) lost(c *conn, err error) error {
	cl.forget(c)
	if c.busy {
		if err := cl.fail(err); err != nil {
			return err
		}
	}
	return cl.script.broke(c)
}

// ask sends a request, which begins with b.
func (cl *client) ask(c *conn, b []byte) error {
	c.msg.Reset()
	c.out, c.busy = b, true
	c.turn++
	return cl.write(c)
}

func (cl *client) write(c *conn) error {
	for {
		if len(c.out) == 0 {
			if cl.script.refill(c); len(c.out) == 0 {
				return cl.wantWrite(c, false)
			}
		}
		n, err := wire.Write(c.fd, c.out)
		if c.out = c.out[n:]; err == wire.ErrAgain {
			return cl.wantWrite(c, true)
		} else if err != nil {
			return cl.lost(c, fmt.Errorf("write a request: %w", err))
		}
	}
}

func (cl *client) wantWrite(c *conn, want bool) error {
	if c.want == want {
		return nil
	}
	c.want = want
	return cl.loop.WantWrite(c.fd, want)
}

// poll handles what happens within the timeout.
func (cl *client) poll(ctx context.Context, timeout time.Duration) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	// Even an end of ctx that nobody wakes us for must be noticed.
	events, err := cl.loop.Wait(min(max(timeout, 0), 100*time.Millisecond))
	if err != nil {
		return err
	}
	for _, e := range events {
		c := cl.conns[e.FD]
		if c != nil && e.Readable {
			if err := cl.read(c); err != nil {
				return err
			}
			c = cl.conns[e.FD] // reading may have lost it
		}
		if c != nil && e.Writable && c.want {
			if err := cl.write(c); err != nil {
				return err
			}
		}
	}
	return nil
}

func (cl *client) read(c *conn) error {
	n, err := wire.Read(c.fd, cl.buf)
	if err == wire.ErrAgain {
		return nil
	} else if err != nil {
		return cl.lost(c, fmt.Errorf("read an answer: %w", err))
	}
	for b := cl.buf[:n]; len(b) > 0; {
		var part []byte
		if !c.busy {
			err = errors.New("unasked for")
		} else if n, part, err = c.msg.Next(b); err == nil && len(part) > 0 {
			err = cl.script.body(c, part)
		}
		if err != nil {
			c.busy = true // so that it counts
			return cl.lost(c, fmt.Errorf("bytes from the proxy %.100q: %w", b, err))
		}
		if b = b[n:]; c.msg.Done() {
			if err := cl.finish(c); err != nil || cl.conns[c.fd] != c {
				return err
			}
		}
	}
	return nil
}

// finish hands over a complete answer, and the connection if it may go on.
func (cl *client) finish(c *conn) error {
	status := c.msg.Status()
	good := status >= 200 && status <= 299
	if !good {
		if err := cl.fail(fmt.Errorf("answered %.300q", c.msg.Head())); err != nil {
			return err
		}
	}
	early := len(c.out) > 0 || c.left > 0 // before the request was whole
	c.busy = false
	cl.script.answered(c, good)
	if c.msg.Close || early {
		return cl.lost(c, nil)
	}
	return cl.script.ready(c)
}
