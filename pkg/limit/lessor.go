package limit

import (
	"cmp"
	"math"
	"slices"
	"time"
)

// Kind tells the limits apart that several enforce together.
type Kind uint8

// The kinds of limit.
const (
	PerApp   Kind = iota + 1 // rate of everybody
	PerUser                  // rate of each user of an application
	PerIP                    // rate of each address
	InFlight                 // open at once on an instance
)

// Key names one limit of a cluster.
type Key struct {
	Kind     Kind
	App      string // "" with PerIP
	Instance string // with InFlight
	Name     uint64 // with PerUser and PerIP, of whom it limits, see Hasher
}

// Demand is what a holder was asked for under one limit.
type Demand struct {
	Key
	// Pressed: it comes near to what the holder may use, or goes beyond; or the
	// holder has more slots than its even part, by a lease of whoever led before.
	// Only that begins a lease; what is leased is reported in any case.
	Pressed bool
	// PerSecond is, of a rate, how many requests came a second, admitted or not.
	PerSecond float64

	// Of InFlight, now:
	Open    int
	Waiting int
	Refused bool // somebody was turned away since the demand before
	Slots   int  // how many it lets in at once
}

// Share is what a holder may use of one limit.
type Share struct {
	Key
	Part  float64 // of a rate, 0 to 1
	Slots int     // of InFlight
}

// Times and bounds of leases.
const (
	// LeaseTime is how long a holder may go by a lease after it has come.
	LeaseTime = 5 * time.Second
	// silentAfter is when a holder that says nothing counts as gone by itself: soon enough to take from the others
	// what it falls back to before its lease has expired.
	silentAfter = 3 * time.Second
	// calmFor is how long nobody must want more than the even part until a lease ends.
	calmFor = 10 * time.Second
	// near is the part of its even part from which on a holder's demand is worth a lease.
	near = 0.8
	// reserve is the part of a rate that is shared evenly whatever the demand, so that who is asked for the first
	// time has something to begin with. It is what uneven use costs at most.
	reserve = 0.02
	// needFades is the time in which a need for slots that is no more falls to a third.
	needFades = 3 * time.Second
	// maxLimits bounds the limits that a Lessor leases at a time.
	maxLimits = 8192
	// MaxDemands bounds what a holder may report at a time.
	MaxDemands = 4096
)

// Even is the part of n slots that one of so many holders has without a lease; rank is its place among them, from 0.
// The parts of all add up to n, but nobody has none: with fewer slots than holders they add up to their number.
func Even(n, rank, holders int) int {
	holders = max(1, holders)
	part := n / holders
	if rank < n%holders {
		part++
	}
	return max(1, part)
}

// Near reports whether a demand is close enough to the even part of a rate to be worth telling the Lessor.
func Near(perSecond float64, whole Rate, holders int) bool {
	return perSecond >= near*whole.PerSecond/float64(max(1, holders))
}

// Lessor divides limits that hold for a cluster among those who enforce them, by demand. It is pure logic: the caller
// brings reports, asks for the division from time to time, and carries the shares to the holders. It is not safe for
// concurrent use.
//
// A rate is divided in proportion to the demand, smoothed over some seconds or, of slow rates, some tens of requests:
// then each request is as likely to pass as if one bucket saw them all.
//
// Slots are divided by what is open and waiting, with max-min fairness where that is more than there is. The sum of
// what all holders may use is never above the limit: one gets more only when another has said that it uses less. A
// holder that has not spoken yet, or no longer does, counts with all that it may have.
type Lessor struct {
	began   time.Time
	holders map[string]*holder
	ids     []string // of the holders, sorted
	limits  map[Key]*division
}

type holder struct {
	rank  int
	heard time.Time // of the newest report; zero: none yet
	acked uint64    // the shares that it had in force then
	seq   uint64    // of the shares made for it
	given []Share   // sorted as they were made
}

type division struct {
	parts map[string]*part // by holder
	calm  time.Time        // since when nobody wants more than the even part
}

// part is one holder's part of one limit.
type part struct {
	heard    time.Time // of the newest report that named it
	demand   float64   // of a rate, smoothed
	told     float64   // the newest, not yet part of demand
	known    bool      // demand has begun
	smoothed time.Time // of the report that demand goes up to

	open, slots int     // of the newest report
	need        int     // what open and waiting came to, falling slowly
	hungry      bool    // it wants more
	share       int     // the newest given, in slots
	since       uint64  // seq of the first shares with it
	ceiling     int     // the most that was given and may be in force
	fraction    float64 // the newest given, of a rate
}

// NewLessor returns one without holders. Until LeaseTime from now it takes into account that leases of an earlier one
// may be in force.
func NewLessor(now time.Time) *Lessor {
	return &Lessor{began: now, holders: make(map[string]*holder), limits: make(map[Key]*division)}
}

// SetHolders says who shares the limits. Who is no longer named has no part any more.
func (l *Lessor) SetHolders(ids []string) {
	ids = slices.Clone(ids)
	slices.Sort(ids)
	ids = slices.Compact(ids)
	for id := range l.holders {
		if _, still := slices.BinarySearch(ids, id); !still {
			delete(l.holders, id)
			for _, d := range l.limits {
				delete(d.parts, id)
			}
		}
	}
	for rank, id := range ids {
		if l.holders[id] == nil {
			l.holders[id] = &holder{}
		}
		l.holders[id].rank = rank
	}
	l.ids = ids
}

// Forget makes as if a holder had never spoken: it has begun anew.
func (l *Lessor) Forget(id string) {
	if h := l.holders[id]; h != nil {
		*h = holder{rank: h.rank, seq: h.seq}
		for _, d := range l.limits {
			delete(d.parts, id)
		}
	}
}

// Report takes what a holder was asked for: of every limit that is leased to it or under pressure there. acked is the
// seq of the shares that it had in force, 0 for none of this Lessor. Who is no holder is not listened to.
func (l *Lessor) Report(id string, acked uint64, demands []Demand, now time.Time) {
	h := l.holders[id]
	if h == nil {
		return
	}
	// At the beginning all that is leased counts: it is of an earlier Lessor.
	inherit := !l.ready(now)
	h.heard, h.acked = now, acked
	for _, d := range demands[:min(len(demands), MaxDemands)] {
		div := l.limits[d.Key]
		if div == nil {
			if !d.Pressed && !inherit || len(l.limits) >= maxLimits {
				continue
			}
			div = &division{parts: make(map[string]*part), calm: now}
			l.limits[d.Key] = div
		}
		p := div.part(id)
		before := p.heard
		p.heard = now
		if d.Kind != InFlight {
			if d.PerSecond >= 0 && d.PerSecond < math.MaxFloat64 { // not NaN
				p.told = d.PerSecond
			}
			continue
		}
		p.open, p.slots = max(0, d.Open), max(0, d.Slots)
		p.hungry = d.Waiting > 0 || d.Refused
		want := min(p.open+max(0, d.Waiting), math.MaxInt32) + 1
		if d.Refused {
			want += 1 + p.open/2 // how many more there would have been is not known
		}
		// What was needed a moment ago is given up slowly: requests come and go.
		p.need = max(want, int(float64(p.need)*math.Exp(-float64(now.Sub(before))/float64(needFades))))
	}
}

func (d *division) part(id string) *part {
	p := d.parts[id]
	if p == nil {
		p = &part{}
		d.parts[id] = p
	}
	return p
}

// Divide brings the shares up to date. whole tells how much a limit allows: requests a second, or slots; not ok when
// there is no such limit. Call it several times a second.
func (l *Lessor) Divide(now time.Time, whole func(Key) (amount float64, ok bool)) {
	if !l.ready(now) {
		return
	}
	shares := make(map[string][]Share, len(l.ids))
	for key, d := range l.limits {
		amount, ok := whole(key)
		switch {
		case !ok || !(amount > 0) || len(l.ids) == 0:
			delete(l.limits, key)
			continue
		case key.Kind == InFlight:
			if l.divideSlots(d, int(min(amount, math.MaxInt32)), now) {
				delete(l.limits, key)
				continue
			}
		default:
			if l.divideRate(d, amount, now) {
				delete(l.limits, key)
				continue
			}
		}
		for _, id := range l.ids {
			p := d.part(id)
			shares[id] = append(shares[id], Share{Key: key, Part: p.fraction, Slots: p.share})
		}
	}
	for _, id := range l.ids {
		h, next := l.holders[id], shares[id]
		h.seq = max(h.seq, 1)
		slices.SortFunc(next, func(a, b Share) int { return compareKeys(a.Key, b.Key) })
		if slices.Equal(next, h.given) {
			continue
		}
		h.seq++
		h.given = next
		for i := range next {
			if p := l.limits[next[i].Key].parts[id]; next[i].Kind == InFlight && p.since == 0 {
				p.since = h.seq
			}
		}
	}
}

// ready reports whether it is known which leases of an earlier Lessor are in force: all have spoken, or those have
// expired. Until then nothing must be said, for what is not named is leased no longer.
func (l *Lessor) ready(now time.Time) bool {
	if now.Sub(l.began) >= LeaseTime {
		return true
	}
	for _, h := range l.holders {
		if h.heard.IsZero() {
			return false
		}
	}
	l.began = now.Add(-LeaseTime) // who comes later has no lease
	return true
}

// Shares returns what a holder may use, sorted, and the number by which it acknowledges that; it grows when the shares
// change. 0: nothing is to be said to it yet, and leases of an earlier Lessor go on. The slice must not be changed.
func (l *Lessor) Shares(id string) (seq uint64, shares []Share) {
	if h := l.holders[id]; h != nil {
		return h.seq, h.given
	}
	return 0, nil
}

// Len returns how many limits are leased.
func (l *Lessor) Len() int { return len(l.limits) }

func compareKeys(a, b Key) int {
	return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.App, b.App), cmp.Compare(a.Instance, b.Instance), cmp.Compare(a.Name, b.Name))
}

// speaks reports whether the holder reports, and so goes by what it is given.
func (h *holder) speaks(now time.Time) bool {
	return !h.heard.IsZero() && now.Sub(h.heard) < silentAfter
}

// smoothing is the time over which the demand of a rate is smoothed: of some ten requests at the limit, within bounds.
func smoothing(perSecond float64) time.Duration {
	return time.Duration(min(max(10/perSecond, 1.5), 30) * float64(time.Second))
}

// divideRate reports whether the lease is over.
func (l *Lessor) divideRate(d *division, whole float64, now time.Time) (over bool) {
	n := float64(len(l.ids))
	free, sum, speaking := 1.0, 0.0, 0
	wanted := false
	for _, id := range l.ids {
		p := d.part(id)
		if !l.holders[id].speaks(now) {
			p.fraction = 1 / n // it has no lease, or soon none
			free -= p.fraction
			continue
		}
		speaking++
		l.smooth(p, l.holders[id], whole)
		sum += p.demand
		wanted = wanted || p.demand >= near*whole/n
	}
	for _, id := range l.ids {
		p := d.part(id)
		if !l.holders[id].speaks(now) {
			continue
		}
		even := free / float64(speaking)
		p.fraction = even
		if sum > 0 {
			p.fraction = max(reserve*even, quantized(reserve*even+(1-reserve)*free*p.demand/sum))
		}
	}
	if wanted {
		d.calm = now
	}
	return now.Sub(d.calm) >= calmFor
}

// smooth takes the newest report into the demand, once. One that does not name the limit says that nothing came.
func (l *Lessor) smooth(p *part, h *holder, whole float64) {
	told := p.told
	if p.heard.Before(h.heard) {
		told = 0
	}
	if p.smoothed.Equal(h.heard) {
		return
	}
	if !p.known {
		p.demand, p.known = told, true
	} else {
		dt := h.heard.Sub(p.smoothed)
		p.demand += (told - p.demand) * (1 - math.Exp(-float64(dt)/float64(smoothing(whole))))
	}
	p.smoothed = h.heard
}

// quantized keeps shares from changing, and being sent, for next to nothing.
func quantized(f float64) float64 { return math.Round(f*500) / 500 }

// divideSlots reports whether the lease is over.
func (l *Lessor) divideSlots(d *division, whole int, now time.Time) (over bool) {
	free := whole     // what those who can be told may have
	reserved := 0     // what all may use at this moment
	wanted := false   // somebody wants more than its even part
	var known []*part // of those who can be told, in the order of their ids
	var even []int
	for _, id := range l.ids {
		h, p := l.holders[id], d.part(id)
		own := Even(whole, h.rank, len(l.ids))
		p.acknowledge(h)
		if !h.speaks(now) || p.heard.Before(h.heard) {
			// Without a lease it has its own even part, and lets nobody know how many are open.
			used := max(own, p.ceiling)
			if now.Sub(p.heard) < LeaseTime+silentAfter {
				used = max(used, p.slots, p.open)
			} else if !h.speaks(now) {
				p.ceiling, used = own, own // no lease has lasted until now
			}
			p.give(own)
			free -= used
			reserved += used
			continue
		}
		reserved += p.used()
		wanted = wanted || p.hungry || float64(p.need) > near*float64(own)+1
		known, even = append(known, p), append(even, own)
	}
	if wanted {
		d.calm = now
	}
	calm := now.Sub(d.calm) >= calmFor
	targets := even
	if !calm {
		targets = divide(max(0, free), known)
	}
	room := whole - reserved
	done := calm
	for i, p := range known {
		targets[i] = min(targets[i], whole)
		if used := p.used(); targets[i] > used {
			more := min(targets[i]-used, max(0, room))
			room -= more
			p.give(used + more)
		} else {
			p.give(targets[i])
		}
		done = done && p.share == even[i] && p.slots == even[i]
	}
	return done
}

// used is how much the holder may use at this moment, as far as can be known.
func (p *part) used() int { return max(p.slots, p.open, p.ceiling) }

// give sets the share. Until the holder has acknowledged it, the most that it may go by counts.
func (p *part) give(slots int) {
	if p.share != slots {
		p.share, p.since = slots, 0
	}
	p.ceiling = max(p.ceiling, slots)
}

// acknowledge takes note that the newest share is in force.
func (p *part) acknowledge(h *holder) {
	if p.since != 0 && h.acked >= p.since && !p.heard.Before(h.heard) {
		p.ceiling = p.slots
	}
}

// divide gives each what it has open, and of the rest first one to each, then as much as it needs, evenly to all where
// that is more than there is, and what is left to those who want more.
func divide(free int, parts []*part) []int {
	targets := make([]int, len(parts))
	sum := 0
	for i, p := range parts {
		targets[i] = p.open
		sum += p.open
	}
	if rest := free - sum; rest > 0 {
		rest -= fillOnes(rest, parts, targets)
		level(rest, parts, targets)
	}
	return targets
}

// fillOnes gives one to those who would have none, the hungry first.
func fillOnes(rest int, parts []*part, targets []int) (given int) {
	for _, hungry := range []bool{true, false} {
		for i, p := range parts {
			if targets[i] == 0 && p.hungry == hungry && given < rest {
				targets[i]++
				given++
			}
		}
	}
	return given
}

// level raises the lowest targets to a common level, each up to its need, as far as rest goes; and then spreads what is
// left over the hungry, or if nobody is, over all.
func level(rest int, parts []*part, targets []int) {
	cost := func(level int) (sum int) {
		for i, p := range parts {
			sum += max(0, min(level, p.need)-targets[i])
		}
		return sum
	}
	highest := 0
	for _, p := range parts {
		highest = max(highest, p.need)
	}
	lo, hi := 0, highest // cost(lo) <= rest
	for lo < hi {
		if mid := (lo + hi + 1) / 2; cost(mid) <= rest {
			lo = mid
		} else {
			hi = mid - 1
		}
	}
	rest -= cost(lo)
	for i, p := range parts {
		targets[i] = max(targets[i], min(lo, p.need))
	}
	if lo < highest {
		for i, p := range parts { // the rest is less than one for each
			if rest > 0 && p.need > lo && targets[i] == lo {
				targets[i]++
				rest--
			}
		}
		return
	}
	spread(rest, parts, targets)
}

func spread(rest int, parts []*part, targets []int) {
	hungry := 0
	for _, p := range parts {
		if p.hungry {
			hungry++
		}
	}
	n, i := hungry, 0
	if hungry == 0 {
		n = len(parts)
	}
	for k, p := range parts {
		if hungry == 0 || p.hungry {
			targets[k] += rest / n
			if i < rest%n {
				targets[k]++
			}
			i++
		}
	}
}
