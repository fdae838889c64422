//go:build unix

package daemon

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"time"
)

// What the two processes say to each other on the unix socket, a line each:
//
//	successor    handoverWish    what it wants
//	predecessor  handoverGift    what it passes on, with the sockets beside it (SCM_RIGHTS)
//	successor    handoverServes  when it accepts on them
//	predecessor  handoverFree    when the path is free for the successor
//
// Whoever ends before it has said its last line changes nothing.
const (
	handoverServes = "serving\n"
	handoverFree   = "released\n"

	handoverVersion = 1
	// handoverLine bounds a line, handoverMost the sockets of one message: the
	// kernel of Linux passes 253 (SCM_MAX_FD).
	handoverLine = 64 << 10
	handoverMost = 250
	// handoverPath bounds the path: macOS has 104 bytes with the zero behind
	// it, Linux 108. One is kept for the name before it is renamed.
	handoverPath = 102
)

type handoverWish struct {
	Version int      `json:"difylb_handover"`
	Want    []Socket `json:"want"`
}

type handoverGift struct {
	Error   string   `json:"error,omitempty"`
	Sockets []Socket `json:"sockets"` // in the order of the descriptors
}

// Offer is a unix socket at which a successor gets the listening sockets of
// this process. Made by OpenOffer, then Run once or Close.
type Offer struct {
	path string
	ln   *net.UnixListener
	own  fs.FileInfo // the socket's file, to remove no other
	once sync.Once
}

// OpenOffer listens at the path, with mode 0600. Whoever may write to the
// directory could put a socket of his own there, so it must belong to this
// user or to root and be writable for its owner only. A socket at which nobody
// answers is a leftover and is replaced. It is ErrHandoverTaken where somebody
// does. Successors wait until Run. It blocks for seconds at most.
func OpenOffer(path string) (*Offer, error) {
	conn, err := dialHandover(path)
	if err != nil {
		return nil, err
	}
	if conn != nil {
		conn.Close()
		return nil, fmt.Errorf("%s: %w", path, ErrHandoverTaken)
	}
	// Not at the path itself: it must not be open to others before its mode is
	// set, and must not be without a socket that answers while it is replaced.
	fresh := path + "~"
	if err := os.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	ln, err := net.ListenUnix("unix", &net.UnixAddr{Name: fresh, Net: "unix"})
	if err != nil {
		return nil, err // says the path
	}
	ln.SetUnlinkOnClose(false) // by then another's may stand there
	o := &Offer{path: path, ln: ln}
	err = os.Chmod(fresh, 0o600)
	if err == nil {
		o.own, err = os.Lstat(fresh)
	}
	if err == nil {
		err = os.Rename(fresh, path)
	}
	if err != nil {
		ln.Close()
		os.Remove(fresh)
		return nil, err
	}
	return o, nil
}

// Close ends the offer and frees the path. It may be called again.
func (o *Offer) Close() {
	o.once.Do(func() {
		if now, err := os.Lstat(o.path); err == nil && os.SameFile(now, o.own) {
			os.Remove(o.path)
		}
		o.ln.Close()
	})
}

// Run passes on what a successor wants of the sockets, which stay the
// caller's. It returns nil when a successor serves: from then on a connection
// that this process does not accept is accepted there. A successor that ends
// before that changes nothing. Otherwise it blocks until ctx ends and returns
// its cause. The path is free when it returns.
func (o *Offer) Run(ctx context.Context, sockets map[Socket]*net.TCPListener) error {
	defer o.Close()
	defer context.AfterFunc(ctx, o.Close)()
	for {
		conn, err := o.ln.AcceptUnix()
		switch {
		case ctx.Err() != nil || errors.Is(err, net.ErrClosed):
			if err == nil {
				conn.Close()
			}
			if err = context.Cause(ctx); err == nil {
				err = net.ErrClosed
			}
			return err
		case err != nil: // no descriptor is left, most likely
			select {
			case <-time.After(time.Second):
			case <-ctx.Done():
			}
		case o.pass(ctx, conn, sockets):
			return nil
		}
	}
}

// pass serves one successor and reports whether that has taken over.
func (o *Offer) pass(ctx context.Context, conn *net.UnixConn, sockets map[Socket]*net.TCPListener) bool {
	defer conn.Close()
	defer context.AfterFunc(ctx, func() { conn.Close() })()
	conn.SetDeadline(time.Now().Add(handoverStep))
	in := bufio.NewReader(io.LimitReader(conn, handoverLine))
	var wish handoverWish
	if err := readLine(in, &wish); err != nil {
		return false
	}
	var gift handoverGift
	var pass []*net.TCPListener
	if wish.Version != handoverVersion {
		gift.Error = fmt.Sprintf("the process that runs knows version %d of handing over, not %d", handoverVersion, wish.Version)
	} else {
		for _, s := range wish.Want {
			if ln := sockets[s]; ln != nil && len(pass) < handoverMost {
				gift.Sockets, pass = append(gift.Sockets, s), append(pass, ln)
			}
		}
	}
	line, err := json.Marshal(gift)
	if err != nil || sendSockets(conn, append(line, '\n'), pass) != nil || gift.Error != "" {
		return false
	}
	conn.SetDeadline(time.Now().Add(HandoverPatience))
	if said, err := in.ReadString('\n'); err != nil || said != handoverServes {
		return false
	}
	o.Close()
	conn.SetDeadline(time.Now().Add(handoverStep))
	_, _ = io.WriteString(conn, handoverFree) // whether it hears it or not, it serves
	return true
}

// sendSockets writes the line with the sockets beside its first byte. The
// descriptors are borrowed, not copied by File, whose Fd could make the socket
// a blocking one for everybody who shares it.
func sendSockets(conn *net.UnixConn, line []byte, sockets []*net.TCPListener) error {
	var send func(fds []int) error
	send = func(fds []int) error {
		if len(fds) == len(sockets) {
			var rights []byte
			if len(fds) > 0 {
				rights = syscall.UnixRights(fds...)
			}
			n, _, err := conn.WriteMsgUnix(line, rights, nil)
			if err == nil && n < len(line) {
				_, err = conn.Write(line[n:])
			}
			return err
		}
		raw, err := sockets[len(fds)].SyscallConn()
		if err != nil {
			return err
		}
		var sent error
		err = raw.Control(func(fd uintptr) { sent = send(append(fds, int(fd))) })
		return errors.Join(err, sent)
	}
	return send(make([]int, 0, len(sockets)))
}

// Inheritance is what a successor got: the sockets of its predecessor, and the
// line to it. Close or Serving ends it.
type Inheritance struct {
	conn    *net.UnixConn
	in      *bufio.Reader
	sockets map[Socket]*net.TCPListener
}

// Inherit asks the process that offers its sockets at the path for those that
// are wanted. It returns nil without an error where nobody answers: there is
// no predecessor. The directory is checked as by OpenOffer. It blocks for
// seconds at most. The predecessor serves on until Serving.
func Inherit(path string, want []Socket) (_ *Inheritance, err error) {
	conn, err := dialHandover(path)
	if conn == nil {
		return nil, err
	}
	h := &Inheritance{conn: conn, sockets: make(map[Socket]*net.TCPListener)}
	defer func() {
		if err != nil {
			h.Close()
			err = fmt.Errorf("take over by %s: %w", path, err)
		}
	}()
	conn.SetDeadline(time.Now().Add(handoverStep))
	wish, err := json.Marshal(handoverWish{Version: handoverVersion, Want: want})
	if err != nil {
		return nil, err
	}
	if _, err := conn.Write(append(wish, '\n')); err != nil {
		return nil, err
	}
	line, files, err := receiveFiles(conn)
	defer func() {
		for _, f := range files {
			f.Close() // the listeners have copies
		}
	}()
	if err != nil {
		return nil, err
	}
	var gift handoverGift
	if err := json.Unmarshal(line, &gift); err != nil {
		return nil, err
	}
	if gift.Error != "" {
		return nil, errors.New(gift.Error)
	}
	if len(gift.Sockets) != len(files) {
		return nil, fmt.Errorf("%d sockets came, %d were named", len(files), len(gift.Sockets))
	}
	for i, s := range gift.Sockets {
		if !slices.Contains(want, s) || h.sockets[s] != nil {
			return nil, fmt.Errorf("a socket came that was not asked for: --%s %s", s.Flag, s.Address)
		}
		ln, err := net.FileListener(files[i])
		if err != nil {
			return nil, fmt.Errorf("--%s %s: %w", s.Flag, s.Address, err)
		}
		tcp, ok := ln.(*net.TCPListener)
		if !ok {
			ln.Close()
			return nil, fmt.Errorf("--%s %s: not a TCP socket", s.Flag, s.Address)
		}
		h.sockets[s] = tcp
	}
	h.in = bufio.NewReader(io.LimitReader(conn, handoverLine))
	return h, nil
}

// receiveFiles reads a line and what came beside it. The files are the
// caller's, also with an error. They are closed on exec.
func receiveFiles(conn *net.UnixConn) (line []byte, files []*os.File, err error) {
	buf := make([]byte, 4<<10)
	beside := make([]byte, syscall.CmsgSpace(4*handoverMost))
	for len(line) < handoverLine {
		n, nb, flags, _, err := conn.ReadMsgUnix(buf, beside)
		if err == nil && n == 0 {
			err = io.ErrUnexpectedEOF
		}
		messages, bad := syscall.ParseSocketControlMessage(beside[:nb])
		for _, m := range messages {
			fds, err := syscall.ParseUnixRights(&m)
			if err != nil {
				continue // something else
			}
			for _, fd := range fds {
				files = append(files, os.NewFile(uintptr(fd), "handed over"))
			}
		}
		if flags&syscall.MSG_CTRUNC != 0 {
			bad = errors.New("not all sockets came: too many, or no descriptor is left")
		}
		if err = errors.Join(err, bad); err != nil {
			return nil, files, err
		}
		line = append(line, buf[:n]...)
		if end := bytes.IndexByte(line, '\n'); end >= 0 {
			return line[:end], files, nil
		}
	}
	return nil, files, bufio.ErrTooLong
}

// Take returns the socket, once; then it is the caller's. It is nil if the
// predecessor had none like it.
func (h *Inheritance) Take(s Socket) *net.TCPListener {
	ln := h.sockets[s]
	delete(h.sockets, s)
	return ln
}

// Serving tells the predecessor that this process accepts on the sockets, and
// waits until the path is free. An error means that the predecessor has not
// heard it or has not said so: it has ended, or it goes on. It blocks for
// seconds at most.
func (h *Inheritance) Serving() error {
	defer h.Close()
	h.conn.SetDeadline(time.Now().Add(handoverStep))
	if _, err := io.WriteString(h.conn, handoverServes); err != nil {
		return fmt.Errorf("tell the predecessor: %w", err)
	}
	said, err := h.in.ReadString('\n')
	if err == nil && said != handoverFree {
		err = fmt.Errorf("it says %q", said)
	}
	if err != nil {
		return fmt.Errorf("hear of the predecessor's end: %w", err)
	}
	return nil
}

// Close gives up what was not taken. Before Serving, it lets the predecessor
// serve on. It may be called again.
func (h *Inheritance) Close() {
	h.conn.Close()
	for s, ln := range h.sockets {
		ln.Close()
		delete(h.sockets, s)
	}
}

func readLine(in *bufio.Reader, v any) error {
	line, err := in.ReadBytes('\n') // the reader has a bound
	if err != nil {
		return err
	}
	return json.Unmarshal(line, v)
}

// dialHandover connects to who offers at the path. It returns nil without an
// error where nobody does.
func dialHandover(path string) (*net.UnixConn, error) {
	if len(path) > handoverPath {
		return nil, fmt.Errorf("%s: a unix socket's path has at most %d bytes, this has %d", path, handoverPath, len(path))
	}
	if err := checkHandoverDir(filepath.Dir(path)); err != nil {
		return nil, err
	}
	st, err := os.Lstat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	if st.Mode().Type() != fs.ModeSocket {
		return nil, fmt.Errorf("%s is not a socket", path)
	}
	conn, err := net.DialTimeout("unix", path, handoverStep)
	switch {
	case err == nil:
		return conn.(*net.UnixConn), nil
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, fs.ErrNotExist):
		return nil, nil
	}
	return nil, err
}

func checkHandoverDir(dir string) error {
	st, err := os.Stat(dir)
	if err != nil {
		return err
	}
	if !st.IsDir() {
		return fmt.Errorf("%s is not a directory", dir)
	}
	if sys, ok := st.Sys().(*syscall.Stat_t); ok && sys.Uid != 0 && int(sys.Uid) != os.Geteuid() {
		return fmt.Errorf("directory %s belongs to another user", dir)
	}
	if st.Mode().Perm()&0o022 != 0 {
		return fmt.Errorf("directory %s is writable for others (mode %04o); whoever writes there could take the sockets", dir, st.Mode().Perm())
	}
	return nil
}
