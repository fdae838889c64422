package proxy

import (
	"hash/maphash"
	"sync"
	"time"
)

// memory remembers what was seen in answers that passed by: which instance
// runs a task, holds a conversation, signed a file. It is a hint and never the
// truth: each proxy sees only its own part of the traffic, and what is not
// remembered is found out by asking. Bounded: where a part is full, the older
// half of it goes. Safe for concurrent use.
type memory struct {
	lifetime time.Duration // 0: until it is pushed out
	seed     maphash.Seed
	parts    [64]memoryPart
}

type memoryPart struct {
	mu         sync.Mutex
	young, old map[memoryKey]memoryEntry
}

// memoryKey is the hash of an id and its application; ids that are good for all
// have the application "". Two that hash to the same share an entry, which is no
// worse than not to remember, and happens in one of 2^47 cases when all is full.
type memoryKey uint64

type memoryEntry struct {
	place string // name of an instance, or an address
	seen  time.Time
}

// memoryPartSize is the size of a part's generation: 131,072 ids in all.
const memoryPartSize = 1024

func newMemory(lifetime time.Duration) *memory {
	return &memory{lifetime: lifetime, seed: maphash.MakeSeed()}
}

func (m *memory) part(app, id string) (*memoryPart, memoryKey) {
	h := maphash.String(m.seed, id) + 31*maphash.String(m.seed, app)
	return &m.parts[h%uint64(len(m.parts))], memoryKey(h)
}

// learn notes where an id is at home. It does not keep the id.
func (m *memory) learn(app, id, place string, now time.Time) {
	if id == "" {
		return
	}
	p, key := m.part(app, id)
	p.mu.Lock()
	defer p.mu.Unlock()
	if _, known := p.young[key]; !known && len(p.young) >= memoryPartSize {
		p.old, p.young = p.young, nil
	}
	if p.young == nil {
		p.young = make(map[memoryKey]memoryEntry)
	}
	p.young[key] = memoryEntry{place, now}
}

// find returns where the id was seen last.
func (m *memory) find(app, id string) (place string, ok bool) {
	p, key := m.part(app, id)
	p.mu.Lock()
	defer p.mu.Unlock()
	e, ok := p.young[key]
	if !ok {
		e, ok = p.old[key]
	}
	if !ok || (m.lifetime > 0 && time.Since(e.seen) > m.lifetime) {
		return "", false
	}
	return e.place, true
}
