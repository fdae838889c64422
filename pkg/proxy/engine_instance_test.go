package proxy

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"

	"difylb/pkg/lb"
)

// deafListener returns the address of a listener whose backlog is full: what
// connects there hangs.
func deafListener(t *testing.T) string {
	t.Helper()
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	if err := syscall.Bind(fd, &syscall.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}); err != nil {
		t.Skip(err)
	}
	if err := syscall.Listen(fd, 0); err != nil {
		t.Skip(err)
	}
	sa, err := syscall.Getsockname(fd)
	if err != nil {
		t.Skip(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", sa.(*syscall.SockaddrInet4).Port)
	for range 16 {
		c, err := net.DialTimeout("tcp", addr, 200*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { c.Close() })
	}
	t.Skip("this system's backlog does not fill")
	return ""
}

// An instance that does not take connections costs timeouts.connect, then the
// next is asked; and who leaves meanwhile is let go at once.
func TestEngine_ConnectHangs(t *testing.T) {
	deaf := deafListener(t)
	r := newRig(t, func(_ *Options, a *lb.Application) {
		b := instanceAt("b", "http://"+deaf)
		b.MaxFails = 0
		a.Instances = append(a.Instances, b)
		a.Timeouts.Connect = lb.Duration(100 * time.Millisecond)
	}, echo("a"))
	begin := time.Now()
	resp, body := r.do("POST", "/v1/chat-messages", "", `{"user":"`+r.userOf("b")+`"}`)
	if d := time.Since(begin); resp.StatusCode != 200 || !strings.HasPrefix(body, "a POST") || d < 90*time.Millisecond || d > 2*time.Second {
		t.Errorf("%d %s after %v", resp.StatusCode, body, d)
	}
	r.app.Timeouts.Connect = lb.Duration(time.Minute)
	r.apply()
	c := r.dial()
	fmt.Fprintf(c, "GET /v1/info HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user-token-shop\r\nX-User-ID: %s\r\n\r\n", r.userOf("b"))
	eventually(t, "the request waits for its connection", func() bool {
		for _, in := range r.p.view.Load().apps[0].instances {
			if in.gate.InFlight() > 0 {
				return true
			}
		}
		return false
	})
	c.Close()
	eventually(t, "client_gone", func() bool { return len(r.lines("reason", "client_gone")) == 1 })
}

// The order of an instance's end and its bytes does not matter: an answer until
// close is whole, one that is reset is not.
func TestEngine_AnswerUntilClose(t *testing.T) {
	for _, reset := range []bool{false, true} {
		w := newRawInstance(t, func(c net.Conn, _ string) {
			io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Type: text/plain\r\n\r\n"+strings.Repeat("x", 100000))
			if reset {
				c.(*net.TCPConn).SetLinger(0)
			}
		})
		r := newRig(t, func(_ *Options, a *lb.Application) { a.Instances = []lb.Instance{instanceAt("a", w.url())} })
		c := r.dial()
		io.WriteString(c, "GET /v1/info HTTP/1.1\r\n"+goodHead+"\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			if reset {
				continue
			}
			t.Fatal(err)
		}
		b, err := io.ReadAll(resp.Body)
		if whole := err == nil && len(b) == 100000; whole == reset && resp.StatusCode == 200 {
			t.Errorf("reset %v: %d bytes, %v", reset, len(b), err)
		}
	}
}
