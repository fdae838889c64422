//go:build linux && !portable

package proxy

import (
	"io"
	"net"
	"os"
	"syscall"
	"unsafe"
)

// haveRaw says whether connections in clear are descriptors of our own.
const haveRaw = true

// detach takes the descriptor of a connection away from the runtime, which
// then has no entry for it in its poller, and closes conn.
func detach(conn *net.TCPConn) (fd int, err error) {
	raw, err := conn.SyscallConn()
	if err != nil {
		return 0, err
	}
	var errno syscall.Errno
	if err := raw.Control(func(old uintptr) {
		var n uintptr
		n, _, errno = syscall.Syscall(syscall.SYS_FCNTL, old, syscall.F_DUPFD_CLOEXEC, 0)
		fd = int(n)
	}); err != nil {
		return 0, err
	}
	if errno != 0 {
		return 0, os.NewSyscallError("fcntl", errno)
	}
	conn.Close()
	return fd, nil
}

// attach makes conn an ordinary connection to the same peer, which takes the
// place of the descriptor.
func (w *wire) attach() error {
	f := os.NewFile(uintptr(w.fd), "client or instance")
	defer f.Close()
	conn, err := net.FileConn(f)
	if err != nil {
		return err
	}
	w.conn, w.tcp = conn, conn
	return nil
}

func (w *wire) closeRaw() { _ = syscall.Close(w.fd) }

// closeWrite tells the peer that nothing more is coming.
func (w *wire) closeWriteRaw() error { return syscall.Shutdown(w.fd, syscall.SHUT_WR) }

// resetOnClose has closing tell the peer that something went wrong.
func (w *wire) resetOnClose() {
	_ = syscall.SetsockoptLinger(w.fd, syscall.SOL_SOCKET, syscall.SO_LINGER, &syscall.Linger{Onoff: 1})
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
