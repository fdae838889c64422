package fault

import (
	"errors"
	"io"
	"net"
	"os"
	"syscall"
	"testing"
	"time"
)

// The other tests believe in their relays; these are the grounds.
func TestRelay_DoesWhatItsDamageSays(t *testing.T) {
	echo, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer echo.Close()
	go func() { // ends with the listener
		for {
			c, err := echo.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the connection
				_, _ = io.Copy(c, c)
				c.Close()
			}()
		}
	}()
	r := newRelay(t, echo.Addr().String())
	dial := func() net.Conn {
		t.Helper()
		c, err := net.Dial("tcp", r.addr)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { c.Close() })
		return c
	}
	// says sends a byte and waits for it.
	says := func(c net.Conn, patience time.Duration) error {
		if _, err := c.Write([]byte{'x'}); err != nil {
			return err
		}
		_ = c.SetReadDeadline(time.Now().Add(patience))
		_, err := io.ReadFull(c, make([]byte, 1))
		return err
	}

	c := dial()
	if err := says(c, 5*time.Second); err != nil {
		t.Fatalf("a good wire: %s", err)
	}
	for name, d := range map[string]damage{"silent": silent, "one way": oneWay} {
		r.set(t, d)
		if err := says(c, 50*time.Millisecond); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("%s: %v, want silence", name, err)
		}
		r.set(t, goodWire)
		_ = c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
			t.Errorf("%s: what was held back is lost: %s", name, err)
		}
	}
	r.set(t, damage{delay: 60 * time.Millisecond})
	begun := time.Now()
	if err := says(c, 5*time.Second); err != nil || time.Since(begun) < 120*time.Millisecond {
		t.Errorf("a slow wire: after %s, %v", time.Since(begun), err)
	}
	r.set(t, unplugged)
	if _, err := net.Dial("tcp", r.addr); !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("unplugged: %v, want a refusal", err)
	}
	if err := says(c, 5*time.Second); err != nil {
		t.Errorf("a connection from before: %s", err)
	}
	r.set(t, goodWire)
	r.reset()
	if err := says(c, 5*time.Second); !errors.Is(err, syscall.ECONNRESET) && !errors.Is(err, syscall.EPIPE) {
		t.Errorf("a reset connection: %v", err)
	}
	if err := says(dial(), 5*time.Second); err != nil {
		t.Errorf("a new connection: %s", err)
	}
	r.set(t, unplugged)
	restore := blackhole(t, r.addr)
	var timeout net.Error
	if _, err := net.DialTimeout("tcp", r.addr, 200*time.Millisecond); !errors.As(err, &timeout) || !timeout.Timeout() {
		t.Errorf("a black hole: %v, want silence", err)
	}
	restore()
	r.set(t, goodWire)
	if err := says(dial(), 5*time.Second); err != nil {
		t.Errorf("after the black hole: %s", err)
	}
}
