//go:build linux && !portable

package proxy

import (
	"io"
	"syscall"
	"unsafe"
)

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
		// recvfrom is what read does, without the way through the file system.
		n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(w.fd), uintptr(unsafe.Pointer(&p[0])), uintptr(len(p)), 0, 0, 0)
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
