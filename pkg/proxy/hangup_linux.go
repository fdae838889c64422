//go:build linux && !portable

package proxy

import (
	"fmt"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"unsafe"
)

// hangups watch connections from outside their goroutines, on pollers of their own.
// They tell owners of wires that a peer has ended its side, also while the
// owner waits for somebody else: so that an instance learns at once that its
// client is gone. That is asked for by EPOLLRDHUP alone, and costs one system call
// per connection and none per request. And they serve streams that are carried
// (see carriage), whose wires are then asked for bytes as well.
type hangups struct {
	pollers []*poller
	next    atomic.Uint32
}

// poller is an epoll together with the goroutine that asks it. The runtime's
// own poller waits for that epoll as it does for any descriptor.
type poller struct {
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
	p    *poller
	slot uint32
}

// maxPollers bounds how many cores work on streams at the same time.
const maxPollers = 16

// newHangups returns some that watch between start and close.
func newHangups() (*hangups, error) {
	h := &hangups{}
	for range min(runtime.GOMAXPROCS(0), maxPollers) {
		p, err := newPoller()
		if err != nil {
			h.close()
			return nil, fmt.Errorf("make an epoll: %w", err)
		}
		h.pollers = append(h.pollers, p)
	}
	return h, nil
}

func newPoller() (*poller, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	if err := syscall.SetNonblock(fd, true); err != nil {
		syscall.Close(fd)
		return nil, err
	}
	p := &poller{file: os.NewFile(uintptr(fd), "epoll"), fd: fd}
	if p.raw, err = p.file.SyscallConn(); err != nil {
		p.file.Close()
		return nil, err
	}
	return p, nil
}

// start begins to watch. Wires that hang up before are told of then.
func (h *hangups) start() {
	if h == nil {
		return
	}
	for _, p := range h.pollers {
		p.start()
	}
}

// watch begins to watch. A failure leaves the wire unwatched: its owner then
// notices when it reads.
func (h *hangups) watch(w *wire) {
	if h != nil {
		h.pollers[h.next.Add(1)%uint32(len(h.pollers))].watch(w)
	}
}

// close ends the watching. Wires may still be watched and forgotten; nobody is
// told any more. It may be called again.
func (h *hangups) close() {
	if h == nil {
		return
	}
	for _, p := range h.pollers {
		p.close()
	}
}

func (p *poller) start() {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.done != nil || p.down {
		return
	}
	p.done = make(chan struct{})
	go func(done chan struct{}) { // close waits for it
		defer close(done)
		p.run()
	}(p.done)
}

// run blocks until close.
func (p *poller) run() {
	events := make([]syscall.EpollEvent, 64)
	_ = p.raw.Read(func(uintptr) bool {
		for {
			// It does not wait, so the scheduler need not know.
			n, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
			if errno == syscall.EINTR {
				continue
			}
			if errno != 0 {
				return true
			}
			for i := range events[:n] {
				p.tell(&events[i])
			}
			if int(n) < len(events) {
				return false
			}
			runtime.Gosched() // others have work, too
		}
	})
}

func (p *poller) tell(ev *syscall.EpollEvent) {
	slot, gen := uint32(ev.Fd), uint32(ev.Pad)
	p.mu.Lock()
	var w *wire
	if e := p.slots[slot]; e.gen == gen {
		w = e.w
	}
	p.mu.Unlock()
	if w == nil {
		return
	}
	broken := ev.Events&(syscall.EPOLLERR|syscall.EPOLLHUP) != 0
	hup := broken || ev.Events&syscall.EPOLLRDHUP != 0
	if hup {
		w.hup.Store(true)
	}
	if !w.carried.serve(w) && hup {
		w.owner.hungUp(broken)
	}
}

func (p *poller) watch(w *wire) {
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
	p.mu.Lock()
	if p.down {
		p.mu.Unlock()
		return
	}
	var slot uint32
	if n := len(p.free); n > 0 {
		slot, p.free = p.free[n-1], p.free[:n-1]
	} else {
		slot = uint32(len(p.slots))
		p.slots = append(p.slots, hangupEntry{})
	}
	p.slots[slot].w = w
	p.mu.Unlock()
	w.watched = hangupSlot{p, slot}
	if !w.watched.control(syscall.EPOLL_CTL_ADD, fd, syscall.EPOLLRDHUP) {
		w.watched.forget()
	}
}

// control tells the epoll what to ask the descriptor for.
func (s *hangupSlot) control(op, fd int, events uint32) bool {
	s.p.mu.Lock()
	gen, down := s.p.slots[s.slot].gen, s.p.down
	s.p.mu.Unlock()
	if down {
		return false
	}
	const edge = 1 << 31 // EPOLLET; syscall's constant is negative
	ev := syscall.EpollEvent{Events: events | edge, Fd: int32(s.slot), Pad: int32(gen)}
	_, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_CTL, uintptr(s.p.fd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	return errno == 0
}

// listen has the wire's bytes announced as well, those that are there at once;
// false where that can't be had.
func (s *hangupSlot) listen(w *wire) bool {
	return s.p != nil && w.raw != nil && s.control(syscall.EPOLL_CTL_MOD, w.fd, syscall.EPOLLIN|syscall.EPOLLRDHUP)
}

// unlisten ends that.
func (s *hangupSlot) unlisten(w *wire) { s.control(syscall.EPOLL_CTL_MOD, w.fd, syscall.EPOLLRDHUP) }

// none reports whether the wire has no place.
func (s *hangupSlot) none() bool { return s.p == nil }

// forget ends the watching of a wire that is about to be closed, which takes
// its descriptor out of the epoll.
func (s *hangupSlot) forget() {
	p := s.p
	if p == nil {
		return
	}
	p.mu.Lock()
	p.slots[s.slot].w = nil
	p.slots[s.slot].gen++
	p.free = append(p.free, s.slot)
	p.mu.Unlock()
	s.p = nil
}

func (p *poller) close() {
	p.mu.Lock()
	down, done := p.down, p.done
	p.down = true
	p.mu.Unlock()
	if !down {
		p.file.Close()
	}
	if done != nil {
		<-done
	}
}
