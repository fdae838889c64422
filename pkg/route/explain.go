package route

import (
	"strconv"
	"time"

	"difylb/pkg/lb"
)

// Explanation tells where a user goes and why.
type Explanation struct {
	App       string `json:"app"`       // name of the application
	User      string `json:"user"`      // the user id that was asked for
	Algorithm string `json:"algorithm"` // of the ring
	Hash      string `json:"hash"`      // the number as the algorithm defines it
	Owner     string `json:"owner"`     // "" when the ring has no points
	Chosen    string `json:"chosen"`    // "" when nobody may take the request
	// FailOpen: nobody is usable, Chosen is tried all the same.
	FailOpen bool `json:"fail_open"`
	// LoadFactor, where it is not 0, lets requests pass an instance that has
	// more than so many times its share of a proxy's open requests: Chosen is
	// where they go while that is not so.
	LoadFactor float64 `json:"load_factor,omitempty"`
	Order      []Step  `json:"order"`    // failover order, the owner first
	Revision   int64   `json:"revision"` // of the configuration that is explained
}

// Step is one instance of the failover order.
type Step struct {
	Instance string `json:"instance"` // name of the instance
	Status   string `json:"status"`   // its word, as in the Status document
	Usable   bool   `json:"usable"`   // it may take requests
	Why      string `json:"why"`      // in words
	// EjectedBy are the ids of the proxies that eject it, and EjectedSince since
	// when the first of them does. Explain leaves them empty: who asks it may
	// know. Users who come through other proxies still reach the instance.
	EjectedBy    []string   `json:"ejected_by,omitempty"`
	EjectedSince *time.Time `json:"ejected_since,omitempty"`
}

// Explain answers where the user of the application goes. status returns the
// status word of an instance, as the Status document shows it; nil: all are
// unknown. It returns lb.ErrNotFound for an unknown application.
func (t *Table) Explain(app, user string, status func(app, instance string) string) (*Explanation, error) {
	a := t.App(app)
	if a == nil {
		return nil, lb.Errorf(lb.ErrNotFound, "there is no application %q", app)
	}
	if status == nil {
		status = func(string, string) string { return string(lb.HealthUnknown) }
	}
	p := a.Point(user)
	e := &Explanation{
		App: app, User: user, Algorithm: string(a.Ring.Algorithm()), Hash: a.Ring.Raw(p),
		LoadFactor: a.Decl.ConsistentHash.LoadFactor, Order: []Step{}, Revision: t.Revision,
	}
	see := func(i int) Condition { return conditionOf(status(app, a.Instances[i].Decl.Name)) }
	if owner := a.Ring.Owner(p); owner >= 0 {
		e.Owner = a.Instances[owner].Decl.Name
	}
	chosen, failOpen := a.Choose(p, nil, see)
	if chosen >= 0 {
		e.Chosen, e.FailOpen = a.Instances[chosen].Decl.Name, failOpen
	}
	onRing := make([]bool, len(a.Instances))
	w := a.Ring.Walk(p)
	for i, ok := w.Next(); ok; i, ok = w.Next() {
		onRing[i] = true
		e.Order = append(e.Order, a.step(i, see(i), i == chosen, failOpen))
	}
	for i := range a.Instances {
		if !onRing[i] {
			s := a.step(i, see(i), false, false)
			s.Usable, s.Why = false, "has weight 0 and takes no users"
			e.Order = append(e.Order, s)
		}
	}
	return e, nil
}

func (a *App) step(i int, c Condition, chosen, failOpen bool) Step {
	in := a.Instances[i].Decl
	s := Step{Instance: in.Name, Status: lb.StatusWord(in.State, c.Ejected, c.Health), Usable: c.Usable(in.State)}
	switch {
	case in.State == lb.Draining:
		s.Why = "is draining: it finishes what it has and takes nothing new"
	case in.State == lb.Disabled:
		s.Why = "is disabled by the operator"
	case chosen && failOpen:
		s.Why = "takes the request although it is " + s.Status + ", because no instance is usable"
	case c.Ejected:
		s.Why = "is ejected: live requests to it failed"
	case c.Health == lb.Unhealthy:
		s.Why = "is unhealthy: its probes fail"
	case c.Health == lb.TokenRejected:
		s.Why = "rejects its own token; correct the instance's token"
	case chosen && a.Decl.ConsistentHash.LoadFactor > 0:
		s.Why = "takes the request, unless it has more than " + a.loadBound() + ": then the next usable one does"
	case chosen:
		s.Why = "takes the request"
	default:
		s.Why = "would be next"
	}
	return s
}

// loadBound says in words what an instance may carry, and what of it may move.
func (a *App) loadBound() string {
	bound := strconv.FormatFloat(a.Decl.ConsistentHash.LoadFactor, 'g', -1, 64) + " times its share of the proxy's open requests"
	if a.Worlds > 1 {
		bound += " and the request begins a conversation"
	}
	return bound
}

// conditionOf reads a status word back; those of the operator say nothing of
// the instance's condition.
func conditionOf(status string) Condition {
	switch status {
	case "ejected":
		return Condition{Ejected: true}
	case string(lb.Healthy), string(lb.Unhealthy), string(lb.TokenRejected):
		return Condition{Health: lb.Health(status)}
	}
	return Condition{Health: lb.HealthUnknown}
}
