package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"

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

// names answers questions for addresses with those it has, or with a failure.
func names(t *testing.T, addrs *atomic.Pointer[[]netip.Addr]) {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if m.Unpack(buf[:n]) != nil || len(m.Questions) == 0 {
				continue
			}
			m.Response, m.Additionals = true, nil
			if have := addrs.Load(); have == nil {
				m.RCode = dnsmessage.RCodeServerFailure
			} else {
				for _, a := range *have {
					h := dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Type: m.Questions[0].Type, Class: dnsmessage.ClassINET, TTL: 1}
					if a.Is4() && h.Type == dnsmessage.TypeA {
						m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}})
					} else if a.Is6() && h.Type == dnsmessage.TypeAAAA {
						m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
					}
				}
			}
			if b, err := m.Pack(); err == nil {
				conn.WriteTo(b, from)
			}
		}
	}()
	before := net.DefaultResolver
	net.DefaultResolver = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, _, _ string) (net.Conn, error) {
		var d net.Dialer
		return d.DialContext(ctx, "udp", conn.LocalAddr().String())
	}}
	t.Cleanup(func() {
		net.DefaultResolver = before
		conn.Close()
		<-done
	})
}

// A name's addresses are tried in turn, and the last good ones serve on when
// nobody answers for the name.
func TestDialer_Names(t *testing.T) {
	var addrs atomic.Pointer[[]netip.Addr]
	names(t, &addrs)
	ln := listen(t, func(c net.Conn) { c.Close() })
	port := ln.Addr().(*net.TCPAddr).Port
	d := &dialer{address: fmt.Sprintf("instance.example.:%d", port)}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	connect := func(what string) {
		t.Helper()
		c, err := d.dial(ctx)
		if err != nil {
			t.Fatal(what, ": ", err)
		}
		c.Close()
	}
	if _, err := d.dial(ctx); err == nil {
		t.Fatal("a name that nobody knows has an address")
	}
	// Nobody listens at the first.
	addrs.Store(&[]netip.Addr{netip.MustParseAddr("127.0.0.9"), netip.MustParseAddr("127.0.0.1")})
	connect("the second address")
	addrs.Store(nil)
	connect("the last good addresses, fresh")
	d.mu.Lock()
	d.asked = time.Now().Add(-time.Hour)
	d.mu.Unlock()
	connect("the last good addresses, and nobody answers for the name")
	addrs.Store(&[]netip.Addr{netip.MustParseAddr("127.0.0.9")})
	d.mu.Lock()
	d.asked = time.Now().Add(-time.Hour)
	d.mu.Unlock()
	if _, err := d.dial(ctx); err == nil {
		t.Error("the name was not asked for again")
	}
	// A first address that hangs does not hold up the second for long.
	_, p, _ := net.SplitHostPort(deafListener(t))
	deaf, _ := net.LookupPort("tcp", p)
	live, err := net.Listen("tcp", fmt.Sprintf("127.0.0.9:%d", deaf))
	if err != nil {
		t.Skip(err)
	}
	defer live.Close()
	d = &dialer{address: fmt.Sprintf("instance.example.:%d", deaf)}
	addrs.Store(&[]netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.9")})
	begin := time.Now()
	connect("the second address, while the first hangs")
	if took := time.Since(begin); took > 10*attemptDelay {
		t.Error("it took", took)
	}
}

func TestDialer_InterleavesFamilies(t *testing.T) {
	var found []netip.Addr
	for _, a := range []string{"::1", "::2", "::3", "127.0.0.1", "::ffff:127.0.0.2"} {
		found = append(found, netip.MustParseAddr(a))
	}
	var got []string
	for _, a := range interleave(found, 80) {
		got = append(got, a.String())
	}
	if want := []string{"[::1]:80", "127.0.0.1:80", "[::2]:80", "127.0.0.2:80", "[::3]:80"}; !slices.Equal(got, want) {
		t.Error(got)
	}
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
