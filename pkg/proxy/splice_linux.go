//go:build linux && !portable

package proxy

import (
	"io"
	"os"
	"runtime"
	"sync"
	"syscall"
	"time"
)

// spliceBound is below what moving through a pipe is not worth its while.
const spliceBound = 64 << 10

// spliceRest carries what is left of a body of known length from one socket to
// the other without it ever being in our memory. It returns how much it moved;
// done is false where that is not possible, and nothing was moved.
func (s *sender) spliceRest() (moved int64, done bool, err error) {
	c, ok := s.a.x.down.(*clientConn)
	if !ok || s.chunked || !c.raw || !s.a.conn.raw || c.r < c.n || c.left < spliceBound || c.expects.Load() {
		return 0, false, nil
	}
	p, err := takePipe()
	if err != nil {
		return 0, false, nil
	}
	defer func() {
		if err == nil {
			pipes.Put(p) // else something may be left in it
		}
	}()
	in := &spliceWait{bodyWait: bodyWait{c: c}, pipe: p}
	for c.left > 0 {
		in.room, in.n, in.err = int(min(c.left, pipeSize)), 0, nil
		c.expect(c.s.p.opts.Limits.BodyTimeout)
		err := c.await(in)
		c.relax()
		if err == nil {
			err = in.err
		}
		if moved == 0 && (err == syscall.EINVAL || err == syscall.ENOSYS) {
			return 0, false, nil // this kernel does not splice these
		}
		if err != nil {
			return moved, true, s.bodyFault(err)
		}
		if c.left -= int64(in.n); c.left == 0 {
			c.bodyOver()
		}
		moved += int64(in.n)
		if err := s.a.conn.drain(p, in.n, s.a.send); err != nil {
			return moved, true, err
		}
	}
	return moved, true, nil
}

// splicePipe is what splice goes through.
type splicePipe struct{ r, w int }

// pipeSize is what is asked for; the kernel may give less.
const pipeSize = 1 << 20

var pipes sync.Pool

func takePipe() (*splicePipe, error) {
	if p, ok := pipes.Get().(*splicePipe); ok {
		return p, nil
	}
	var fds [2]int
	if err := syscall.Pipe2(fds[:], syscall.O_CLOEXEC|syscall.O_NONBLOCK); err != nil {
		return nil, err
	}
	const setPipeSize = 1031 // F_SETPIPE_SZ
	_, _, _ = syscall.Syscall(syscall.SYS_FCNTL, uintptr(fds[0]), setPipeSize, pipeSize)
	p := &splicePipe{fds[0], fds[1]}
	// Those that the pool lets go of are closed by the collector.
	runtime.AddCleanup(p, func(fds [2]int) { syscall.Close(fds[0]); syscall.Close(fds[1]) }, fds)
	return p, nil
}

const spliceFlags = 1 | 2 // SPLICE_F_MOVE, SPLICE_F_NONBLOCK

// spliceWait waits for bytes of a body, and moves them into the pipe.
type spliceWait struct {
	bodyWait
	pipe *splicePipe
	room int
}

func (w *spliceWait) ready() bool {
	for {
		n, err := syscall.Splice(w.c.fd, nil, w.pipe.w, nil, w.room, spliceFlags)
		switch {
		case err == syscall.EINTR:
			continue
		case err == syscall.EAGAIN:
			return false
		case err != nil:
			w.err = err
		case n == 0:
			w.err = io.ErrUnexpectedEOF
		}
		w.n = int(max(n, 0))
		return true
	}
}

// drain moves n bytes from the pipe to the connection.
func (w *wire) drain(p *splicePipe, n int, patience time.Duration) error {
	return w.awaitRoom(patience, func() (progress, again bool, err error) {
		before := n
		for n > 0 {
			m, err := syscall.Splice(p.r, nil, w.fd, nil, n, spliceFlags)
			switch {
			case err == syscall.EINTR:
			case err == syscall.EAGAIN:
				return n < before, true, nil
			case err != nil:
				return false, false, os.NewSyscallError("splice", err)
			default:
				n -= int(m)
			}
		}
		return true, false, nil
	})
}
