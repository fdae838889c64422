//go:build linux

package wire

import (
	"fmt"
	"strings"
	"testing"
)

// feed gives a message in pieces of at most size bytes.
func feed(m *Message, in string, size int) (body string, rest string, err error) {
	var got strings.Builder
	for len(in) > 0 && !m.Done() {
		piece := []byte(in[:min(size, len(in))])
		for len(piece) > 0 && !m.Done() {
			n, part, err := m.Next(piece)
			if err != nil {
				return got.String(), in, err
			}
			got.Write(part)
			piece, in = piece[n:], in[n:]
		}
	}
	return got.String(), in, nil
}

func TestMessage_FindsItsEndHoweverItArrives(t *testing.T) {
	tests := []struct {
		in, body, rest string
		status         int
		close          bool
	}{
		{in: "HTTP/1.1 200 OK\r\nContent-Length: 5\r\n\r\nhelloHTTP/1.1", body: "hello", rest: "HTTP/1.1", status: 200},
		{in: "HTTP/1.1 502 Bad Gateway\r\ncontent-length:0\r\nconnection: close\r\n\r\n", status: 502, close: true},
		{in: "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0A;x=y\r\n, you two!\r\n0\r\nX: y\r\n\r\n!", body: "hello, you two!", rest: "!", status: 200},
		{in: "HTTP/1.1 204 No Content\r\n\r\n", status: 204},
		{in: "GET / HTTP/1.1\r\nHost: x\r\n\r\n"},
		{in: "POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n{}", body: "{}"},
	}
	for _, tt := range tests {
		for size := 1; size <= len(tt.in); size++ {
			var m Message
			for again := range 2 { // what Reset leaves behind must not matter
				m.Reset()
				body, rest, err := feed(&m, tt.in, size)
				if err != nil || !m.Done() || body != tt.body || rest != tt.rest || m.Close != tt.close {
					t.Fatalf("%q in pieces of %d, time %d: body %q, rest %q, done %v, close %v, %v", tt.in, size, again, body, rest, m.Done(), m.Close, err)
				}
				if tt.status != 0 && m.Status() != tt.status {
					t.Fatalf("%q: status %d", tt.in, m.Status())
				}
			}
		}
	}
}

func TestMessage_RefusesWhatHasNoEnd(t *testing.T) {
	for _, in := range []string{
		"HTTP/1.1 200 OK\r\nServer: x\r\n\r\nabc",
		"HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nxyz\r\n",
		"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nab\r\n0\r\n\r\n",
		"HTTP/1.1 200 OK\r\nX: " + strings.Repeat("x", 2*maxHead),
	} {
		var m Message
		if _, _, err := feed(&m, in, 1000); err == nil {
			t.Errorf("%.60q was taken", in)
		}
	}
}

func TestMessage_CountsWhatIsSkipped(t *testing.T) {
	var m Message
	if _, _, err := feed(&m, "POST / HTTP/1.1\r\nContent-Length: 1000\r\n\r\n0123456789", 20); err != nil {
		t.Fatal(err)
	}
	if m.Left() != 990 {
		t.Fatalf("left %d", m.Left())
	}
	if m.Skip(989); m.Done() {
		t.Fatal("done one byte early")
	}
	if m.Skip(1); !m.Done() {
		t.Fatal("not done")
	}
}

func BenchmarkMessage(b *testing.B) {
	in := []byte(fmt.Sprintf("HTTP/1.1 200 OK\r\nServer: x\r\nDate: Mon, 23 Nov 2026 08:15:20 GMT\r\nContent-Type: application/json\r\nContent-Length: 600\r\n\r\n%600d", 1))
	var m Message
	b.ReportAllocs()
	for b.Loop() {
		m.Reset()
		for rest := in; !m.Done(); {
			n, _, err := m.Next(rest)
			if err != nil {
				b.Fatal(err)
			}
			rest = rest[n:]
		}
	}
}
