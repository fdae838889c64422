package cluster

import (
	"context"
	"fmt"
	"math"
	"math/rand/v2"
	"slices"
	"sync"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"

	"difylb/pkg/lb"
	"difylb/pkg/limit"
	pb "difylb/proto"
)

// leader makes a hub the elected one, until the returned function is called.
func (c *testCluster) leader(h *testHub, term uint64) func() {
	return c.background(func(ctx context.Context) error { return h.LeaseLimits(ctx, term) })
}

// limited is what stands for a proxy under a limit per application and one per
// user: real buckets, asked at a rate, behind a real link.
type limited struct {
	link  *testLink
	app   limit.Bucket
	lease limit.Lease
	users *limit.Buckets
	names *limit.Hasher

	mu               sync.Mutex // guards all below
	asked, refused   int        // since the last demand
	appOK, userOK    int
	leased, proxies  int
	lastApp, lastKey float64
	pressed          bool
}

func newLimited(l *testLink, proxies int) *limited {
	p := &limited{link: l, users: limit.NewBuckets(1000), names: limit.NewHasher([16]byte{3}), proxies: proxies}
	p.users.SetHasher(p.names)
	return p
}

var testRate = limit.Rate{PerSecond: 400, Burst: 100}

// ask makes so many requests at once.
func (p *limited) ask(n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	even := 1 / float64(p.proxies)
	for range n {
		now := time.Now()
		p.asked++
		if ok, _ := p.app.Allow(testRate.Part(p.lease.Part(even, now), even), now); ok {
			p.appOK++
		} else {
			p.refused++
		}
		if ok, _ := p.users.AllowPart("alice", testRate, even, now); ok {
			p.userOK++
		}
	}
}

// run does what pkg/dataplane does with the link.
func (p *limited) run(ctx context.Context) error {
	const every = 250 * time.Millisecond
	tick := time.NewTicker(every)
	defer tick.Stop()
	var by Leases
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
			p.measure(every)
		case <-p.link.LeasesChanged():
			by = p.link.Leases()
			p.apply(by)
		}
		p.link.SetDemands(p.demands(), by)
	}
}

func (p *limited) measure(over time.Duration) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.lastApp, p.asked = float64(p.asked)/over.Seconds(), 0
	p.pressed, p.refused = p.refused > 0, 0
	p.lastKey = 0
	for _, d := range p.users.Demands(10) {
		p.lastKey = float64(d.Asked) / over.Seconds()
		if !d.Leased {
			p.lastKey += testRate.PerSecond / float64(p.proxies)
		}
	}
}

func (p *limited) demands() []limit.Demand {
	p.mu.Lock()
	defer p.mu.Unlock()
	return []limit.Demand{
		{Key: limit.Key{Kind: limit.PerApp, App: "shop"}, PerSecond: p.lastApp, Pressed: p.pressed},
		{Key: limit.Key{Kind: limit.PerUser, App: "shop", Name: p.names.Hash("alice")}, PerSecond: p.lastKey, Pressed: limit.Near(p.lastKey, testRate, p.proxies)},
	}
}

func (p *limited) apply(l Leases) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.leased = len(l.Shares)
	var users []limit.KeyPart
	p.lease.End()
	for _, s := range l.Shares {
		if s.Kind == limit.PerUser {
			users = append(users, limit.KeyPart{Name: s.Name, Part: s.Part})
		} else {
			p.lease.Set(s.Part, l.Until)
		}
	}
	p.users.Lease(users, l.Until)
}

// admitted drives the proxies for a time, each by its part of three times the
// limit, and returns how many requests a second passed each limit.
func admitted(proxies []*limited, spread []float64, d time.Duration) (app, user float64) {
	for _, p := range proxies {
		p.mu.Lock()
		p.appOK, p.userOK = 0, 0
		p.mu.Unlock()
	}
	began := time.Now()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	rest := make([]float64, len(proxies))
	for last := began; time.Since(began) < d; <-tick.C {
		now := time.Now()
		for i, p := range proxies {
			rest[i] += 3 * testRate.PerSecond * spread[i] * now.Sub(last).Seconds()
			n := int(rest[i])
			rest[i] -= float64(n)
			p.ask(n)
		}
		last = now
	}
	seconds := time.Since(began).Seconds()
	for _, p := range proxies {
		p.mu.Lock()
		app += float64(p.appOK) / seconds
		user += float64(p.userOK) / seconds
		p.mu.Unlock()
	}
	return app, user
}

// Real links, real buckets, real time: most of the traffic at one proxy, and
// still the cluster lets through what is allowed, not less and not more; also
// when the elected lb-admin dies and when another takes its place.
func TestLeases_HoldForTheClusterOverRealLinks(t *testing.T) {
	if testing.Short() {
		t.Skip("takes half a minute")
	}
	for _, spread := range [][]float64{{0.9, 0.1}, {0.9, 0.05, 0.05}} {
		t.Run(fmt.Sprint(len(spread), " proxies"), func(t *testing.T) {
			t.Parallel()
			c := newTestCluster(t)
			one, two := c.hub("admin1", "127.0.0.1:0"), c.hub("admin2", "127.0.0.1:0")
			var proxies []*limited
			for i := range spread {
				p := newLimited(c.link(fmt.Sprint("proxy", i), "b"), len(spread))
				c.background(p.run)
				proxies = append(proxies, p)
			}
			c.change(func(s *lb.Snapshot) {
				shop := s.Applications[0].Clone()
				rate := &lb.Rate{PerSecond: testRate.PerSecond, Burst: testRate.Burst}
				shop.RateLimit = lb.RateLimit{PerApp: rate, PerUser: rate}
				s.Applications = []*lb.Application{shop}
			})
			check := func(what string, want float64) {
				t.Helper()
				app, user := admitted(proxies, spread, 4*time.Second)
				if tolerance := 0.1 * testRate.PerSecond; math.Abs(app-want) > tolerance || math.Abs(user-want) > tolerance {
					t.Errorf("%s: %.0f requests a second of the application, %.0f of the user, want %.0f within %.0f", what, app, user, want, tolerance)
				}
			}
			even := 0.0
			for _, part := range spread {
				even += min(3*part, 1/float64(len(spread))) * testRate.PerSecond
			}
			admitted(proxies, spread, time.Second)
			check("nobody is elected", even)
			resign := c.leader(one, 10)
			admitted(proxies, spread, 5*time.Second)
			check("leased", testRate.PerSecond)
			resign()
			one.stop()
			admitted(proxies, spread, limit.LeaseTime+time.Second)
			check("the elected one is dead", even)
			resign = c.leader(two, 11)
			defer resign()
			admitted(proxies, spread, 5*time.Second)
			check("another is elected", testRate.PerSecond)
		})
	}
}

// Who was deposed and does not know it is not obeyed.
func TestLeases_ProxiesObeyTheElectedOneOnly(t *testing.T) {
	now := time.Now()
	l := NewLink(LinkOptions{Node: lb.Node{ID: "p"}, Now: func() time.Time { return now }})
	share := func(term uint64, slots uint32) {
		l.mu.Lock()
		defer l.mu.Unlock()
		l.takeShares(&pb.LimitShares{Term: term, Seq: 1, ValidMillis: 5000, Slots: []*pb.SlotShare{{App: "shop", Instance: "a", Slots: slots}}}, now)
	}
	want := func(slots int) {
		t.Helper()
		if got := l.Leases().Shares; len(got) != 1 || got[0].Slots != slots {
			t.Errorf("%+v, want %d slots", got, slots)
		}
	}
	share(5, 1)
	want(1)
	share(6, 2)
	want(2)
	share(5, 3)
	want(2)
	now = now.Add(4 * time.Second)
	share(5, 3)
	want(2)
	now = now.Add(2 * time.Second) // the leases have expired: perhaps the store is another one
	share(1, 4)
	want(4)
}

func TestLeases_SurviveTheWire(t *testing.T) {
	demands := []limit.Demand{
		{Key: limit.Key{Kind: limit.PerApp, App: "shop"}, PerSecond: 12.5, Pressed: true},
		{Key: limit.Key{Kind: limit.PerUser, App: "shop", Name: math.MaxUint64}, PerSecond: 1},
		{Key: limit.Key{Kind: limit.PerIP, Name: 7}, PerSecond: 3},
		{Key: limit.Key{Kind: limit.InFlight, App: "shop", Instance: "a"}, Open: 3, Waiting: 2, Refused: true, Slots: 4, Pressed: true},
	}
	w := demandsToWire(8, 9, demands).GetLimitDemand()
	if got := demandsFromWire(w); !slices.Equal(got, demands) || w.GetTerm() != 8 || w.GetSeq() != 9 {
		t.Errorf("%+v", got)
	}
	shares := []limit.Share{
		{Key: demands[0].Key, Part: 0.25}, {Key: demands[1].Key, Part: 1}, {Key: demands[2].Key, Part: 0.5},
		{Key: demands[3].Key, Slots: 0},
	}
	if got := sharesFromWire(sharesToWire(1, 2, shares).GetLimitShares()); !slices.Equal(got, shares) {
		t.Errorf("%+v", got)
	}
}

// The key makes peers trusted, not infallible.
func FuzzLeases(f *testing.F) {
	for _, m := range []proto.Message{
		demandsToWire(1, 1, []limit.Demand{{Key: limit.Key{Kind: limit.PerApp, App: "shop"}, PerSecond: math.NaN()}}).GetLimitDemand(),
		&pb.LimitDemand{Slots: []*pb.SlotDemand{{App: "shop", Instance: "a", Open: math.MaxUint32, Waiting: math.MaxUint32, Slots: math.MaxUint32, Pressed: true}}},
	} {
		raw, err := proto.Marshal(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw)
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		now := time.Now()
		shop := &lb.Application{Name: "shop", Instances: []lb.Instance{{Name: "a", MaxInFlight: 10}}}
		shop.RateLimit.PerApp, shop.RateLimit.PerUser = &lb.Rate{PerSecond: 10, Burst: 1}, &lb.Rate{PerSecond: 1, Burst: 1}
		snap := &lb.Snapshot{Applications: []*lb.Application{shop}, Nodes: []lb.Node{{ID: "p", Role: lb.RoleProxy, BootID: "b"}, {ID: "q", Role: lb.RoleProxy, BootID: "b"}}}
		l := &lessor{logic: limit.NewLessor(now.Add(-time.Hour)), boots: map[string]string{"p": "b", "q": "b"}}
		l.logic.SetHolders([]string{"p", "q"})
		var d pb.LimitDemand
		if proto.Unmarshal(raw, &d) == nil {
			for range 5 {
				l.demand(&boot{bootKey: bootKey{"p", "b"}}, &d, now)
				l.demand(&boot{bootKey: bootKey{"q", "b"}}, &d, now)
				now = now.Add(time.Duration(rand.IntN(1000)) * time.Millisecond)
				l.divide(snap, now)
			}
			for _, node := range []string{"p", "q"} {
				_, shares := l.logic.Shares(node)
				for _, s := range shares {
					if s.Kind != limit.InFlight && !(s.Part > 0 && s.Part <= 1) || s.Slots < 0 || s.Slots > 10 {
						t.Fatalf("%+v", s)
					}
				}
			}
		}
		var s pb.LimitShares
		if proto.Unmarshal(raw, &s) == nil {
			for _, s := range sharesFromWire(&s) {
				if s.Kind != limit.InFlight && !(s.Part > 0 && s.Part <= 1) || s.Slots < 0 {
					t.Fatalf("%+v", s)
				}
			}
		}
	})
}
