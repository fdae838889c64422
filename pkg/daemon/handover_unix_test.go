//go:build unix

package daemon

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

// handoverDir is short: a test's own directory may be too long for a socket.
func handoverDir(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("", "ho")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func listenTCP(t *testing.T) *net.TCPListener {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ln.Close() })
	return ln.(*net.TCPListener)
}

// offering runs an offer and ends it with the test.
func offering(t *testing.T, path string, sockets map[Socket]*net.TCPListener) (<-chan error, context.CancelCauseFunc) {
	t.Helper()
	o, err := OpenOffer(path)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancelCause(t.Context())
	done := make(chan error, 1)
	go func() { done <- o.Run(ctx, sockets) }()
	t.Cleanup(func() { cancel(nil); o.Close() })
	return done, cancel
}

func ended(t *testing.T, done <-chan error) error {
	t.Helper()
	select {
	case err := <-done:
		return err
	case <-time.After(10 * time.Second):
		t.Fatal("the offer does not end")
		return nil
	}
}

func TestHandover_PassesWhatIsWantedAndLosesNoConnection(t *testing.T) {
	path := filepath.Join(handoverDir(t), "s")
	clear, other := Socket{"listen", ":80"}, Socket{"tls-listen", ":443"}
	old, unwanted := listenTCP(t), listenTCP(t)
	done, _ := offering(t, path, map[Socket]*net.TCPListener{clear: old, other: unwanted})
	if st, err := os.Lstat(path); err != nil || st.Mode() != fs.ModeSocket|0o600 {
		t.Fatalf("%v %v", st, err)
	}
	if _, err := os.Lstat(path + "~"); !errors.Is(err, fs.ErrNotExist) {
		t.Error("the socket's first name is left")
	}
	h, err := Inherit(path, []Socket{clear, {"listen", ":443"}, {"listen", ":81"}})
	if err != nil || h == nil {
		t.Fatal(h, err)
	}
	defer h.Close()
	if len(h.sockets) != 1 || h.Take(other) != nil {
		t.Errorf("it got %v", h.sockets)
	}
	successor := h.Take(clear)
	if successor == nil || successor.Addr().String() != old.Addr().String() {
		t.Fatalf("%v, want the socket at %s", successor, old.Addr())
	}
	defer successor.Close()
	if h.Take(clear) != nil {
		t.Error("one socket was taken twice")
	}

	// It waits in the backlog over the predecessor's end.
	client, err := net.Dial("tcp", old.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer client.Close()
	if err := h.Serving(); err != nil {
		t.Fatal(err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the path is not free: %v", err)
	}
	if err := ended(t, done); err != nil {
		t.Errorf("the offer ended with %v", err)
	}
	old.Close()
	successor.SetDeadline(time.Now().Add(5 * time.Second))
	conn, err := successor.Accept()
	if err != nil {
		t.Fatal(err)
	}
	if _, ok := conn.(*net.TCPConn); !ok {
		t.Errorf("a connection is a %T", conn)
	}
	io.WriteString(conn, "hello")
	conn.Close()
	if got, err := io.ReadAll(client); err != nil || string(got) != "hello" {
		t.Errorf("%q %v", got, err)
	}

	// The successor is the next predecessor.
	done, cancel := offering(t, path, map[Socket]*net.TCPListener{clear: successor})
	third, err := Inherit(path, []Socket{clear})
	if err != nil || third.Take(clear) == nil {
		t.Fatal(err)
	}
	third.Close()
	why := errors.New("test ends")
	cancel(why)
	if err := ended(t, done); err != why {
		t.Errorf("%v", err)
	}
	if _, err := os.Lstat(path); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the path is not free: %v", err)
	}
}

// Both share the socket, and what one does to it the other must not feel: a
// blocking Accept could not be ended any more.
func TestHandover_LeavesTheSocketNonBlocking(t *testing.T) {
	path := filepath.Join(handoverDir(t), "s")
	s, old := Socket{"listen", ":80"}, listenTCP(t)
	offering(t, path, map[Socket]*net.TCPListener{s: old})
	for range 20 {
		waiting := make(chan error, 1)
		old.SetDeadline(time.Time{})
		go func() { _, err := old.Accept(); waiting <- err }()
		h, err := Inherit(path, []Socket{s})
		if err != nil {
			t.Fatal(err)
		}
		h.Close()
		old.SetDeadline(time.Unix(1, 0))
		select {
		case err := <-waiting:
			if !errors.Is(err, os.ErrDeadlineExceeded) {
				t.Fatal(err)
			}
		case <-time.After(5 * time.Second):
			t.Fatal("accepting does not end")
		}
	}
}

func TestHandover_SurvivesSuccessorsThatFail(t *testing.T) {
	path := filepath.Join(handoverDir(t), "s")
	s, old := Socket{"listen", ":80"}, listenTCP(t)
	done, _ := offering(t, path, map[Socket]*net.TCPListener{s: old})
	for name, say := range map[string]string{
		"nothing":         "",
		"no JSON":         "hello\n",
		"half a wish":     `{"difylb_handover":1,"wa`,
		"other version":   `{"difylb_handover":2}` + "\n",
		"dies with it":    `{"difylb_handover":1,"want":[{"flag":"listen","address":":80"}]}` + "\n",
		"another word":    `{"difylb_handover":1}` + "\nhello\n",
		"without an end":  `{"difylb_handover":1}` + "\nserving",
		"too long a wish": strings.Repeat("x", handoverLine+1),
	} {
		conn, err := net.Dial("unix", path)
		if err != nil {
			t.Fatal(name, err)
		}
		io.WriteString(conn, say)
		conn.(*net.UnixConn).CloseWrite()
		conn.SetDeadline(time.Now().Add(10 * time.Second))
		io.Copy(io.Discard, conn)
		conn.Close()
		select {
		case err := <-done:
			t.Fatalf("%s: the offer ended: %v", name, err)
		default:
		}
	}
	if _, err := OpenOffer(path); !errors.Is(err, ErrHandoverTaken) {
		t.Errorf("a second offer: %v", err)
	}
	h, err := Inherit(path, []Socket{s})
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	if err := h.Serving(); err != nil {
		t.Fatal(err)
	}
	if err := ended(t, done); err != nil {
		t.Error(err)
	}
}

func TestInherit_FindsNobody(t *testing.T) {
	dir := handoverDir(t)
	path := filepath.Join(dir, "s")
	for _, what := range []string{"no file", "a leftover"} {
		if what == "a leftover" {
			ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
			if err != nil {
				t.Fatal(err)
			}
			ln.SetUnlinkOnClose(false)
			ln.Close()
		}
		if h, err := Inherit(path, nil); h != nil || err != nil {
			t.Errorf("%s: %v %v", what, h, err)
		}
	}
	o, err := OpenOffer(path)
	if err != nil {
		t.Fatalf("a leftover is not replaced: %v", err)
	}
	// What stands there when it closes may be another's.
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	o.Close()
	o.Close()
	if _, err := os.Lstat(path); err != nil {
		t.Error("another's file was removed")
	}
}

func TestHandover_RefusesPathsThatCannotBeTrusted(t *testing.T) {
	dir := handoverDir(t)
	file, open := filepath.Join(dir, "file"), filepath.Join(dir, "open")
	if err := os.WriteFile(file, []byte("precious"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(open, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(open, 0o1777); err != nil { // not by Mkdir, for the umask
		t.Fatal(err)
	}
	for path, want := range map[string]string{
		file:                            "is not a socket",
		open:                            "is not a socket",
		filepath.Join(open, "s"):        "writable for others",
		filepath.Join(dir, "none", "s"): "no such file",
		filepath.Join(file, "s"):        "is not a directory",
		"/" + strings.Repeat("x", 200):  "at most",
	} {
		if h, err := Inherit(path, nil); h != nil || err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("inherit by %s: %v", path, err)
		}
		if _, err := OpenOffer(path); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("offer at %s: %v", path, err)
		}
	}
	if b, err := os.ReadFile(file); err != nil || string(b) != "precious" {
		t.Errorf("%q %v", b, err)
	}
}

func TestInherit_DoesNotWaitForEver(t *testing.T) {
	t.Parallel()
	path := filepath.Join(handoverDir(t), "s")
	ln, err := net.Listen("unix", path) // accepts nobody, as a stopped process
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	begun := time.Now()
	if h, err := Inherit(path, nil); h != nil || !errors.Is(err, os.ErrDeadlineExceeded) || !strings.Contains(err.Error(), path) {
		t.Errorf("%v %v", h, err)
	}
	if d := time.Since(begun); d > 2*handoverStep {
		t.Errorf("it took %s", d)
	}
}
