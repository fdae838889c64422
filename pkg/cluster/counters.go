package cluster

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/protobuf/proto"

	"difylb/pkg/lb"
	"difylb/pkg/stats"
	pb "difylb/proto"
)

// CounterChunk is one value under counters/. Each is complete in itself; what
// they hold is this package's business.
type CounterChunk struct {
	Node  string
	Index int
	Value []byte // at most MaxChunkBytes
}

// MaxChunkBytes bounds the value of a CounterChunk.
const MaxChunkBytes = 512 << 10

// CounterStore keeps chunks. Implemented by the store, or by a map in tests.
type CounterStore interface {
	// LoadCounters returns every chunk of every node.
	LoadCounters(ctx context.Context) ([]CounterChunk, error)
}

// CounterWriter writes chunks for the length of one time in office, which it
// is bound to: one that outlives it can do no harm.
type CounterWriter interface {
	// PutCounters writes one chunk in one step, and only while the time in
	// office lasts; otherwise the error is lb.ErrConflict. After any other
	// error the chunk may or may not have been written.
	PutCounters(ctx context.Context, chunk CounterChunk) error
}

const (
	// chunkTarget is the size at which a new chunk is begun. Small, because a
	// chunk is written whole when one of its series changes.
	chunkTarget = 64 << 10
	// chunkSmall is the size below which a chunk is written whole however
	// little of it has changed.
	chunkSmall = 4 << 10
	// chunkLimit is the size at which a chunk that has grown is divided.
	chunkLimit = MaxChunkBytes * 3 / 4
	// persistEvery is the shortest time between two rounds of writing, and
	// persistMax the longest for a round of up to persistBytes: what a crash
	// of every process at once can lose. Where more changes, rounds come
	// less often, so that a store's history (etcd keeps an hour of it) grows
	// by persistRate at most.
	persistEvery = time.Second
	persistMax   = 3 * time.Second
	persistRate  = 64 << 10 // bytes per second
	// foldAfter is how long the boot of a proxy that has a newer one must
	// have been silent before it counts as ended.
	foldAfter = time.Minute
	// reloadEvery is how often an lb-admin that is not elected reads what the
	// elected one has folded.
	reloadEvery  = time.Minute
	storeTimeout = 5 * time.Second
)

// shareGuess is what a share is taken for until its chunk is encoded.
const shareGuess = 200

// chunk is what is known of one stored chunk.
type chunk struct {
	node   string
	index  int
	shares []*share
	bytes  int // of the last encoding
	dirty  bool
	broken bool // the stored value could not be read: it is left alone
}

// book holds the chunks; guarded by Hub.mu.
type book struct {
	small  int // bytes below which a chunk is not worth sifting
	target int // bytes at which a new chunk is begun
	limit  int // bytes at which a chunk is divided
	nodes  map[string][]*chunk
	queue  []*chunk // dirty ones, oldest first
}

func (k *book) markDirty(c *chunk) {
	if !c.dirty && !c.broken {
		c.dirty = true
		k.queue = append(k.queue, c)
	}
}

// place finds a chunk for a share that has none.
func (k *book) place(s *share) {
	list := k.nodes[s.node]
	var c *chunk
	if n := len(list); n > 0 && !list[n-1].broken && list[n-1].bytes < k.target {
		c = list[n-1]
	} else {
		c = k.add(s.node)
	}
	k.move(s, c)
	c.bytes += shareGuess
}

func (k *book) add(node string) *chunk {
	index := 0
	if list := k.nodes[node]; len(list) > 0 {
		index = list[len(list)-1].index + 1
	}
	c := &chunk{node: node, index: index}
	k.nodes[node] = append(k.nodes[node], c)
	return c
}

func (k *book) move(s *share, to *chunk) {
	if s.chunk != nil {
		s.chunk.shares = slices.DeleteFunc(s.chunk.shares, func(x *share) bool { return x == s })
		k.markDirty(s.chunk)
	}
	s.chunk = to
	to.shares = append(to.shares, s)
	k.markDirty(to)
}

// sift takes the few series that change out of the large chunks that mostly
// do not, and puts them together: what is written then is at most four times
// what has changed, however many series exist. The old chunk is not written
// again; the copy that stays behind in it is an older view and joins as such.
func (k *book) sift() {
	queue := k.queue
	k.queue = nil
	for _, c := range queue {
		c.dirty = false
	}
	for _, c := range queue {
		var hot []*share
		for _, s := range c.shares {
			if s.dirty {
				hot = append(hot, s)
			}
		}
		if c.bytes < k.small || len(hot) == 0 || 4*len(hot) > len(c.shares) {
			k.markDirty(c)
			continue
		}
		for _, s := range hot {
			k.transfer(s)
		}
	}
}

// transfer moves a share to the node's newest chunk without having its old
// one written.
func (k *book) transfer(s *share) {
	from := s.chunk
	list := k.nodes[s.node]
	to := list[len(list)-1]
	if to == from || to.broken || to.bytes >= k.target {
		to = k.add(s.node)
	}
	from.shares = slices.DeleteFunc(from.shares, func(x *share) bool { return x == s })
	s.chunk = nil
	k.move(s, to)
	to.bytes += shareGuess
}

func (k *book) at(node string, index int) *chunk {
	list := k.nodes[node]
	i, found := slices.BinarySearchFunc(list, index, func(c *chunk, i int) int { return c.index - i })
	if !found {
		k.nodes[node] = slices.Insert(list, i, &chunk{node: node, index: index})
	}
	return k.nodes[node][i]
}

// shareDirtied is the ledger's dirtied.
func (h *Hub) shareDirtied(s *share) {
	if s.chunk == nil {
		h.book.place(s)
	}
	h.book.markDirty(s.chunk)
}

// loadCounters reads the store and merges it into memory.
func (h *Hub) loadCounters(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, storeTimeout)
	defer cancel()
	chunks, err := h.opts.Counters.LoadCounters(ctx)
	if err != nil {
		return fmt.Errorf("load counters: %w", err)
	}
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	// The order makes every lb-admin see the same chunk as the later of two.
	slices.SortFunc(chunks, func(a, b CounterChunk) int { return a.Index - b.Index })
	for _, c := range chunks {
		if err := h.joinChunk(c, now); err != nil {
			// One unreadable chunk must not hide the others' figures; it
			// stays as it is, because nothing is ever placed into it.
			h.log.Error().Err(err).Str("node", c.Node).Int("chunk", c.Index).Msg("counters not readable")
		}
	}
	h.ledger.forget(func(b *boot) bool { return b.streams > 0 || h.registeredLocked(b) })
	if !h.loaded {
		h.loaded = true
		h.log.Info().Int("chunks", len(chunks)).Msg("counters loaded")
	}
	return nil
}

func (h *Hub) joinChunk(c CounterChunk, now time.Time) error {
	var w pb.CounterChunk
	known := h.book.at(c.Node, c.Index)
	known.bytes = max(known.bytes, len(c.Value))
	if err := proto.Unmarshal(c.Value, &w); err != nil {
		known.broken = true
		for _, s := range slices.Clone(known.shares) {
			h.book.move(s, h.book.add(c.Node))
		}
		return err
	}
	boots := w.GetBoots()
	join := func(key stats.Key, ws *pb.StoredSeries) {
		stored := storedShare{key: key, version: ws.GetVersion(), base: totalsFromWire(ws.GetBase())}
		for _, i := range ws.GetFolded() {
			if int(i) < len(boots) {
				stored.folded = append(stored.folded, boots[i].GetBootId())
			}
		}
		for _, t := range ws.GetBoots() {
			if i := t.GetBoot(); int(i) < len(boots) {
				stored.boots = append(stored.boots, storedBootShare{id: boots[i].GetBootId(), seq: boots[i].GetSeq(), totals: totalsFromWire(t.GetTotals())})
			}
		}
		s := h.ledger.join(c.Node, &stored, now)
		if s.chunk != known {
			h.book.move(s, known) // the one it was in is written again without it
		}
	}
	for _, ws := range w.GetSeries() {
		join(stats.Key{App: ws.GetApp(), Instance: ws.GetInstance()}, ws)
	}
	for _, ws := range w.GetLabels() {
		join(stats.LabelKey(ws.GetApp(), ws.GetLabel()), ws)
	}
	for _, wb := range boots {
		if b := h.ledger.boots[bootKey{c.Node, wb.GetBootId()}]; b != nil && b.started.IsZero() {
			b.started = fromUnixMilli(wb.GetStartedUnixMilli())
		}
	}
	return nil
}

// Lead writes the totals into the store while this lb-admin is elected. It
// blocks until ctx ends, with a last round of writing before it returns nil,
// or until w says that the time in office is over, which is lb.ErrConflict.
// Store outages are waited out.
//
// What is written is at most 3 s old as long as that takes no more than
// 192 KiB, which is some 500 to 2,000 series with traffic at the same time;
// beyond that rounds come less often, so that the store's history stays
// bounded. It is only needed when every proxy, or every lb-admin and a proxy,
// die at once: one of them left alive knows better.
func (h *Hub) Lead(ctx context.Context, w CounterWriter) error {
	h.log.Info().Msg("keeping counters")
	defer h.endLead()
	reload := true // what a predecessor folded must be known before anything is written
	wait := time.Duration(0)
	for {
		last := !sleep(ctx, wait)
		work := ctx
		if last {
			var cancel context.CancelFunc
			work, cancel = context.WithTimeout(context.WithoutCancel(ctx), storeTimeout)
			defer cancel()
		}
		written, err := h.persist(work, w, reload)
		switch {
		case errors.Is(err, lb.ErrConflict):
			return err
		case last:
			return nil
		}
		if reload = err != nil; reload {
			h.log.Warn().Err(err).Msg("counters not written")
		}
		wait = max(persistEvery, min(persistMax, time.Duration(written)*time.Second/(persistRate/2)),
			time.Duration(written)*time.Second/persistRate)
	}
}

func (h *Hub) endLead() {
	h.mu.Lock()
	defer h.mu.Unlock()
	for _, b := range h.ledger.boots {
		b.closing = false
	}
}

// persist writes every chunk that changed. It returns the bytes written. After
// an error it must be called with reload: a write whose outcome is not known
// may have folded a boot.
func (h *Hub) persist(ctx context.Context, w CounterWriter, reload bool) (int, error) {
	if reload {
		if err := h.loadCounters(ctx); err != nil {
			return 0, err
		}
	}
	h.closeEnded()
	h.mu.Lock()
	h.book.sift()
	round := len(h.book.queue)
	h.mu.Unlock()
	written := 0
	for range round {
		n, err := h.persistOne(ctx, w)
		written += n
		if err != nil {
			return written, err
		}
	}
	return written, nil
}

// closeEnded finds the boots that are over, and queues what holds them.
func (h *Hub) closeEnded() {
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	ended := make(map[*boot]bool)
	for _, b := range h.ledger.boots {
		silent := now.Sub(b.lastReport) >= foldAfter && now.Sub(b.known) >= foldAfter
		if !b.closing && b.streams == 0 && silent && h.supersededLocked(b) {
			b.closing = true
			ended[b] = true
		}
	}
	if len(ended) == 0 {
		return
	}
	for _, e := range h.ledger.entries {
		for _, s := range e.shares {
			if slices.ContainsFunc(s.boots, func(bs bootShare) bool { return ended[bs.boot] }) {
				h.shareDirtied(s)
			}
		}
	}
}

// pending is an encoded chunk on its way into the store.
type pending struct {
	chunk *chunk
	value []byte
	folds []pendingFold
}

type pendingFold struct {
	share *share
	boots []*boot
}

func (h *Hub) persistOne(ctx context.Context, w CounterWriter) (int, error) {
	h.mu.Lock()
	if len(h.book.queue) == 0 {
		h.mu.Unlock()
		return 0, nil
	}
	c := h.book.queue[0]
	h.book.queue = h.book.queue[1:]
	if c.broken {
		h.mu.Unlock()
		return 0, nil
	}
	writes := h.encodeLocked(c)
	h.mu.Unlock()

	written := 0
	for _, p := range writes {
		ctx, cancel := context.WithTimeout(ctx, storeTimeout)
		err := w.PutCounters(ctx, CounterChunk{Node: p.chunk.node, Index: p.chunk.index, Value: p.value})
		cancel()
		h.mu.Lock()
		if err != nil {
			for _, q := range writes {
				h.book.markDirty(q.chunk)
				for _, s := range q.chunk.shares {
					s.dirty = true
				}
			}
			h.mu.Unlock()
			return written, fmt.Errorf("put counters of %q: %w", c.node, err)
		}
		for _, f := range p.folds {
			h.ledger.fold(f.share, f.boots)
		}
		h.mu.Unlock()
		written += len(p.value)
	}
	return written, nil
}

// encodeLocked returns the writes that bring a chunk up to date: itself, or,
// when it has grown too large, first the new chunks that take a part of its
// series. A crash in between leaves series in two chunks, which join.
func (h *Hub) encodeLocked(c *chunk) []pending {
	c.dirty = false
	p := h.encodeOne(c)
	if len(p.value) <= h.book.limit || len(c.shares) < 2 {
		return []pending{p}
	}
	half := slices.Clone(c.shares[len(c.shares)/2:])
	sibling := h.book.add(c.node)
	for _, s := range half {
		h.book.move(s, sibling)
	}
	return append(h.encodeLocked(sibling), h.encodeLocked(c)...)
}

func (h *Hub) encodeOne(c *chunk) pending {
	p := pending{chunk: c}
	w := &pb.CounterChunk{Node: c.node}
	table := make(map[string]uint32)
	index := func(id string) uint32 {
		i, ok := table[id]
		if !ok {
			i = uint32(len(table))
			table[id] = i
			sb := &pb.StoredBoot{BootId: id}
			if b := h.ledger.boots[bootKey{c.node, id}]; b != nil {
				sb.Seq, sb.StartedUnixMilli = b.seq, unixMilli(b.started)
			}
			w.Boots = append(w.Boots, sb)
		}
		return i
	}
	for _, s := range c.shares {
		s.dirty = false
		var fold pendingFold
		ws := &pb.StoredSeries{App: s.entry.key.App, Instance: s.entry.key.Instance, Label: s.entry.key.Label, Version: s.version}
		base, folded := &s.base, s.folded
		for i := range s.boots {
			bs := &s.boots[i]
			if bs.boot.closing {
				if fold.share == nil {
					sum := s.base.Clone()
					base, fold.share = &sum, s
				}
				addCounters(base, &bs.totals)
				folded = appendFolded(folded, bs.boot.id)
				fold.boots = append(fold.boots, bs.boot)
				continue
			}
			t := totalsToWire(&bs.totals)
			t.Active, t.Streams = 0, 0
			ws.Boots = append(ws.Boots, &pb.StoredTotals{Boot: index(bs.boot.id), Totals: t})
		}
		if fold.share != nil {
			ws.Version++
			p.folds = append(p.folds, fold)
		}
		if len(folded) > 0 {
			ws.Base = totalsToWire(base)
		}
		for _, id := range folded {
			ws.Folded = append(ws.Folded, index(id))
		}
		if s.entry.key.ByLabel {
			w.Labels = append(w.Labels, ws)
		} else {
			w.Series = append(w.Series, ws)
		}
	}
	value, err := proto.Marshal(w)
	if err != nil {
		// Only invalid UTF-8 can do that, and names are checked on arrival.
		h.log.Error().Err(err).Str("node", c.node).Int("chunk", c.index).Msg("counters not encodable")
		return pending{chunk: c}
	}
	p.value, c.bytes = value, len(value)
	return p
}

// sleep waits and reports whether ctx is still alive.
func sleep(ctx context.Context, d time.Duration) bool {
	if d <= 0 {
		return ctx.Err() == nil
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
		return false
	}
}
