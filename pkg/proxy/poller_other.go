//go:build !linux || portable

package proxy

import (
	"sync"
	"time"
)

// pollers tells owners of wires that a peer has ended its side, also while the
// owner waits for somebody else. Without EPOLLRDHUP it looks at every wire a
// few times a second; an end behind unread bytes is noticed when those are read.
type pollers struct {
	stop chan struct{}
	done sync.WaitGroup

	mu      sync.Mutex // guards what follows
	wires   map[*wire]struct{}
	started bool
	down    bool
}

// hangupInterval is how often the wires are looked at.
const hangupInterval = 50 * time.Millisecond

// pollSlot is a wire's place; the zero value is none.
type pollSlot struct {
	h *pollers
	w *wire
}

func newPollers() (*pollers, error) {
	return &pollers{stop: make(chan struct{}), wires: make(map[*wire]struct{})}, nil
}

// size returns how many would be of use: it is one for each core.
func (h *pollers) size() int { return Cores() }

// start begins to watch.
func (h *pollers) start() {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.started || h.down {
		return
	}
	h.started = true
	h.done.Go(h.run) // close waits for it
}

// run blocks until close.
func (h *pollers) run() {
	tick := time.NewTicker(hangupInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
		case <-h.stop:
			return
		}
		var gone []*wire
		h.mu.Lock()
		for w := range h.wires {
			if !silentConn(w.tcp, true) {
				gone = append(gone, w)
				delete(h.wires, w)
			}
		}
		h.mu.Unlock()
		for _, w := range gone {
			w.hup.Store(true)
			w.owner.hungUp(false)
		}
	}
}

func (h *pollers) watch(w *wire, _ uint32) {
	h.mu.Lock()
	h.wires[w] = struct{}{}
	h.mu.Unlock()
	w.watched = pollSlot{h, w}
}

func (s *pollSlot) wantRoom(*wire, bool) {}

func (s *pollSlot) forget() {
	if s.h == nil {
		return
	}
	s.h.mu.Lock()
	delete(s.h.wires, s.w)
	s.h.mu.Unlock()
	s.h = nil
}

// close ends the watching. It may be called again.
func (h *pollers) close() {
	h.mu.Lock()
	down := h.down
	h.down = true
	h.mu.Unlock()
	if !down {
		close(h.stop)
	}
	h.done.Wait()
}
