//go:build unix

package proxy

import (
	"net"
	"syscall"
)

// silentFD looks at a connection without waiting and without taking anything
// off it. mayTalk: bytes to read are no fault.
func silentFD(fd int, mayTalk bool) bool {
	var b [1]byte
	for {
		n, err := peek(fd, &b)
		switch {
		case err == syscall.EINTR:
		case err != nil:
			return err == syscall.EAGAIN
		default:
			return n > 0 && mayTalk
		}
	}
}

// silentConn is silentFD for a connection whose descriptor is not at hand.
func silentConn(c net.Conn, mayTalk bool) bool {
	sc, ok := c.(syscall.Conn)
	if !ok {
		return true
	}
	raw, err := sc.SyscallConn()
	if err != nil {
		return false
	}
	silent := false
	err = raw.Control(func(fd uintptr) { silent = silentFD(int(fd), mayTalk) })
	return silent && err == nil
}
