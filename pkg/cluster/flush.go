package cluster

import (
	"context"
	"errors"
	"fmt"
	"sync"
)

// Flush reports once more, to all lb-admins that are linked at once, and waits
// until each has acknowledged it, or ctx ends; the error then names those that
// have not. One that hangs costs the others nothing. Call it when the last
// request has ended and Run is still running.
func (l *Link) Flush(ctx context.Context) error {
	l.mu.Lock()
	after := l.seq
	var waiting []*peer
	for _, p := range l.peers {
		if p.connected {
			waiting = append(waiting, p)
			poke(p.due)
		}
	}
	l.mu.Unlock()
	silent := make([]error, len(waiting))
	var wg sync.WaitGroup
	for i, p := range waiting {
		wg.Go(func() {
			if err := p.waitAck(ctx, after); err != nil {
				silent[i] = fmt.Errorf("lb-admin %q: %w", p.key.id, err)
			}
		})
	}
	wg.Wait()
	return errors.Join(silent...)
}
