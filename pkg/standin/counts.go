package standin

import (
	"crypto/sha256"
	"encoding/hex"
	"maps"
	"sync"
)

// Counts is what a Server has really done, for tests that compare it with what a
// balancer says. Control requests are not in it.
type Counts struct {
	// Requests by "METHOD pattern" and status. Patterns are those of the API, such as
	// "POST /v1/chat-messages/{task}/stop"; unknown paths are "other". Status 0 is an
	// answer that never began.
	Requests map[string]map[int]uint64 `json:"requests"`
	// Total is the number of requests ended, InFlight of those that are not yet.
	Total    uint64 `json:"total"`
	InFlight int64  `json:"in_flight"`
	// Accepted counts connections, Open those not yet closed (waiting ones only as far as
	// they were accepted).
	Accepted uint64 `json:"accepted"`
	Open     int64  `json:"open"`

	// StreamsStarted = StreamsFinished + StreamsCancelled + StreamsBroken + those open now.
	StreamsStarted   uint64 `json:"streams_started"`
	StreamsFinished  uint64 `json:"streams_finished"`
	StreamsCancelled uint64 `json:"streams_cancelled"` // the client went away
	StreamsBroken    uint64 `json:"streams_broken"`    // by a fault, or because Run ended
	Events           uint64 `json:"events"`            // events sent, pings not included
	Pings            uint64 `json:"pings"`

	// Runs are generations begun, streaming or not; BlockingAbandoned those of blocking
	// calls whose client had gone when the answer was ready.
	Runs              uint64 `json:"runs"`
	BlockingAbandoned uint64 `json:"blocking_abandoned"`

	// StopsReceived are stop calls, all answered alike; StopsEffective those that ended a run.
	StopsReceived  uint64 `json:"stops_received"`
	StopsEffective uint64 `json:"stops_effective"`

	// BytesIn and BytesOut are bytes of bodies, without framing.
	BytesIn  uint64 `json:"bytes_in"`
	BytesOut uint64 `json:"bytes_out"`

	// Tokens counts presented keys by TokenDigest, UnknownTokens those that were not valid.
	Tokens        map[string]uint64 `json:"tokens"`
	UnknownTokens uint64            `json:"unknown_tokens"`
	// Users counts requests by end user, DEFAULT-USER included. Beyond 100,000
	// different ones the rest is counted under "…".
	Users map[string]uint64 `json:"users"`
}

// TokenDigest is how Counts names a token: the first 16 hexadecimal digits of its SHA-256.
func TokenDigest(token string) string {
	sum := sha256.Sum256([]byte(token))
	return hex.EncodeToString(sum[:8])
}

const (
	maxUsers   = 100_000
	maxDigests = 10_000
	otherUser  = "…"
)

type counters struct {
	mu sync.Mutex
	c  Counts // guarded by mu
}

func (n *counters) init() {
	n.c = Counts{Requests: make(map[string]map[int]uint64), Tokens: make(map[string]uint64), Users: make(map[string]uint64)}
}

func (n *counters) snapshot() Counts {
	n.mu.Lock()
	defer n.mu.Unlock()
	c := n.c
	c.Tokens = maps.Clone(c.Tokens)
	c.Users = maps.Clone(c.Users)
	c.Requests = make(map[string]map[int]uint64, len(n.c.Requests))
	for k, v := range n.c.Requests {
		c.Requests[k] = maps.Clone(v)
	}
	return c
}

// add changes the counts under the lock; f must not block.
func (n *counters) add(f func(*Counts)) {
	n.mu.Lock()
	defer n.mu.Unlock()
	f(&n.c)
}

func (n *counters) connection(delta int64) {
	n.add(func(c *Counts) {
		c.Open += delta
		if delta > 0 {
			c.Accepted++
		}
	})
}

func (n *counters) user(name string) {
	n.add(func(c *Counts) { countBounded(c.Users, name, maxUsers) })
}

func (n *counters) token(token string, known bool) {
	digest := TokenDigest(token)
	n.add(func(c *Counts) {
		countBounded(c.Tokens, digest, maxDigests)
		if !known {
			c.UnknownTokens++
		}
	})
}

func countBounded(m map[string]uint64, key string, most int) {
	if _, known := m[key]; !known && len(m) >= most {
		key = otherUser
	}
	m[key]++
}

// Of returns how many requests of "METHOD pattern" ended with status.
func (c Counts) Of(pattern string, status int) uint64 { return c.Requests[pattern][status] }
