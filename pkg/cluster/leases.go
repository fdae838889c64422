package cluster

import (
	"context"
	"math"
	"slices"
	"sync"
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/limit"
	pb "difylb/proto"
)

// Limits that hold for the cluster are divided among the proxies by demand:
// each tells every lb-admin what it is asked for, and the elected one leases
// the shares out, see limit.Lessor. Users and addresses have hashes for names.

const (
	// divideEvery is how often the shares are brought up to date.
	divideEvery = 250 * time.Millisecond
	// renewEvery is how often they are sent though nothing has changed, so that
	// no lease expires, and every proxy knows who is elected.
	renewEvery = time.Second
	// maxShares bounds what an lb-admin may lease to a proxy at a time.
	maxShares = 1 << 14
	// maxValid bounds how long a lease may be for.
	maxValid = 30 * time.Second
)

// Leases are what a proxy may use of the limits of the cluster.
type Leases struct {
	Shares []limit.Share
	Until  time.Time

	term, seq uint64
}

// lessor is the Hub's part of it.
type lessor struct {
	mu       sync.Mutex    // guards all below; taken after Hub.mu where both are
	logic    *limit.Lessor // nil while another is elected
	term     uint64
	boots    map[string]string    // of the holders, by node
	sessions map[*session]*leased // open streams
}

// leased is what a stream has been sent.
type leased struct {
	term, seq uint64
	at        time.Time
}

// LeaseLimits leases limits to the proxies while this lb-admin is elected,
// until ctx ends. term must grow from one election to the next.
func (h *Hub) LeaseLimits(ctx context.Context, term uint64) error {
	l := &h.lessor
	l.mu.Lock()
	l.logic, l.term, l.boots = limit.NewLessor(h.now()), term, make(map[string]string)
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		l.logic = nil
		l.mu.Unlock()
	}()
	tick := time.NewTicker(divideEvery)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			h.mu.Lock()
			snapshot := h.snapshot
			h.mu.Unlock()
			if snapshot != nil {
				l.divide(snapshot, h.now())
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// Leased returns how many limits this lb-admin leases out at the moment.
func (h *Hub) Leased() int {
	h.lessor.mu.Lock()
	defer h.lessor.mu.Unlock()
	if h.lessor.logic == nil {
		return 0
	}
	return h.lessor.logic.Len()
}

func (l *lessor) divide(s *lb.Snapshot, now time.Time) {
	l.mu.Lock()
	defer l.mu.Unlock()
	boots := make(map[string]string)
	var ids []string
	for _, n := range s.Nodes {
		if n.Role != lb.RoleProxy {
			continue
		}
		ids, boots[n.ID] = append(ids, n.ID), n.BootID
		if old, known := l.boots[n.ID]; known && old != n.BootID {
			l.logic.Forget(n.ID)
		}
	}
	l.boots = boots
	l.logic.SetHolders(ids)
	l.logic.Divide(now, func(k limit.Key) (float64, bool) { return wholeOf(s, k) })
	messages := make(map[string]*pb.AdminMessage)
	for session, sent := range l.sessions {
		node := session.boot.node
		seq, shares := l.logic.Shares(node)
		if seq == 0 || boots[node] != session.boot.id || sent.term == l.term && sent.seq == seq && now.Sub(sent.at) < renewEvery {
			continue
		}
		if messages[node] == nil {
			messages[node] = sharesToWire(l.term, seq, shares)
		}
		*sent = leased{l.term, seq, now}
		session.set(func() { session.shares = messages[node] })
	}
}

// wholeOf returns how much a limit allows in the whole cluster.
func wholeOf(s *lb.Snapshot, k limit.Key) (float64, bool) {
	rate := func(r *lb.Rate) (float64, bool) {
		if r == nil {
			return 0, false
		}
		return r.PerSecond, true
	}
	if k.Kind == limit.PerIP {
		return rate(s.Settings.RateLimit.PerIP)
	}
	app := s.Application(k.App)
	if app == nil {
		return 0, false
	}
	switch k.Kind {
	case limit.PerApp:
		return rate(app.RateLimit.PerApp)
	case limit.PerUser:
		return rate(app.RateLimit.PerUser)
	case limit.InFlight:
		if in, _ := app.Instance(k.Instance); in != nil && in.MaxInFlight > 0 {
			return float64(in.MaxInFlight), true
		}
	}
	return 0, false
}

func (l *lessor) open(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sessions == nil {
		l.sessions = make(map[*session]*leased)
	}
	l.sessions[s] = &leased{}
}

func (l *lessor) close(s *session) {
	l.mu.Lock()
	defer l.mu.Unlock()
	delete(l.sessions, s)
}

// demand takes what a proxy was asked for.
func (l *lessor) demand(b *boot, w *pb.LimitDemand, now time.Time) {
	demands := demandsFromWire(w)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.logic == nil || l.boots[b.node] != b.id {
		return
	}
	acked := uint64(0)
	if w.GetTerm() == l.term {
		acked = w.GetSeq()
	}
	l.logic.Report(b.node, acked, demands, now)
}

var kindsToWire = map[limit.Kind]pb.LimitKind{
	limit.PerApp:  pb.LimitKind_LIMIT_KIND_PER_APP,
	limit.PerUser: pb.LimitKind_LIMIT_KIND_PER_USER,
	limit.PerIP:   pb.LimitKind_LIMIT_KIND_PER_IP,
}

// rateKey reads the name of a rate; false for one that this version does not know.
func rateKey(kind pb.LimitKind, app string, name uint64) (limit.Key, bool) {
	for k, w := range kindsToWire {
		if w == kind && len(app) <= maxNameBytes && (app == "") == (k == limit.PerIP) {
			return limit.Key{Kind: k, App: app, Name: name}, true
		}
	}
	return limit.Key{}, false
}

func slotKey(app, instance string) (limit.Key, bool) {
	ok := app != "" && instance != "" && len(app) <= maxNameBytes && len(instance) <= maxNameBytes
	return limit.Key{Kind: limit.InFlight, App: app, Instance: instance}, ok
}

func demandsToWire(term, seq uint64, demands []limit.Demand) *pb.ProxyMessage {
	w := &pb.LimitDemand{Term: term, Seq: seq}
	for _, d := range demands {
		if d.Kind == limit.InFlight {
			w.Slots = append(w.Slots, &pb.SlotDemand{App: d.App, Instance: d.Instance, Open: count32(d.Open), Waiting: count32(d.Waiting),
				Slots: count32(d.Slots), Refused: d.Refused, Pressed: d.Pressed})
			continue
		}
		w.Rates = append(w.Rates, &pb.RateDemand{Kind: kindsToWire[d.Kind], App: d.App, Name: d.Name, PerSecond: d.PerSecond, Pressed: d.Pressed})
	}
	return &pb.ProxyMessage{Kind: &pb.ProxyMessage_LimitDemand{LimitDemand: w}}
}

func count32(n int) uint32 { return uint32(min(max(0, n), math.MaxInt32)) }

func demandsFromWire(w *pb.LimitDemand) []limit.Demand {
	out := make([]limit.Demand, 0, min(len(w.GetRates())+len(w.GetSlots()), limit.MaxDemands))
	for _, r := range w.GetRates() {
		if k, ok := rateKey(r.GetKind(), r.GetApp(), r.GetName()); ok && len(out) < limit.MaxDemands {
			out = append(out, limit.Demand{Key: k, PerSecond: r.GetPerSecond(), Pressed: r.GetPressed()})
		}
	}
	for _, s := range w.GetSlots() {
		if k, ok := slotKey(s.GetApp(), s.GetInstance()); ok && len(out) < limit.MaxDemands {
			out = append(out, limit.Demand{Key: k, Open: slotCount(s.GetOpen()), Waiting: slotCount(s.GetWaiting()), Slots: slotCount(s.GetSlots()),
				Refused: s.GetRefused(), Pressed: s.GetPressed()})
		}
	}
	return out
}

func slotCount(n uint32) int { return int(min(n, math.MaxInt32)) }

func sharesToWire(term, seq uint64, shares []limit.Share) *pb.AdminMessage {
	w := &pb.LimitShares{Term: term, Seq: seq, ValidMillis: uint32(limit.LeaseTime.Milliseconds())}
	for _, s := range shares {
		if s.Kind == limit.InFlight {
			w.Slots = append(w.Slots, &pb.SlotShare{App: s.App, Instance: s.Instance, Slots: count32(s.Slots)})
			continue
		}
		w.Rates = append(w.Rates, &pb.RateShare{Kind: kindsToWire[s.Kind], App: s.App, Name: s.Name, Part: s.Part})
	}
	return &pb.AdminMessage{Kind: &pb.AdminMessage_LimitShares{LimitShares: w}}
}

func sharesFromWire(w *pb.LimitShares) []limit.Share {
	var out []limit.Share
	for _, r := range w.GetRates() {
		if k, ok := rateKey(r.GetKind(), r.GetApp(), r.GetName()); ok && len(out) < maxShares && r.GetPart() > 0 {
			out = append(out, limit.Share{Key: k, Part: min(r.GetPart(), 1)})
		}
	}
	for _, s := range w.GetSlots() {
		if k, ok := slotKey(s.GetApp(), s.GetInstance()); ok && len(out) < maxShares {
			out = append(out, limit.Share{Key: k, Slots: slotCount(s.GetSlots())})
		}
	}
	return out
}

// SetDemands tells the lb-admins what this proxy is asked for of the limits of
// the cluster, and the leases by which it went meanwhile. It goes out with the
// next report, which a change of the leases brings forward.
func (l *Link) SetDemands(demands []limit.Demand, by Leases) {
	message := demandsToWire(by.term, by.seq, demands)
	l.mu.Lock()
	defer l.mu.Unlock()
	before := l.demand.GetLimitDemand()
	l.demand = message
	if by.seq != before.GetSeq() || by.term != before.GetTerm() {
		l.pokePeersLocked()
	}
}

// Leases returns the newest leases, which may have expired.
func (l *Link) Leases() Leases {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.leases
}

// LeasesChanged receives after new ones have come; those that come in between
// make one of it.
func (l *Link) LeasesChanged() <-chan struct{} { return l.leasesDue }

// takeShares takes what the elected lb-admin leases. Somebody who has been
// deposed and does not know it yet is not listened to. l.mu is held.
func (l *Link) takeShares(w *pb.LimitShares, now time.Time) {
	if w.GetTerm() < l.leases.term && now.Before(l.leases.Until) {
		return
	}
	valid := min(time.Duration(w.GetValidMillis())*time.Millisecond, maxValid)
	l.leases = Leases{Shares: slices.Clip(sharesFromWire(w)), Until: now.Add(valid), term: w.GetTerm(), seq: w.GetSeq()}
	poke(l.leasesDue)
}
