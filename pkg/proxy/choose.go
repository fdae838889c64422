package proxy

import (
	"bytes"
	"time"

	"difylb/pkg/dify"
	"difylb/pkg/route"
)

// choose returns the index of the instance for the next attempt, -1 when no
// further one may take the call.
func (x *exchange) choose(now time.Time) int { return x.pick(now, x.movesByLoad()) }

// movesByLoad reports whether the call may pass an instance for its load. In
// instances that share nothing that holds only for what begins a conversation:
// all else is about something that one of them has.
func (x *exchange) movesByLoad() bool {
	app := x.app.app
	switch {
	case app.Decl.ConsistentHash.LoadFactor == 0 || x.kind.Stop:
		return false
	case app.Worlds < 2:
		return true
	}
	begins := x.kind.ConversationIn == dify.JSON && x.kind.Conversation == ""
	return begins && x.search.id == "" && x.body != nil && x.body.whole() && !x.namesUpload()
}

// namesUpload reports whether a body that is kept whole speaks of a file that
// was uploaded before. It may be wrong for one that only looks so, or that is
// too large for memory: such a call stays where its user is.
func (x *exchange) namesUpload() bool {
	b := x.body.mem
	return int64(len(b)) < x.body.read || bytes.Contains(b, []byte("upload_file_id"))
}

// pick asks the Table for the next instance.
func (c *call) pick(now time.Time, byLoad bool) int {
	app, instances := c.app.app, c.app.instances
	first := -1 // whom Pick looks at first: without load, the owner
	sight := route.Sight{
		See: func(i int) condition {
			if first < 0 {
				first = i
			}
			return instances[i].look(now)
		},
		Admit: func(i int) bool {
			return instances[i].passive.Admit(now, app.Instances[i].Decl.FailTimeout.D())
		},
	}
	if byLoad {
		sight.Open = func(i int) int { return instances[i].gate.InFlight() }
	}
	i, failOpen := app.Pick(c.point, c.tried, sight)
	if failOpen {
		c.p.failOpen.Add(1)
	}
	if len(c.tried) == 0 && c.user != "" && i >= 0 && (byLoad || i != first) {
		c.noteFailover(i, now)
	}
	return i
}

// noteFailover counts a call whose first attempt does not go to its owner.
func (c *call) noteFailover(i int, now time.Time) {
	owner := c.app.app.Ring.Owner(c.point)
	if owner < 0 || owner == i {
		return
	}
	if seen := c.app.instances[owner].look(now); seen.Usable(c.app.app.Instances[owner].Decl.State) && !seen.Trial {
		return // it has too much to do
	}
	c.p.counts.failovers.Add(1)
}
