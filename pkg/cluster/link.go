package cluster

import (
	"context"
	"crypto/tls"
	"errors"
	"iter"
	"math"
	"math/rand/v2"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"

	"difylb/pkg/lb"
	"difylb/pkg/stats"
	pb "difylb/proto"
)

const (
	// reportEvery is the time between two reports; an empty one is the link's heartbeat.
	reportEvery = time.Second
	// promptAfter bounds how often something urgent brings a report forward.
	promptAfter = 20 * time.Millisecond
	// stalledAfter is how long an lb-admin may be silent before its stream is given up.
	stalledAfter = 5 * time.Second
	// switchAfter is how long the lb-admin whose document is shown may be
	// silent before another one is asked. Less than freshFor, so that the
	// next document is there before the old one counts as stale.
	switchAfter = 2 * time.Second
	minBackoff  = 100 * time.Millisecond
	maxBackoff  = 2 * time.Second
)

// LinkOptions configure a Link.
type LinkOptions struct {
	Node     lb.Node // this proxy, as it registers
	Registry *stats.Registry
	Log      zerolog.Logger
	// TLS returns the settings for the next connection to an lb-admin that
	// registered with TLS; nil means the system's roots.
	TLS func() *tls.Config
	// Check tries to connect to every instance, or to those of one application,
	// until ctx ends; nil: there are none. It is called by one goroutine per
	// lb-admin.
	Check func(ctx context.Context, app string) []Reach
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Ejection is an instance that this proxy has taken out for a while.
type Ejection struct {
	App, Instance string
	Since         time.Time
}

// Link is the proxy's side: one stream to each live lb-admin, over which it
// reports and receives the Status document. Its methods are safe for
// concurrent use and never wait for the network, except Run and Flush.
// Nothing is queued: what could not be sent is part of the next report,
// because all figures are cumulative.
type Link struct {
	opts LinkOptions
	log  zerolog.Logger
	now  func() time.Time
	made time.Time     // by now
	age  time.Duration // of the node at that time

	mu         sync.Mutex // guards all below
	snapshot   *lb.Snapshot
	receipt    Receipt
	receiptN   uint64 // grows with every change of receipt; 0: none yet
	ejections  []Ejection
	ejectionsN uint64
	seq        uint64
	peers      map[peerKey]*peer
	primary    *peer  // whose document is shown; nil: nobody's
	primaryN   uint64 // id of the subscription with it; grows with every change of primary
	doc        document
	demand     *pb.ProxyMessage // newest LimitDemand; nil: none yet
	leases     Leases
	docAt      time.Time       // when the primary last said anything, its whole document having come
	times      times           // immutable after NewLink
	began      time.Time       // immutable; reports to all lb-admins go out at the same times from then
	peersDue   chan struct{}   // size 1: the set of lb-admins may have changed
	leasesDue  chan struct{}   // size 1: leases has changed
	accepted   chan Acceptance // size 1
}

// peerKey names an lb-admin to link with.
type peerKey struct {
	id, address string
	tls         bool
}

// times are the link's, apart so that tests need not wait for them.
type times struct {
	report, stalled, change, fresh, samples time.Duration
}

// NewLink returns a link that is idle until Run.
func NewLink(opts LinkOptions) *Link {
	if opts.Now == nil {
		opts.Now = time.Now
	}
	l := &Link{
		opts: opts, log: opts.Log.With().Str("component", "cluster").Logger(), now: opts.Now,
		peers:    make(map[peerKey]*peer),
		doc:      document{apps: make(map[string]*shownApp)},
		peersDue: make(chan struct{}, 1), leasesDue: make(chan struct{}, 1), accepted: make(chan Acceptance, 1),
		times: times{report: reportEvery, stalled: stalledAfter, change: switchAfter, fresh: freshFor, samples: samplesEvery},
		began: time.Now(),
	}
	l.made = l.now()
	if started := opts.Node.Started; !started.IsZero() {
		l.age = max(0, l.made.Sub(started))
	}
	return l
}

// Run keeps the streams until ctx ends.
func (l *Link) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	for {
		for _, p := range l.adjustPeers(ctx) {
			wg.Go(func() { p.run(p.ctx) })
		}
		select {
		case <-l.peersDue:
		case <-ctx.Done():
			return nil
		}
	}
}

// adjustPeers ends the links with lb-admins that are gone and returns new
// peers to be run.
func (l *Link) adjustPeers(ctx context.Context) []*peer {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.snapshot == nil {
		return nil
	}
	want := make(map[peerKey]bool)
	for _, n := range l.snapshot.Nodes {
		if n.Role == lb.RoleAdmin && n.GRPC != "" {
			want[peerKey{n.ID, n.GRPC, n.TLS}] = true
		}
	}
	for key, p := range l.peers {
		if !want[key] {
			p.cancel()
			delete(l.peers, key)
		}
	}
	var started []*peer
	for key := range want {
		if l.peers[key] == nil {
			p := &peer{link: l, key: key, due: make(chan struct{}, 1), checks: make(chan *pb.Check, 4), log: l.log.With().Str("admin", key.id).Str("address", key.address).Logger()}
			p.ctx, p.cancel = context.WithCancel(ctx)
			l.peers[key] = p
			started = append(started, p)
		}
	}
	return started
}

// SetSnapshot tells the link which lb-admins live, the key to show them, and
// the applications that its own figures are about.
func (l *Link) SetSnapshot(s *lb.Snapshot) {
	l.mu.Lock()
	l.snapshot = s
	l.mu.Unlock()
	poke(l.peersDue)
}

// SetReceipt says which configuration is in force; it is reported at once.
func (l *Link) SetReceipt(r Receipt) {
	l.mu.Lock()
	l.receipt = r
	l.receiptN++
	l.pokePeersLocked()
	l.mu.Unlock()
}

// SetEjections says which instances are ejected now, all of them; it is
// reported at once. The slice must not be changed afterwards.
func (l *Link) SetEjections(es []Ejection) {
	l.mu.Lock()
	l.ejections = es
	l.ejectionsN++
	l.pokePeersLocked()
	l.mu.Unlock()
}

func (l *Link) pokePeersLocked() {
	for _, p := range l.peers {
		poke(p.due)
	}
}

// Connected returns how many lb-admins have answered within the last 3 s.
func (l *Link) Connected() int {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	n := 0
	for _, p := range l.peers {
		if p.heardWithin(now, l.times.fresh) {
			n++
		}
	}
	return n
}

func poke(c chan<- struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}

// peer is one lb-admin.
type peer struct {
	link   *Link
	key    peerKey
	log    zerolog.Logger
	ctx    context.Context // the peer's life, from adjustPeers to its end
	cancel context.CancelFunc
	due    chan struct{} // size 1: something must be reported at once
	checks chan *pb.Check

	// guarded by link.mu
	connected bool
	heard     time.Time // when the lb-admin last said anything on the open stream
	acked     uint64    // seq of the newest report that it acknowledged
	begun     uint64    // seqs of the first and the last part of the newest report
	ended     uint64
	ackMoved  chan struct{}
	resync    bool
	checked   []*pb.ProxyMessage // answers to checks that have not gone out
}

func (p *peer) heardWithin(now time.Time, d time.Duration) bool {
	return p.connected && !p.heard.IsZero() && now.Sub(p.heard) < d
}

// run links, and links again, until ctx ends.
func (p *peer) run(ctx context.Context) {
	defer p.cancel()
	wait := minBackoff
	for {
		began := p.link.now()
		err := p.session(ctx)
		if ctx.Err() != nil {
			return
		}
		if p.link.now().Sub(began) > maxBackoff {
			wait = minBackoff
		}
		p.log.Warn().Err(err).Dur("retry_ms", wait).Msg("link with lb-admin broken")
		if !sleep(ctx, wait/2+rand.N(wait)) {
			return
		}
		wait = min(2*wait, maxBackoff)
	}
}

var errStalled = errors.New("the lb-admin has stopped answering")

// session is one stream from its beginning to its end.
func (p *peer) session(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	// Covers dialling, too, and a Send that flow control has stopped.
	watchdog := time.AfterFunc(p.link.times.stalled, func() { cancel(errStalled) })
	defer watchdog.Stop()

	conn, err := grpc.NewClient("passthrough:///"+p.key.address, dialOptions(p.key.tls, p.link.opts.TLS)...)
	if err != nil {
		return err
	}
	defer conn.Close()
	stream, err := pb.NewClusterClient(conn).Link(p.link.withKey(ctx))
	if err != nil {
		return stalledOr(ctx, err)
	}
	if err := stream.Send(p.link.hello()); err != nil {
		return stalledOr(ctx, streamError(stream, err))
	}
	failed := make(chan error, 1) // closed by the receiver, after at most one error
	var wg sync.WaitGroup
	wg.Go(func() {
		defer close(failed)
		failed <- p.receive(stream, watchdog)
	})
	wg.Go(func() { p.answerChecks(ctx) })
	defer wg.Wait()
	defer cancel(nil)
	defer p.disconnect()
	return stalledOr(ctx, p.send(ctx, stream, failed))
}

// streamError finds the status behind the EOF that Send returns for a stream
// that the other side has ended.
func streamError(stream grpc.BidiStreamingClient[pb.ProxyMessage, pb.AdminMessage], err error) error {
	if _, rerr := stream.Recv(); rerr != nil {
		return rerr
	}
	return err
}

func stalledOr(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); errors.Is(cause, errStalled) {
		return cause
	}
	return err
}

// dialOptions are for the next connection to an lb-admin that speaks TLS or
// not; without settings for that it means the system's roots.
func dialOptions(secure bool, settings func() *tls.Config) []grpc.DialOption {
	creds := insecure.NewCredentials()
	if secure {
		config := &tls.Config{MinVersion: tls.VersionTLS12}
		if settings != nil {
			config = settings()
		}
		creds = credentials.NewTLS(config)
	}
	return []grpc.DialOption{
		grpc.WithTransportCredentials(creds),
		grpc.WithKeepaliveParams(keepalive.ClientParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage), grpc.MaxCallSendMsgSize(maxMessage)),
		grpc.WithDisableServiceConfig(),
		grpc.WithNoProxy(),
	}
}

// uptime is how long the node runs, whatever becomes of the wall clock meanwhile.
func (l *Link) uptime() time.Duration { return l.age + max(0, l.now().Sub(l.made)) }

func (l *Link) withKey(ctx context.Context) context.Context {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.snapshot == nil {
		return ctx
	}
	return metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+l.snapshot.ClusterKey.Reveal())
}

func (l *Link) hello() *pb.ProxyMessage {
	n := l.opts.Node
	return &pb.ProxyMessage{Kind: &pb.ProxyMessage_Hello{Hello: &pb.Hello{
		Node: n.ID, BootId: n.BootID, Version: n.Version, Address: n.Address, StartedUnixMilli: unixMilli(n.Started),
	}}}
}

// receive takes what the lb-admin says; every word of it proves it alive.
func (p *peer) receive(stream grpc.BidiStreamingClient[pb.ProxyMessage, pb.AdminMessage], watchdog *time.Timer) error {
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		watchdog.Reset(p.link.times.stalled)
		p.take(m)
	}
}

func (p *peer) take(m *pb.AdminMessage) {
	l := p.link
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	if !p.connected {
		p.connected, p.ackMoved = true, make(chan struct{})
		p.log.Info().Msg("linked with lb-admin")
	}
	p.heard = now
	if l.primary == nil || l.primary != p && (!l.primary.heardWithin(now, l.times.change) || l.olderLocked(p, l.primary)) {
		l.setPrimary(p)
	}
	switch k := m.GetKind().(type) {
	case *pb.AdminMessage_Ack:
		p.acked = max(p.acked, k.Ack.GetSeq())
		close(p.ackMoved)
		p.ackMoved = make(chan struct{})
	case *pb.AdminMessage_Resync:
		p.resync = true
		poke(p.due)
	case *pb.AdminMessage_Check:
		p.question(k.Check)
	case *pb.AdminMessage_Status:
		if l.primary == p && k.Status.GetSubscription() == l.primaryN {
			l.doc.take(k.Status, l.opts.Registry)
		}
	case *pb.AdminMessage_Accept:
		l.takeAcceptance(k.Accept)
	case *pb.AdminMessage_LimitShares:
		l.takeShares(k.LimitShares, now)
	}
	if l.primary == p && l.doc.whole {
		l.docAt = now
	}
}

// setPrimary makes p's document the one that is shown, once p has sent it
// whole. l.mu is held.
func (l *Link) setPrimary(p *peer) {
	l.primary = p
	l.primaryN++
	l.doc.begin()
	if p != nil {
		poke(p.due) // to subscribe
	}
}

// disconnect is called when the stream has ended.
func (p *peer) disconnect() {
	l := p.link
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.connected {
		close(p.ackMoved)
	}
	p.connected, p.heard, p.acked, p.resync, p.checked = false, time.Time{}, 0, false, nil
	if l.primary == p {
		l.setPrimary(nil)
		var next *peer
		for _, other := range l.peers {
			if other.heardWithin(l.now(), l.times.change) && (next == nil || l.olderLocked(other, next)) {
				next = other
			}
		}
		if next != nil {
			l.setPrimary(next)
		}
	}
}

func (p *peer) waitAck(ctx context.Context, after uint64) error {
	l := p.link
	for {
		l.mu.Lock()
		done, moved := !p.connected || p.begun > after && p.acked >= p.ended, p.ackMoved
		l.mu.Unlock()
		if done {
			return nil
		}
		select {
		case <-moved:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// reported is what of this proxy's state an open stream has carried.
type reported struct {
	generation uint64
	labels     uint64 // generation of the labels
	previous   uint64
	receiptN   uint64
	ejectionsN uint64
	subscribed uint64 // id of the subscription; 0: none
	started    bool   // a full report has gone out
}

// send reports until the stream ends.
func (p *peer) send(ctx context.Context, stream grpc.BidiStreamingClient[pb.ProxyMessage, pb.AdminMessage], failed <-chan error) error {
	// All lb-admins are told at the same times: when this proxy dies they know
	// the same of it.
	every := p.link.times.report
	tick := time.NewTicker(every - time.Since(p.link.began)%every)
	defer tick.Stop()
	aligned := false
	var sent reported
	var samples sentSamples
	for {
		for m := range p.messages(&sent) {
			if err := stream.Send(m); err != nil {
				// The receiver has the stream's status.
				return errors.Join(<-failed, ctx.Err())
			}
		}
		for _, m := range append(p.answers(), samples.next(p.link.opts.Registry, p.link.now(), p.link.times.samples)...) {
			if err := stream.Send(m); err != nil {
				return errors.Join(<-failed, ctx.Err())
			}
		}
		select {
		case <-tick.C:
			if !aligned {
				tick.Reset(every)
				aligned = true
			}
		case <-p.due:
			// What comes in a burst goes out together.
			if !sleep(ctx, promptAfter) {
				return ctx.Err()
			}
		case err := <-failed:
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// messages makes the next report, part by part as they are sent, and brings
// sent up to date.
func (p *peer) messages(sent *reported) iter.Seq[*pb.ProxyMessage] {
	return func(yield func(*pb.ProxyMessage) bool) {
		subscribe, r := p.begin(sent)
		if !sent.started || subscribe.GetStatus() {
			for _, m := range p.link.shown() {
				if !yield(m) {
					return
				}
			}
		}
		if subscribe != nil && !yield(&pb.ProxyMessage{Kind: &pb.ProxyMessage_Subscribe{Subscribe: subscribe}}) {
			return
		}
		if demand := p.link.currentDemand(); demand != nil && !yield(demand) {
			return
		}
		r.Full, sent.started = !sent.started, true
		series, generation := p.link.opts.Registry.Collect(sent.generation)
		sent.generation = generation
		labels, generation := p.link.opts.Registry.CollectLabels(sent.labels)
		sent.labels = generation
		for {
			n := min(len(series), partSeries)
			r.Series = seriesToWire(series[:n])
			series = series[n:]
			n = min(len(labels), partSeries-n)
			r.Labels = labelsToWire(labels[:n])
			labels = labels[n:]
			r.More = len(series) > 0 || len(labels) > 0
			sent.previous = r.Seq
			if !r.More {
				p.end(r.Seq)
			}
			if !yield(&pb.ProxyMessage{Kind: &pb.ProxyMessage_Report{Report: r}}) || !r.More {
				return
			}
			r = &pb.Report{Seq: p.link.nextSeq(), Previous: sent.previous, Full: r.Full, UptimeMillis: r.UptimeMillis}
		}
	}
}

// begin makes a report without figures, and a change of subscription or nil.
func (p *peer) begin(sent *reported) (*pb.Subscribe, *pb.Report) {
	l := p.link
	l.mu.Lock()
	defer l.mu.Unlock()
	if p.resync {
		p.resync = false
		*sent = reported{subscribed: sent.subscribed}
	}
	want := uint64(0)
	if l.primary == p {
		want = l.primaryN
	}
	var subscribe *pb.Subscribe
	if want != sent.subscribed {
		sent.subscribed = want
		subscribe = &pb.Subscribe{Status: want != 0, Id: want}
	}
	// Taken before the figures are read, so that a higher seq never carries
	// older ones on one stream.
	l.seq++
	p.begun, p.ended = l.seq, math.MaxUint64
	r := &pb.Report{Seq: l.seq, Previous: sent.previous, UptimeMillis: l.uptime().Milliseconds()}
	if l.receiptN != sent.receiptN {
		r.Receipt, sent.receiptN = receiptToWire(l.receipt), l.receiptN
		if !l.receipt.AppliedAt.IsZero() {
			r.Receipt.AgeMicros = max(0, l.now().Sub(l.receipt.AppliedAt).Microseconds())
		}
	}
	if l.ejectionsN != sent.ejectionsN {
		r.Ejections, sent.ejectionsN = ejectionsToWire(l.ejections), l.ejectionsN
	}
	return subscribe, r
}

func (l *Link) currentDemand() *pb.ProxyMessage {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.demand
}

// end notes the seq of a report's last part.
func (p *peer) end(seq uint64) {
	p.link.mu.Lock()
	p.ended = seq
	p.link.mu.Unlock()
}

func (l *Link) nextSeq() uint64 {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.seq++
	return l.seq
}

func seriesToWire(series []stats.Series) []*pb.Series {
	out := make([]*pb.Series, len(series))
	for i := range series {
		out[i] = &pb.Series{App: series[i].App, Instance: series[i].Instance, Totals: totalsToWire(&series[i].Totals)}
	}
	return out
}

func labelsToWire(series []stats.Series) []*pb.LabelSeries {
	out := make([]*pb.LabelSeries, len(series))
	for i := range series {
		out[i] = &pb.LabelSeries{App: series[i].App, Label: series[i].Label, Totals: totalsToWire(&series[i].Totals)}
	}
	return out
}

func ejectionsToWire(es []Ejection) *pb.Ejections {
	w := &pb.Ejections{}
	for _, e := range es {
		w.Ejections = append(w.Ejections, &pb.Ejection{App: e.App, Instance: e.Instance, SinceUnixMilli: unixMilli(e.Since)})
	}
	return w
}

// Status returns the newest document of an lb-admin. When none has answered
// for 3 s, it is the last known one with what this proxy has counted since on
// top, and Complete is false. Counters in it never go backwards.
func (l *Link) Status() *Status {
	now := l.now()
	l.mu.Lock()
	defer l.mu.Unlock()
	s := &Status{Status: "running", Timestamp: now.UTC().Truncate(time.Second), Applications: make(map[string]*ApplicationStatus, len(l.doc.apps))}
	if l.docAt.IsZero() || now.Sub(l.docAt) >= l.times.fresh {
		l.ownStatus(s)
		return s
	}
	s.Revision, s.Complete, s.Nodes, s.Refusing = l.doc.header.revision, l.doc.header.complete, l.doc.header.nodes, l.doc.header.refused()
	for name, a := range l.doc.apps {
		s.Applications[name] = a.shown
	}
	return s
}

// ownStatus fills in what this proxy can say by itself. l.mu is held.
func (l *Link) ownStatus(s *Status) {
	if l.snapshot == nil {
		return
	}
	s.Revision = l.snapshot.ConfigRevision
	for _, n := range l.snapshot.Nodes {
		if n.Role == lb.RoleAdmin {
			s.Nodes.Admins++
		} else {
			s.Nodes.Proxies++
		}
	}
	s.Nodes.Reporting = min(1, s.Nodes.Proxies)
	if l.receipt.Refused != "" {
		s.Refusing = []Refusing{refusingOf(l.opts.Node.ID, l.receipt)}
	}
	ejected := make(map[stats.Key]time.Time, len(l.ejections))
	for _, e := range l.ejections {
		ejected[stats.Key{App: e.App, Instance: e.Instance}] = e.Since
	}
	for _, app := range l.snapshot.Applications {
		s.Applications[app.Name] = l.doc.own(app, l.snapshot, l.opts.Registry, ejected, l.opts.Node.ID, l.opts.Node.Started)
	}
}
