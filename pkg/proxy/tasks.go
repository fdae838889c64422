package proxy

import (
	"hash/maphash"
	"sync"
	"time"
)

// taskMemory remembers which instance runs which task, as seen in answers that
// passed by. Dify forgets who owns a task after 30 minutes, and so does this.
// Bounded: the oldest half goes when a part is full. Safe for concurrent use.
type taskMemory struct {
	seed  maphash.Seed
	parts [64]taskPart
}

type taskPart struct {
	mu         sync.Mutex
	young, old map[taskKey]taskEntry
}

type taskKey struct{ app, task string }

type taskEntry struct {
	instance string
	seen     time.Time
}

const (
	taskLifetime = 30 * time.Minute
	taskPartSize = 1024 // per generation: 131,072 tasks in all
)

func newTaskMemory() *taskMemory { return &taskMemory{seed: maphash.MakeSeed()} }

func (m *taskMemory) part(task string) *taskPart {
	return &m.parts[maphash.String(m.seed, task)%uint64(len(m.parts))]
}

func (m *taskMemory) learn(app, task, instance string) {
	p := m.part(task)
	p.mu.Lock()
	defer p.mu.Unlock()
	if len(p.young) >= taskPartSize {
		p.old, p.young = p.young, nil
	}
	if p.young == nil {
		p.young = make(map[taskKey]taskEntry)
	}
	p.young[taskKey{app, task}] = taskEntry{instance, time.Now()}
}

func (m *taskMemory) find(app, task string) (instance string, ok bool) {
	p := m.part(task)
	p.mu.Lock()
	defer p.mu.Unlock()
	e, ok := p.young[taskKey{app, task}]
	if !ok {
		e, ok = p.old[taskKey{app, task}]
	}
	if !ok || time.Since(e.seen) > taskLifetime {
		return "", false
	}
	return e.instance, true
}
