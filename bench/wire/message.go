//go:build linux

package wire

import (
	"bytes"
	"errors"
	"fmt"
	"strconv"
)

// Message finds the parts of one HTTP/1.1 message in a stream of bytes that
// arrives in pieces. The zero value is ready for a message; Reset makes it
// ready for the next.
type Message struct {
	// Close says that the sender asked for the connection to be closed after
	// this message. Valid once Headed.
	Close bool

	head    []byte // with the empty line, once Headed
	state   state
	left    int64  // bytes of the body, or of its chunk, still to come
	line    []byte // of a chunk's size or a trailer, as far as it came
	chunked bool
}

type state uint8

const (
	inHead state = iota
	inBody
	inSize    // the line before a chunk
	inChunk   // its bytes
	inEnd     // the line end behind it
	inTrailer // fields after the last chunk, up to the empty line
	complete
)

const maxHead = 64 << 10

var errFraming = errors.New("neither a length nor chunks")

// Reset prepares for the next message. Memory is kept.
func (m *Message) Reset() {
	*m = Message{head: m.head[:0], line: m.line[:0]}
}

// Headed says whether the head is complete.
func (m *Message) Headed() bool { return m.state != inHead }

// Done says whether the message is complete.
func (m *Message) Done() bool { return m.state == complete }

// Head returns the head with its empty line; valid once Headed, until Reset.
func (m *Message) Head() []byte { return m.head }

// Started says whether any byte of the message has come.
func (m *Message) Started() bool { return m.state != inHead || len(m.head) > 0 }

// Left returns how many bytes of a body of known length are still to come; 0
// for chunks.
func (m *Message) Left() int64 {
	if m.state == inBody {
		return m.left
	}
	return 0
}

// Skip tells that n bytes of the body have been taken past Next; n <= Left.
func (m *Message) Skip(n int64) {
	if m.left -= n; m.left == 0 {
		m.state = complete
	}
}

// Status returns the status of an answer, 0 where there is none.
func (m *Message) Status() int {
	if len(m.head) < 12 {
		return 0
	}
	n, err := strconv.Atoi(string(m.head[9:12]))
	if err != nil {
		return 0
	}
	return n
}

// Next takes the next part of the message from b: it returns how many bytes it
// took, and which of them were body. Call it until b is used up or the message
// is Done. It takes at least one byte of a b that is not empty, unless Done.
func (m *Message) Next(b []byte) (n int, body []byte, err error) {
	switch m.state {
	case inHead:
		n, err = m.takeHead(b)
		return n, nil, err
	case inBody, inChunk:
		n = int(min(int64(len(b)), m.left))
		if m.left -= int64(n); m.left == 0 {
			if m.state = complete; m.chunked {
				m.state = inEnd
			}
		}
		return n, b[:n], nil
	case inSize, inEnd, inTrailer:
		n, err = m.takeLine(b)
		return n, nil, err
	}
	return 0, nil, nil
}

func (m *Message) takeHead(b []byte) (int, error) {
	had := len(m.head)
	m.head = append(m.head, b...)
	// The empty line may have begun in the bytes before.
	end := bytes.Index(m.head[max(0, had-3):], []byte("\r\n\r\n"))
	if end < 0 {
		if len(m.head) > maxHead {
			return 0, errors.New("head too long")
		}
		return len(b), nil
	}
	if end += max(0, had-3) + 4; end > maxHead {
		return 0, errors.New("head too long")
	}
	m.head = m.head[:end]
	return end - had, m.parseHead()
}

// parseHead learns the framing, which is all that matters here.
func (m *Message) parseHead() error {
	m.state, m.left = complete, -1
	_, rest, _ := bytes.Cut(m.head, []byte("\r\n"))
	for len(rest) > 2 {
		end := bytes.IndexByte(rest, '\n')
		name, value, _ := bytes.Cut(rest[:end], []byte(":"))
		rest = rest[end+1:]
		switch {
		case len(name) == len("content-length") && bytes.EqualFold(name, []byte("content-length")):
			n, err := strconv.ParseInt(string(bytes.TrimSpace(value)), 10, 64)
			if err != nil || n < 0 {
				return fmt.Errorf("bad content-length %q", value)
			}
			m.left = n
		case len(name) == len("transfer-encoding") && bytes.EqualFold(name, []byte("transfer-encoding")):
			m.chunked = true
		case len(name) == len("connection") && bytes.EqualFold(name, []byte("connection")):
			m.Close = bytes.EqualFold(bytes.TrimSpace(value), []byte("close"))
		}
	}
	answer := bytes.HasPrefix(m.head, []byte("HTTP/"))
	switch {
	case m.chunked:
		m.state, m.left = inSize, 0
	case m.left > 0:
		m.state = inBody
	case m.left < 0 && answer && m.Status() != 204 && m.Status() != 304:
		return errFraming
	}
	return nil
}

func (m *Message) takeLine(b []byte) (int, error) {
	end := bytes.IndexByte(b, '\n')
	if end < 0 {
		if m.line = append(m.line, b...); len(m.line) > maxHead {
			return 0, errors.New("line of a chunk too long")
		}
		return len(b), nil
	}
	line := b[:end]
	if len(m.line) > 0 {
		m.line = append(m.line, line...)
		line = m.line
	}
	line = bytes.TrimSuffix(line, []byte("\r"))
	err := m.endLine(line)
	m.line = m.line[:0]
	return end + 1, err
}

func (m *Message) endLine(line []byte) error {
	switch m.state {
	case inEnd:
		if m.state = inSize; len(line) > 0 {
			return errors.New("chunk longer than it said")
		}
	case inSize:
		digits, _, _ := bytes.Cut(line, []byte(";"))
		n, err := strconv.ParseInt(string(bytes.TrimSpace(digits)), 16, 64)
		if err != nil || n < 0 {
			return fmt.Errorf("bad size of a chunk %q", line)
		}
		if m.state, m.left = inChunk, n; n == 0 {
			m.state = inTrailer
		}
	case inTrailer:
		if len(line) == 0 {
			m.state = complete
		}
	}
	return nil
}
