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
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/userid"
)

// memoryBound is how much of a body is kept in memory: all of it while it is
// scanned for the user id (what goes beyond is spooled to a file), and as much
// as is needed to send it a second time when the first instance fails.
const memoryBound = 64 << 10

// body is a client's request body. It hands out readers that begin at the
// first byte, one after the other, for as long as all that was read is kept.
//
// An attempt that has failed may leave http.Transport still reading: reads of
// the client are therefore made without the lock, one at a time, and what such
// a read brings is kept for the next reader like any other.
type body struct {
	src      io.Reader
	declared int64 // Content-Length, -1 when chunked
	limit    int64
	dir      string
	deadline func(time.Time) // sets the read deadline of the client; the zero time is none
	timeout  time.Duration

	mu      sync.Mutex // guards all below; never held over a read of src
	idle    sync.Cond  // on mu: reading has become 0
	reading int        // size of the buffer that a read of src fills now; 0: no read
	mem     []byte     // the first bytes; never changed, only appended to
	file    *os.File   // those after mem; unlinked
	kept    int64      // how many bytes mem and file hold
	read    int64      // how many have come from src
	eof     bool
	closed  bool
	err     *bodyError // why src can't be read further
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
	if b.declared > b.limit {
		return b.tooLarge()
	}
	return nil
}

// fillLocked reads from the client into p, behind any read that is under way. Callers
// hold mu, which it gives up meanwhile.
func (b *body) fillLocked(p []byte) (int, error) {
	for b.reading > 0 {
		b.idle.Wait()
	}
	switch {
	case b.closed:
		return 0, errReaderClosed
	case b.err != nil:
		return 0, b.err
	case b.eof:
		return 0, io.EOF
	}
	b.reading = len(p)
	b.mu.Unlock()
	b.deadline(time.Now().Add(b.timeout))
	n, err := b.src.Read(p)
	b.deadline(time.Time{}) // it must not end the wait for the answer
	b.mu.Lock()
	b.reading = 0
	b.idle.Broadcast()
	b.read += int64(n)
	switch {
	case b.read > b.limit:
		b.err = b.tooLarge()
		return 0, b.err
	case err == io.EOF:
		b.eof = true
	case err != nil:
		b.err = readFault(err)
		err = b.err
	}
	return n, err
}

func readFault(err error) *bodyError {
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return &bodyError{lb.ReasonRequestTimeout, "the request body came too slowly"}
	case errors.Is(err, io.ErrUnexpectedEOF):
		return &bodyError{lb.ReasonBadRequest, "the request body ended before its declared length"}
	case errors.Is(err, syscall.ECONNRESET), errors.Is(err, net.ErrClosed):
		return &bodyError{lb.ReasonClientGone, "the client went away"}
	}
	return &bodyError{lb.ReasonBadRequest, "the request body can't be read: it is malformed or the connection broke"}
}

// scan reads as far as the scanner needs to decide, keeping everything. Memory
// grows with what has come, not with what was declared.
func (b *body) scan(s *userid.Scanner) (userid.Verdict, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
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
		n, err := b.fillLocked(p)
		if n > 0 {
			if kerr := b.keepLocked(p[:n]); kerr != nil {
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

// keepLocked appends to what is kept: to memory up to the bound, where p may
// stand already, to a file beyond.
func (b *body) keepLocked(p []byte) error {
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

// replayable reports whether a reader may begin again: nothing was let go, and
// a read that is still under way for an earlier reader can't change that.
func (b *body) replayable() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.kept == b.read && b.err == nil && (b.reading == 0 || b.kept+int64(b.reading) <= memoryBound)
}

// whole reports whether all of the body has come and is kept.
func (b *body) whole() bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.eof && b.kept == b.read && b.err == nil
}

// fault returns why the client's body can't be read, nil while it can.
func (b *body) fault() *bodyError {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.err
}

// bytesRead returns how much has come from the client.
func (b *body) bytesRead() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.read
}

// length returns the body's length if it is known, else -1.
func (b *body) length() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.declared >= 0 {
		return b.declared
	}
	if b.eof && b.err == nil {
		return b.read
	}
	return -1
}

// bytes returns the whole of a body that is in memory to its end. It is not to
// be changed.
func (b *body) bytes() []byte {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.mem
}

// close ends reading, also a read under way, and lets go of the file. It
// returns when nobody touches the client's connection any more.
func (b *body) close() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.closed = true
	for b.reading > 0 {
		// Again and again, because the read may be about to set its own.
		b.mu.Unlock()
		b.deadline(aLongTimeAgo)
		time.Sleep(100 * time.Microsecond)
		b.mu.Lock()
	}
	if b.file != nil {
		b.file.Close()
		b.file = nil
	}
}

var aLongTimeAgo = time.Unix(1, 0)

// reader returns a reader from the first byte on. Only for a replayable body,
// and only after the previous reader was closed.
func (b *body) reader() *bodyReader { return &bodyReader{b: b} }

// bodyReader is one pass over a body. Read and Close may be called from
// different goroutines, as http.Transport does.
type bodyReader struct {
	b      *body
	off    int64
	closed bool // guarded by b.mu
}

var (
	errReaderClosed  = errors.New("request body reader is closed")
	errNotReplayable = errors.New("request body was not kept")
)

func (r *bodyReader) Read(p []byte) (int, error) {
	b := r.b
	b.mu.Lock()
	defer b.mu.Unlock()
	for !r.closed && !b.closed && b.reading > 0 {
		b.idle.Wait() // for what the reader before this one has begun
	}
	switch {
	case r.closed || b.closed:
		return 0, errReaderClosed
	case len(p) == 0:
		return 0, nil
	case r.off < int64(len(b.mem)):
		n := copy(p, b.mem[r.off:])
		r.off += int64(n)
		return n, nil
	case b.file != nil && r.off < b.kept:
		n, err := b.file.ReadAt(p[:min(int64(len(p)), b.kept-r.off)], r.off-int64(len(b.mem)))
		r.off += int64(n)
		if n > 0 {
			err = nil
		}
		return n, err
	case r.off < b.read:
		return 0, errNotReplayable
	}
	n, err := b.fillLocked(p)
	// What comes now is kept as well while it is little and nothing was let go.
	if n > 0 && b.kept == b.read-int64(n) && b.file == nil && b.read <= memoryBound {
		b.mem = append(b.mem, p[:n]...)
		b.kept = b.read
	}
	r.off += int64(n)
	return n, err
}

func (r *bodyReader) Close() error {
	r.b.mu.Lock()
	defer r.b.mu.Unlock()
	r.closed = true
	return nil
}

var bufferPool = sync.Pool{New: func() any { b := make([]byte, 32<<10); return &b }}

// eventPool is for streams: events are small, and a stream lives long.
var eventPool = sync.Pool{New: func() any { b := make([]byte, 4<<10); return &b }}

func getBuffer() *[]byte  { return bufferPool.Get().(*[]byte) }
func putBuffer(b *[]byte) { bufferPool.Put(b) }
