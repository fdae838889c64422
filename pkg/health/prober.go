package health

import (
	"container/heap"
	"context"
	"crypto/tls"
	"errors"
	"math/rand/v2"
	"net"
	"sync"
	"time"
)

// Options are a Prober's surroundings. The zero value works.
type Options struct {
	// Report is told of each change of a Health, and of nothing else. It is called from the goroutine of the probe:
	// never twice at a time for one instance, at the same time for different ones. No new verdict is reached, and so
	// none reported, once the context of Run has ended. While Report blocks, its instance is not probed and one place
	// of Concurrency is taken, nothing else. It may call SetTargets and Verdicts. May be nil.
	Report func(app, instance string, v Verdict)

	// Live reports whether that instance delivers answers to live traffic right now. It is asked after a probe has
	// timed out; if so, the probe does not count: a Dify container with all its slots taken lets probes hang while
	// its streams run. nil means no. Must be safe for concurrent use.
	Live func(app, instance string) bool

	// Concurrency is the most probes under way at once; 0 means 512. When all of it hangs, probes come late, and a
	// late probe still has its whole timeout: lateness is never taken for a failure.
	Concurrency int

	// Dial connects to host:port, as net.Dialer.DialContext does, and may refuse to; nil means net.Dialer. Must be safe
	// for concurrent use.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)

	// TLS is used for https instances; nil means the system's roots and Go's defaults. It is copied.
	TLS *tls.Config

	// Now tells the time that Verdict.Since shows; nil means time.Now. Scheduling does not use it, so steps of the
	// wall clock move nothing.
	Now func() time.Time

	// Jitter returns a random duration in [0, d) for d > 0; nil means the standard random numbers. It keeps probes of
	// many instances from falling into step. Must be safe for concurrent use.
	Jitter func(d time.Duration) time.Duration
}

// Verdict is what is known of one instance.
type Verdict struct {
	Health  Health
	Since   time.Time     // when Health began, by the wall clock
	Reason  string        // why it is what it is: what the probe found that made it so; for people, without secrets
	Latest  string        // what the latest probe found
	Probes  int64         // probes this Prober has completed
	Latency time.Duration // of the latest probe
	At      time.Time     // when the latest probe ended; zero: this Prober has completed none
	Seq     int64         // place of the latest probe among all that this Prober has completed; 0: none
}

// Progress is how far the work of a Prober has come, for metrics.
type Progress struct {
	Targets int           // those just removed whose last probe has not ended yet included
	Running int           // probes under way
	Probes  int64         // probes completed, never goes backwards
	Last    time.Time     // when the latest one was; zero: none yet
	Behind  time.Duration // how long the longest overdue probe has been waiting to start
}

// Prober probes instances, each in its own interval, with a bounded number of goroutines. New knowledge comes in by
// SetTargets, goes out by Options.Report. All methods are safe for concurrent use.
type Prober struct {
	opts Options
	ask  func(context.Context, *question) answer // immutable after NewProber; tests put another one in
	wake chan struct{}                           // size 1: something to look at for schedule

	mu      sync.Mutex // guards what follows
	running bool       // Run is under way
	edition uint64     // counts the calls of SetTargets
	entries map[ID]*entry
	due     dueHeap // the entries that wait for their time; not those under way or never to be asked again
	active  int     // probes under way
	probes  int64
	last    time.Time
}

// entry is one instance. An entry that is under way is not in the heap, and the other way round.
type entry struct {
	target    Target
	question  *question
	edition   uint64 // of the latest call of SetTargets that named it
	term      int    // counts the changes of what is asked; an answer of an earlier term is worth nothing
	threshold Threshold
	verdict   Verdict
	at        time.Time          // when the next probe is due
	index     int                // in the heap, -1 = not in it
	cancel    context.CancelFunc // of the probe under way; nil: none is, nor a Report
	gone      bool               // no longer a target; stays until the probe under way has ended
}

const defaultConcurrency = 512

// NewProber makes a Prober without targets. It starts nothing.
func NewProber(opts Options) *Prober {
	if opts.Concurrency <= 0 {
		opts.Concurrency = defaultConcurrency
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	if opts.Jitter == nil {
		opts.Jitter = func(d time.Duration) time.Duration { return rand.N(d) }
	}
	return &Prober{
		opts:    opts,
		ask:     newAsker(opts.Dial, opts.TLS).ask,
		wake:    make(chan struct{}, 1),
		entries: make(map[ID]*entry),
	}
}

// SetTargets replaces the whole set of targets; of two for one instance the later counts. It may be called before,
// during and between runs, and never blocks on a probe.
//
// An instance that was not there before starts with its verdict of initial, or Unknown; that is how a newly elected
// prober takes over what the cluster knew without turning anything over. Its first probe follows within the shorter of
// a second and its interval, spread at random. An instance that was there keeps its verdict and counters, but between
// runs, when another prober may have learnt more, a verdict in initial replaces them. If what is asked of it has changed (address, token, path, expectation, Revision), the probe under way is
// given up, the counters are reset, and the next probe follows at once; the verdict stands until it is disproved (see
// Threshold.Retest). A changed interval, timeout or threshold takes effect without that. The type "none" makes an
// instance Unknown, which is reported if it was something else.
func (p *Prober) SetTargets(targets []Target, initial map[ID]Verdict) {
	now := time.Now()
	p.mu.Lock()
	defer p.mu.Unlock()
	p.edition++
	for _, t := range targets {
		id := t.id()
		e := p.entries[id]
		switch {
		case e == nil:
			e = &entry{index: -1}
			p.entries[id] = e
			p.beginLocked(e, t, initial[id], now)
		case e.gone, !p.running && initial[id].Health != "":
			// If it is back before its last probe has ended, the same entry goes on, so that there can be
			// no two reports of one instance at a time.
			p.beginLocked(e, t, initial[id], now)
		case e.target != t:
			p.changeLocked(e, t, now)
		}
		e.edition = p.edition
	}
	for id, e := range p.entries {
		if e.edition != p.edition {
			p.endLocked(id, e)
		}
	}
	p.poke()
}

func (p *Prober) beginLocked(e *entry, t Target, v Verdict, now time.Time) {
	q := newQuestion(t)
	e.target, e.question, e.gone = t, &q, false
	e.term++
	if v.Health == "" {
		v.Health = Unknown
	}
	if v.Since.IsZero() {
		v.Since = p.opts.Now()
	}
	e.verdict = Verdict{Health: v.Health, Since: v.Since, Reason: v.Reason}
	e.threshold.Restore(v.Health)
	p.scheduleLocked(e, now.Add(p.opts.Jitter(min(q.interval, time.Second))))
}

func (p *Prober) changeLocked(e *entry, t Target, now time.Time) {
	same := e.target.asksSame(t)
	q := newQuestion(t)
	e.target, e.question = t, &q
	switch {
	case !same:
		e.term++
		e.threshold.Retest()
		if e.cancel != nil {
			e.cancel()
		}
		p.scheduleLocked(e, now)
	case e.index >= 0 && e.at.After(now.Add(q.interval)):
		p.scheduleLocked(e, now.Add(p.opts.Jitter(q.interval)))
	}
}

func (p *Prober) endLocked(id ID, e *entry) {
	if e.index >= 0 {
		heap.Remove(&p.due, e.index)
	}
	if e.cancel == nil {
		delete(p.entries, id)
		return
	}
	e.gone = true
	e.cancel()
}

// scheduleLocked makes e due at the given time. If it is under way, that is when it will be once it has ended.
func (p *Prober) scheduleLocked(e *entry, at time.Time) {
	e.at = at
	switch {
	case e.cancel != nil:
	case e.index >= 0:
		heap.Fix(&p.due, e.index)
	default:
		heap.Push(&p.due, e)
	}
}

// Verdicts returns what is known of every target now. The map is the caller's.
func (p *Prober) Verdicts() map[ID]Verdict {
	p.mu.Lock()
	defer p.mu.Unlock()
	out := make(map[ID]Verdict, len(p.entries))
	for id, e := range p.entries {
		if !e.gone {
			out[id] = e.verdict
		}
	}
	return out
}

// Verdict returns what is known of one target now; the zero value when it is none.
func (p *Prober) Verdict(app, instance string) Verdict {
	p.mu.Lock()
	defer p.mu.Unlock()
	if e := p.entries[ID{App: app, Instance: instance}]; e != nil && !e.gone {
		return e.verdict
	}
	return Verdict{}
}

// Since calls f with what is known of each target whose latest probe came after
// the one with the given place. f must not call the Prober.
func (p *Prober) Since(seq int64, f func(ID, Verdict)) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for id, e := range p.entries {
		if !e.gone && e.verdict.Seq > seq {
			f(id, e.verdict)
		}
	}
}

// Progress returns how far the work has come.
func (p *Prober) Progress() Progress {
	p.mu.Lock()
	defer p.mu.Unlock()
	pr := Progress{Targets: len(p.entries), Running: p.active, Probes: p.probes, Last: p.last}
	if p.running && len(p.due) > 0 {
		pr.Behind = max(0, time.Since(p.due[0].at))
	}
	return pr
}

// Run probes until ctx ends, and returns nil once all probes and reports it began have ended. It may be called again
// afterwards, as a prober that loses and wins elections does; it refuses to run twice at a time.
func (p *Prober) Run(ctx context.Context) error {
	p.mu.Lock()
	if p.running {
		p.mu.Unlock()
		return errors.New("prober is already running")
	}
	p.running = true
	p.mu.Unlock()

	var probes sync.WaitGroup
	timer := time.NewTimer(0)
	defer timer.Stop()
	for ctx.Err() == nil {
		if next, ok := p.startDue(ctx, &probes); ok {
			timer.Reset(next)
		} else {
			timer.Stop()
		}
		select {
		case <-ctx.Done():
		case <-timer.C:
		case <-p.wake:
		}
	}
	probes.Wait()

	p.mu.Lock()
	p.running = false
	p.mu.Unlock()
	return nil
}

// startDue starts the probes that are due, as far as there is room, and returns how long it is to the next. Without
// one, or without room, that is nothing: the end of a probe, or SetTargets, wakes Run.
func (p *Prober) startDue(ctx context.Context, probes *sync.WaitGroup) (next time.Duration, ok bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := time.Now()
	for len(p.due) > 0 && p.active < p.opts.Concurrency {
		e := p.due[0]
		if wait := e.at.Sub(now); wait > 0 {
			return wait, true
		}
		heap.Pop(&p.due)
		probeCtx, cancel := context.WithTimeout(ctx, e.question.timeout)
		e.cancel = cancel
		e.at = now.Add(p.spread(e.question.interval))
		p.active++
		j := job{e: e, id: e.target.id(), q: e.question, term: e.term}
		probes.Go(func() { p.probe(ctx, probeCtx, j) })
	}
	return 0, false
}

// spread returns the interval give or take a tenth, so that instances which started together drift apart.
func (p *Prober) spread(interval time.Duration) time.Duration {
	return interval - interval/10 + p.opts.Jitter(interval/5)
}

// job is one probe: an entry, and what it said when the probe began.
type job struct {
	e    *entry
	id   ID
	q    *question
	term int
}

// currentLocked reports whether an answer still counts.
func (j *job) currentLocked(run context.Context) bool {
	return !j.e.gone && j.e.term == j.term && run.Err() == nil
}

// probe does the job and puts its entry back into the heap.
func (p *Prober) probe(run, ctx context.Context, j job) {
	if j.q.kind == CheckNone {
		p.exempt(run, j)
	} else {
		start := time.Now()
		ans := p.ask(ctx, j.q)
		if ans.timedOut && run.Err() == nil && p.excused(j, time.Since(start)) {
			ans.outcome = Inconclusive
			ans.reason += ", not counted"
		}
		p.count(run, j, ans)
	}

	e := j.e
	p.mu.Lock()
	e.cancel()
	e.cancel = nil
	p.active--
	switch {
	case e.gone:
		delete(p.entries, j.id)
	case j.q.kind == CheckNone && j.currentLocked(run):
		// Nothing to be asked until the target changes.
	default:
		p.scheduleLocked(e, e.at)
	}
	p.mu.Unlock()
	p.poke()
}

// excused reports whether a timeout is no evidence against the instance: its answers flow to others, or we are the
// ones who were late. A process that was stopped for a while finds all its probes timed out when it goes on.
func (p *Prober) excused(j job, took time.Duration) bool {
	if took > j.q.timeout+time.Second {
		return true
	}
	return p.opts.Live != nil && p.opts.Live(j.id.App, j.id.Instance)
}

// count adds an answer to what is known and reports a change.
func (p *Prober) count(run context.Context, j job, ans answer) {
	p.mu.Lock()
	if !j.currentLocked(run) {
		p.mu.Unlock()
		return
	}
	e := j.e
	p.probes++
	p.last = p.opts.Now()
	e.verdict.Probes++
	e.verdict.Latest, e.verdict.Latency, e.verdict.At = ans.reason, ans.latency, p.last
	e.verdict.Seq = p.probes
	changed := e.threshold.Observe(ans.outcome, e.question.rise, e.question.fall)
	if changed {
		p.turnLocked(e, ans.reason)
	}
	p.reportAndUnlock(j.id, e.verdict, changed)
}

// exempt makes an instance that is not to be probed Unknown.
func (p *Prober) exempt(run context.Context, j job) {
	const reason = "not probed"
	p.mu.Lock()
	if !j.currentLocked(run) {
		p.mu.Unlock()
		return
	}
	e := j.e
	changed := e.threshold.Health() != Unknown
	e.threshold.Restore(Unknown)
	e.verdict.Reason, e.verdict.Latest = reason, reason
	if changed {
		p.turnLocked(e, reason)
	}
	p.reportAndUnlock(j.id, e.verdict, changed)
}

func (p *Prober) turnLocked(e *entry, reason string) {
	e.verdict.Health, e.verdict.Since, e.verdict.Reason = e.threshold.Health(), p.opts.Now(), reason
}

// reportAndUnlock gives up the lock before it calls out. Reports of one instance stay in order without it, because
// its entry is not put back into the heap before.
func (p *Prober) reportAndUnlock(id ID, v Verdict, changed bool) {
	p.mu.Unlock()
	if changed && p.opts.Report != nil {
		p.opts.Report(id.App, id.Instance, v)
	}
}

func (p *Prober) poke() {
	select {
	case p.wake <- struct{}{}:
	default: // it will look anyway
	}
}

// dueHeap has the entry that is due first at its root.
type dueHeap []*entry

func (h dueHeap) Len() int           { return len(h) }
func (h dueHeap) Less(i, j int) bool { return h[i].at.Before(h[j].at) }

func (h dueHeap) Swap(i, j int) {
	h[i], h[j] = h[j], h[i]
	h[i].index, h[j].index = i, j
}

func (h *dueHeap) Push(x any) {
	e := x.(*entry)
	e.index = len(*h)
	*h = append(*h, e)
}

func (h *dueHeap) Pop() any {
	old := *h
	e := old[len(old)-1]
	old[len(old)-1] = nil
	*h = old[:len(old)-1]
	e.index = -1
	return e
}
