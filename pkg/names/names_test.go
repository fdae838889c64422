package names

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"difylb/test/testbed"
)

var (
	one = netip.MustParseAddr("127.0.0.1")
	two = netip.MustParseAddr("127.0.0.9")
)

// book is a resolver whose answers a test writes.
type book struct {
	*Resolver
	mu    sync.Mutex
	addrs []netip.Addr
	err   error
	takes time.Duration
	asked int
}

func newBook(addrs ...netip.Addr) *book {
	b := &book{Resolver: New(Options{Log: zerolog.Nop()}), addrs: addrs}
	b.lookUp = func(ctx context.Context, _ string) ([]netip.Addr, error) {
		b.mu.Lock()
		b.asked++
		addrs, err, takes := slices.Clone(b.addrs), b.err, b.takes
		b.mu.Unlock()
		select {
		case <-time.After(takes):
			return addrs, err
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	return b
}

func (b *book) write(err error, takes time.Duration, addrs ...netip.Addr) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.addrs, b.err, b.takes = addrs, err, takes
}

func (b *book) count() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.asked
}

// expect looks a name up and compares what is found, and how long it takes at most.
func (b *book) expect(t *testing.T, what string, limit time.Duration, want ...netip.Addr) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begun := time.Now()
	got, err := b.addresses(ctx, "dify.example")
	if took := time.Since(begun); took > limit {
		t.Errorf("%s: it took %s", what, took)
	}
	if !slices.Equal(got, want) || (err == nil) != (len(want) > 0) {
		t.Errorf("%s: %v, %v, want %v", what, got, err, want)
	}
}

func TestResolver_KeepsWhatItKnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook(one)
		b.write(nil, time.Second, one)
		b.expect(t, "the first answer is waited for", time.Second, one)
		b.expect(t, "it is remembered", 0, one)
		if b.count() != 1 {
			t.Errorf("asked %d times for one answer", b.count())
		}
		time.Sleep(Valid)
		b.write(errors.New("servfail"), 0)
		b.expect(t, "a failure", 0, one)
		if b.Failing() != 1 {
			t.Errorf("%d names fail, want 1", b.Failing())
		}
		time.Sleep(Valid)
		b.write(nil, time.Hour)
		b.expect(t, "silence", staleWait, one)
		b.expect(t, "silence for the next, who waits not at all", 0, one)
		time.Sleep(questionTimeout)
		b.expect(t, "long silence", staleWait, one)
		b.write(nil, 0, two)
		time.Sleep(questionTimeout + Valid)
		b.expect(t, "an answer at last", 0, two)
		if b.Failing() != 0 {
			t.Errorf("%d names fail, want none", b.Failing())
		}
		b.write(nil, 0)
		time.Sleep(Valid)
		b.expect(t, "an empty answer", 0, two)
	})
}

func TestResolver_UnknownNameIsNotAskedForByEverybody(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		b := newBook()
		b.write(errors.New("no such host"), 0)
		for range 100 {
			b.expect(t, "unknown", 0)
		}
		if n := b.count(); n != 1 {
			t.Errorf("%d questions in no time", n)
		}
		b.write(nil, 0, one)
		time.Sleep(failureLife)
		b.expect(t, "known soon after", 0, one)
		// Many at once make one question.
		b = newBook(one)
		b.write(nil, time.Second, one)
		var all sync.WaitGroup
		for range 50 {
			all.Go(func() { b.expect(t, "together", time.Second, one) })
		}
		all.Wait()
		if n := b.count(); n != 1 {
			t.Errorf("%d questions for fifty at once", n)
		}
		// Who has no time gets an error that names the name, and the answer is kept for the next.
		b = newBook(one)
		b.write(nil, 2*time.Second, one)
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		if _, err := b.addresses(ctx, "dify.example"); !errors.Is(err, context.DeadlineExceeded) || !strings.Contains(err.Error(), "dify.example") {
			t.Errorf("out of time: %v", err)
		}
		time.Sleep(2 * time.Second)
		b.expect(t, "asked for by somebody who has left", 0, one)
	})
}

// Names in use are asked for in the background, others are not and are forgotten.
func TestResolver_Follows(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBook(one)
		done := make(chan struct{})
		go func() { defer close(done); _ = b.Run(ctx) }()
		b.expect(t, "first", 0, one)
		first := b.Known("dify.example")
		time.Sleep(Valid + 2*followEvery)
		if now := b.Known("dify.example"); &now[0] != &first[0] {
			t.Error("the same answer is another slice")
		}
		b.write(nil, 0, two)
		time.Sleep(Valid + 2*followEvery)
		if got := b.Known("dify.example"); !slices.Equal(got, []netip.Addr{two}) {
			t.Errorf("it has moved, known is %v", got)
		}
		asked := b.count()
		for range 10 {
			b.Use("dify.example")
			time.Sleep(usedFor / 2)
		}
		if b.count() < asked+20 {
			t.Errorf("in use for %s and asked for %d times", 5*usedFor, b.count()-asked)
		}
		time.Sleep(usedFor)
		asked = b.count()
		time.Sleep(usedFor)
		if b.count() != asked {
			t.Error("a name that nobody uses is asked for")
		}
		time.Sleep(keptFor)
		if got := b.Known("dify.example"); got != nil {
			t.Errorf("still known after an hour: %v", got)
		}
		b.Use("dify.example") // nobody knows it
		cancel()
		<-done
	})
}

// Questions that the end cuts short leave what is known.
func TestResolver_EndsWhileItAsks(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		b := newBook(one)
		b.expect(t, "first", 0, one)
		b.write(nil, time.Hour)
		done := make(chan struct{})
		go func() { defer close(done); _ = b.Run(ctx) }()
		time.Sleep(Valid + 2*followEvery)
		cancel()
		<-done
		b.write(nil, 0, two)
		b.expect(t, "afterwards", 0, two)
	})
}

func listen(t *testing.T, addr string) *atomic.Int64 {
	t.Helper()
	ln, err := net.Listen("tcp", addr)
	if err != nil {
		t.Skip(err)
	}
	open := new(atomic.Int64)
	var conns sync.WaitGroup
	conns.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			open.Add(1)
			conns.Go(func() {
				_, _ = c.Read(make([]byte, 1)) // until the other side closes
				c.Close()
				open.Add(-1)
			})
		}
	})
	t.Cleanup(func() {
		ln.Close()
		conns.Wait() // hangs if a connection was left behind
	})
	return open
}

// deaf takes no connection and refuses none: its queue is full.
func deaf(t *testing.T, addr string) {
	t.Helper()
	ap := netip.MustParseAddrPort(addr)
	fd, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { syscall.Close(fd) })
	at := &syscall.SockaddrInet4{Port: int(ap.Port()), Addr: ap.Addr().As4()}
	if err := errors.Join(syscall.Bind(fd, at), syscall.Listen(fd, 0)); err != nil {
		t.Skip(err)
	}
	for range 4 {
		c, err := syscall.Socket(syscall.AF_INET, syscall.SOCK_STREAM, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { syscall.Close(c) })
		_ = syscall.SetNonblock(c, true)
		_ = syscall.Connect(c, at) // in progress for ever
	}
}

// dial connects to the name, and tells where it came out and how long it took.
func (b *book) dial(t *testing.T, port int) (netip.Addr, time.Duration) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	begun := time.Now()
	c, err := b.Dial(ctx, fmt.Sprintf("dify.example:%d", port), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	return c.RemoteAddr().(*net.TCPAddr).AddrPort().Addr(), time.Since(begun)
}

// A dead address of two costs nobody anything, one that hangs costs a moment, once.
func TestDial_TriesAllAddresses(t *testing.T) {
	port := testbed.FreePorts(t, 1)
	listen(t, fmt.Sprintf("%s:%d", two, port))
	b := newBook(one, two)
	if at, took := b.dial(t, port); at != two || took > attemptDelay {
		t.Errorf("beside an address that refuses: %s after %s", at, took)
	}
	hung := testbed.FreePorts(t, 1)
	deaf(t, fmt.Sprintf("%s:%d", one, hung))
	listen(t, fmt.Sprintf("%s:%d", two, hung))
	if at, took := b.dial(t, hung); at != two || took < attemptDelay || took > 10*attemptDelay {
		t.Errorf("beside an address that hangs: %s after %s", at, took)
	}
	if at, took := b.dial(t, hung); at != two || took > attemptDelay {
		t.Errorf("the next time: %s after %s", at, took)
	}
	if _, err := b.Dial(t.Context(), fmt.Sprintf("dify.example:%d", testbed.FreePorts(t, 1)), nil); err == nil ||
		!strings.Contains(err.Error(), one.String()) || !strings.Contains(err.Error(), two.String()) {
		t.Errorf("nobody at either address: %v", err)
	}
	// What the caller forbids is not connected to.
	forbid := func(_ context.Context, _, address string, _ syscall.RawConn) error {
		if strings.HasPrefix(address, two.String()) {
			return errors.New("not there")
		}
		return nil
	}
	if _, err := b.Dial(t.Context(), fmt.Sprintf("dify.example:%d", port), forbid); err == nil || !strings.Contains(err.Error(), "not there") {
		t.Errorf("a forbidden address: %v", err)
	}
	for _, bad := range []string{"dify.example", "dify.example:http", "dify.example:99999"} {
		if _, err := b.Dial(t.Context(), bad, nil); err == nil {
			t.Errorf("%s was dialled", bad)
		}
	}
}

// Of several connections that are made at once all but one are closed, and
// when Dial returns no attempt goes on.
func TestDial_LeavesNothingBehind(t *testing.T) {
	port := testbed.FreePorts(t, 1)
	open := []*atomic.Int64{listen(t, fmt.Sprintf("%s:%d", one, port)), listen(t, fmt.Sprintf("%s:%d", two, port))}
	b := newBook(one, two)
	// Each attempt waits until both are under way.
	for range 200 {
		var here sync.WaitGroup
		here.Add(2)
		var arrived atomic.Int64
		var running atomic.Int64
		control := func(ctx context.Context, _, _ string, _ syscall.RawConn) error {
			running.Add(1)
			defer running.Add(-1)
			if arrived.Add(1) <= 2 {
				here.Done()
			}
			here.Wait()
			return nil
		}
		c, err := b.raceNow(t.Context(), port, control)
		if err != nil {
			t.Fatal(err)
		}
		if n := running.Load(); n != 0 {
			t.Fatalf("%d attempts go on", n)
		}
		c.Close()
	}
	testbed.Within(t, 10*time.Second, "all connections are closed", func() bool { return open[0].Load()+open[1].Load() == 0 })
	// Nor when the caller's time is over while an attempt hangs.
	hung := testbed.FreePorts(t, 1)
	deaf(t, fmt.Sprintf("%s:%d", one, hung))
	deaf(t, fmt.Sprintf("%s:%d", two, hung))
	ctx, cancel := context.WithTimeout(t.Context(), 2*attemptDelay)
	defer cancel()
	begun := time.Now()
	if _, err := b.Dial(ctx, fmt.Sprintf("dify.example:%d", hung), nil); err == nil || time.Since(begun) > 20*attemptDelay {
		t.Errorf("two addresses that hang: %v after %s", err, time.Since(begun))
	}
}

// raceNow is Dial with no pause between the attempts.
func (b *book) raceNow(ctx context.Context, port int, control Control) (net.Conn, error) {
	nd := &net.Dialer{ControlContext: control}
	return b.race(ctx, nd, []netip.AddrPort{netip.AddrPortFrom(one, uint16(port)), netip.AddrPortFrom(two, uint16(port))}, time.Microsecond)
}

func TestInterleave_Families(t *testing.T) {
	var found []netip.Addr
	for _, a := range []string{"::1", "::2", "::3", "127.0.0.1", "127.0.0.2"} {
		found = append(found, netip.MustParseAddr(a))
	}
	if got, want := fmt.Sprint(interleave(found)), "[::1 127.0.0.1 ::2 127.0.0.2 ::3]"; got != want {
		t.Errorf("%s, want %s", got, want)
	}
	if got := interleave(nil); len(got) != 0 {
		t.Error(got)
	}
}

func TestParseServer_Forms(t *testing.T) {
	for in, want := range map[string]string{
		"10.0.0.2": "10.0.0.2:53", "10.0.0.2:5353": "10.0.0.2:5353", "fd00::2": "[fd00::2]:53", "[fd00::2]": "[fd00::2]:53",
		"[fd00::2]:5353": "[fd00::2]:5353", "fe80::1%eth0": "[fe80::1%eth0]:53",
		"": "", "dns.example": "", "dns.example:53": "", ":53": "", "10.0.0.2:": "", "10.0.0.2:0": "", "10.0.0.2:65536": "", "10.0.0": "", "10.0.0.2:53:53": "",
	} {
		got, err := ParseServer(in)
		switch {
		case want == "" && err == nil:
			t.Errorf("%q is taken for %s", in, got)
		case want == "" && !strings.Contains(err.Error(), "such as 10.0.0.2:53"):
			t.Errorf("%q: %s", in, err)
		case want != "" && (err != nil || got.String() != want):
			t.Errorf("%q is %s, %v, want %s", in, got, err, want)
		}
	}
}

// The servers that are given are asked, one after the other.
func TestServers_TakeOver(t *testing.T) {
	first, second := testbed.NewDNS(t, "127.0.0.1"), testbed.NewDNS(t, "127.0.0.9")
	find := lookUp([]netip.AddrPort{first.Address, second.Address})
	expect := func(what, want string) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
		defer cancel()
		found, err := find(ctx, "dify.example.")
		got := fmt.Sprint(found)
		if err != nil {
			got = err.Error()
		}
		if !strings.Contains(got, want) {
			t.Errorf("%s: %s, want %s", what, got, want)
		}
	}
	expect("both well", "[127.0.0.1]")
	if second.Asked() > 0 {
		t.Error("the second server was asked though the first had answered")
	}
	first.Fail()
	expect("the first fails", "[127.0.0.9]")
	first.Silence()
	expect("the first is silent", "[127.0.0.9]")
	first.Deny()
	expect("there is no such name", "no such host")
	first.Fail()
	second.Fail()
	expect("both fail", second.Address.String())
	first.Answer("127.0.0.1", "::1")
	expect("two families", "::1")
}
