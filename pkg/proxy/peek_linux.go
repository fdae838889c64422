package proxy

import (
	"syscall"
	"unsafe"
)

// peek reads a byte without taking it and without waiting. It does not tell
// the scheduler: see wire_linux.go.
func peek(fd int, b *[1]byte) (int, error) {
	n, _, errno := syscall.RawSyscall6(syscall.SYS_RECVFROM, uintptr(fd), uintptr(unsafe.Pointer(b)), 1, syscall.MSG_PEEK|syscall.MSG_DONTWAIT, 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}
