package stats

import (
	"math"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
)

// MaxCurrencies is how many currencies one series of a Registry tells apart.
// Their names come from instances, so there must be a bound.
const MaxCurrencies = 8

// MaxCurrencyBytes bounds the name of a currency.
const MaxCurrencyBytes = 8

// maxFigure is where figures that instances tell stop growing: what a broken
// one says must not make a sum wrap around.
const maxFigure = math.MaxInt64

// Usage is what answers have cost in tokens and money. It is a value: Add and
// Max change the receiver and never share memory with their argument, but a
// plain copy shares Costs; use Clone. The zero value is nothing.
//
// Sums stop at 2^63-1 instead of going backwards, which keeps Add independent
// of order.
type Usage struct {
	Prompt     uint64 // tokens
	Completion uint64 // tokens
	Total      uint64 // tokens; more than both where an answer tells nothing but its total
	Answers    uint64 // answers that told their usage
	Unpriced   uint64 // costs left out: of a ninth currency, or of one without a proper name
	Costs      []Cost // by currency, each at most once
}

// Cost is an amount of money.
type Cost struct {
	Currency string // 1 to MaxCurrencyBytes printable ASCII characters other than space
	Nano     uint64 // billionths of the currency's unit
}

// IsZero reports whether there is nothing to count.
func (u *Usage) IsZero() bool {
	return u.Prompt|u.Completion|u.Total|u.Answers|u.Unpriced == 0 && len(u.Costs) == 0
}

// Add sums o into u, for figures of different answers or boots.
func (u *Usage) Add(o *Usage) { u.join(o, saturatingSum) }

// Max raises u to o, for two views of the same boot.
func (u *Usage) Max(o *Usage) { u.join(o, larger) }

func (u *Usage) join(o *Usage, with func(a, b uint64) uint64) {
	if o.IsZero() {
		return // most series have none
	}
	u.Prompt = with(u.Prompt, o.Prompt)
	u.Completion = with(u.Completion, o.Completion)
	u.Total = with(u.Total, o.Total)
	u.Answers = with(u.Answers, o.Answers)
	u.Unpriced = with(u.Unpriced, o.Unpriced)
	if len(u.Costs) == 0 {
		u.Costs = slices.Clone(o.Costs)
		return
	}
	for _, c := range o.Costs {
		i, found := slices.BinarySearchFunc(u.Costs, c.Currency, byCurrency)
		if found {
			u.Costs[i].Nano = with(u.Costs[i].Nano, c.Nano)
		} else {
			u.Costs = slices.Insert(u.Costs, i, c)
		}
	}
}

func byCurrency(c Cost, name string) int { return strings.Compare(c.Currency, name) }

// Less returns what came to u after before, an earlier view of the same boot.
func (u *Usage) Less(before *Usage) Usage {
	less := func(now, then uint64) uint64 { return now - min(now, then) }
	rest := Usage{
		Prompt: less(u.Prompt, before.Prompt), Completion: less(u.Completion, before.Completion), Total: less(u.Total, before.Total),
		Answers: less(u.Answers, before.Answers), Unpriced: less(u.Unpriced, before.Unpriced),
	}
	for _, c := range u.Costs {
		if i, found := slices.BinarySearchFunc(before.Costs, c.Currency, byCurrency); found {
			c.Nano = less(c.Nano, before.Costs[i].Nano)
		}
		if c.Nano > 0 {
			rest.Costs = append(rest.Costs, c)
		}
	}
	return rest
}

// AddCost adds an amount. One of nothing is left out, one whose currency has
// no proper name is counted in Unpriced.
func (u *Usage) AddCost(c Cost) {
	switch {
	case c.Nano == 0:
	case !validCurrency(c.Currency):
		u.Unpriced = saturatingSum(u.Unpriced, 1)
	default:
		u.Add(&Usage{Costs: []Cost{{Currency: c.Currency, Nano: min(c.Nano, maxFigure)}}})
	}
}

// Clone returns a copy that shares nothing.
func (u *Usage) Clone() Usage {
	c := *u
	c.Costs = slices.Clone(u.Costs)
	return c
}

func validCurrency(name string) bool {
	for i := range len(name) {
		if name[i] <= ' ' || name[i] > '~' {
			return false
		}
	}
	return name != "" && len(name) <= MaxCurrencyBytes
}

func saturatingSum(a, b uint64) uint64 {
	if b >= maxFigure || a >= maxFigure-b {
		return maxFigure
	}
	return a + b
}

func larger(a, b uint64) uint64 { return min(max(a, b), maxFigure) }

// AppendNano appends billionths as a decimal number without exponent and
// trailing zeros, such as 0.001145.
func AppendNano(b []byte, nano uint64) []byte {
	const unit = 1_000_000_000
	b = strconv.AppendUint(b, nano/unit, 10)
	rest := nano % unit
	if rest == 0 {
		return b
	}
	point := len(b)
	b = strconv.AppendUint(b, unit+rest, 10)
	b[point] = '.' // in place of the 1 that kept the zeros behind it
	for b[len(b)-1] == '0' {
		b = b[:len(b)-1]
	}
	return b
}

// ParseNano reads what AppendNano writes; false for anything else.
func ParseNano(text []byte) (nano uint64, ok bool) {
	whole, fraction, pointed := strings.Cut(string(text), ".")
	if pointed && fraction == "" || len(fraction) > 9 {
		return 0, false
	}
	digits := whole + fraction + "000000000"[len(fraction):]
	for i := range len(digits) {
		if digits[i] < '0' || digits[i] > '9' {
			return 0, false
		}
	}
	nano, err := strconv.ParseUint(digits, 10, 64)
	return nano, err == nil && whole != ""
}

// liveUsage is the usage of one series, made at the first answer that tells
// any.
type liveUsage struct {
	// names are the currencies by index of usageShard.costs, in the order of
	// their coming. What is set stays.
	names  [MaxCurrencies]atomic.Pointer[string]
	shards []atomic.Pointer[usageShard]
}

type usageShard struct {
	prompt, completion, total, answers, unpriced atomic.Uint64
	costs                                        [MaxCurrencies]atomic.Uint64

	_ [24]byte // makes it 128 bytes: no two shards share a cache line
}

// currency returns the index of a currency's name, -1 when there is no room.
func (l *liveUsage) currency(name string) int {
	for i := range l.names {
		have := l.names[i].Load()
		if have == nil {
			// A copy, because the name may be a piece of a large answer.
			fresh := strings.Clone(name)
			if l.names[i].CompareAndSwap(nil, &fresh) {
				return i
			}
			have = l.names[i].Load()
		}
		if *have == name {
			return i
		}
	}
	return -1
}

func (l *liveUsage) shard(n uint32) *usageShard {
	p := &l.shards[n&uint32(len(l.shards)-1)]
	if s := p.Load(); s != nil {
		return s
	}
	p.CompareAndSwap(nil, new(usageShard))
	return p.Load()
}

// addUsage counts one answer in the series.
func (s *series) addUsage(shard uint32, u *Usage) {
	l := s.usage.Load()
	if l == nil {
		s.usage.CompareAndSwap(nil, &liveUsage{shards: make([]atomic.Pointer[usageShard], s.registry.mask+1)})
		l = s.usage.Load()
	}
	to := l.shard(shard)
	raise(&to.prompt, u.Prompt)
	raise(&to.completion, u.Completion)
	raise(&to.total, u.Total)
	raise(&to.unpriced, u.Unpriced)
	for i := range u.Costs {
		c := &u.Costs[i]
		if c.Nano == 0 {
			continue
		}
		at := -1
		if validCurrency(c.Currency) {
			at = l.currency(c.Currency)
		}
		if at < 0 {
			raise(&to.unpriced, 1)
		} else {
			raise(&to.costs[at], c.Nano)
		}
	}
	raise(&to.answers, 1)
	s.touch()
}

// raise adds n and stops at maxFigure.
func raise(to *atomic.Uint64, n uint64) {
	for n > 0 {
		old := to.Load()
		if to.CompareAndSwap(old, saturatingSum(old, n)) {
			return
		}
	}
}

// usageTotals adds the shards up.
func (s *series) usageTotals(u *Usage) {
	l := s.usage.Load()
	if l == nil {
		return
	}
	var costs [MaxCurrencies]uint64
	for i := range l.shards {
		from := l.shards[i].Load()
		if from == nil {
			continue
		}
		u.Answers = saturatingSum(u.Answers, from.answers.Load())
		u.Prompt = saturatingSum(u.Prompt, from.prompt.Load())
		u.Completion = saturatingSum(u.Completion, from.completion.Load())
		u.Total = saturatingSum(u.Total, from.total.Load())
		u.Unpriced = saturatingSum(u.Unpriced, from.unpriced.Load())
		for j := range costs {
			costs[j] = saturatingSum(costs[j], from.costs[j].Load())
		}
	}
	for i, nano := range costs {
		if nano > 0 {
			// Its name was there before the amount.
			u.AddCost(Cost{Currency: *l.names[i].Load(), Nano: nano})
		}
	}
}
