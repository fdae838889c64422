package dataplane

import (
	"errors"
	"net"
	"testing"
	"time"
)

// A gate that retires lets nothing slip: whatever came before is accepted or
// waits for who shares the socket, and whoever accepts is told of the end when
// it closes only.
func TestGate_RestsBetweenRetireAndClose(t *testing.T) {
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	g := newGate(ln.(*net.TCPListener))
	defer g.Close()
	busy, ended := make(chan struct{}), make(chan error, 1)
	accepted := make(chan net.Conn, 1)
	go func() { // ends with Close
		for {
			conn, err := g.Accept()
			if err != nil {
				ended <- err
				return
			}
			accepted <- conn
			<-busy // as one that waits for a slot
		}
	}()
	client, err := net.Dial("tcp", g.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	conn := <-accepted
	defer conn.Close()
	if _, ok := conn.(*net.TCPConn); !ok {
		t.Errorf("a connection is a %T", conn)
	}
	late, err := net.Dial("tcp", g.Addr().String()) // the successor's
	if err != nil {
		t.Fatal(err)
	}
	defer late.Close()

	rests := g.retire()
	select {
	case <-rests:
		t.Fatal("it rests while the last connection is not done with")
	case <-time.After(20 * time.Millisecond):
	}
	close(busy)
	select {
	case <-rests:
	case <-time.After(5 * time.Second):
		t.Fatal("it does not come to rest")
	}
	select {
	case <-accepted:
		t.Error("it accepts after it retired")
	case err := <-ended:
		t.Errorf("Accept ended before Close: %v", err)
	default:
	}
	g.Close()
	g.Close()
	select {
	case err := <-ended:
		if !errors.Is(err, net.ErrClosed) {
			t.Error(err)
		}
	case <-time.After(5 * time.Second):
		t.Fatal("Accept does not end")
	}
}
