package proxy

import (
	"iter"
	"sync/atomic"
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/route"
)

// Counts are what a Proxy has counted since it was made and no series of
// pkg/stats tells: events of which only the number matters. They never go
// backwards.
type Counts struct {
	Failovers uint64 // requests of a known user whose first attempt did not go to the owner, which was not usable
	Ejections uint64 // times that live traffic ejected an instance

	// Requests refused, by the limit that refused them.
	LimitedPerIP, LimitedPerUser, LimitedPerApp uint64
}

// counts are the live Counts.
type counts struct {
	failovers, ejections                        atomic.Uint64
	limitedPerIP, limitedPerUser, limitedPerApp atomic.Uint64
}

// Counts returns what has been counted so far.
func (p *Proxy) Counts() Counts {
	c := &p.counts
	return Counts{
		Failovers: c.failovers.Load(), Ejections: c.ejections.Load(),
		LimitedPerIP: c.limitedPerIP.Load(), LimitedPerUser: c.limitedPerUser.Load(), LimitedPerApp: c.limitedPerApp.Load(),
	}
}

// PoolCounts are what a Proxy has counted of its connections to instances. But
// for Open they never go backwards.
type PoolCounts struct {
	Open    int64  // now, in use or idle
	Dialled uint64 // connections that were made
	Failed  uint64 // attempts at one that failed
	Reused  uint64 // requests on a connection that had served another
	Stale   uint64 // idle connections found ended, or about to be, when they were wanted
}

// poolCounts are the live PoolCounts. What is counted for every request is
// counted where its idle list is, so that cores do not meet at it.
type poolCounts struct {
	dialled, closed, failed, stale atomic.Uint64
	shards                         [poolShards]struct {
		reused atomic.Uint64
		_      [56]byte // a cache line each
	}
}

const poolShards = 8

// Pool returns what has been counted so far.
func (p *Proxy) Pool() PoolCounts {
	c := &p.pool
	closed := c.closed.Load() // first: none is closed that was not made
	out := PoolCounts{Dialled: c.dialled.Load(), Failed: c.failed.Load(), Stale: c.stale.Load()}
	out.Open = int64(out.Dialled - closed)
	for i := range c.shards {
		out.Reused += c.shards[i].reused.Load()
	}
	return out
}

// InstanceFacts is what this proxy knows now of an instance of its Table.
type InstanceFacts struct {
	App, Instance string
	Usable        bool // takes new requests: active, not ejected, nothing bad known from probes
	Ejected       bool
	Waiting       int // requests in its queue
}

// Instances yields every instance of the Table in force, applications in the
// order of their names, their instances in declared order. It takes no lock that a request waits for, and uses up no turn of a trial.
func (p *Proxy) Instances(now time.Time) iter.Seq[InstanceFacts] {
	return func(yield func(InstanceFacts) bool) {
		v := p.view.Load()
		if v == nil {
			return
		}
		for _, app := range v.table.Apps() {
			a := v.apps[app.Slot]
			for i, in := range a.instances {
				decl := a.app.Instances[i].Decl
				seen := route.Condition{Health: *in.health.Load(), Ejected: in.passive.Ejected(now)}
				if !yield(InstanceFacts{
					App: a.app.Decl.Name, Instance: decl.Name,
					Usable: seen.Usable(decl.State) && decl.Weight > 0, Ejected: seen.Ejected, Waiting: in.gate.Waiting(),
				}) {
					return
				}
			}
		}
	}
}

// limited counts a refusal by a limit and returns it.
func limited(count *atomic.Uint64, message string, retryAfter time.Duration) *refusal {
	count.Add(1)
	return &refusal{reason: lb.ReasonRateLimited, message: message, retryAfter: retryAfter}
}
