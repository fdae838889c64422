//go:build linux

package relay

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"
)

// echo answers every line with its own name and the line.
func echo(t *testing.T, name string) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() { // ends with the listener
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the relay
				defer c.Close()
				for lines := bufio.NewScanner(c); lines.Scan(); {
					fmt.Fprintf(c, "%s: %s\n", name, lines.Text())
				}
			}()
		}
	}()
	return l.Addr().(*net.TCPAddr).AddrPort()
}

func TestRelay_EachClientHasAnInstance(t *testing.T) {
	at := freeAddr(t)
	r, err := New(at, []netip.AddrPort{echo(t, "a"), echo(t, "b")})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- r.Run(ctx) }()
	defer func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}()
	var clients []net.Conn
	for range 4 {
		c, err := net.Dial("tcp4", at.String())
		if err != nil {
			t.Fatal(err)
		}
		defer c.Close()
		_ = c.SetDeadline(time.Now().Add(20 * time.Second))
		clients = append(clients, c)
	}
	served := make(map[string]int)
	for i, c := range clients {
		in := bufio.NewReader(c)
		first := ""
		for n := range 3 {
			fmt.Fprintf(c, "%d of client %d\n", n, i)
			line, err := in.ReadString('\n')
			if err != nil {
				t.Fatal(err)
			}
			if want := fmt.Sprintf(": %d of client %d\n", n, i); line[1:] != want {
				t.Errorf("got %q, want an instance's name and %q", line, want)
			}
			if n == 0 {
				first = line[:1]
				served[first]++
			} else if line[:1] != first {
				t.Errorf("client %d was at %s, is at %s", i, first, line[:1])
			}
		}
	}
	if served["a"] != 2 || served["b"] != 2 {
		t.Errorf("clients per instance: %v, want two each", served)
	}
	clients[0].(*net.TCPConn).CloseWrite() // which ends both
	if n, err := clients[0].Read(make([]byte, 1)); err == nil {
		t.Errorf("%d bytes after the end", n)
	}
}

func freeAddr(t *testing.T) netip.AddrPort {
	t.Helper()
	l, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort()
}
