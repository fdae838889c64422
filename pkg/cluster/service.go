package cluster

import (
	"context"
	"crypto/sha256"
	"crypto/subtle"
	"crypto/tls"
	"strings"
	"sync"
	"time"
	"unicode/utf8"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/keepalive"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"difylb/pkg/lb"
	"difylb/pkg/stats"
	pb "difylb/proto"
)

// Keepalive of the link: a peer whose host vanished is noticed within
// keepaliveTime + keepaliveTimeout even when nothing is sent.
const (
	keepaliveTime    = 10 * time.Second
	keepaliveTimeout = 5 * time.Second
)

// maxEjections bounds a proxy's list of ejected instances.
const maxEjections = 1 << 17

// NewServer returns a gRPC server that serves the hub; nil for tls means in
// clear. The caller serves a listener with it and stops it.
func NewServer(h *Hub, tlsConfig *tls.Config) *grpc.Server {
	opts := []grpc.ServerOption{
		grpc.MaxRecvMsgSize(maxMessage),
		grpc.KeepaliveParams(keepalive.ServerParameters{Time: keepaliveTime, Timeout: keepaliveTimeout}),
		grpc.KeepaliveEnforcementPolicy(keepalive.EnforcementPolicy{MinTime: keepaliveTime / 2, PermitWithoutStream: true}),
		grpc.ConnectionTimeout(10 * time.Second),
		grpc.MaxConcurrentStreams(16), // per connection; a proxy needs one
	}
	if tlsConfig != nil {
		opts = append(opts, grpc.Creds(credentials.NewTLS(tlsConfig)))
	}
	s := grpc.NewServer(opts...)
	pb.RegisterClusterServer(s, h)
	return s
}

// authorize compares the key that the peer shows with the snapshot's. Both
// are hashed first, so that the time tells not even the length.
func (h *Hub) authorize(ctx context.Context) error {
	h.mu.Lock()
	var key lb.Secret
	if h.snapshot != nil {
		key = h.snapshot.ClusterKey
	}
	h.mu.Unlock()
	if key == "" {
		return status.Error(codes.Unavailable, "this lb-admin has not read the cluster's state yet")
	}
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) != 1 || len(values[0]) > lb.MaxTokenBytes {
		return status.Error(codes.Unauthenticated, "the cluster key is missing")
	}
	scheme, shown, _ := strings.Cut(values[0], " ")
	want, got := sha256.Sum256([]byte(key.Reveal())), sha256.Sum256([]byte(shown))
	if !strings.EqualFold(scheme, "Bearer") || subtle.ConstantTimeCompare(want[:], got[:]) != 1 {
		return status.Error(codes.Unauthenticated, "the cluster key is not this cluster's")
	}
	return nil
}

// Link serves one proxy's stream until either side ends it.
func (h *Hub) Link(stream grpc.BidiStreamingServer[pb.ProxyMessage, pb.AdminMessage]) error {
	if err := h.authorize(stream.Context()); err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	if hello == nil || !validName(hello.GetNode()) || !validName(hello.GetBootId()) {
		return status.Error(codes.InvalidArgument, "the first message must be hello, with node and boot id")
	}
	s := &session{hub: h, boot: h.open(hello), notify: make(chan struct{}, 1)}
	defer h.closeSession(s)
	h.lessor.open(s)
	defer h.lessor.close(s)
	h.checks.join(s)
	defer h.checks.leave(s)

	// The sender ends with the stream: this function's return cancels
	// nothing that it waits for, hence done.
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { s.send(stream, done) })
	defer wg.Wait()
	defer close(done)
	for {
		m, err := stream.Recv()
		if err != nil {
			return err
		}
		// The key may have been changed since the stream began.
		if err := h.authorize(stream.Context()); err != nil {
			return err
		}
		s.receive(m)
	}
}

func validName(s string) bool { return s != "" && len(s) <= maxNameBytes && utf8.ValidString(s) }

// session is one open stream.
type session struct {
	hub  *Hub
	boot *boot

	previous uint64      // seq of the last report; owned by Link's receive loop
	asked    []*pb.Check // not sent yet; guarded by hub.checks.mu

	notify chan struct{} // size 1: something below has changed
	mu     sync.Mutex    // guards all below
	ack    uint64
	acked  uint64
	resync bool
	shares *pb.AdminMessage // to be sent; nil: none
	accept *pb.AdminMessage // to be sent; nil: none
	wants  bool             // the status document
	wanted uint64           // id of the newest subscription
}

func (h *Hub) open(hello *pb.Hello) *boot {
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	b := h.ledger.boot(bootKey{hello.GetNode(), hello.GetBootId()}, now)
	b.version, b.address = hello.GetVersion(), hello.GetAddress()
	b.started = fromUnixMilli(hello.GetStartedUnixMilli())
	b.streams++
	h.log.Info().Str("node", b.node).Str("boot", b.id).Str("version", b.version).Msg("proxy linked")
	return b
}

func (h *Hub) closeSession(s *session) {
	h.mu.Lock()
	defer h.mu.Unlock()
	s.boot.streams--
	h.log.Info().Str("node", s.boot.node).Str("boot", s.boot.id).Msg("proxy link ended")
}

func (s *session) receive(m *pb.ProxyMessage) {
	switch k := m.GetKind().(type) {
	case *pb.ProxyMessage_Report:
		if s.follows(k.Report) {
			s.hub.report(s.boot, k.Report)
		}
		s.set(func() { s.ack = k.Report.GetSeq() })
	case *pb.ProxyMessage_RecentUsers:
		if s.hub.declared(k.RecentUsers.GetApp()) {
			s.hub.recent.take(s.boot.node, s.boot.id, k.RecentUsers, s.hub.now())
		}
	case *pb.ProxyMessage_Checked:
		s.hub.checks.answered(s, k.Checked, s.hub.now())
	case *pb.ProxyMessage_Shown:
		s.hub.takeShown(k.Shown)
	case *pb.ProxyMessage_Subscribe:
		s.set(func() { s.wants, s.wanted = k.Subscribe.GetStatus(), k.Subscribe.GetId() })
	case *pb.ProxyMessage_LimitDemand:
		s.hub.lessor.demand(s.boot, k.LimitDemand, s.hub.now())
	}
	// Other kinds are of a newer version.
}

// follows checks that no report of the stream is missing; otherwise all is
// asked for again. gRPC loses nothing, but a hole here would be a wrong sum.
func (s *session) follows(r *pb.Report) bool {
	ok := r.GetPrevious() == s.previous && (s.previous != 0 || r.GetFull())
	if !ok && !(r.GetFull() && r.GetPrevious() == 0) {
		s.set(func() { s.resync = true })
		return false
	}
	s.previous = r.GetSeq()
	return true
}

func (s *session) set(change func()) {
	s.mu.Lock()
	change()
	s.mu.Unlock()
	s.poke()
}

func (s *session) poke() {
	select {
	case s.notify <- struct{}{}:
	default:
	}
}

// report merges one report.
func (h *Hub) report(b *boot, r *pb.Report) {
	series := make([]stats.Series, 0, len(r.GetSeries())+len(r.GetLabels()))
	for _, w := range r.GetSeries() {
		if len(w.GetApp()) > maxNameBytes || len(w.GetInstance()) > maxNameBytes {
			continue
		}
		series = append(series, stats.Series{Key: stats.Key{App: w.GetApp(), Instance: w.GetInstance()}, Totals: totalsFromWire(w.GetTotals())})
	}
	for _, w := range r.GetLabels() {
		if w.GetApp() == "" || len(w.GetApp()) > maxNameBytes || len(w.GetLabel()) > maxNameBytes {
			continue
		}
		series = append(series, stats.Series{Key: stats.LabelKey(w.GetApp(), w.GetLabel()), Totals: totalsFromWire(w.GetTotals())})
	}
	now := h.now()
	h.mu.Lock()
	defer h.mu.Unlock()
	slot := h.slot(now)
	if r.GetFull() {
		// Of what a proxy has counted before it was linked, or while it was
		// not, nobody knows when. Other reports come each second.
		slot = noSlot
	}
	for i := range series {
		h.ledger.report(b, r.GetSeq(), &series[i], slot, now)
	}
	if r.GetSeq() >= b.seq {
		b.seq = r.GetSeq()
		b.uptime = time.Duration(r.GetUptimeMillis()) * time.Millisecond
		h.takeRest(b, r, now)
	}
	if r.GetFull() && !r.GetMore() {
		b.whole = true
	}
	b.lastReport = now
}

// takeRest takes what is not figures, of which only the newest counts.
func (h *Hub) takeRest(b *boot, r *pb.Report, now time.Time) {
	if w := r.GetReceipt(); w != nil {
		h.takeReceiptLocked(b, w, now)
	}
	if w := r.GetEjections(); w != nil {
		next := make(map[stats.Key]time.Time)
		for _, e := range w.GetEjections()[:min(len(w.GetEjections()), maxEjections)] {
			next[stats.Key{App: e.GetApp(), Instance: e.GetInstance()}] = fromUnixMilli(e.GetSinceUnixMilli())
		}
		h.setEjections(b, next)
	}
}

func (h *Hub) takeReceiptLocked(b *boot, w *pb.Receipt, now time.Time) {
	before := b.receipt
	b.receipt, b.hasReceipt = receiptFromWire(w), true
	if h.snapshot != nil && h.registeredLocked(b) {
		h.spreadLocked(before, b.receipt, now.Add(-time.Duration(w.GetAgeMicros())*time.Microsecond))
	}
	close(h.receiptsChanged)
	h.receiptsChanged = make(chan struct{})
}

// send writes what the proxy should know, until the stream ends.
func (s *session) send(stream grpc.BidiStreamingServer[pb.ProxyMessage, pb.AdminMessage], done <-chan struct{}) {
	welcome := &pb.AdminMessage{Kind: &pb.AdminMessage_Welcome{Welcome: &pb.Welcome{Node: s.hub.opts.NodeID}}}
	if stream.Send(welcome) != nil {
		return
	}
	sent := &sentStatus{}
	var changed <-chan struct{}
	for {
		select {
		case <-s.notify:
		case <-changed:
		case <-done:
			return
		case <-stream.Context().Done():
			return
		}
		messages, wants, id := s.pending()
		messages = append(messages, s.hub.checks.asked(s)...)
		if id != sent.subscription {
			sent = &sentStatus{subscription: id}
		}
		changed = nil
		if wants {
			var update []*pb.AdminMessage
			update, changed = s.hub.update(sent)
			messages = append(messages, update...)
		}
		for _, m := range messages {
			if stream.Send(m) != nil {
				return // the receive loop learns of it, too
			}
		}
	}
}

func (s *session) pending() (messages []*pb.AdminMessage, wants bool, id uint64) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.ack > s.acked {
		s.acked = s.ack
		messages = append(messages, &pb.AdminMessage{Kind: &pb.AdminMessage_Ack{Ack: &pb.Ack{Seq: s.ack}}})
	}
	if s.resync {
		s.resync = false
		messages = append(messages, &pb.AdminMessage{Kind: &pb.AdminMessage_Resync{Resync: &pb.Resync{}}})
	}
	for _, m := range []**pb.AdminMessage{&s.accept, &s.shares} {
		if *m != nil {
			messages = append(messages, *m)
			*m = nil
		}
	}
	return messages, s.wants, s.wanted
}

// sentStatus is what of the document a proxy has.
type sentStatus struct {
	subscription uint64
	started      bool
	header       header
	versions     map[string]uint64
}

// update returns what a proxy does not have yet, and a channel that is closed
// when there is more.
func (h *Hub) update(sent *sentStatus) ([]*pb.AdminMessage, <-chan struct{}) {
	h.mu.Lock()
	changed := h.changed
	hd := h.header
	var apps []*pb.ApplicationStatus
	var labels []*pb.LabelStatus
	next := make(map[string]uint64, len(h.views))
	for name, v := range h.views {
		next[name] = v.version
		if sent.versions[name] != v.version {
			apps = append(apps, v.wire)
			for _, l := range v.labels {
				if l.version > sent.versions[name] {
					labels = append(labels, l.wire)
				}
			}
		}
	}
	h.mu.Unlock()
	var removed []string
	for name := range sent.versions {
		if _, still := next[name]; !still {
			removed = append(removed, name)
		}
	}
	full := !sent.started
	if !full && hd == sent.header && len(apps) == 0 && len(removed) == 0 {
		return nil, changed
	}
	*sent = sentStatus{subscription: sent.subscription, started: true, header: hd, versions: next}
	return statusMessages(sent.subscription, full, hd, apps, removed, labels), changed
}

// statusMessages cuts an update into messages of a bounded size.
func statusMessages(subscription uint64, full bool, hd header, apps []*pb.ApplicationStatus, removed []string, labels []*pb.LabelStatus) []*pb.AdminMessage {
	var out []*pb.AdminMessage
	part := func() *pb.StatusUpdate {
		u := &pb.StatusUpdate{
			Subscription: subscription, Full: full, More: true, Revision: hd.revision, Epoch: hd.epoch, Complete: hd.complete,
			Proxies: int32(hd.nodes.Proxies), Admins: int32(hd.nodes.Admins), Reporting: int32(hd.nodes.Reporting),
		}
		for _, r := range hd.refused() {
			u.Refusing = append(u.Refusing, &pb.RefusingNode{Node: r.Node, Revision: r.Revision, RefusedRevision: r.RefusedRevision, HeldBack: r.HeldBack, Reason: r.Reason})
		}
		out = append(out, &pb.AdminMessage{Kind: &pb.AdminMessage_Status{Status: u}})
		return u
	}
	u, size := part(), 0
	u.Removed = removed
	for _, a := range apps {
		if n := 1 + len(a.GetInstances()); size > 0 && size+n > partSeries {
			u, size = part(), 0
		}
		u.Applications = append(u.Applications, a)
		size += 1 + len(a.GetInstances())
	}
	for _, l := range labels {
		if size >= partSeries {
			u, size = part(), 0
		}
		u.Labels = append(u.Labels, l)
		size++
	}
	u.More = false
	return out
}
