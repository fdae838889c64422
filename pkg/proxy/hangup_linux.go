//go:build linux && !portable

package proxy

import (
	"fmt"
	"os"
	"sync"
	"syscall"
)

// hangups tells owners of wires that a peer has ended its side, also while the
// owner waits for somebody else: so that an instance learns at once that its
// client is gone. It asks an epoll of its own for nothing but that
// (EPOLLRDHUP), which costs one system call per connection and none per request. The
// runtime's poller waits for that epoll as it does for any descriptor.
type hangups struct {
	file *os.File // the epoll
	raw  syscall.RawConn
	fd   int

	done chan struct{} // closed when run has ended; nil before start

	mu    sync.Mutex // guards what follows, and done
	slots []hangupEntry
	free  []uint32
	down  bool
}

type hangupEntry struct {
	w   *wire
	gen uint32 // counts the slot's tenants: an event for one that has left is dropped
}

// hangupSlot is a wire's place; the zero value is none.
type hangupSlot struct {
	h    *hangups
	slot uint32
}

// newHangups returns one that watches between start and close.
func newHangups() (*hangups, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make an epoll: %w", err)
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		syscall.Close(fd)
		return nil, fmt.Errorf("make an epoll: %w", err)
	}
	h := &hangups{file: os.NewFile(uintptr(fd), "epoll"), fd: fd}
	if h.raw, err = h.file.SyscallConn(); err != nil {
		h.file.Close()
		return nil, fmt.Errorf("make an epoll: %w", err)
	}
	return h, nil
}

// start begins to watch. Wires that hang up before are told of then.
func (h *hangups) start() {
	if h == nil {
		return
	}
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.done != nil || h.down {
		return
	}
	h.done = make(chan struct{})
	go func(done chan struct{}) { // close waits for it
		defer close(done)
		h.run()
	}(h.done)
}

// run blocks until close.
func (h *hangups) run() {
	events := make([]syscall.EpollEvent, 128)
	_ = h.raw.Read(func(fd uintptr) bool {
		for {
			n, err := syscall.EpollWait(int(fd), events, 0)
			if err == syscall.EINTR {
				continue
			}
			if err != nil {
				return true
			}
			for i := range events[:n] {
				h.tell(&events[i])
			}
			if n < len(events) {
				return false
			}
		}
	})
}

func (h *hangups) tell(ev *syscall.EpollEvent) {
	slot, gen := uint32(ev.Fd), uint32(ev.Pad)
	h.mu.Lock()
	var w *wire
	if e := h.slots[slot]; e.gen == gen {
		w = e.w
	}
	h.mu.Unlock()
	if w != nil {
		w.hup.Store(true)
		w.owner.hungUp(ev.Events&(syscall.EPOLLERR|syscall.EPOLLHUP) != 0)
	}
}

// watch begins to watch. A failure leaves the wire unwatched: its owner then
// notices when it reads.
func (h *hangups) watch(w *wire) {
	if h == nil {
		return
	}
	var fd int
	if w.raw != nil {
		fd = w.fd
	} else {
		sc, ok := w.tcp.(syscall.Conn)
		if !ok {
			return
		}
		raw, err := sc.SyscallConn()
		if err != nil || raw.Control(func(s uintptr) { fd = int(s) }) != nil {
			return
		}
	}
	h.mu.Lock()
	if h.down {
		h.mu.Unlock()
		return
	}
	var slot uint32
	if n := len(h.free); n > 0 {
		slot, h.free = h.free[n-1], h.free[:n-1]
	} else {
		slot = uint32(len(h.slots))
		h.slots = append(h.slots, hangupEntry{})
	}
	h.slots[slot].w = w
	gen := h.slots[slot].gen
	h.mu.Unlock()
	w.watched = hangupSlot{h, slot}
	const edge = 1 << 31 // EPOLLET; syscall's constant is negative
	ev := syscall.EpollEvent{Events: syscall.EPOLLRDHUP | edge, Fd: int32(slot), Pad: int32(gen)}
	if err := syscall.EpollCtl(h.fd, syscall.EPOLL_CTL_ADD, fd, &ev); err != nil {
		w.watched.forget()
	}
}

// forget ends the watching of a wire that is about to be closed, which takes
// its descriptor out of the epoll.
func (s *hangupSlot) forget() {
	h := s.h
	if h == nil {
		return
	}
	h.mu.Lock()
	h.slots[s.slot].w = nil
	h.slots[s.slot].gen++
	h.free = append(h.free, s.slot)
	h.mu.Unlock()
	s.h = nil
}

// close ends the watching. Wires may still be watched and forgotten; nobody is
// told any more. It may be called again.
func (h *hangups) close() {
	if h == nil {
		return
	}
	h.mu.Lock()
	down, done := h.down, h.done
	h.down = true
	h.mu.Unlock()
	if !down {
		h.file.Close()
	}
	if done != nil {
		<-done
	}
}
