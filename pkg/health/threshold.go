package health

// Outcome is what one observation of an instance said.
type Outcome int

const (
	Inconclusive Outcome = iota // says nothing; changes nothing
	Success
	Failure
	Rejection // it answered, but refused our token
)

// Threshold turns single observations into a Health that does not flap. The zero value is Unknown.
//
//   - The first success makes Unknown Healthy at once: a new instance serves as soon as it has answered once.
//   - Healthy and Unknown end after fall consecutive observations that are no success. The last of them decides
//     whether in TokenRejected or Unhealthy. One odd 401 therefore flips no more than one odd 500 does.
//   - Unhealthy and TokenRejected turn into Healthy after rise consecutive successes, and into each other after fall
//     consecutive observations of the other kind.
//
// So an instance that alternates never changes its Health, as long as rise and fall are at least 2. HAProxy calls the
// two numbers rise and fall. Not safe for concurrent use.
type Threshold struct {
	health    Health
	untested  bool // what was known is of something that may have changed: one success suffices
	successes int  // consecutive
	others    int  // consecutive observations that are no success
	alike     int  // consecutive observations that are no success and of one kind, the latest; alike <= others
	kind      Outcome
}

// Health returns the present verdict.
func (t *Threshold) Health() Health {
	if t.health == "" {
		return Unknown
	}
	return t.health
}

// Restore makes h the verdict as if t had reached it itself, with nothing counted towards another.
func (t *Threshold) Restore(h Health) { *t = Threshold{health: h} }

// Retest forgets what was counted but not the verdict: for an instance whose address or token has changed. Until it
// is disproved the verdict stands; one success is enough for Healthy, as for a new instance.
func (t *Threshold) Retest() { *t = Threshold{health: t.health, untested: true} }

// Observe counts one observation and reports whether it changed the verdict. rise and fall may change from call to
// call; below 1 they count as 1.
func (t *Threshold) Observe(o Outcome, rise, fall int) (changed bool) {
	switch o {
	case Success:
		t.successes++
		t.others, t.alike = 0, 0
	case Failure, Rejection:
		if o != t.kind {
			t.alike = 0
		}
		t.kind = o
		t.others++
		t.alike++
		t.successes = 0
	default:
		return false
	}
	before := t.Health()
	t.health = t.next(o, max(1, rise), max(1, fall))
	if t.health != before || o == Success {
		t.untested = false
	}
	return t.health != before
}

func (t *Threshold) next(o Outcome, rise, fall int) Health {
	now := t.Health()
	if o == Success {
		if now == Unknown || t.untested || t.successes >= rise {
			return Healthy
		}
		return now
	}
	against := t.others
	if !now.Usable() {
		against = t.alike // so an instance that answers now 401 and now 500 keeps its word
	}
	switch {
	case against < fall:
		return now
	case o == Rejection:
		return TokenRejected
	default:
		return Unhealthy
	}
}
