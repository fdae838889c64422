//go:build unix && !linux

package proxy

import "syscall"

// peek reads a byte without taking it and without waiting.
func peek(fd int, b *[1]byte) (int, error) {
	n, _, err := syscall.Recvfrom(fd, b[:], syscall.MSG_PEEK|syscall.MSG_DONTWAIT)
	return n, err
}
