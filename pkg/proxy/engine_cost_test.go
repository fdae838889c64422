package proxy

import (
	"io"
	"net"
	"runtime"
	"strings"
	"sync"
	"testing"
	"time"

	"difylb/pkg/lb"
)

// answerEach reads requests of a fixed size and answers each, and allocates nothing.
func answerEach(c net.Conn, answer string) {
	defer c.Close()
	buf := make([]byte, 4<<10)
	for n := 0; ; {
		m, err := c.Read(buf[n:])
		if err != nil {
			return
		}
		if n += m; string(buf[max(0, n-4):n]) == "\r\n\r\n" {
			if n = 0; writeAll(c, answer) != nil {
				return
			}
		}
	}
}

func writeAll(c net.Conn, s string) error {
	_, err := io.WriteString(c, s)
	return err
}

// allocations is testing.AllocsPerRun for what other goroutines take part in: it
// leaves them their processors.
func allocations(runs int, f func()) float64 {
	f()
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	for range runs {
		f()
	}
	runtime.ReadMemStats(&after)
	return float64(after.Mallocs-before.Mallocs) / float64(runs)
}

// The steady state of a kept connection makes little garbage.
func TestEngine_AllocationsPerRequest(t *testing.T) {
	ln := listen(t, func(c net.Conn) {
		answerEach(c, "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 12\r\n\r\n{\"ok\": true}")
	})
	r := newRig(t, func(_ *Options, a *lb.Application) {
		a.Instances = []lb.Instance{instanceAt("a", "http://"+ln.Addr().String())}
	})
	c := r.dial()
	buf := make([]byte, 4<<10)
	once := func() {
		if err := writeAll(c, "GET /v1/info HTTP/1.1\r\n"+goodHead+"\r\n"); err != nil {
			t.Fatal(err)
		}
		for n := 0; ; {
			m, err := c.Read(buf[n:])
			if err != nil {
				t.Fatal(err)
			}
			if n += m; string(buf[max(0, n-12):n]) == `{"ok": true}` {
				return
			}
		}
	}
	allocs := allocations(2000, once)
	t.Logf("%.1f allocations per request, client and instance of the test included", allocs)
	if allocs > 16 { // the race detector adds some
		t.Errorf("%.1f allocations per request", allocs)
	}
}

// resident is what the heap and the stacks hold, in KiB.
func resident() (heap, stacks float64) {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapInuse) / 1024, float64(m.StackInuse) / 1024
}

// What a connection costs while nothing happens on it, idle and as an open stream.
func TestEngine_MemoryPerConnection(t *testing.T) {
	n := 2000
	if testing.Short() {
		n = 200
	}
	var mu sync.Mutex
	var instances []net.Conn
	head := make([]byte, 4<<10)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() { // one goroutine for all: their stacks are none of the proxy's
		defer close(done)
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			mu.Lock()
			instances = append(instances, c)
			mu.Unlock()
			for got := 0; !strings.HasSuffix(string(head[:got]), "\r\n\r\n"); {
				m, err := c.Read(head[got:])
				if err != nil {
					break
				}
				got += m
			}
			writeAll(c, "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n9\r\ndata: x\n\n\r\n")
		}
	}()
	t.Cleanup(func() {
		ln.Close()
		<-done
		for _, c := range instances {
			c.Close()
		}
	})
	r := newRig(t, func(o *Options, a *lb.Application) {
		a.Instances = []lb.Instance{instanceAt("a", "http://"+ln.Addr().String())}
		o.AccessLog = nil
	})
	clients := make([]net.Conn, 0, n)
	defer func() {
		for _, c := range clients {
			c.Close()
		}
		eventually(t, "all are gone", func() bool { return r.p.Connections() == 0 })
	}()
	heap0, stacks0 := resident()
	for range n {
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Skip(err)
		}
		c.SetDeadline(time.Now().Add(30 * time.Second))
		clients = append(clients, c)
	}
	eventually(t, "all are there", func() bool { return r.p.Connections() == int64(n) })
	heap1, stacks1 := resident()
	buf := make([]byte, 4<<10)
	for _, c := range clients {
		writeAll(c, "GET /v1/info HTTP/1.1\r\n"+goodHead+"\r\n")
		for got := 0; !strings.Contains(string(buf[:got]), "data: x"); {
			m, err := c.Read(buf[got:])
			if err != nil {
				t.Fatal(err)
			}
			got += m
		}
	}
	heap2, stacks2 := resident()
	per := func(a, b float64) float64 { return (b - a) / float64(n) }
	t.Logf("%d connections, KiB for each, the test's own ends included: idle %.1f heap, %.1f stack; with an open stream %.1f heap, %.1f stack",
		n, per(heap0, heap1), per(stacks0, stacks1), per(heap0, heap2), per(stacks0, stacks2))
	boundIdle, boundStream, boundStack := 3.0, 9.0, 0.5 // of the heap; a buffer alone is 16
	if !haveRaw {                                       // an ordinary read waits with its buffer
		boundIdle, boundStream, boundStack = 24, 44, 64
	}
	if per(heap0, heap1) > boundIdle || per(heap0, heap2) > boundStream || per(stacks0, stacks1) > boundStack || per(stacks0, stacks2) > boundStack {
		t.Error("too much")
	}
}
