//go:build linux

// Package instance plays the Dify instances of the benchmark: one epoll loop
// that serves several ports and costs less than any proxy in front of it. It
// answers blocking calls, streams events, and swallows uploads. It refuses to
// know Dify beyond the shape and size of what goes over the wire; pkg/standin
// is the one that behaves like Dify.
package instance

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"runtime"
	"strconv"
	"strings"
	"time"

	"difylb/bench/wire"
)

// AnswerSize is the length of the body of a blocking answer in bytes.
const AnswerSize = 600

const (
	tick      = time.Millisecond
	wheelSize = 4096 // ticks; a stream's interval must be shorter
	slack     = 1 << 20
)

// Server serves what all instances have to say. Make one with New.
type Server struct {
	addrs     []netip.AddrPort
	loop      *wire.Loop
	listeners map[int]bool
	conns     []*conn // by descriptor

	// The streams, in the tick at which their next event is due, so that the
	// events of many streams are spread over time as those of many users are.
	wheel   [wheelSize][]*conn
	start   time.Time
	ticks   int64 // done
	streams int   // in the wheel
	begun   int64 // streams ever

	answers int64 // numbers the tasks of blocking answers

	buf    []byte
	answer []byte // to a blocking call, with its head
	chunk  []byte // one event, in its chunk
}

// conn is one connection from a proxy. Owned by the loop.
type conn struct {
	fd       int
	msg      wire.Message
	verdict  kind
	interval int64  // ticks between events; 0 is no stream
	task     int64  // numbers the stream
	out      []byte // what the socket had no room for
	closed   bool
}

// kind is what a request asks for.
type kind uint8

const (
	blocking kind = iota
	stream
	upload
)

// New listens at ports instances on 127.0.0.1, on ports that are free.
func New(ports int) (*Server, error) {
	loop, err := wire.NewLoop()
	if err != nil {
		return nil, err
	}
	s := &Server{loop: loop, listeners: make(map[int]bool), buf: make([]byte, 256<<10)}
	s.answer = []byte(answerHead + answerBody())
	s.chunk = []byte(fmt.Sprintf("%x\r\n%s\r\n", EventSize, eventTemplate))
	for range ports {
		fd, at, err := wire.Listen(netip.MustParseAddrPort("127.0.0.1:0"))
		if err != nil {
			s.closeAll()
			return nil, err
		}
		s.listeners[fd] = true
		s.addrs = append(s.addrs, at)
		if err := loop.Add(fd); err != nil {
			s.closeAll()
			return nil, err
		}
	}
	return s, nil
}

// Addrs returns where it listens, one address for each instance.
func (s *Server) Addrs() []netip.AddrPort { return s.addrs }

// Run serves until ctx ends, and then closes everything. It occupies a thread.
func (s *Server) Run(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	wire.PreciseTimers()
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { defer close(woken); s.loop.Wake() })
	defer func() {
		if !stop() {
			<-woken
		}
		s.closeAll()
	}()
	s.start = time.Now()
	for ctx.Err() == nil {
		timeout := time.Duration(-1)
		if s.streams > 0 {
			timeout = max(0, time.Until(s.start.Add(time.Duration(s.ticks+1)*tick)))
		}
		events, err := s.loop.Wait(timeout)
		if err != nil {
			return err
		}
		for _, e := range events {
			if err := s.handle(e); err != nil {
				return err
			}
		}
		s.sendDue()
	}
	return nil
}

func (s *Server) closeAll() {
	for _, c := range s.conns {
		if c != nil {
			s.close(c)
		}
	}
	for fd := range s.listeners {
		wire.Close(fd)
	}
	s.loop.Close()
}

func (s *Server) handle(e wire.Event) error {
	if s.listeners[e.FD] {
		return s.accept(e.FD)
	}
	c := s.conns[e.FD]
	if c == nil {
		return nil
	}
	if e.Writable {
		s.flush(c)
	}
	if e.Readable && !c.closed {
		s.read(c)
	}
	return nil
}

func (s *Server) accept(listener int) error {
	for {
		fd, err := wire.Accept(listener)
		if err == wire.ErrAgain {
			return nil
		} else if err != nil {
			return err
		}
		for fd >= len(s.conns) {
			s.conns = append(s.conns, nil)
		}
		s.conns[fd] = &conn{fd: fd}
		if err := s.loop.Add(fd); err != nil {
			return err
		}
	}
}

func (s *Server) close(c *conn) {
	c.closed = true
	s.conns[c.fd] = nil
	wire.Close(c.fd)
}

func (s *Server) read(c *conn) {
	if left := c.msg.Left(); c.verdict == upload && left > 0 {
		n, err := wire.Discard(c.fd, int(min(left, slack)))
		if err == nil {
			c.msg.Skip(int64(n))
		} else if err != wire.ErrAgain {
			s.close(c)
			return
		}
		s.answerIfDone(c)
		return
	}
	n, err := wire.Read(c.fd, s.buf)
	switch {
	case err == wire.ErrAgain:
		return
	case err != nil:
		s.close(c)
		return
	}
	for b := s.buf[:n]; len(b) > 0 && !c.closed; {
		headed := c.msg.Headed()
		n, body, err := c.msg.Next(b)
		if err != nil {
			s.close(c)
			return
		}
		b = b[n:]
		if !headed && c.msg.Headed() {
			c.verdict = classify(c.msg.Head())
		}
		if c.verdict == stream && len(body) > 0 {
			c.interval = interval(body, c.interval)
		}
		s.answerIfDone(c)
	}
}

func classify(head []byte) kind {
	switch {
	case bytes.HasPrefix(head, []byte("POST /v1/completion-messages")):
		return stream
	case bytes.HasPrefix(head, []byte("POST /v1/files/upload")):
		return upload
	}
	return blocking
}

// interval reads the field interval_ms of a request for a stream. It need not
// be found where the body comes in pieces: then the usual pace holds.
func interval(body []byte, old int64) int64 {
	_, rest, found := bytes.Cut(body, []byte(`"interval_ms":`))
	if !found {
		return max(old, 30)
	}
	end := bytes.IndexAny(rest, ",}")
	n, err := strconv.ParseInt(string(rest[:max(end, 0)]), 10, 64)
	if err != nil {
		return 30
	}
	return min(max(n, 1), wheelSize-1)
}

var (
	answerHead = "HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: application/json\r\nContent-Length: " + strconv.Itoa(AnswerSize) + "\r\n\r\n"
	created    = []byte("HTTP/1.1 201 CREATED\r\nServer: bench\r\nContent-Type: application/json\r\nContent-Length: 45\r\n\r\n" +
		`{"id":"7f4d8f0c-2f3a-4a9e-9a57-3a52b0b6e1aa"}`)
	streamHead = []byte("HTTP/1.1 200 OK\r\nServer: bench\r\nContent-Type: text/event-stream; charset=utf-8\r\nCache-Control: no-cache\r\nTransfer-Encoding: chunked\r\n\r\n")
)

// answerBody is a blocking answer of Dify's chat, filled up to AnswerSize.
func answerBody() string {
	const start = `{"event":"message","task_id":"0f8fad5b-d9cb-469f-a165-70867728950e","id":"5ad4cb98-f0c7-4085-b384-88c403be6290",` +
		`"message_id":"5ad4cb98-f0c7-4085-b384-88c403be6290","conversation_id":"45701982-8118-4bc5-8e9b-64562b4555f2","mode":"chat","answer":"`
	const end = `","metadata":{"usage":{"prompt_tokens":33,"completion_tokens":135,"total_tokens":168,"latency":0.1}},"created_at":1705407629}`
	return start + strings.Repeat("x", AnswerSize-len(start)-len(end)) + end
}

// answerIfDone answers a request that has come whole.
func (s *Server) answerIfDone(c *conn) {
	if !c.msg.Done() || c.closed {
		return
	}
	c.msg.Reset()
	switch c.verdict {
	case blocking:
		s.answers++
		stampTask(s.answer[len(answerHead)+taskAt:], s.answers)
		s.send(c, s.answer)
	case upload:
		s.send(c, created)
	case stream:
		s.begun++
		c.task = s.begun
		if s.streams == 0 { // the wheel stood still
			s.ticks = int64(time.Since(s.start) / tick)
		}
		s.streams++
		s.send(c, streamHead)
		s.sendEvent(c)
		// The second events of streams that begin together are spread over one interval.
		s.schedule(c, s.ticks+1+s.begun%c.interval)
	}
}

func (s *Server) schedule(c *conn, at int64) {
	s.wheel[at%wheelSize] = append(s.wheel[at%wheelSize], c)
}

// sendDue sends the events of all ticks that have passed.
func (s *Server) sendDue() {
	for now := time.Now(); s.streams > 0 && s.start.Add(time.Duration(s.ticks+1)*tick).Before(now); {
		s.ticks++
		slot := &s.wheel[s.ticks%wheelSize]
		due := *slot
		*slot = due[:0] // 0 < interval < wheelSize: nobody comes back to this slot now
		for _, c := range due {
			if c.closed {
				s.streams--
				continue
			}
			s.sendEvent(c)
			s.schedule(c, s.ticks+c.interval)
		}
	}
}

func (s *Server) sendEvent(c *conn) {
	event := s.chunk[len("c8\r\n"):]
	stampTask(event[len("data: ")+taskAt:], c.task)
	stampEvent(event, time.Now().UnixNano())
	s.send(c, s.chunk)
}

// send writes b, now or as soon as the socket takes it.
func (s *Server) send(c *conn, b []byte) {
	if c.closed {
		return
	}
	if len(c.out) == 0 {
		n, err := wire.Write(c.fd, b)
		if err != nil && err != wire.ErrAgain {
			s.close(c)
			return
		}
		if b = b[n:]; len(b) == 0 {
			return
		}
		if err := s.loop.WantWrite(c.fd, true); err != nil {
			s.close(c)
			return
		}
	}
	if c.out = append(c.out, b...); len(c.out) > slack {
		s.close(c) // nobody reads any more
	}
}

func (s *Server) flush(c *conn) {
	if len(c.out) == 0 {
		return
	}
	n, err := wire.Write(c.fd, c.out)
	if err != nil && err != wire.ErrAgain {
		s.close(c)
		return
	}
	if c.out = c.out[n:]; len(c.out) > 0 {
		return
	}
	c.out = nil
	if err := s.loop.WantWrite(c.fd, false); err != nil {
		s.close(c)
	}
}
