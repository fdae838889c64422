package stats

import (
	"math/bits"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/sketch"
)

// MaxSeries bounds the number of applications and instances that a Registry
// tells apart. Names come from the configuration only, never from a client;
// the bound is for a configuration that makes and deletes without end. What
// comes after is counted together under Overflow.
const MaxSeries = 1 << 17

// Overflow is the name of the application, and of the instance, that stands
// for all that came after MaxSeries. No declared name can be equal to it.
const Overflow = "~other"

// Registry holds this process's figures. All methods of it, of App, Instance
// and Label are safe for concurrent use. Nothing is ever removed: counters of
// a deleted application are still part of the cluster's sums.
type Registry struct {
	mask      uint32 // number of shards - 1, a power of two - 1
	maxSeries int    // immutable after NewRegistry
	maxLabels int    // immutable after NewRegistry

	mu         sync.RWMutex // guards apps, every App's instances and labels, and the counts
	apps       map[string]*App
	count      int
	labelCount int

	unrouted *App

	series changes // of applications and instances
	labels changes
}

// NewRegistry returns an empty registry whose counters are spread over the
// given number of shards, rounded up to a power of two; 0 means GOMAXPROCS.
// More shards cost memory in every series with traffic (about 1 KiB each) and
// time in Collect; they are made when they are first written to.
func NewRegistry(shards int) *Registry {
	if shards <= 0 {
		shards = runtime.GOMAXPROCS(0)
	}
	r := &Registry{
		mask:      1<<bits.Len(uint(shards-1)) - 1,
		maxSeries: MaxSeries,
		maxLabels: MaxLabels,
		apps:      make(map[string]*App),
	}
	r.series.init()
	r.labels.init()
	r.unrouted = r.newApp("")
	return r
}

// App returns the figures of an application, made at the first call. The
// pointer stays valid; keep it, so that the path of a request looks nothing up.
func (r *Registry) App(name string) *App {
	r.mu.RLock()
	a := r.apps[name]
	r.mu.RUnlock()
	if a != nil {
		return a
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if a := r.apps[name]; a != nil {
		return a
	}
	if r.count >= r.maxSeries {
		name = Overflow
		if a := r.apps[name]; a != nil {
			return a
		}
	}
	r.count++
	a = r.newApp(name)
	r.apps[name] = a
	return a
}

func (r *Registry) newApp(name string) *App {
	a := &App{shards: make([]atomic.Pointer[appShard], r.mask+1), instances: make(map[string]*Instance)}
	a.series = series{key: Key{App: name}, registry: r, changes: &r.series, owner: a}
	return a
}

// Unrouted counts a request that reached no application.
func (r *Registry) Unrouted(shard uint32, reason lb.Reason) {
	r.unrouted.Begin(shard)
	r.unrouted.End(shard, reason)
}

// Collect returns the series of applications and instances that changed after
// the given generation, with their totals at this moment, and the generation
// to ask with next time. 0 returns all that were ever touched. It costs what
// changed, not what exists; several callers may each keep a generation of
// their own.
func (r *Registry) Collect(since uint64) ([]Series, uint64) { return r.series.collect(since) }

// CollectLabels is Collect for the series of labels. Its generations are not
// Collect's.
func (r *Registry) CollectLabels(since uint64) ([]Series, uint64) { return r.labels.collect(since) }

// Totals returns the figures of one series; ok is false when it does not exist.
func (r *Registry) Totals(key Key) (t Totals, ok bool) {
	r.mu.RLock()
	a := r.apps[key.App]
	if key.App == "" {
		a = r.unrouted
	}
	var in *Instance
	var l *Label
	switch {
	case a == nil:
	case key.ByLabel:
		l = a.labels[key.Label]
	case key.Instance != "":
		in = a.instances[key.Instance]
	}
	r.mu.RUnlock()
	switch {
	case l != nil:
		l.totals(&t)
		return t, true
	case in != nil:
		in.totals(&t)
		return t, true
	case a != nil && key.Instance == "" && !key.ByLabel:
		a.totals(&t)
		return t, true
	}
	return t, false
}

// StreamTime returns how long the streams of an instance lasted that have
// ended, from the beginning of their attempts; the same ones count in
// Totals.Latency. It is this process's own figure: it does not travel with
// Totals. Empty where the key names no instance.
func (r *Registry) StreamTime(key Key) Histogram {
	r.mu.RLock()
	var in *Instance
	if a := r.apps[key.App]; a != nil {
		in = a.instances[key.Instance]
	}
	r.mu.RUnlock()
	if in == nil {
		return Histogram{}
	}
	var dense [NumBucket]uint64
	for n := range in.shards {
		if s := in.shards[n].Load(); s != nil {
			if h := s.streamed.Load(); h != nil {
				h.addTo(&dense)
			}
		}
	}
	return pack(&dense)
}

// changes is a list of series by when they last changed.
type changes struct {
	// dirty is the stack of series touched since the last collect.
	dirty atomic.Pointer[series]

	mu         sync.Mutex // guards generation, the list and its links in series
	generation uint64
	list       series // sentinel of the list of all series ever touched, newest change first
}

func (c *changes) init() { c.list.newer, c.list.older = &c.list, &c.list }

func (c *changes) collect(since uint64) ([]Series, uint64) {
	c.mu.Lock()
	if s := c.dirty.Swap(nil); s != nil {
		c.generation++
		for s != nil {
			next := s.nextDirty
			// Cleared before the totals are read: a write after this line
			// makes the series dirty again, one before it is seen.
			s.dirty.Store(false)
			s.moveToFront(&c.list)
			s.generation = c.generation
			s = next
		}
	}
	var changed []*series
	for s := c.list.older; s != &c.list && s.generation > since; s = s.older {
		changed = append(changed, s)
	}
	generation := c.generation
	c.mu.Unlock()

	out := make([]Series, len(changed))
	for i, s := range changed {
		out[i].Key = s.key
		s.owner.totals(&out[i].Totals)
	}
	return out, generation
}

// series is what App, Instance and Label have in common: a name, usage, and a
// place in a list of changes.
type series struct {
	key      Key
	registry *Registry
	changes  *changes
	owner    interface{ totals(*Totals) }
	usage    atomic.Pointer[liveUsage] // nil: none yet

	dirty     atomic.Bool
	nextDirty *series // owned by whoever set dirty, then by collect

	newer, older *series // guarded by changes.mu
	generation   uint64  // guarded by changes.mu; of the last change
}

// touch is called after every write. Between two collects only the first
// writer does more than read a flag that stays in every core's cache.
func (s *series) touch() {
	if s.dirty.Load() || !s.dirty.CompareAndSwap(false, true) {
		return
	}
	for {
		head := s.changes.dirty.Load()
		s.nextDirty = head
		if s.changes.dirty.CompareAndSwap(head, s) {
			return
		}
	}
}

func (s *series) moveToFront(list *series) {
	if s.newer != nil {
		s.newer.older, s.older.newer = s.older, s.newer
	}
	s.newer, s.older = list, list.older
	list.older.newer, list.older = s, s
}

// App counts the client requests of one application.
type App struct {
	series
	shards    []atomic.Pointer[appShard]
	instances map[string]*Instance // guarded by registry.mu
	labels    map[string]*Label    // guarded by registry.mu; nil: none yet
	recent    sketch.Recent
}

type appShard struct {
	begun   atomic.Uint64
	reasons [lb.NumReasons]atomic.Uint64
	_       [64]byte // no two shards share a cache line
}

// Name returns the application's name, or Overflow.
func (a *App) Name() string { return a.key.App }

func (a *App) shard(n uint32) *appShard {
	p := &a.shards[n&a.registry.mask]
	if s := p.Load(); s != nil {
		return s
	}
	p.CompareAndSwap(nil, new(appShard))
	return p.Load()
}

// Begin counts a client request. The shard is any number that tells cores or
// long-lived goroutines apart; Begin and End of one request may differ in it.
func (a *App) Begin(shard uint32) {
	a.shard(shard).begun.Add(1)
	a.touch()
}

// End counts the end of a client request that Begin counted.
func (a *App) End(shard uint32, reason lb.Reason) {
	if reason >= lb.NumReasons {
		reason = lb.ReasonInternal
	}
	a.shard(shard).reasons[reason].Add(1)
	a.touch()
}

// Active returns the number of client requests open now.
func (a *App) Active() int64 {
	var t Totals
	a.totals(&t)
	return t.Active
}

// totals reads ends before beginnings, over all shards, so that Active is
// never negative and Errors never more than Requests.
func (a *App) totals(t *Totals) {
	a.usageTotals(&t.Usage)
	for i := range a.shards {
		if s := a.shards[i].Load(); s != nil {
			for r := range s.reasons {
				t.Reasons[r] += s.reasons[r].Load()
			}
		}
	}
	var ended uint64
	for r, n := range t.Reasons {
		ended += n
		if lb.Reason(r).IsError() {
			t.Errors += n
		}
	}
	for i := range a.shards {
		if s := a.shards[i].Load(); s != nil {
			t.Requests += s.begun.Load()
		}
	}
	t.Active = int64(t.Requests - ended)
}

// Instance returns the figures of one of the application's instances, made at
// the first call. The pointer stays valid.
func (a *App) Instance(name string) *Instance {
	r := a.registry
	r.mu.RLock()
	in := a.instances[name]
	r.mu.RUnlock()
	if in != nil {
		return in
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	if in := a.instances[name]; in != nil {
		return in
	}
	if r.count >= r.maxSeries {
		name = Overflow
		if in := a.instances[name]; in != nil {
			return in
		}
	}
	r.count++
	in = &Instance{app: a, shards: make([]atomic.Pointer[instanceShard], r.mask+1)}
	in.series = series{key: Key{App: a.key.App, Instance: name}, registry: r, changes: &r.series, owner: in}
	a.instances[name] = in
	return in
}

// Instance counts the attempts made on one instance.
type Instance struct {
	series
	app    *App
	shards []atomic.Pointer[instanceShard]
}

type instanceShard struct {
	begun     atomic.Uint64
	streams   atomic.Int64
	retries   atomic.Uint64
	bytesIn   atomic.Uint64
	bytesOut  atomic.Uint64
	lastError atomic.Uint64 // Unix milliseconds << 8 | Reason
	reasons   [lb.NumReasons]atomic.Uint64
	latency   liveHistogram
	firstByte liveHistogram
	streamed  atomic.Pointer[liveHistogram] // made when the first stream ends
	_         [64]byte                      // no two shards share a cache line
}

// Sample is what one attempt came to.
type Sample struct {
	Reason lb.Reason
	Retry  bool // another instance had failed before
	Stream bool // StreamBegin was called; End undoes it
	// BytesIn came from the client, BytesOut went to it, as far as Flow has
	// not counted them yet. Negative counts as 0.
	BytesIn, BytesOut int64
	// Latency is the time of the whole attempt, FirstByte that to the first
	// byte of the answer; 0 means that there is none to count.
	Latency, FirstByte time.Duration
}

// Name returns the instance's name, or Overflow.
func (i *Instance) Name() string { return i.key.Instance }

func (i *Instance) shard(n uint32) *instanceShard {
	p := &i.shards[n&i.registry.mask]
	if s := p.Load(); s != nil {
		return s
	}
	p.CompareAndSwap(nil, new(instanceShard))
	return p.Load()
}

// Begin counts an attempt. For the shard see App.Begin.
func (i *Instance) Begin(shard uint32) {
	i.shard(shard).begun.Add(1)
	i.touch()
}

// StreamBegin counts that the attempt's answer has turned out to be a stream.
func (i *Instance) StreamBegin(shard uint32) {
	i.shard(shard).streams.Add(1)
	i.touch()
}

// Flow counts bytes of an attempt that goes on, so that a stream of an hour
// shows, and proves its instance alive, before it ends.
func (i *Instance) Flow(shard uint32, in, out int64) {
	s := i.shard(shard)
	if in > 0 {
		s.bytesIn.Add(uint64(in))
	}
	if out > 0 {
		s.bytesOut.Add(uint64(out))
	}
	i.touch()
}

// End counts the end of an attempt that Begin counted.
func (i *Instance) End(shard uint32, m Sample) {
	s := i.shard(shard)
	if m.Reason >= lb.NumReasons {
		m.Reason = lb.ReasonInternal
	}
	s.reasons[m.Reason].Add(1)
	if m.Stream {
		s.streams.Add(-1)
	}
	if m.Retry {
		s.retries.Add(1)
	}
	if m.BytesIn > 0 {
		s.bytesIn.Add(uint64(m.BytesIn))
	}
	if m.BytesOut > 0 {
		s.bytesOut.Add(uint64(m.BytesOut))
	}
	if m.Latency > 0 {
		s.latency.observe(m.Latency)
	}
	if m.FirstByte > 0 {
		s.firstByte.observe(m.FirstByte)
	}
	if m.Stream && m.Latency > 0 {
		s.streamTime().observe(m.Latency)
	}
	if m.Reason.IsInstanceError() {
		s.noteError(m.Reason)
	}
	i.touch()
}

// streamTime is apart from latency, because a minute of streaming is no slow
// answer, and made late, because many instances never stream.
func (s *instanceShard) streamTime() *liveHistogram {
	if s.streamed.Load() == nil {
		s.streamed.CompareAndSwap(nil, new(liveHistogram))
	}
	return s.streamed.Load()
}

func (s *instanceShard) noteError(reason lb.Reason) {
	v := uint64(time.Now().UnixMilli())<<8 | uint64(reason)
	for {
		old := s.lastError.Load()
		if v <= old || s.lastError.CompareAndSwap(old, v) {
			return
		}
	}
}

// Active returns the number of attempts open now.
func (i *Instance) Active() int64 {
	var begun, ended uint64
	for n := range i.shards {
		if s := i.shards[n].Load(); s != nil {
			for r := range s.reasons {
				ended += s.reasons[r].Load()
			}
		}
	}
	for n := range i.shards {
		if s := i.shards[n].Load(); s != nil {
			begun += s.begun.Load()
		}
	}
	return int64(begun - ended)
}

// Streams returns the number of streams open now.
func (i *Instance) Streams() int64 {
	var n int64
	for k := range i.shards {
		if s := i.shards[k].Load(); s != nil {
			n += s.streams.Load()
		}
	}
	return max(n, 0)
}

// totals reads ends before beginnings, as App.totals does.
func (i *Instance) totals(t *Totals) {
	i.usageTotals(&t.Usage)
	var latency, firstByte [NumBucket]uint64
	var lastError uint64
	for n := range i.shards {
		s := i.shards[n].Load()
		if s == nil {
			continue
		}
		for r := range s.reasons {
			t.Reasons[r] += s.reasons[r].Load()
		}
		t.Retries += s.retries.Load()
		t.BytesIn += s.bytesIn.Load()
		t.BytesOut += s.bytesOut.Load()
		s.latency.addTo(&latency)
		s.firstByte.addTo(&firstByte)
		lastError = max(lastError, s.lastError.Load())
	}
	var ended uint64
	for r, n := range t.Reasons {
		ended += n
		if lb.Reason(r).IsInstanceError() {
			t.Errors += n
		}
	}
	t.Latency, t.FirstByte = pack(&latency), pack(&firstByte)
	t.LastError = LastError{Reason: lb.Reason(lastError & 0xff), UnixMilli: int64(lastError >> 8)}
	t.Streams = i.Streams()
	for n := range i.shards {
		if s := i.shards[n].Load(); s != nil {
			t.Requests += s.begun.Load()
		}
	}
	t.Active = int64(t.Requests - ended)
}
