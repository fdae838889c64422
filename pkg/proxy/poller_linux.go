//go:build linux && !portable

package proxy

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
	"unsafe"
)

// pollers watch connections, in clear for all that happens to them, behind TLS
// for their peers' ends alone. They wake goroutines that wait, they serve connections that
// no goroutine waits for (see carriage), and they tell owners of wires that a peer has
// ended its side, also while the owner waits for somebody else: so that an
// instance learns at once that its client is gone. A connection is entered once, edge-triggered;
// nothing of that is changed for a request.
type pollers struct {
	all []*poller
}

// poller is an epoll together with the goroutine that asks it.
type poller struct {
	fd   int      // the epoll
	bell *os.File // an epoll of that epoll, which Go's own poller waits for
	raw  syscall.RawConn
	quit int         // an eventfd in fd, which close writes to
	stop atomic.Bool // run is to end
	off  atomic.Bool // the bell is: run waits by itself

	done chan struct{} // closed when run has ended; nil before start

	// slots are read without mu, and written with it.
	slots [maxChunks]atomic.Pointer[[chunkSize]pollEntry]

	mu   sync.Mutex // guards what follows, and done
	used uint32     // slots from 0 that were given away at least once
	free []uint32   // those that came back
	down bool
}

// A poller's slots come in chunks, made when they are needed, for up to a
// quarter of a million connections.
const (
	chunkSize = 1024
	maxChunks = 256
)

type pollEntry struct {
	w   atomic.Pointer[wire]
	gen atomic.Uint32 // counts the slot's tenants: an event for one that has left is dropped
}

func (p *poller) entry(slot uint32) *pollEntry {
	return &p.slots[slot/chunkSize].Load()[slot%chunkSize]
}

// pollSlot is a wire's place; the zero value is none.
type pollSlot struct {
	p    *poller
	slot uint32
}

// newPollers returns some that watch between start and close.
func newPollers() (*pollers, error) {
	raiseProcessors()
	h := &pollers{}
	for range Cores() {
		p, err := newPoller()
		if err != nil {
			h.close()
			return nil, fmt.Errorf("make an epoll: %w", err)
		}
		h.all = append(h.all, p)
	}
	return h, nil
}

// raiseProcessors gives Go's scheduler a processor (GOMAXPROCS) for each poller of
// the first Proxy, and leaves it as many for all else as it had. With fewer, what a poller
// waits in would be a reason to take its processor away (see wait).
var raiseProcessors = sync.OnceFunc(func() { runtime.GOMAXPROCS(2 * Cores()) })

func newPoller() (*poller, error) {
	fd, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		return nil, err
	}
	bell, err := syscall.EpollCreate1(syscall.EPOLL_CLOEXEC)
	if err != nil {
		syscall.Close(fd)
		return nil, err
	}
	quit, _, errno := syscall.RawSyscall(syscall.SYS_EVENTFD2, 0, syscall.O_CLOEXEC|syscall.O_NONBLOCK, 0)
	if errno != 0 {
		syscall.Close(fd)
		syscall.Close(bell)
		return nil, errno
	}
	_ = syscall.SetNonblock(bell, true) // tells os.NewFile to leave it to Go's poller
	p := &poller{fd: fd, bell: os.NewFile(uintptr(bell), "epoll"), quit: int(quit)}
	if p.raw, err = p.bell.SyscallConn(); err == nil {
		err = syscall.EpollCtl(fd, syscall.EPOLL_CTL_ADD, p.quit, &syscall.EpollEvent{Events: syscall.EPOLLIN, Fd: quitSlot})
	}
	if errno := p.hang(uintptr(bell), true); err == nil && errno != 0 {
		err = errno
	}
	if err != nil {
		p.closeFiles()
		return nil, err
	}
	return p, nil
}

// quitSlot is in the place of a slot in the event that ends run.
const quitSlot = -1

func (p *poller) closeFiles() {
	p.bell.Close()
	syscall.Close(p.fd)
	syscall.Close(p.quit)
}

// size returns how many there are, at least 1; of none, as many as would be made.
func (h *pollers) size() int {
	if h == nil {
		return Cores()
	}
	return len(h.all)
}

// start begins to watch. Wires that hang up before are told of then.
func (h *pollers) start() {
	if h == nil {
		return
	}
	for _, p := range h.all {
		p.start()
	}
}

// watch begins to watch, and takes the descriptor of a connection in clear out
// of the runtime's hands. Wires of the same shard, which are likely to have to do
// with each other, have the same poller. A failure leaves the connection as it is, unwatched: its owner then notices an end when it reads.
func (h *pollers) watch(w *wire, shard uint32) {
	if h != nil {
		h.all[shard%uint32(len(h.all))].watch(w)
	}
}

// close ends the watching. Wires may still be watched and forgotten; nobody is
// told any more. It may be called again.
func (h *pollers) close() {
	if h == nil {
		return
	}
	for _, p := range h.all {
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

const (
	// Batches of events that come within soon of each other are frequent. After manySoon
	// of them a poller waits for the next by itself, until one was long in coming.
	soon     = time.Millisecond
	manySoon = 8
	long     = 10 * time.Millisecond

	// turn is after how long a poller gives way to other goroutines. After 10 ms Go's
	// monitor thread would take the processor from it whenever it waits in a system call.
	turn = 3 * time.Millisecond
)

// run blocks until close.
func (p *poller) run() {
	var (
		events   = make([]syscall.EpollEvent, 64)
		frequent int       // batches that came soon, in a row
		last     time.Time // batch
		began    time.Time // the turn
	)
	_ = p.raw.Read(func(bell uintptr) bool {
		for {
			waits := p.off.Load()
			n, errno := p.wait(events, waits)
			if errno == syscall.EINTR {
				continue
			}
			check("epoll_pwait", errno)
			if p.stop.Load() {
				return true
			}
			if n > 0 {
				now := time.Now()
				if frequent++; now.Sub(last) > soon {
					frequent = 0
				}
				if waits && now.Sub(last) > long {
					waits = false
					p.off.Store(false)
					check("epoll_ctl", p.hang(bell, true))
				}
				if last = now; now.Sub(began) > turn {
					began = now
					runtime.Gosched()
				}
				p.tellAll(events[:n])
			}
			switch {
			case waits, n == len(events): // there may be more
			case frequent < manySoon:
				return false // what has come meanwhile rings
			default:
				p.off.Store(true)
				check("epoll_ctl", p.hang(bell, false))
			}
		}
	})
}

// check panics at what can't be, but with a descriptor that is not ours any more.
func check(call string, errno syscall.Errno) {
	if errno != 0 {
		panic(call + ": " + errno.Error())
	}
}

// hang puts the bell on the epoll, or takes it off.
func (p *poller) hang(bell uintptr, on bool) syscall.Errno {
	op := uintptr(syscall.EPOLL_CTL_DEL)
	if on {
		op = syscall.EPOLL_CTL_ADD
	}
	ev := syscall.EpollEvent{Events: syscall.EPOLLIN}
	_, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_CTL, bell, op, uintptr(p.fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	return errno
}

// wait takes events that have come. With waits it waits for some, in a system
// call that the scheduler knows of, so that it can take the processor or look at the
// stack; but for 10 ms it does not take it while others are idle (raiseProcessors), and
// going on takes nothing but the thread's own waking.
func (p *poller) wait(events []syscall.EpollEvent, waits bool) (n int, errno syscall.Errno) {
	var got uintptr
	if waits {
		got, _, errno = syscall.Syscall6(syscall.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), ^uintptr(0), 0, 0)
	} else {
		got, _, errno = syscall.RawSyscall6(syscall.SYS_EPOLL_PWAIT, uintptr(p.fd), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), 0, 0, 0)
	}
	return int(got), errno
}

// tellAll tells of a batch of events.
func (p *poller) tellAll(events []syscall.EpollEvent) {
	if len(events) > 1 {
		for i := range events {
			p.note(&events[i])
		}
	}
	for i := range events {
		p.tell(&events[i])
	}
}

// tenant returns the wire that an event is for, nil where that has left, or there never was one.
func (p *poller) tenant(ev *syscall.EpollEvent) *wire {
	e := p.entry(uint32(ev.Fd))
	w := e.w.Load()
	if w == nil || e.gen.Load() != uint32(ev.Pad) {
		return nil
	}
	return w
}

// note notes an event before any of its batch is told of, for who may take the
// wire meanwhile without being told: an idle connection to an instance.
func (p *poller) note(ev *syscall.EpollEvent) {
	w := p.tenant(ev)
	if w == nil || !w.raw || w.carried.waits.Load() {
		return
	}
	if ev.Events&(syscall.EPOLLRDHUP|syscall.EPOLLERR|syscall.EPOLLHUP) != 0 {
		w.hup.Store(true)
	}
	w.came.Store(true)
}

func (p *poller) tell(ev *syscall.EpollEvent) {
	w := p.tenant(ev)
	if w == nil {
		return
	}
	what := ev.Events
	broken := what&(syscall.EPOLLERR|syscall.EPOLLHUP) != 0
	hup := broken || what&syscall.EPOLLRDHUP != 0
	if hup {
		w.hup.Store(true)
	}
	if w.raw {
		if w.writing.Load() && (broken || what&syscall.EPOLLOUT != 0) {
			w.room.Store(true)
			w.writes.ring()
		}
		if (hup || what&syscall.EPOLLIN != 0) && w.deliver() {
			return
		}
	}
	if hup {
		w.owner.hungUp(broken)
	}
}

// deliver has what has come for the wire looked at; false where that is not
// done by the time it returns.
func (w *wire) deliver() bool {
	c := w.carried.take()
	if c == nil {
		w.came.Store(true)
		if c = w.carried.take(); c == nil { // nor in between
			w.reads.ring()
			return false
		}
	}
	c.run(true, true)
	return true
}

func (p *poller) watch(w *wire) {
	tcp, ok := w.tcp.(*net.TCPConn)
	if !ok || !p.reserve(w) {
		return
	}
	if w.conn != w.tcp {
		raw, err := tcp.SyscallConn()
		if err == nil {
			err = raw.Control(func(fd uintptr) { ok = w.watched.enter(w, int(fd), syscall.EPOLLRDHUP) })
		}
		if err != nil || !ok {
			w.watched.forget()
		}
		return
	}
	fd, err := detach(tcp)
	if err != nil {
		w.watched.forget()
		return
	}
	w.conn, w.tcp, w.raw, w.fd = nil, nil, true, fd
	if !w.watched.enter(w, fd, syscall.EPOLLIN|syscall.EPOLLRDHUP) {
		w.watched.forget()
		w.raw = w.attach() != nil // reads will say so
	}
}

// reserve finds the wire a place.
func (p *poller) reserve(w *wire) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	var slot uint32
	switch n := len(p.free); {
	case p.down:
		return false
	case n > 0:
		slot, p.free = p.free[n-1], p.free[:n-1]
	case p.used == chunkSize*maxChunks:
		return false
	default:
		if slot = p.used; slot%chunkSize == 0 {
			p.slots[slot/chunkSize].Store(new([chunkSize]pollEntry))
		}
		p.used++
	}
	w.watched = pollSlot{p, slot}
	return true
}

// enter begins to tell the wire of events.
func (s *pollSlot) enter(w *wire, fd int, events uint32) bool {
	s.p.entry(s.slot).w.Store(w) // from here on the poller may look at w
	return s.control(syscall.EPOLL_CTL_ADD, fd, events)
}

// control tells the epoll what to ask the descriptor for.
func (s *pollSlot) control(op, fd int, events uint32) bool {
	s.p.mu.Lock()
	gen, down := s.p.entry(s.slot).gen.Load(), s.p.down
	s.p.mu.Unlock()
	if down {
		return false
	}
	const edge = 1 << 31 // EPOLLET; syscall's constant is negative
	ev := syscall.EpollEvent{Events: events | edge, Fd: int32(s.slot), Pad: int32(gen)}
	_, _, errno := syscall.RawSyscall6(syscall.SYS_EPOLL_CTL, uintptr(s.p.fd), uintptr(op), uintptr(fd), uintptr(unsafe.Pointer(&ev)), 0, 0)
	return errno == 0
}

// wantRoom begins to ask for room to write, which is told at once if it is
// there, or ends that.
func (s *pollSlot) wantRoom(w *wire, want bool) {
	if s.p == nil {
		return
	}
	events := uint32(syscall.EPOLLIN | syscall.EPOLLRDHUP)
	if want {
		events |= syscall.EPOLLOUT
	}
	s.control(syscall.EPOLL_CTL_MOD, w.fd, events)
}

// forget ends the watching of a wire that is about to be closed, which takes
// its descriptor out of the epoll.
func (s *pollSlot) forget() {
	p := s.p
	if p == nil {
		return
	}
	p.mu.Lock()
	e := p.entry(s.slot)
	e.w.Store(nil)
	e.gen.Add(1)
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
		p.stop.Store(true)
		one := [8]byte{1} // any number but 0, in any order of bytes
		_, _ = syscall.Write(p.quit, one[:])
	}
	if done != nil {
		<-done
	}
	if !down {
		p.closeFiles()
	}
}
