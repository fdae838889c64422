//go:build linux && !portable

package proxy

import (
	"io"
	"os"
	"syscall"
	"unsafe"
)

// errDeadline is what an interrupted wait returns.
var errDeadline = os.ErrDeadlineExceeded

// initRaw finds out what system calls need.
func (w *wire) initRaw() {
	sc, ok := w.conn.(syscall.Conn)
	if !ok {
		return
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return
	}
	if err := raw.Control(func(fd uintptr) { w.fd = int(fd) }); err != nil {
		return
	}
	w.raw = raw
	w.poll = func(uintptr) bool { return w.wait.ready() }
}

// The calls below are made without telling the scheduler, which is right for
// such as never block: sockets are in non-blocking mode. Telling it would also
// wake the runtime's monitor from its sleep, time and again, in a process that
// is busy for a part of the time.

func (w *wire) readRaw(p []byte) (int, error) {
	if len(p) == 0 {
		return 0, nil
	}
	for {
		n, _, errno := syscall.RawSyscall(syscall.SYS_READ, uintptr(w.fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)))
		switch {
		case errno == 0 && n == 0:
			return 0, io.EOF
		case errno == 0:
			return int(n), nil
		case errno == syscall.EAGAIN:
			return 0, errAgain
		case errno != syscall.EINTR:
			return 0, errno
		}
	}
}

// writeRaw writes as much as there is room for.
func (w *wire) writeRaw(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n, _, errno := syscall.RawSyscall6(syscall.SYS_SENDTO, uintptr(w.fd), uintptr(unsafe.Pointer(&p[done])), uintptr(len(p)-done), syscall.MSG_NOSIGNAL, 0, 0)
		switch errno {
		case 0:
			done += int(n)
		case syscall.EINTR:
		case syscall.EAGAIN:
			return done, errAgain
		default:
			return done, errno
		}
	}
	return done, nil
}

// silent reports whether an idle connection is as it should be: open, with
// nothing to read.
func (w *wire) silent() bool {
	switch {
	case w.hup.Load():
		return false
	case w.raw != nil:
		return silentRaw(w.fd)
	case w.conn != w.tcp:
		return w.silentTLS()
	}
	return silentConn(w.tcp, false)
}

// silentRaw is silentFD for a descriptor at hand.
func silentRaw(fd int) bool {
	var b [1]byte
	for {
		_, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), 1, syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
		if errno != syscall.EINTR {
			return errno == syscall.EAGAIN
		}
	}
}
