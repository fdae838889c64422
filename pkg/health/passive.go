package health

import (
	"cmp"
	"math"
	"sync"
	"sync/atomic"
	"time"
)

// Passive ejects one instance on the failures that one proxy saw on live traffic: maxFails failures within
// failTimeout take it out for failTimeout (the words and the meaning are nginx's max_fails and fail_timeout).
// Successes in between do not reset the count, as they do not in nginx.
//
// After the ejection the instance is on trial until its first success, and one failure on trial ejects it again for
// failTimeout: whoever has just failed maxFails times has to show that it works, and a dead instance must not cost
// maxFails users their time in every round. Admit keeps the trial to one request per failTimeout, as nginx does, so
// that a hanging instance does not catch all its users at once when its ejection ends.
//
// What ends during an ejection counts neither way. It is the tail of requests from before (or of attempts made
// because every instance was out), and says nothing new; in particular it does not prolong the ejection.
//
// The zero value is ready and not ejected. Safe for concurrent use; while nothing fails, every method is one atomic
// load. Must not be copied after first use.
type Passive struct {
	// until is 0: in use. Else: ejected until then, and from then on, on trial.
	until atomic.Int64
	trial atomic.Int64 // on trial, the next request is admitted from then on

	mu       sync.Mutex // guards failures and changes of until to an ejection
	failures []int64    // when, oldest first; len < maxFails of the last Fail
}

// Fail counts one failure and reports whether it ejects the instance now. A maxFails or failTimeout of zero or less
// means never.
func (p *Passive) Fail(now time.Time, maxFails int, failTimeout time.Duration) (ejected bool) {
	if maxFails <= 0 || failTimeout <= 0 {
		return false
	}
	at := instant(now)
	p.mu.Lock()
	defer p.mu.Unlock()
	until := p.until.Load()
	if until != 0 && at < until {
		return false
	}
	if until == 0 {
		p.failures = append(since(p.failures, at-int64(failTimeout)), at)
		if len(p.failures) < maxFails {
			return false
		}
	}
	p.failures = nil
	end := cmp.Or(at+int64(min(failTimeout, maxEjection)), 1)
	p.trial.Store(end)
	p.until.Store(end)
	return true
}

// Success ends a trial. It is free of locks and, but for the end of a trial, of writes.
func (p *Passive) Success(now time.Time) {
	if until := p.until.Load(); until != 0 && until <= instant(now) {
		p.until.CompareAndSwap(until, 0)
	}
}

// Ejected reports whether the instance is out now. On trial it is not.
func (p *Passive) Ejected(now time.Time) bool {
	until := p.until.Load()
	return until != 0 && instant(now) < until
}

// Admit reports whether a request that is about to be sent may go to the instance: yes while it is in use, no while
// it is ejected, and on trial once in failTimeout until one succeeds. A true on trial uses up that turn; a request
// that then ends in neither Success nor Fail (its client went away) just lets the turn lapse.
func (p *Passive) Admit(now time.Time, failTimeout time.Duration) bool {
	until := p.until.Load()
	if until == 0 {
		return true
	}
	at := instant(now)
	if at < until {
		return false
	}
	turn := p.trial.Load()
	return at >= turn && p.trial.CompareAndSwap(turn, at+int64(max(1, min(failTimeout, maxEjection))))
}

// EjectedUntil returns when the ejection that holds now ends, the zero time if there is none.
func (p *Passive) EjectedUntil(now time.Time) time.Time {
	if !p.Ejected(now) {
		return time.Time{}
	}
	return now.Add(time.Duration(p.until.Load() - instant(now)))
}

// OnTrial reports whether an ejection has ended and no success has been seen since.
func (p *Passive) OnTrial(now time.Time) bool {
	until := p.until.Load()
	return until != 0 && instant(now) >= until
}

// Reset forgets everything: for an instance whose address has changed, or that the operator has activated.
func (p *Passive) Reset() {
	p.mu.Lock()
	p.failures = nil
	p.until.Store(0)
	p.mu.Unlock()
}

// since returns the part of times, oldest first, that is later than t, in the same memory: it never grows beyond
// what one window can hold.
func since(times []int64, t int64) []int64 {
	n := 0
	for n < len(times) && times[n] <= t {
		n++
	}
	return append(times[:0], times[n:]...)
}

const maxEjection = 10 * 365 * 24 * time.Hour

// epoch is what instants are counted from. Differences to it use the monotonic clock: a step of the wall clock neither
// ends nor prolongs an ejection.
var epoch = time.Now()

// instant never returns 0, which means "none" above.
func instant(t time.Time) int64 {
	if d := max(-math.MaxInt64/4, min(int64(t.Sub(epoch)), math.MaxInt64/4)); d != 0 {
		return d
	}
	return 1
}
