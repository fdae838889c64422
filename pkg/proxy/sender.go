package proxy

import (
	"errors"
	"io"
	"sync/atomic"

	"difylb/pkg/h1"
)

// writeRequest writes the request, and reports whether it could. A body that
// has not come whole is carried by a sender from here on.
func (a *attempt) writeRequest() bool {
	x, b := a.x, a.x.body
	buf := getBuffer()
	defer putBuffer(buf)
	h := &a.out
	h.Buf, h.Err = (*buf)[:0], nil
	x.appendRequestHead(h, &a.to)
	trailers := b != nil && b.declared < 0 && x.req.Has(h1.Trailer)
	length := int64(-1)
	if b != nil {
		length = b.length()
	} else if x.req.Body == h1.BodyLength {
		length = 0
	}
	switch {
	case length >= 0 && !trailers:
		h.FieldInt("Content-Length", length)
	case b != nil:
		h.Field("Transfer-Encoding", "chunked")
		length = -1
	}
	if trailers {
		announceTrailer(h, x.req.Fields, bytesOf(x.msg))
	}
	h.End()
	if a.err = h.Err; a.err != nil {
		return false
	}
	atOnce := b != nil && b.inMemory() && !trailers
	if atOnce && len(b.mem) <= cap(h.Buf)-len(h.Buf) {
		h.Buf = append(h.Buf, b.mem...)
		atOnce = false
	} else if b != nil && !atOnce {
		defer a.startSender(length < 0)
	}
	n, err := a.write(h.Buf)
	if err == nil && atOnce {
		_, err = a.write(b.mem)
	}
	a.begun = a.begun || n > 0
	h.Buf = nil
	if err != nil {
		a.err = err
		if a.begun { // it may have answered before it closed
			a.err = nil
		}
		return false
	}
	if a.wrote = b == nil || b.inMemory() && !trailers; len(a.unsent) > 0 {
		a.wrote = false
		x.leave(fromWrite)
	}
	return true
}

// write writes to the instance. While riding it does not wait, and keeps what is left.
func (a *attempt) write(p []byte) (n int, err error) {
	if !a.x.riding() {
		return a.conn.write(p, a.send)
	}
	if len(a.unsent) == 0 {
		n, err = a.conn.writeRaw(p)
	}
	if len(a.unsent) > 0 || err == errAgain {
		a.unsent, err = append(a.unsent, p[n:]...), nil
	}
	return n, err
}

// writeRest writes what the instance did not take at once, and waits for its answer.
func (a *attempt) writeRest() {
	p := a.unsent
	a.unsent = nil
	n, err := a.conn.writeSlowly(p, a.send)
	a.begun = a.begun || n > 0
	if a.wrote = err == nil; err != nil && !a.begun {
		a.err = err
		return
	}
	a.wait() // it may have answered before it closed
}

// sender carries a request's body to an instance while the attempt waits for
// its answer, which may come first.
type sender struct {
	a       *attempt
	chunked bool
	done    chan struct{}
	over    atomic.Bool // it does nothing more
	failed  atomic.Bool // for err
	err     error       // errBody, or errUpstreamTimeout; read it behind failed
	wrote   bool        // the whole body; read it behind done
}

func (a *attempt) startSender(chunked bool) {
	if a.err != nil {
		return
	}
	a.sender = &sender{a: a, chunked: chunked, done: make(chan struct{})}
	go a.sender.run() // ended by stopSender at the latest
}

// stopSender ends the sender, if there is one, and waits for it. The body is
// the exchange's again.
func (a *attempt) stopSender() {
	s := a.sender
	if s == nil {
		return
	}
	a.sender = nil
	if !s.over.Load() {
		a.x.down.stopReading(true)
		a.conn.cutOff()
		<-s.done
		a.x.down.stopReading(false)
	}
	<-s.done
	a.wrote = s.wrote && a.conn.cut.Load() == 0
}

func (s *sender) run() {
	a := s.a
	defer close(s.done)
	err := s.carry()
	if errors.Is(err, errDeadline) {
		err = errUpstreamTimeout // it takes nothing of the request
	}
	s.err = err
	s.failed.Store(err == errBody || err == errUpstreamTimeout)
	s.over.Store(true)
	if s.failed.Load() {
		a.conn.interrupt()
	} else {
		// From here on the instance has the word. It may also have closed, and
		// answered before.
		a.conn.expect(a.read)
	}
}

func (s *sender) carry() error {
	a, b := s.a, s.a.x.body
	buf := getBuffer()
	defer putBuffer(buf)
	const room = 8 // for the size of a chunk, and CRLF behind its data
	for off := int64(0); ; {
		if off == b.read && off >= b.kept && !b.eof {
			if moved, done, err := s.spliceRest(); done {
				if b.read += moved; err == nil {
					b.eof, s.wrote = true, true
				}
				return err
			}
		}
		p := (*buf)[room : len(*buf)-room]
		n, err := b.next(p, off)
		if n > 0 {
			off += int64(n)
			piece := p[:n]
			if s.chunked {
				piece = frame(*buf, room, n)
			}
			if _, werr := a.conn.write(piece, a.send); werr != nil {
				return werr
			}
		}
		switch {
		case err == io.EOF:
			if s.chunked {
				if err := s.carryEnd((*buf)[:0]); err != nil {
					return err
				}
			}
			s.wrote = true
			return nil
		case err == errSenderStopped, err == errBodyLost:
			return err
		case err != nil:
			return errBody
		}
	}
}

// bodyFault notes why the client's body can't be read further.
func (s *sender) bodyFault(err error) error {
	if err == errSenderStopped {
		return err
	}
	s.a.x.body.err = readFault(err)
	return errBody
}

// frame makes a chunk of n bytes of data that stand at buf[at:].
func frame(buf []byte, at, n int) []byte {
	var size [8]byte
	head := h1.AppendChunkHeader(size[:0], n)
	copy(buf[at-len(head):], head)
	end := at + n + copy(buf[at+n:], h1.CRLF)
	return buf[at-len(head) : end]
}

// carryEnd writes the end of a chunked body.
func (s *sender) carryEnd(buf []byte) error {
	h := h1.Head{Buf: buf}
	fields, src := s.a.x.down.trailer()
	endChunks(&h, fields, src)
	_, err := s.a.conn.write(h.Buf, s.a.send)
	return err
}
