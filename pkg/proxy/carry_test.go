package proxy

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"difylb/pkg/h1"
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
		if w := c.lifeline.peer.Load(); w != nil && w.carried.state.Load() != carriesNot {
			wires = append(wires, w)
		}
	})
	return wires
}

// canCarry skips where streams have goroutines of their own.
func canCarry(t *testing.T) {
	t.Helper()
	server, _ := tcpPair(t)
	var w wire
	w.init(server, server, nil)
	if w.raw == nil {
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

// Open streams have no goroutines of their own.
func TestCarry_HoldsNoGoroutine(t *testing.T) {
	canCarry(t)
	const streams = 50
	release := make(chan struct{})
	r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: 1\n\n")
		w.(http.Flusher).Flush()
		<-release
		io.WriteString(w, "data: 2\n\n")
	}))
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

// A fault of ours ends the stream that has it and no other.
func TestCarry_Panic(t *testing.T) {
	r := newRig(t, nil, clocked(1, time.Millisecond))
	c := &clientConn{s: r.s, x: &exchange{}}
	if !c.feed() || !c.broken || c.x.attempt.err != h1.ErrUnsafe {
		t.Error("a stream with a fault goes on")
	}
}
