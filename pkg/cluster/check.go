package cluster

import (
	"cmp"
	"context"
	"slices"
	"sync"
	"time"

	"difylb/pkg/lb"
	pb "difylb/proto"
)

// Reach is whether a connection to an instance could be made.
type Reach struct {
	App      string  `json:"app"`             // name of the application
	Instance string  `json:"instance"`        // name of the instance
	Address  string  `json:"address"`         // host:port that was dialled
	Error    string  `json:"error,omitempty"` // empty: connected
	MS       float64 `json:"ms"`              // how long it took, in milliseconds
}

// NodeCheck is what a proxy answered to a Check.
type NodeCheck struct {
	Node string `json:"node"` // id of the lb-proxy
	// Answered is false for a proxy that is not linked with this lb-admin, is of
	// a version that knows no checks, or took too long.
	Answered bool `json:"answered"`
	// SkewMS is by how much the proxy's clock is ahead of this lb-admin's, as
	// far as can be told: to within RoundTripMS.
	SkewMS      float64 `json:"clock_skew_ms"`
	RoundTripMS float64 `json:"round_trip_ms"`
	Instances   []Reach `json:"instances"` // whether it could connect to each that is not disabled
}

const (
	// checkParts is how many instances one message answers for.
	checkParts = 1000
	// maxReaches bounds what is taken of one proxy's answer.
	maxReaches = 1 << 17
	// maxReachText bounds the error of one instance.
	maxReachText = 512
)

// checks are the questions that a hub has asked.
type checks struct {
	mu       sync.Mutex // guards all below, and session.asked
	id       uint64
	sessions map[*session]bool
	waiting  map[uint64]*checking
}

type checking struct {
	left map[*session]*NodeCheck // who has not answered to the end
	sent time.Time
	all  []*NodeCheck
	done chan struct{} // closed when left is empty
}

func (c *checks) join(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.sessions == nil {
		c.sessions, c.waiting = make(map[*session]bool), make(map[uint64]*checking)
	}
	c.sessions[s] = true
}

func (c *checks) leave(s *session) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.sessions, s)
	for _, q := range c.waiting {
		q.drop(s)
	}
}

func (q *checking) drop(s *session) {
	if _, waits := q.left[s]; waits {
		delete(q.left, s)
		if len(q.left) == 0 {
			close(q.done)
		}
	}
}

// asked returns the questions that the session's proxy has not been sent.
func (c *checks) asked(s *session) []*pb.AdminMessage {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []*pb.AdminMessage
	for _, w := range s.asked {
		out = append(out, &pb.AdminMessage{Kind: &pb.AdminMessage_Check{Check: w}})
	}
	s.asked = nil
	return out
}

func (c *checks) answered(s *session, w *pb.Checked, now time.Time) {
	c.mu.Lock()
	defer c.mu.Unlock()
	q := c.waiting[w.GetId()]
	if q == nil {
		return
	}
	n := q.left[s]
	if n == nil {
		return
	}
	for _, r := range w.GetInstances() {
		if len(n.Instances) >= maxReaches || len(r.GetApp()) > maxNameBytes || len(r.GetInstance()) > maxNameBytes || len(r.GetAddress()) > maxReachText || len(r.GetError()) > maxReachText {
			continue
		}
		n.Instances = append(n.Instances, Reach{App: r.GetApp(), Instance: r.GetInstance(), Address: r.GetAddress(), Error: r.GetError(), MS: float64(r.GetMicros()) / 1000})
	}
	if at := w.GetUnixMilli(); at != 0 {
		// It comes at once, before the checks: the proxy read its clock about
		// half way.
		round := now.Sub(q.sent)
		n.RoundTripMS = float64(round.Microseconds()) / 1000
		n.SkewMS = float64(at - q.sent.Add(round/2).UnixMilli())
	}
	if !w.GetMore() {
		n.Answered = true
		slices.SortFunc(n.Instances, func(a, b Reach) int { return cmp.Or(cmp.Compare(a.App, b.App), cmp.Compare(a.Instance, b.Instance)) })
		q.drop(s)
	}
}

// Check asks every linked proxy to connect to each instance of its configuration,
// or of one application, and waits for the answers until ctx ends. It returns an
// entry for every proxy that is registered, sorted.
func (h *Hub) Check(ctx context.Context, app string) []NodeCheck {
	h.mu.Lock()
	var nodes []string
	running := make(map[string]string)
	if h.snapshot != nil {
		for _, n := range h.snapshot.Nodes {
			if n.Role == lb.RoleProxy {
				nodes = append(nodes, n.ID)
				running[n.ID] = n.BootID
			}
		}
	}
	h.mu.Unlock()

	c := &h.checks
	q := &checking{left: make(map[*session]*NodeCheck), done: make(chan struct{})}
	c.mu.Lock()
	c.id++
	id := c.id
	q.sent = h.now()
	for s := range c.sessions {
		if running[s.boot.node] != s.boot.id {
			continue
		}
		n := &NodeCheck{Node: s.boot.node, Instances: []Reach{}}
		q.left[s] = n
		q.all = append(q.all, n)
		s.asked = append(s.asked, &pb.Check{Id: id, App: app})
		s.poke()
	}
	if len(q.left) == 0 {
		close(q.done)
	} else {
		c.waiting[id] = q
	}
	c.mu.Unlock()
	select {
	case <-q.done:
	case <-ctx.Done():
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.waiting, id)
	out := make([]NodeCheck, 0, len(nodes))
	for _, node := range nodes {
		best := NodeCheck{Node: node, Instances: []Reach{}}
		for _, n := range q.all {
			if n.Node == node && !best.Answered {
				best = *n
				best.Instances = slices.Clone(n.Instances)
			}
		}
		out = append(out, best)
	}
	slices.SortFunc(out, func(a, b NodeCheck) int { return cmp.Compare(a.Node, b.Node) })
	return out
}

// checkTime bounds what a proxy spends on one Check.
const checkTime = 8 * time.Second

// answerChecks carries out what the lb-admin asks, one after the other, until
// the session ends.
func (p *peer) answerChecks(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case w := <-p.checks:
			var reached []Reach
			if f := p.link.opts.Check; f != nil {
				bound, cancel := context.WithTimeout(ctx, checkTime)
				reached = f(bound, w.GetApp())
				cancel()
			}
			var out []*pb.Checked
			for first := true; first || len(reached) > 0; first = false {
				n := min(len(reached), checkParts)
				part := &pb.Checked{Id: w.GetId(), More: n < len(reached)}
				for _, r := range reached[:n] {
					part.Instances = append(part.Instances, &pb.Reach{App: r.App, Instance: r.Instance, Address: r.Address, Error: cutText(r.Error), Micros: int64(r.MS * 1000)})
				}
				reached = reached[n:]
				out = append(out, part)
			}
			p.answer(out...)
		}
	}
}

func cutText(s string) string { return s[:min(len(s), maxReachText)] }

// question takes a Check; when too many wait it is dropped, and times out.
func (p *peer) question(w *pb.Check) {
	// At once, by itself: it tells the time.
	p.answerLocked(&pb.Checked{Id: w.GetId(), UnixMilli: p.link.now().UnixMilli(), More: true})
	select {
	case p.checks <- w:
	default:
	}
}

func (p *peer) answer(parts ...*pb.Checked) {
	p.link.mu.Lock()
	defer p.link.mu.Unlock()
	p.answerLocked(parts...)
}

func (p *peer) answerLocked(parts ...*pb.Checked) {
	for _, w := range parts {
		p.checked = append(p.checked, &pb.ProxyMessage{Kind: &pb.ProxyMessage_Checked{Checked: w}})
	}
	poke(p.due)
}

// answers returns what of the answers has not gone out.
func (p *peer) answers() []*pb.ProxyMessage {
	p.link.mu.Lock()
	defer p.link.mu.Unlock()
	out := p.checked
	p.checked = nil
	return out
}
