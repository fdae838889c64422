package limit

import (
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"testing"
	"time"
)

// cluster simulates proxies under one rate, or one number of slots, and the
// Lessor that divides it. Its clock goes by milliseconds; messages take time.
type cluster struct {
	rnd      *rand.Rand
	now      time.Time
	key      Key
	whole    Rate // of a rate
	slots    int  // of InFlight
	lessor   *Lessor
	gone     bool // the Lessor's process
	proxies  []*simulated
	messages []message
}

type message struct {
	at time.Time
	do func()
}

type simulated struct {
	id       string
	seq      uint64 // of the shares in force
	deaf     bool   // the link is broken
	buckets  *Buckets
	bucket   Bucket
	lease    Lease
	asked    int
	refused  int
	refusals int // in the second before
	leased   bool
	admitted int
	demand   float64
	gate     *Gate
	open     int
	waiting  int
	until    time.Time // of the lease of slots
	turned   bool
	up, down time.Time // when the newest message arrives
}

func newCluster(seed uint64, n int, key Key) *cluster {
	c := &cluster{rnd: rand.New(rand.NewPCG(seed, 77)), now: time.Now(), key: key}
	for i := range n {
		b := NewBuckets(1000)
		b.SetHasher(NewHasher([16]byte{7}))
		c.proxies = append(c.proxies, &simulated{id: fmt.Sprint("p", i), buckets: b, gate: NewGate()})
	}
	return c
}

func (c *cluster) elect() {
	c.lessor, c.gone = NewLessor(c.now), false
	c.lessor.SetHolders(c.ids())
	for _, p := range c.proxies {
		p.seq = 0 // the shares of another one
	}
}

func (c *cluster) ids() []string {
	var ids []string
	for _, p := range c.proxies {
		ids = append(ids, p.id)
	}
	return ids
}

func (c *cluster) send(after *time.Time, do func()) {
	at := c.now.Add(time.Duration(c.rnd.IntN(30)) * time.Millisecond)
	if at.Before(*after) {
		at = *after // a stream keeps its order
	}
	*after = at
	c.messages = append(c.messages, message{at, do})
}

// step makes a millisecond pass; tick counts them.
func (c *cluster) step(tick int) {
	c.now = c.now.Add(time.Millisecond)
	due := c.messages
	c.messages = nil
	for _, m := range due {
		if m.at.After(c.now) {
			c.messages = append(c.messages, m)
		} else {
			m.do()
		}
	}
	for i, p := range c.proxies {
		if (tick+i*311)%1000 == 0 {
			c.measure(p)
			c.report(p)
		}
		if c.key.Kind == InFlight && !p.until.IsZero() && !c.now.Before(p.until) {
			p.until = time.Time{}
			p.gate.SetSlots(c.even(i))
		}
	}
	if tick%250 == 0 && !c.gone {
		lessor := c.lessor
		lessor.Divide(c.now, func(Key) (float64, bool) {
			if c.key.Kind == InFlight {
				return float64(c.slots), true
			}
			return c.whole.PerSecond, true
		})
		for i, p := range c.proxies {
			seq, shares := lessor.Shares(p.id)
			if !p.deaf && seq > 0 {
				c.send(&p.down, func() {
					if c.lessor == lessor {
						c.take(i, seq, shares)
					}
				})
			}
		}
	}
}

func (c *cluster) index(p *simulated) int { return slices.Index(c.proxies, p) }

func (c *cluster) even(i int) int { return Even(c.slots, i, len(c.proxies)) }

func (c *cluster) take(i int, seq uint64, shares []Share) {
	p := c.proxies[i]
	if p.deaf || seq < p.seq {
		return
	}
	changed := seq != p.seq
	p.seq, p.leased = seq, len(shares) > 0
	until := c.now.Add(LeaseTime)
	switch {
	case c.key.Kind == InFlight && len(shares) == 0:
		p.until = time.Time{}
		p.gate.SetSlots(c.even(i))
	case c.key.Kind == InFlight:
		p.until = until
		p.gate.SetSlots(shares[0].Slots)
	case c.key.Kind == PerUser:
		var parts []KeyPart
		for _, s := range shares {
			parts = append(parts, KeyPart{s.Name, s.Part})
		}
		p.buckets.Lease(parts, until)
	case len(shares) == 0:
		p.lease.End()
	default:
		p.lease.Set(shares[0].Part, until)
	}
	if changed {
		c.report(p)
	}
}

// measure ends a second.
func (c *cluster) measure(p *simulated) {
	if c.key.Kind == PerUser {
		p.demand, p.refusals = 0, 0
		for _, d := range p.buckets.Demands(10) {
			p.demand = float64(d.Asked)
			if !d.Leased {
				p.refusals = int(d.Asked)
				p.demand += c.whole.PerSecond / float64(len(c.proxies))
			}
		}
		return
	}
	p.demand, p.asked, p.refusals, p.refused = float64(p.asked), 0, p.refused, 0
}

func (c *cluster) report(p *simulated) {
	if p.deaf || c.gone {
		return
	}
	var demands []Demand
	if c.key.Kind == InFlight {
		pressed := p.gate.InFlight() >= slotsOf(p.gate) || p.waiting > 0 || p.turned || slotsOf(p.gate) > c.even(c.index(p))
		if pressed || !p.until.IsZero() {
			demands = append(demands, Demand{Key: c.key, Pressed: pressed, Open: p.gate.InFlight(), Waiting: p.waiting, Refused: p.turned, Slots: slotsOf(p.gate)})
		}
		p.turned = false
	} else if p.demand > 0 && (p.leased || p.refusals > 0 || Near(p.demand, c.whole, len(c.proxies))) {
		demands = append(demands, Demand{Key: c.key, PerSecond: p.demand, Pressed: p.refusals > 0 || Near(p.demand, c.whole, len(c.proxies))})
	}
	seq, lessor := p.seq, c.lessor
	c.send(&p.up, func() {
		if c.lessor == lessor && !c.gone && !p.deaf {
			lessor.Report(p.id, seq, demands, c.now)
		}
	})
}

func slotsOf(g *Gate) int { return int(g.state.Load() >> limitShift) }

// ask makes requests at random, so many a second at each proxy.
func (c *cluster) ask(perSecond ...float64) {
	for i, p := range c.proxies {
		for n := c.poisson(perSecond[i] / 1000); n > 0; n-- {
			p.asked++
			even := 1 / float64(len(c.proxies))
			var ok bool
			if c.key.Kind == PerUser {
				ok, _ = p.buckets.AllowPart("alice", c.whole, even, c.now)
			} else {
				ok, _ = p.bucket.Allow(c.whole.Part(p.lease.Part(even, c.now), even), c.now)
			}
			if ok {
				p.admitted++
			} else {
				p.refused++
			}
		}
	}
}

func (c *cluster) poisson(mean float64) (n int) {
	for limit, product := math.Exp(-mean), c.rnd.Float64(); product > limit; n++ {
		product *= c.rnd.Float64()
	}
	return n
}

// admit runs for a time and returns how many requests a second passed.
func (c *cluster) admit(d time.Duration, perSecond ...float64) float64 {
	for _, p := range c.proxies {
		p.admitted = 0
	}
	for tick := range int(d / time.Millisecond) {
		c.ask(perSecond...)
		c.step(tick)
	}
	n := 0
	for _, p := range c.proxies {
		n += p.admitted
	}
	return float64(n) / d.Seconds()
}

func within(t *testing.T, what string, got, want, limit float64) {
	t.Helper()
	if math.Abs(got-want) > 0.1*limit {
		t.Errorf("%s: %.1f requests a second, want %.1f within 10 %% of the limit", what, got, want)
	}
}

func rateKeys() []Key {
	return []Key{{Kind: PerApp, App: "shop"}, {Kind: PerUser, App: "shop", Name: NewHasher([16]byte{7}).Hash("alice")}}
}

// However a rate's requests are spread, in steady state as many pass as one
// bucket would let pass.
func TestLessor_RatesHoldForTheCluster(t *testing.T) {
	for _, key := range rateKeys() {
		for _, whole := range []Rate{{PerSecond: 100, Burst: 40}, {PerSecond: 10, Burst: 10}} {
			for _, spread := range [][]float64{{0.9, 0.1}, {1, 0}, {0.5, 0.5}, {0.8, 0.1, 0.1}, {1, 0, 0}, {0.5, 0.3, 0.2}, {0.9, 0.1, 0, 0, 0}} {
				for _, load := range []float64{0.75, 1.5, 6} {
					c := newCluster(1, len(spread), key)
					c.whole = whole
					c.elect()
					offered := make([]float64, len(spread))
					for i, part := range spread {
						offered[i] = part * load * whole.PerSecond
					}
					c.admit(20*time.Second, offered...)
					got := c.admit(40*time.Second, offered...)
					within(t, fmt.Sprintf("kind %d, limit %v, %v × %v", key.Kind, whole.PerSecond, load, spread), got, min(load, 1)*whole.PerSecond, whole.PerSecond)
				}
			}
		}
	}
}

// Without the lessor each falls back to the even part, and a new one converges
// again. Traffic that moves is followed.
func TestLessor_FallsBackAndComesBack(t *testing.T) {
	for _, key := range rateKeys() {
		c := newCluster(2, 2, key)
		c.whole = Rate{PerSecond: 100, Burst: 40}
		c.elect()
		c.admit(20*time.Second, 270, 30)
		within(t, "leased", c.admit(20*time.Second, 270, 30), 100, 100)
		c.gone = true
		c.admit(LeaseTime+time.Second, 270, 30)
		within(t, "fallen back", c.admit(20*time.Second, 270, 30), 50+30, 100)
		c.elect()
		c.admit(10*time.Second, 270, 30)
		within(t, "leased again", c.admit(20*time.Second, 270, 30), 100, 100)
		c.admit(10*time.Second, 30, 270)
		within(t, "the other way round", c.admit(20*time.Second, 30, 270), 100, 100)
		c.proxies[1].deaf = true
		c.admit(10*time.Second, 30, 270)
		within(t, "one cut off", c.admit(20*time.Second, 30, 270), 30+50, 100)
		c.proxies[1].deaf = false
		c.admit(20*time.Second, 10, 10)
		if c.lessor.Len() != 0 {
			t.Errorf("%d leases of what nobody presses", c.lessor.Len())
		}
	}
}

// occupy lets requests come to a proxy and leave it: as many as it can use at a
// time, up to want.
func (c *cluster) occupy(want ...int) {
	for i, p := range c.proxies {
		p.waiting = 0
		for p.open < want[i] && p.gate.TryAcquire() {
			p.open++
		}
		if p.open < want[i] {
			p.waiting = want[i] - p.open
		}
		for p.open > want[i] {
			p.gate.Release()
			p.open--
		}
	}
}

func (c *cluster) usable() (limits, open int) {
	for _, p := range c.proxies {
		limits += max(slotsOf(p.gate), p.gate.InFlight())
		open += p.open
	}
	return limits, open
}

// The parts of slots never add up to more than there are, whatever comes and
// goes; in steady state those who want them have them.
func TestLessor_SlotsAreNeverGivenTwice(t *testing.T) {
	for seed := range uint64(60) {
		rnd := rand.New(rand.NewPCG(seed, 5))
		n := 2 + rnd.IntN(3)
		c := newCluster(seed, n, Key{Kind: InFlight, App: "shop", Instance: "a"})
		c.slots = n + rnd.IntN(20)
		for i, p := range c.proxies {
			p.gate.SetSlots(c.even(i))
		}
		c.elect()
		want := make([]int, n)
		tick := 0
		run := func(d time.Duration) {
			for range int(d / time.Millisecond) {
				tick++
				c.occupy(want...)
				c.step(tick)
				if limits, _ := c.usable(); limits > c.slots {
					t.Fatalf("seed %d, %d ms: %d of %d slots are given", seed, tick, limits, c.slots)
				}
			}
		}
		for round := range 12 {
			for i := range want {
				want[i] = rnd.IntN(c.slots + 3)
				if rnd.IntN(3) == 0 {
					want[i] = 0
				}
			}
			if round == 6 { // another lb-admin is elected
				c.elect()
			}
			run(time.Duration(rnd.IntN(4000)) * time.Millisecond)
		}
		run(12 * time.Second)
		wanted := 0
		for _, w := range want {
			wanted += w
		}
		// Who has enough keeps one slot for who comes next.
		if _, open := c.usable(); open < min(wanted, c.slots-n+1) || open > c.slots {
			t.Errorf("seed %d: %d open of %v wanted, %d slots", seed, open, want, c.slots)
		}
	}
}

func TestLessor_SlotsGoWhereTheyAreWanted(t *testing.T) {
	for _, c := range []struct {
		slots int
		want  []int
		open  []int
	}{
		{10, []int{9, 1}, []int{9, 1}},
		{10, []int{30, 0}, []int{10, 0}}, // less what is kept for who comes next, see below
		{10, []int{30, 2}, []int{8, 2}},
		{10, []int{30, 30}, []int{5, 5}},
		{9, []int{30, 30, 1}, []int{4, 4, 1}},
		{1, []int{3, 0}, []int{1, 0}},
		{2, []int{0, 0, 5}, []int{0, 0, 2}},
	} {
		sim := newCluster(3, len(c.want), Key{Kind: InFlight, App: "shop", Instance: "a"})
		sim.slots = c.slots
		for i, p := range sim.proxies {
			p.gate.SetSlots(sim.even(i))
		}
		sim.elect()
		for tick := range 20000 {
			sim.occupy(c.want...)
			sim.step(tick)
		}
		for i, p := range sim.proxies {
			// Who has enough keeps a slot for who comes next, where there are enough.
			if keeps := len(c.want); p.open > c.open[i] || p.open < c.open[i]-keeps+1 {
				t.Errorf("%d slots, %v wanted: proxy %d has %d, want %d", c.slots, c.want, i, p.open, c.open[i])
			}
		}
		sim.gone = true
		for tick := range int((LeaseTime + time.Second) / time.Millisecond) {
			sim.occupy(c.want...)
			sim.step(tick)
		}
		for i, p := range sim.proxies {
			if slotsOf(p.gate) != sim.even(i) {
				t.Errorf("%d slots: without leases proxy %d goes by %d, want %d", c.slots, i, slotsOf(p.gate), sim.even(i))
			}
		}
	}
}

// A proxy that is cut off falls back to its even part when its lease has
// expired: by then that has been taken from the others.
func TestLessor_TakesBackWhatASilentOneFallsBackTo(t *testing.T) {
	c := newCluster(4, 2, Key{Kind: InFlight, App: "shop", Instance: "a"})
	c.slots = 10
	for i, p := range c.proxies {
		p.gate.SetSlots(c.even(i))
	}
	c.elect()
	tick := 0
	run := func(d time.Duration, want ...int) {
		for range int(d / time.Millisecond) {
			tick++
			c.occupy(want...)
			c.step(tick)
			if limits, _ := c.usable(); limits > c.slots {
				t.Fatalf("%d ms: %d slots are given", tick, limits)
			}
		}
	}
	run(5*time.Second, 20, 1)
	if c.proxies[0].open < 8 {
		t.Fatalf("%d open", c.proxies[0].open)
	}
	c.proxies[1].deaf = true
	for range int((silentAfter + time.Second) / time.Millisecond) {
		tick++
		c.occupy(4, 1) // those that are open end
		c.step(tick)
	}
	run(10*time.Second, 20, 20)
	if c.proxies[0].open != 5 || c.proxies[1].open != 5 {
		t.Errorf("%d and %d open", c.proxies[0].open, c.proxies[1].open)
	}
}

func TestDivide_GivesEachWhatItHasAndNeverTooMuch(t *testing.T) {
	rnd := rand.New(rand.NewPCG(8, 8))
	for range 20000 {
		parts := make([]*part, 1+rnd.IntN(6))
		open, need, hungry := 0, 0, false
		for i := range parts {
			o := rnd.IntN(8)
			parts[i] = &part{open: o, need: o + 1 + rnd.IntN(10), hungry: rnd.IntN(2) == 0}
			open += o
			need += parts[i].need
			hungry = hungry || parts[i].hungry
		}
		free := rnd.IntN(60)
		targets := divide(free, parts)
		sum := 0
		for i, target := range targets {
			sum += target
			if target < parts[i].open {
				t.Fatalf("less than is open: %v", targets)
			}
			for k, other := range targets {
				if target > other+1 && target > parts[i].open && other < parts[k].need {
					t.Fatalf("%d has %d while %d has %d and needs %d (free %d)", i, target, k, other, parts[k].need, free)
				}
			}
		}
		if sum > max(free, open) || (free >= open && sum < min(free, need)) {
			t.Fatalf("%d given of %d, %d open, %d needed", sum, free, open, need)
		}
		if free >= need && sum != free {
			t.Fatalf("%d given of %d, though nobody can have too much", sum, free)
		}
	}
}

func TestEven_AddsUp(t *testing.T) {
	for n := range 40 {
		for holders := 1; holders < 9; holders++ {
			sum := 0
			for rank := range holders {
				sum += Even(n, rank, holders)
			}
			if sum != max(n, holders) {
				t.Errorf("%d slots for %d: %d", n, holders, sum)
			}
		}
	}
}

func TestLessor_IsBounded(t *testing.T) {
	now := time.Now()
	l := NewLessor(now.Add(-LeaseTime))
	l.SetHolders([]string{"a", "b"})
	for i := range 5 {
		var demands []Demand
		for k := range MaxDemands + 100 {
			demands = append(demands, Demand{Key: Key{Kind: PerUser, App: "shop", Name: uint64(i)<<32 | uint64(k)}, Pressed: true, PerSecond: math.Inf(1)})
		}
		l.Report("a", 0, demands, now)
	}
	l.Report("nobody", 0, []Demand{{Key: Key{Kind: PerApp, App: "x"}}}, now)
	if l.Len() != maxLimits {
		t.Errorf("%d limits", l.Len())
	}
	l.Divide(now, func(k Key) (float64, bool) { return 10, k.App == "shop" && k.Name < 10 })
	if _, shares := l.Shares("b"); len(shares) != 10 || l.Len() != 10 || !slices.IsSortedFunc(shares, func(a, b Share) int { return compareKeys(a.Key, b.Key) }) {
		t.Errorf("%d shares of %d", len(shares), l.Len())
	}
	l.SetHolders(nil)
	l.Divide(now, func(Key) (float64, bool) { return 10, true })
	if _, shares := l.Shares("b"); shares != nil || l.Len() != 0 {
		t.Errorf("%v for nobody", shares)
	}
}

func TestBuckets_DemandsAreTheTopOfThem(t *testing.T) {
	b := NewBuckets(100000)
	h := NewHasher([16]byte{1})
	now := time.Now()
	rate := Rate{PerSecond: 0.001, Burst: 1}
	b.Allow("before", rate, now)
	b.SetHasher(h)
	for range 10 {
		b.Allow("before", rate, now) // has no name
	}
	for i := range 5 * maxPressed { // a flood of keys refused once
		b.Allow(fmt.Sprint("flood", i), rate, now)
		b.Allow(fmt.Sprint("flood", i), rate, now)
		b.Allow("heavy", rate, now)
	}
	got := b.Demands(5)
	if len(got) != 5 || got[0].Name != h.Hash("heavy") || got[0].Asked < 5*maxPressed-1 || got[0].Leased {
		t.Errorf("%+v", got)
	}
	if got := b.Demands(5); len(got) != 0 {
		t.Errorf("a second time: %+v", got)
	}
	b.Lease([]KeyPart{{h.Hash("heavy"), 1}}, now.Add(time.Second))
	for range 3 {
		b.Allow("heavy", rate, now)
	}
	b.Lease([]KeyPart{{h.Hash("heavy"), 0.5}}, now.Add(time.Second))
	if got := b.Demands(5); len(got) != 1 || got[0].Asked != 3 || !got[0].Leased {
		t.Errorf("leased: %+v", got)
	}
}

// With leases, too, looking at a key costs no allocation and no lock but its shard's.
func TestBuckets_LeasesDoNotAllocate(t *testing.T) {
	b := NewBuckets(100)
	h := NewHasher([16]byte{1})
	b.SetHasher(h)
	now := time.Now()
	b.Lease([]KeyPart{{h.Hash("alice"), 0.5}}, now.Add(time.Hour))
	b.AllowPart("alice", Rate{PerSecond: 1, Burst: 1}, 1, now)
	if n := testing.AllocsPerRun(100, func() { b.AllowPart("alice", Rate{PerSecond: 1, Burst: 1}, 1, now) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestLease_ExpiresByItself(t *testing.T) {
	now := time.Now()
	var l Lease
	if l.Part(0.5, now) != 0.5 || l.Held(now) {
		t.Error("the zero value is a lease")
	}
	l.Set(0.9, now.Add(time.Second))
	if l.Part(0.5, now) != 0.9 || !l.Held(now) || l.Part(0.5, now.Add(time.Second)) != 0.5 || l.Held(now.Add(time.Second)) {
		t.Error("the lease does not hold, or holds too long")
	}
	l.End()
	if l.Part(0.5, now) != 0.5 {
		t.Error("the lease goes on after its end")
	}
}

func TestPart_NeverStarvesNorLoosens(t *testing.T) {
	for _, part := range []float64{-1, 0, 1e-9, 0.1, 0.5, 1, 2, math.NaN()} {
		r := Rate{PerSecond: 100, Burst: 10}.Part(part, 0.2)
		if r.Unlimited() || r.PerSecond > 100 || r.Burst < 1 || r.Burst > 10 {
			t.Errorf("part %v: %+v", part, r)
		}
	}
	if !(Rate{}).Part(0.5, 0.5).Unlimited() {
		t.Error("a part of no limit is one")
	}
}

func TestGate_SharesOfALimitMayBeNone(t *testing.T) {
	g := NewGate()
	g.SetSlots(0)
	if g.TryAcquire() {
		t.Fatal("let in")
	}
	g.SetQueue(0)
	if err := g.Acquire(t.Context(), "a", 0); err != ErrQueueFull || g.Refused() != 1 {
		t.Fatalf("%v, %d refused", err, g.Refused())
	}
	g.SetSlots(2)
	for i := range 3 {
		if g.TryAcquire() != (i < 2) {
			t.Fatal("two slots let in another number")
		}
	}
	g.SetLimit(0)
	if !g.TryAcquire() {
		t.Fatal("no limit refuses")
	}
	for range 3 {
		g.Release()
	}
}

func FuzzHasher(f *testing.F) {
	f.Add("alice")
	f.Add("")
	f.Fuzz(func(t *testing.T, key string) {
		h, same := NewHasher([16]byte{9}), NewHasher([16]byte{9})
		if h.Hash(key) == 0 || h.Hash(key) != same.Hash(key) || h.Hash(key) == h.Hash(key+"x") {
			t.Fatal(key)
		}
	})
}
