package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/stats"
)

// chat asks for a stream on a connection of its own.
func (r *rig) chat(c net.Conn, user string) *http.Response {
	r.t.Helper()
	body := fmt.Sprintf(`{"user":%q}`, user)
	fmt.Fprintf(c, "POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user-token-shop\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp
}

// carried returns the wires of instances that carry a stream.
func (r *rig) carried() (wires []*wire) {
	r.s.each(func(c *clientConn) {
		if w := c.lifeline.peer.Load(); w != nil && w.carried.waits.Load() {
			wires = append(wires, w)
		}
	})
	return wires
}

// canCarry skips where streams have goroutines of their own.
func canCarry(t *testing.T) {
	t.Helper()
	if !haveRaw {
		t.Skip("here streams are not carried")
	}
}

// A client that does not read takes nobody's time, and gets all of it later.
func TestCarry_SlowClient(t *testing.T) {
	const size = 24 << 20 // more than sockets take
	event := bytes.Repeat([]byte{'e'}, 64<<10)
	r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		user, _ := io.ReadAll(req.Body)
		w.Header().Set("Content-Type", "text/event-stream")
		if bytes.Contains(user, []byte("slow")) {
			for i := range size / len(event) {
				copy(event, fmt.Sprintf("data: %8d\n\n", i)) // one such stream at a time
				w.Write(event)
				w.(http.Flusher).Flush()
			}
			return
		}
		for i := range 20 {
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
			time.Sleep(5 * time.Millisecond)
		}
	}))
	c := r.dial()
	slow := r.chat(c, "slow")
	eventually(t, "the client's buffers to be full", func() bool {
		before := flowed(r)
		time.Sleep(100 * time.Millisecond)
		return before > 0 && flowed(r) == before
	})
	var others sync.WaitGroup
	for i := range 8 {
		others.Go(func() {
			start := time.Now()
			if b, err := io.ReadAll(r.chat(r.dial(), fmt.Sprint("quick-", i)).Body); err != nil || bytes.Count(b, []byte("data:")) != 20 {
				t.Errorf("%q %v", b, err)
			}
			if took := time.Since(start); took > 5*time.Second {
				t.Errorf("a stream of 100 ms took %v", took)
			}
		})
	}
	others.Wait()
	got := make([]byte, len(event))
	for i := range size / len(event) {
		if _, err := io.ReadFull(slow.Body, got); err != nil {
			t.Fatal(i, err)
		}
		if want := fmt.Sprintf("data: %8d\n\n", i); string(got[:len(want)]) != want {
			t.Fatalf("event %d is %q", i, got[:len(want)])
		}
	}
	if n, err := slow.Body.Read(got); n != 0 || err != io.EOF {
		t.Fatal("no end", n, err)
	}
	// The connection goes on.
	if b, err := io.ReadAll(r.chat(c, "next").Body); err != nil || bytes.Count(b, []byte("data:")) != 20 {
		t.Fatalf("%q %v", b, err)
	}
	eventually(t, "every request in the access log", func() bool { return len(r.lines("reason", "ok")) == 10 })
}

// flowed is what went to clients.
func flowed(r *rig) (n uint64) {
	for _, in := range r.app.Instances {
		t, _ := r.p.opts.Registry.Totals(stats.Key{App: "shop", Instance: in.Name})
		n += t.BytesOut
	}
	return n
}

// Who is woken for nothing goes on, whatever the moment.
func TestCarry_InterruptedForNothing(t *testing.T) {
	canCarry(t)
	const events = 300
	r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		for i := range events {
			fmt.Fprintf(w, "data: %d\n\n", i)
			w.(http.Flusher).Flush()
			time.Sleep(time.Millisecond)
		}
	}))
	var over atomic.Bool
	var hits int
	var pest sync.WaitGroup
	pest.Go(func() {
		for !over.Load() {
			for _, w := range r.carried() {
				hits++
				w.interrupt()
			}
			time.Sleep(50 * time.Microsecond)
		}
	})
	var streams sync.WaitGroup
	for i := range 8 {
		streams.Go(func() {
			b, err := io.ReadAll(r.chat(r.dial(), fmt.Sprint(i)).Body)
			if err != nil || bytes.Count(b, []byte("data:")) != events {
				t.Errorf("%d bytes, %v", len(b), err)
			}
		})
	}
	streams.Wait()
	over.Store(true)
	pest.Wait()
	if hits < 100 {
		t.Errorf("only %d interruptions of carried streams", hits)
	}
}

// An instance that falls silent is not waited for longer than the application wants.
func TestCarry_ReadTimeout(t *testing.T) {
	release := make(chan struct{})
	r := newRig(t, func(_ *Options, a *lb.Application) { a.Timeouts.Read = lb.Duration(200 * time.Millisecond) },
		http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
			w.Header().Set("Content-Type", "text/event-stream")
			io.WriteString(w, "data: 1\n\n")
			w.(http.Flusher).Flush()
			<-release
		}))
	defer close(release)
	start := time.Now()
	b, err := io.ReadAll(r.chat(r.dial(), "u").Body)
	if string(b) != "data: 1\n\n" || err != io.ErrUnexpectedEOF {
		t.Fatalf("%q %v", b, err)
	}
	if took := time.Since(start); took < 200*time.Millisecond || took > 5*time.Second {
		t.Errorf("cut after %v", took)
	}
	eventually(t, "upstream_timeout in the access log", func() bool { return len(r.lines("reason", "upstream_timeout")) == 1 })
}

// twoEvents sends one event, and another after the release.
func twoEvents(release <-chan struct{}) http.HandlerFunc {
	return func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: 1\n\n")
		w.(http.Flusher).Flush()
		<-release
		io.WriteString(w, "data: 2\n\n")
	}
}

// Open streams have no goroutines of their own.
func TestCarry_HoldsNoGoroutine(t *testing.T) {
	canCarry(t)
	const streams = 50
	release := make(chan struct{})
	r := newRig(t, nil, twoEvents(release))
	var all []*http.Response
	for i := range streams {
		all = append(all, r.chat(r.dial(), fmt.Sprint(i)))
	}
	eventually(t, "all streams to be carried", func() bool { return len(r.carried()) == streams })
	close(release)
	for _, resp := range all {
		if b, err := io.ReadAll(resp.Body); string(b) != "data: 1\n\ndata: 2\n\n" || err != nil {
			t.Fatalf("%q %v", b, err)
		}
	}
	eventually(t, "nothing to be carried", func() bool { return len(r.carried()) == 0 })
}

// A fault of ours ends the stream that has it, with an account, and no other.
func TestCarry_Panic(t *testing.T) {
	canCarry(t)
	release := make(chan struct{})
	r := newRig(t, nil, twoEvents(release))
	bad, good := r.chat(r.dial(), "one"), r.chat(r.dial(), "two")
	eventually(t, "both streams to be carried", func() bool { return len(r.carried()) == 2 })
	spoilt := 0
	for _, w := range r.carried() {
		c := w.carried.take()
		if c == nil {
			t.Fatal("gone")
		}
		if c.x.user == "one" {
			c.x.down = nil
			spoilt++
		}
		if !w.park(c) {
			t.Fatal("something has come")
		}
	}
	if spoilt != 1 {
		t.Fatal(spoilt, "streams spoilt")
	}
	close(release)
	if b, err := io.ReadAll(bad.Body); err == nil {
		t.Errorf("a stream with a fault goes on: %q", b)
	}
	if b, err := io.ReadAll(good.Body); string(b) != "data: 1\n\ndata: 2\n\n" || err != nil {
		t.Errorf("%q %v", b, err)
	}
	eventually(t, "both in the access log", func() bool {
		return len(r.lines("reason", "internal")) == 1 && len(r.lines("reason", "ok")) == 1
	})
}

// Clients that wait, for their own next request or for an instance, hold no goroutine.
func TestCarry_WaitingHoldsNoGoroutine(t *testing.T) {
	canCarry(t)
	const clients = 40
	release := make(chan struct{})
	r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/v1/chat-messages" {
			<-release
		}
		io.WriteString(w, "done")
	}))
	working := func() (n int) { // goroutines of clients
		buf := make([]byte, 4<<20)
		return bytes.Count(buf[:runtime.Stack(buf, true)], []byte("proxy.(*clientConn).run("))
	}
	var all []net.Conn
	for range clients {
		c := r.dial()
		writeAll(c, "GET /v1/info HTTP/1.1\r\n"+goodHead+"\r\n")
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
		all = append(all, c)
	}
	eventually(t, "idle clients to have no goroutine", func() bool { return working() == 0 })
	for i, c := range all {
		body := fmt.Sprintf(`{"user":"u%d"}`, i)
		writeAll(c, fmt.Sprintf("POST /v1/chat-messages HTTP/1.1\r\n"+goodHead+"Content-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", len(body), body))
	}
	eventually(t, "all requests to wait for the instance", func() bool { return len(r.carried()) == clients && working() == 0 })
	close(release)
	for _, c := range all {
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil || resp.StatusCode != 200 {
			t.Fatal(resp, err)
		}
	}
}

// An instance that is slow to take a request holds nobody else up, and gets all of it.
func TestCarry_InstanceTakesItsTime(t *testing.T) {
	canCarry(t)
	stopped, release := make(chan struct{}), make(chan struct{})
	goOn := sync.OnceFunc(func() { close(release) })
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	serve := func(c net.Conn) {
		defer c.Close()
		for br := bufio.NewReader(c); ; {
			for waited := false; ; { // what stands before a request
				b, err := br.ReadByte()
				if err != nil {
					return
				}
				if b != '.' {
					_ = br.UnreadByte()
					break
				}
				if !waited {
					close(stopped)
					<-release
				}
				waited = true
			}
			req, err := http.ReadRequest(br)
			if err != nil {
				return
			}
			b, _ := io.ReadAll(req.Body)
			fmt.Fprintf(c, "HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n%s", len(b), b)
		}
	}
	serving.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			serving.Go(func() { serve(c) })
		}
	})
	r := newRig(t, func(_ *Options, a *lb.Application) {
		a.Instances = append(a.Instances, instanceAt("slow", "http://"+ln.Addr().String()))
	})
	t.Cleanup(func() { goOn(); ln.Close(); r.p.Close(); serving.Wait() })
	ask := func(c net.Conn, body string) {
		writeAll(c, fmt.Sprintf("POST /v1/info HTTP/1.1\r\n"+goodHead+"Content-Length: %d\r\n\r\n%s", len(body), body))
	}
	answered := func(c net.Conn, body string) {
		t.Helper()
		resp, err := http.ReadResponse(bufio.NewReader(c), nil)
		if err != nil {
			t.Fatal(err)
		}
		if b, _ := io.ReadAll(resp.Body); resp.StatusCode != 200 || string(b) != body {
			t.Fatal(resp.StatusCode, string(b))
		}
	}
	c := r.dial()
	ask(c, "first")
	answered(c, "first")
	var conn *instanceConn
	eventually(t, "a connection that is idle", func() bool {
		for _, in := range r.p.states["shop"].instances {
			for i := range in.upstream.idle {
				l := &in.upstream.idle[i]
				l.mu.Lock()
				if len(l.conns) > 0 {
					conn = l.conns[0]
				}
				l.mu.Unlock()
			}
		}
		return conn != nil
	})
	fill := func(p []byte) { // nobody else has it
		for {
			if _, err := conn.writeRaw(p); err == errAgain {
				return
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	if _, err := conn.writeRaw([]byte{'.'}); err != nil {
		t.Fatal(err)
	}
	<-stopped
	fill(bytes.Repeat([]byte{'.'}, 64<<10))
	fill([]byte{'.'}) // to the last byte
	ask(c, "second")
	eventually(t, "a goroutine that waits for the instance to take the request", func() bool {
		buf := make([]byte, 4<<20)
		return bytes.Contains(buf[:runtime.Stack(buf, true)], []byte("proxy.(*attempt).writeRest("))
	})
	other := r.dial() // over another connection
	ask(other, "third")
	answered(other, "third")
	goOn()
	answered(c, "second")
	ask(c, "fourth")
	answered(c, "fourth")
}

// An answer that comes faster than it can be passed on is left to a goroutine
// from time to time, and arrives whole.
func TestCarry_AnswerWithoutEnd(t *testing.T) {
	canCarry(t)
	const size = 64 << 20
	piece := bytes.Repeat([]byte("0123456789abcdef"), 64<<10/16)
	r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Length", fmt.Sprint(size))
		for range size / len(piece) {
			w.Write(piece)
		}
	}))
	c := r.dial()
	for range 2 {
		writeAll(c, "GET /v1/info HTTP/1.1\r\n"+goodHead+"\r\n")
		br := bufio.NewReaderSize(c, 1<<20)
		resp, err := http.ReadResponse(br, nil)
		if err != nil {
			t.Fatal(err)
		}
		got := make([]byte, len(piece))
		for i := range size / len(piece) {
			if _, err := io.ReadFull(resp.Body, got); err != nil || !bytes.Equal(got, piece) {
				t.Fatal(i, err)
			}
		}
		if n, err := resp.Body.Read(got); n != 0 || err != io.EOF {
			t.Fatal(n, err)
		}
	}
}

// A poller does not stay with one answer, however much of it there is.
func TestCarry_TurnsEnd(t *testing.T) {
	c := &clientConn{riding: true}
	a := &attempt{x: &exchange{down: c}}
	if a.goAhead() || !c.stuck {
		t.Error("a poller goes on")
	}
	c.riding, c.stuck = false, false
	if !a.goAhead() || c.stuck {
		t.Error("a goroutine does not")
	}
}
