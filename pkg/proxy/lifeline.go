package proxy

import (
	"context"
	"sync/atomic"

	"difylb/pkg/lb"
)

// lifeline tells a request under way that it need not go on: its client is
// gone, or the time of a shutdown is over. Whoever works for the request says
// what is to be woken then. Safe for concurrent use.
type lifeline struct {
	ended  atomic.Uint32 // why; alive while it has not
	peer   atomic.Pointer[wire]
	cancel atomic.Pointer[context.CancelFunc]
}

const (
	alive uint32 = iota
	clientGone
	shutdown
)

// end ends it, once. It wakes whom it has to and does not block.
func (l *lifeline) end(cause uint32) {
	l.ended.CompareAndSwap(alive, cause)
	if w := l.peer.Load(); w != nil {
		w.interrupt()
	}
	if f := l.cancel.Load(); f != nil {
		(*f)()
	}
}

// over reports whether it has ended.
func (l *lifeline) over() bool { return l.ended.Load() != alive }

// reason says why it has ended.
func (l *lifeline) reason() lb.Reason {
	if l.ended.Load() == shutdown {
		return lb.ReasonShutdown
	}
	return lb.ReasonClientGone
}

// waitFor has the wire woken at the end; nil ends that. The caller looks at
// over afterwards.
func (l *lifeline) waitFor(w *wire) { l.peer.Store(w) }

// context returns one that ends with the lifeline, for what is waited for
// elsewhere than on a wire. release is due when that is over.
func (l *lifeline) context() (ctx context.Context, release func()) {
	ctx, cancel := context.WithCancel(context.Background())
	l.cancel.Store(&cancel)
	if l.over() {
		cancel()
	}
	return ctx, func() {
		l.cancel.Store(nil)
		cancel()
	}
}
