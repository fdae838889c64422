package proxy

import (
	"cmp"
	"crypto/sha256"
	"math"
	"slices"
	"sync/atomic"
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/limit"
)

// Limits hold for the cluster, and every proxy enforces its part. Without a
// lease that is the even part; the elected lb-admin leases others by what each
// proxy is asked for, see limit.Lessor. Requests read their part atomically.

// place is where this proxy stands among those who share the limits.
type place struct {
	rank, proxies int // rank from 0; proxies from 1
}

// window is the time over which rates are measured.
type window struct {
	began time.Time
	rates []limit.Demand // of the window before
}

// windowTime is the least time over which a rate is measured.
const windowTime = 900 * time.Millisecond

// Bounds of what is reported.
const (
	maxKeysPerApp = 64
	maxKeys       = 1024
)

// tally counts requests under a per_app limit, apart for each shard so that
// cores do not wait for one another.
type tally [8]struct {
	asked, refused atomic.Uint64
	_              [48]byte
}

func (t *tally) count(shard uint32, ok bool) {
	cell := &t[shard%uint32(len(t))]
	cell.asked.Add(1)
	if !ok {
		cell.refused.Add(1)
	}
}

func (t *tally) sum() (a asked) {
	for i := range t {
		a.asked += t[i].asked.Load()
		a.refused += t[i].refused.Load()
	}
	return a
}

// asked is what a tally came to.
type asked struct{ asked, refused uint64 }

// slots are an instance's part of its max_in_flight.
type slots struct {
	now     int       // what the gate goes by; 0 also where there is no limit
	leased  int       // until then
	until   time.Time // zero: no lease
	refused uint64    // by the gate, up to the demand before
	named   bool      // in the shares that are being put in force
}

func wholeRate(r *lb.Rate) limit.Rate { return limit.Rate{PerSecond: r.PerSecond, Burst: r.Burst} }

// evenPart is this proxy's part of a rate that is not leased.
func (p *Proxy) evenPart() float64 { return math.Float64frombits(p.even.Load()) }

// SetProxies tells how many proxies share the cluster's limits, this one
// included.
func (p *Proxy) SetProxies(n int) { p.SetPlace(0, n) }

// SetPlace tells how many proxies share the cluster's limits, and the place of
// this one among them, from 0: who comes first has what does not divide evenly.
func (p *Proxy) SetPlace(rank, proxies int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	next := place{rank: max(0, rank), proxies: max(1, proxies)}
	if p.place == next {
		return
	}
	p.setPlace(next)
	now := time.Now()
	for _, st := range p.states {
		st.setSlots(next, now)
	}
}

func (p *Proxy) setPlace(next place) {
	p.place = next
	p.even.Store(math.Float64bits(1 / float64(next.proxies)))
}

// SetLimitSecret gives the secret, the same in all proxies, under which users
// and addresses get the names by which their limits are leased.
func (p *Proxy) SetLimitSecret(secret lb.Secret) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if secret == "" || secret == p.secret {
		return
	}
	p.secret = secret
	sum := sha256.Sum256([]byte("difylb limit names\x00" + secret.Reveal()))
	p.hasher = limit.NewHasher([16]byte(sum[:16]))
	p.ips.SetHasher(p.hasher)
	for _, st := range p.states {
		if st.users != nil {
			st.users.SetHasher(p.hasher)
		}
	}
}

// setSlots divides what the declaration allows the cluster.
func (st *appState) setSlots(at place, now time.Time) {
	for _, in := range st.instances {
		in.gate.SetQueue(st.decl.Queue.Size)
		whole := in.decl.MaxInFlight
		if whole <= 0 {
			*in.slots = slots{}
			in.gate.SetLimit(0)
			continue
		}
		next := limit.Even(whole, at.rank, at.proxies)
		if in.slots.until.After(now) {
			next = min(in.slots.leased, whole)
		} else {
			in.slots.until = time.Time{}
		}
		in.slots.now = next
		in.gate.SetSlots(next)
	}
}

// SetShares puts leases in force, instead of all before, until then.
func (p *Proxy) SetShares(shares []limit.Share, until time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	was := p.leased
	p.leased = make(map[string]bool)
	users := make(map[string][]limit.KeyPart)
	var ips []limit.KeyPart
	for _, s := range shares {
		if s.Kind == limit.PerIP {
			ips = append(ips, limit.KeyPart{Name: s.Name, Part: s.Part})
		} else if p.states[s.App] != nil {
			p.leased[s.App] = true
		}
		if s.Kind == limit.PerUser {
			users[s.App] = append(users[s.App], limit.KeyPart{Name: s.Name, Part: s.Part})
		}
	}
	p.ips.Lease(ips, until)
	named := make(map[string]bool)
	for _, s := range shares {
		st := p.states[s.App]
		switch {
		case st == nil:
		case s.Kind == limit.PerApp:
			st.lease.Set(s.Part, until)
			named[s.App] = true
		case s.Kind == limit.InFlight:
			if in := st.instances[s.Instance]; in != nil {
				in.slots.leased, in.slots.until, in.slots.named = s.Slots, until, true
			}
		}
	}
	now := time.Now()
	if was == nil {
		was = make(map[string]bool)
	}
	for name := range p.leased {
		was[name] = true
	}
	for name := range was {
		if st := p.states[name]; st != nil {
			if !named[name] {
				st.lease.End()
			}
			if st.users != nil {
				st.users.Lease(users[name], until)
			}
			st.endOtherSlots()
			st.setSlots(p.place, now)
		}
	}
}

// endOtherSlots ends the leases that the newest shares did not name.
func (st *appState) endOtherSlots() {
	for _, in := range st.instances {
		if !in.slots.named {
			in.slots.until = time.Time{}
		}
		in.slots.named = false
	}
}

// Demands returns what was asked for of limits that are leased or under
// pressure, at most limit.MaxDemands of them. Rates are those of the last
// second or so; what is open is what is open now. Call it about once a second,
// and after SetShares: it also ends the leases of slots that have expired.
func (p *Proxy) Demands(now time.Time) []limit.Demand {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.window.began.IsZero() {
		p.window.began = now
	}
	if d := now.Sub(p.window.began); d >= windowTime {
		p.window = window{began: now, rates: p.rates(now, d.Seconds())}
	}
	out := slices.Clone(p.window.rates)
	for name := range p.leased {
		if st := p.states[name]; st != nil {
			st.setSlots(p.place, now)
		}
	}
	for name, st := range p.states {
		out = st.slotDemands(out, name, p.place)
	}
	return out[:min(len(out), limit.MaxDemands)]
}

// rates returns the demands of rates over so many seconds.
func (p *Proxy) rates(now time.Time, seconds float64) []limit.Demand {
	var out, keys []limit.Demand
	p.ips.Trim(now)
	for name, st := range p.states {
		if st.users != nil {
			st.users.Trim(now)
		}
		if r := st.decl.RateLimit.PerApp; r != nil && st.asked != nil {
			sum := st.asked.sum()
			d := limit.Demand{Key: limit.Key{Kind: limit.PerApp, App: name}, PerSecond: float64(sum.asked-st.measured.asked) / seconds}
			d.Pressed = sum.refused > st.measured.refused || limit.Near(d.PerSecond, wholeRate(r), p.place.proxies)
			if st.measured = sum; d.Pressed || st.lease.Held(now) {
				out = append(out, d)
			}
		}
		if r := st.decl.RateLimit.PerUser; r != nil && st.users != nil {
			keys = p.keyRates(keys, st.users, limit.Key{Kind: limit.PerUser, App: name}, r, seconds)
		}
	}
	if v := p.view.Load(); v != nil {
		if r := v.table.Settings.RateLimit.PerIP; r != nil {
			keys = p.keyRates(keys, p.ips, limit.Key{Kind: limit.PerIP}, r, seconds)
		}
	}
	slices.SortFunc(keys, func(a, b limit.Demand) int { return cmp.Compare(b.PerSecond, a.PerSecond) })
	keys = keys[:min(len(keys), maxKeys)]
	return append(out[:min(len(out), limit.MaxDemands/2)], keys...)
}

// keyRates adds the demands of single users or addresses.
func (p *Proxy) keyRates(out []limit.Demand, b *limit.Buckets, key limit.Key, r *lb.Rate, seconds float64) []limit.Demand {
	even := r.PerSecond / float64(p.place.proxies)
	for _, k := range b.Demands(maxKeysPerApp) {
		key.Name = k.Name
		d := limit.Demand{Key: key, PerSecond: float64(k.Asked) / seconds}
		if !k.Leased {
			d.PerSecond += even // refused beyond what it had
		}
		d.Pressed = limit.Near(d.PerSecond, wholeRate(r), p.place.proxies)
		out = append(out, d)
	}
	return out
}

// slotDemands adds the demands of instances with a max_in_flight.
func (st *appState) slotDemands(out []limit.Demand, app string, at place) []limit.Demand {
	for name, in := range st.instances {
		whole := in.decl.MaxInFlight
		if whole <= 0 {
			continue
		}
		d := limit.Demand{Key: limit.Key{Kind: limit.InFlight, App: app, Instance: name}, Open: in.gate.InFlight(), Waiting: in.gate.Waiting(), Slots: in.slots.now}
		refused := in.gate.Refused()
		d.Refused = refused != in.slots.refused
		in.slots.refused = refused
		d.Pressed = d.Open >= d.Slots || d.Waiting > 0 || d.Refused || d.Slots > limit.Even(whole, at.rank, at.proxies)
		if d.Pressed || !in.slots.until.IsZero() {
			out = append(out, d)
		}
	}
	return out
}
