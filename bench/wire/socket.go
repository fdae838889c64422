//go:build linux

// Package wire is what the load generator and the instances of the benchmark
// share: raw non-blocking sockets, one epoll loop, and just enough HTTP/1.1 to
// know where a message ends. It is made to cost less than any proxy between
// the two, and refuses to know what messages mean. It trusts both ends and
// must never face strangers.
package wire

import (
	"errors"
	"fmt"
	"net/netip"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ErrAgain says that a socket has nothing to read or no room to write now.
var ErrAgain = errors.New("try again")

// errHangup says that the peer closed its side.
var errHangup = errors.New("closed by the peer")

// Read reads what has arrived at a non-blocking socket. It returns ErrAgain
// when that is nothing, and an error at the end of the stream. b must not be
// empty. It never parks the goroutine: that is what makes it cheap.
func Read(fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall(unix.SYS_READ, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)))
	return result(n, errno)
}

// Discard drops up to n bytes that have arrived, without copying them out of
// the kernel (tcp(7), MSG_TRUNC). Otherwise it is as Read.
func Discard(fd, n int) (int, error) {
	got, _, errno := unix.RawSyscall6(unix.SYS_RECVFROM, uintptr(fd), 0, uintptr(n), unix.MSG_TRUNC|unix.MSG_DONTWAIT, 0, 0)
	return result(got, errno)
}

// Write writes what the socket has room for, at least one byte, or returns
// ErrAgain. b must not be empty.
func Write(fd int, b []byte) (int, error) {
	n, _, errno := unix.RawSyscall6(unix.SYS_SENDTO, uintptr(fd), uintptr(unsafe.Pointer(&b[0])), uintptr(len(b)), unix.MSG_NOSIGNAL|unix.MSG_DONTWAIT, 0, 0)
	return result(n, errno)
}

func result(n uintptr, errno unix.Errno) (int, error) {
	switch {
	case errno == unix.EAGAIN || errno == unix.EINTR:
		return 0, ErrAgain
	case errno != 0:
		return 0, errno
	case n == 0:
		return 0, errHangup
	}
	return int(n), nil
}

// Close closes the socket.
func Close(fd int) { _ = unix.Close(fd) }

// Listen returns a non-blocking listening socket at an IPv4 address, and where
// it listens: port 0 picks one.
func Listen(addr netip.AddrPort) (fd int, at netip.AddrPort, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, at, fmt.Errorf("socket: %w", err)
	}
	defer func() {
		if err != nil {
			Close(fd)
		}
	}()
	if err = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, at, fmt.Errorf("listen on %s: %w", addr, err)
	}
	if err = unix.Bind(fd, &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}); err != nil {
		return -1, at, fmt.Errorf("listen on %s: %w", addr, err)
	}
	if err = unix.Listen(fd, 4096); err != nil {
		return -1, at, fmt.Errorf("listen on %s: %w", addr, err)
	}
	name, err := unix.Getsockname(fd)
	if err != nil {
		return -1, at, fmt.Errorf("listen on %s: %w", addr, err)
	}
	return fd, netip.AddrPortFrom(addr.Addr(), uint16(name.(*unix.SockaddrInet4).Port)), nil
}

// Accept returns the next connection of a listening socket, non-blocking, or
// ErrAgain.
func Accept(listener int) (int, error) {
	fd, _, err := unix.Accept4(listener, unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC)
	switch {
	case err == unix.EAGAIN || err == unix.EINTR || err == unix.ECONNABORTED:
		return -1, ErrAgain
	case err != nil:
		return -1, fmt.Errorf("accept: %w", err)
	}
	return fd, noDelay(fd)
}

// Connect blocks until the connection stands, at most 5 s, and returns it
// non-blocking.
func Connect(addr netip.AddrPort) (fd int, err error) {
	fd, err = unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("socket: %w", err)
	}
	defer func() {
		if err != nil {
			Close(fd)
			err = fmt.Errorf("connect to %s: %w", addr, err)
		}
	}()
	// SO_SNDTIMEO bounds connect, too (socket(7)).
	if err = unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_SNDTIMEO, &unix.Timeval{Sec: 5}); err != nil {
		return -1, err
	}
	to := &unix.SockaddrInet4{Port: int(addr.Port()), Addr: addr.Addr().As4()}
	for {
		if err = unix.Connect(fd, to); err == nil || err == unix.EISCONN {
			break
		}
		if err != unix.EINTR && err != unix.EALREADY {
			return -1, err
		}
	}
	if err = unix.SetNonblock(fd, true); err != nil {
		return -1, err
	}
	return fd, noDelay(fd)
}

func noDelay(fd int) error {
	return unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)
}

// Event is one ready socket.
type Event struct {
	FD       int
	Readable bool // or hung up: reading tells
	Writable bool
}

// Loop is an epoll instance, level-triggered. Only Wake may be called by
// others than its owner.
type Loop struct {
	fd     int
	wake   int
	events [256]unix.EpollEvent
	ready  []Event
}

// NewLoop returns a Loop that watches nothing.
func NewLoop() (*Loop, error) {
	fd, err := unix.EpollCreate1(unix.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("epoll_create: %w", err)
	}
	wake, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		Close(fd)
		return nil, fmt.Errorf("eventfd: %w", err)
	}
	l := &Loop{fd: fd, wake: wake}
	if err := l.Add(wake); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

// Close frees the Loop, not the sockets that it watches.
func (l *Loop) Close() {
	Close(l.wake)
	Close(l.fd)
}

// Wake makes Wait return. It may be called from any goroutine before Close.
func (l *Loop) Wake() { _, _ = unix.Write(l.wake, []byte{1, 0, 0, 0, 0, 0, 0, 0}) }

// Add watches a socket for bytes to read. Closing the socket ends that.
func (l *Loop) Add(fd int) error {
	return l.control(unix.EPOLL_CTL_ADD, fd, unix.EPOLLIN)
}

// WantWrite says whether the Loop watches the socket for room to write as well.
func (l *Loop) WantWrite(fd int, want bool) error {
	events := uint32(unix.EPOLLIN)
	if want {
		events |= unix.EPOLLOUT
	}
	return l.control(unix.EPOLL_CTL_MOD, fd, events)
}

func (l *Loop) control(op, fd int, events uint32) error {
	if err := unix.EpollCtl(l.fd, op, fd, &unix.EpollEvent{Events: events, Fd: int32(fd)}); err != nil {
		return fmt.Errorf("epoll_ctl: %w", err)
	}
	return nil
}

// Wait returns sockets that are ready, none after the timeout or a Wake. A
// negative timeout waits for ever. The result is valid until the next Wait.
func (l *Loop) Wait(timeout time.Duration) ([]Event, error) {
	var spec *unix.Timespec
	if timeout >= 0 {
		ts := unix.NsecToTimespec(int64(timeout))
		spec = &ts
	}
	// Milliseconds, which are all that epoll_wait knows, would be 8 requests
	// at the rates that are offered here.
	n, _, errno := unix.Syscall6(unix.SYS_EPOLL_PWAIT2, uintptr(l.fd), uintptr(unsafe.Pointer(&l.events[0])), uintptr(len(l.events)),
		uintptr(unsafe.Pointer(spec)), 0, 0)
	if errno != 0 && errno != unix.EINTR {
		return nil, fmt.Errorf("epoll_pwait2: %w", errno)
	}
	l.ready = l.ready[:0]
	if errno == unix.EINTR {
		return l.ready, nil
	}
	for _, e := range l.events[:n] {
		if int(e.Fd) == l.wake {
			var b [8]byte
			_, _ = unix.Read(l.wake, b[:])
			continue
		}
		l.ready = append(l.ready, Event{
			FD:       int(e.Fd),
			Readable: e.Events&(unix.EPOLLIN|unix.EPOLLHUP|unix.EPOLLERR|unix.EPOLLRDHUP) != 0,
			Writable: e.Events&unix.EPOLLOUT != 0,
		})
	}
	return l.ready, nil
}

// PreciseTimers makes the waits of the calling thread end at the microsecond
// instead of up to 50 µs late (prctl(2), PR_SET_TIMERSLACK). The caller must
// have locked its goroutine to the thread.
func PreciseTimers() { _ = unix.Prctl(unix.PR_SET_TIMERSLACK, 1, 0, 0, 0) }
