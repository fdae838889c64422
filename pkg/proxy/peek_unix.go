//go:build unix

package proxy

import (
	"net"
	"syscall"
)

// closedByPeer looks at an idle connection without waiting and without taking
// anything off it: the peer has closed it, or sent what nobody asked for.
// Behind TLS bytes may be a session ticket; they are left to its reader.
func closedByPeer(c net.Conn) bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return false
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return true
	}
	closed := false
	// Control and not Read: http.Transport waits in a read all the time.
	err = raw.Control(func(fd uintptr) {
		var b [1]byte
		n, _, err := syscall.Recvfrom(int(fd), b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
		closed = (err == nil && n == 0) || (err != nil && err != syscall.EAGAIN && err != syscall.EINTR)
	})
	return closed || err != nil
}
