package proxy

import (
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"sync"
	"syscall"

	"difylb/pkg/lb"
	"difylb/pkg/userid"
)

// memoryBound is how much of a body is kept in memory: all of it while it is
// scanned for the user id (what goes beyond is spooled to a file), and as much
// as is needed to send it a second time when the first instance fails.
const memoryBound = 64 << 10

// body is a client's request body: what of it was read and kept, and where the
// rest comes from. It can be sent from its first byte for as long as all that
// was read is kept. It has one owner at a time: the exchange, or the sender
// that carries it to an instance.
type body struct {
	src      bodySource // nil where the body came with its head: all of it is in mem
	declared int64      // Content-Length, -1 when chunked
	limit    int64
	dir      string

	mem  []byte   // the first bytes; never changed, only appended to
	file *os.File // those after mem; unlinked
	kept int64    // how many bytes mem and file hold
	read int64    // how many have come from src
	eof  bool
	err  *bodyError // why src can't be read further
	lost bool       // src was let go of: what had not come never will
}

// bodySource is where a request's body comes from: its client's connection.
type bodySource interface {
	// readBody reads data of the body, decoded. It waits for the client as long
	// as that may take, and returns io.EOF at the end.
	readBody(p []byte) (int, error)
}

// bodyError is a fault of the client's body.
type bodyError struct {
	reason  lb.Reason
	message string
}

func (e *bodyError) Error() string { return e.message }

func (b *body) tooLarge() *bodyError {
	return &bodyError{lb.ReasonTooLarge, fmt.Sprintf("the request body is larger than %s", lb.Size(b.limit))}
}

// checkDeclared refuses a body by its Content-Length, before a byte is read.
func (b *body) checkDeclared() error {
	if b.declared > b.limit || b.read > b.limit {
		b.err = b.tooLarge()
		return b.err
	}
	return nil
}

// fill reads from the client into p.
func (b *body) fill(p []byte) (int, error) {
	switch {
	case b.err != nil:
		return 0, b.err
	case b.eof:
		return 0, io.EOF
	}
	n, err := b.src.readBody(p)
	return n, b.took(n, err)
}

// took accounts for n bytes that were read.
func (b *body) took(n int, err error) error {
	b.read += int64(n)
	switch {
	case b.read > b.limit:
		b.err = b.tooLarge()
		return b.err
	case err == io.EOF:
		b.eof = true
	case err == errBodyLost:
		b.lost = true
	case err != nil && err != errSenderStopped:
		b.err = readFault(err)
		return b.err
	}
	return err
}

func readFault(err error) *bodyError {
	var fault *bodyError
	var network net.Error
	switch {
	case errors.As(err, &fault):
		return fault
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &bodyError{lb.ReasonRequestTimeout, "the request body came too slowly"}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return &bodyError{lb.ReasonBadRequest, "the request body ended before its declared length"}
	case errors.Is(err, net.ErrClosed), errors.Is(err, errClientGone), errors.As(err, &network), isErrno(err):
		return &bodyError{lb.ReasonClientGone, "the client went away"}
	}
	return &bodyError{lb.ReasonBadRequest, "the request body is malformed: " + err.Error()}
}

func isErrno(err error) bool {
	var errno syscall.Errno
	return errors.As(err, &errno)
}

// scan reads until the scanner needs no more, keeping everything. Memory
// grows with what has come, not with what was declared.
func (b *body) scan(s *userid.Scanner) (userid.Verdict, error) {
	if len(b.mem) > 0 {
		verdict, err := s.Write(b.mem)
		if err != nil || verdict != userid.More {
			return verdict, err
		}
	}
	if b.eof {
		return s.Finish()
	}
	var spool *[]byte
	defer func() {
		if spool != nil {
			putBuffer(spool)
		}
	}()
	for {
		var p []byte
		if len(b.mem) < memoryBound {
			b.mem = slices.Grow(b.mem, b.growth())
			p = b.mem[len(b.mem):min(cap(b.mem), memoryBound)]
		} else {
			if spool == nil {
				spool = getBuffer()
			}
			p = *spool
		}
		n, err := b.fill(p)
		if n > 0 {
			if kerr := b.keep(p[:n]); kerr != nil {
				return userid.More, kerr
			}
			verdict, serr := s.Write(p[:n])
			if serr != nil || verdict != userid.More {
				return verdict, serr
			}
		}
		if err == io.EOF {
			return s.Finish()
		}
		if err != nil {
			return userid.More, err
		}
	}
}

// growth returns by how much mem is to grow for the next read.
func (b *body) growth() int {
	if len(b.mem) > 0 {
		return len(b.mem)
	}
	if b.declared > 0 {
		return int(min(b.declared+1, 4<<10))
	}
	return 1 << 10
}

// keep appends to what is kept: to memory up to the bound, where p may stand
// already, to a file beyond.
func (b *body) keep(p []byte) error {
	if b.file == nil && len(b.mem)+len(p) <= memoryBound {
		b.mem = append(b.mem, p...)
		b.kept += int64(len(p))
		return nil
	}
	if b.file == nil {
		f, err := os.CreateTemp(b.dir, "difylb-body-")
		if err != nil {
			return fmt.Errorf("spool request body: %w", err)
		}
		os.Remove(f.Name()) // lives on while it is open, vanishes with the process
		b.file = f
	}
	n, err := b.file.Write(p)
	b.kept += int64(n)
	if err != nil {
		return fmt.Errorf("spool request body: %w", err)
	}
	return nil
}

// replayable reports whether it can be sent from its first byte.
func (b *body) replayable() bool { return b.kept == b.read && b.err == nil && !b.lost }

// whole reports whether all of the body has come and is kept.
func (b *body) whole() bool { return b.eof && b.replayable() }

// inMemory reports whether all of it can be sent at once.
func (b *body) inMemory() bool { return b.whole() && b.file == nil }

// length returns the body's length if it is known, else -1.
func (b *body) length() int64 {
	if b.declared >= 0 {
		return b.declared
	}
	if b.eof && b.err == nil {
		return b.read
	}
	return -1
}

// next reads what follows the first off bytes: what is kept, then what comes
// from the client. What comes is kept as well while it is little and nothing
// was let go.
func (b *body) next(p []byte, off int64) (int, error) {
	switch {
	case off < int64(len(b.mem)):
		return copy(p, b.mem[off:]), nil
	case b.file != nil && off < b.kept:
		n, err := b.file.ReadAt(p[:min(int64(len(p)), b.kept-off)], off-int64(len(b.mem)))
		if n > 0 {
			err = nil
		}
		return n, err
	}
	n, err := b.fill(p)
	if n > 0 && b.kept == b.read-int64(n) && b.file == nil && b.read <= memoryBound {
		b.mem = append(b.mem, p[:n]...)
		b.kept = b.read
	}
	return n, err
}

// close lets go of the file.
func (b *body) close() {
	if b.file != nil {
		b.file.Close()
		b.file = nil
	}
}

var bufferPool = sync.Pool{New: func() any { b := make([]byte, bufferSize); return &b }}

// bufferSize is what is read at once, of a client or an instance.
const bufferSize = 16 << 10

func getBuffer() *[]byte  { return bufferPool.Get().(*[]byte) }
func putBuffer(b *[]byte) { bufferPool.Put(b) }
