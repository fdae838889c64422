package standin

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"sync"
	"time"
)

// FaultKind names a way to go wrong.
type FaultKind string

// What can go wrong. "Stream" faults hit streams only.
const (
	Delay          FaultKind = "delay"            // wait Duration before anything else happens
	Status         FaultKind = "status"           // answer Fault.Status: the envelope, or HTML where nginx would
	Provider400    FaultKind = "provider_400"     // answer the error Code (default provider_quota_exceeded) before a run starts
	BadToken       FaultKind = "bad_token"        // answer 401, as if the key were revoked
	Hang           FaultKind = "hang"             // never answer; ends when the client goes away
	Reset          FaultKind = "reset"            // TCP reset before the first byte of the answer
	Close          FaultKind = "close"            // orderly close before the first byte of the answer
	CloseOnReuse   FaultKind = "close_on_reuse"   // as Close, but for the second and later requests of a connection only: the keep-alive race
	CloseAfter     FaultKind = "close_after"      // answer in full, then close the kept-alive connection unannounced
	Garbage        FaultKind = "garbage"          // bytes that are not HTTP, then close
	ShortBody      FaultKind = "short_body"       // announce more bytes than come, then close
	SurplusBytes   FaultKind = "surplus"          // bytes after the end of the answer on a connection kept open
	Trickle        FaultKind = "trickle"          // one byte of the answer's body at a time, Duration apart
	PingOnly       FaultKind = "ping_only"        // stream: nothing but pings
	StreamError    FaultKind = "error_event"      // stream: an error event with Code (default internal_server_error) after After deltas
	ResetMidStream FaultKind = "reset_mid_stream" // stream: TCP reset after After events
	CutMidStream   FaultKind = "cut_mid_stream"   // stream: orderly close after After events, in the middle of the body
	EndMidStream   FaultKind = "end_mid_stream"   // stream: a well-formed end after After events, without a terminal event
)

var faultKinds = []FaultKind{Delay, Status, Provider400, BadToken, Hang, Reset, Close, CloseOnReuse, CloseAfter, Garbage,
	ShortBody, SurplusBytes, Trickle, PingOnly, StreamError, ResetMidStream, CutMidStream, EndMidStream}

func (k FaultKind) stream() bool {
	switch k {
	case PingOnly, StreamError, ResetMidStream, CutMidStream, EndMidStream:
		return true
	}
	return false
}

// Fault is one fault in force.
type Fault struct {
	Kind FaultKind `json:"kind"`
	// Path is a prefix of the paths it hits. Empty: all, /health included.
	Path string `json:"path,omitempty"`
	// Count is how many requests it still hits. 0: until cleared.
	Count int `json:"count,omitempty"`
	// Probability of hitting a request that it may hit. 0: always.
	Probability float64 `json:"probability,omitempty"`

	Status int    `json:"status,omitempty"`
	Code   string `json:"code,omitempty"`
	After  int    `json:"after,omitempty"`
	// Duration is in nanoseconds in JSON.
	Duration time.Duration `json:"duration,omitempty"`
}

func (f Fault) check() error {
	for _, k := range faultKinds {
		if f.Kind != k {
			continue
		}
		switch {
		case k == Status && (f.Status < 200 || f.Status > 599):
			return fmt.Errorf("fault %q: status %d is not between 200 and 599", k, f.Status)
		case f.Probability < 0 || f.Probability > 1:
			return fmt.Errorf("fault %q: probability %v is not between 0 and 1", k, f.Probability)
		case f.Count < 0 || f.After < 0 || f.Duration < 0:
			return fmt.Errorf("fault %q: negative number", k)
		}
		return nil
	}
	return fmt.Errorf("fault %q: unknown kind", f.Kind)
}

// Faults are the faults in force on a Server. They are switched while it serves
// and hit requests that begin afterwards. Safe for concurrent use.
type Faults struct {
	mu     sync.Mutex
	faults []Fault // guarded by mu
}

// Add puts more faults in force. A request may be hit by several of them. If one is
// not valid, none is added.
func (fs *Faults) Add(faults ...Fault) error {
	for _, f := range faults {
		if err := f.check(); err != nil {
			return err
		}
	}
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.faults = append(fs.faults, faults...)
	return nil
}

// Clear ends all faults. Requests already hit stay hit.
func (fs *Faults) Clear() {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	fs.faults = nil
}

// List returns the faults in force, with what is left of their counts.
func (fs *Faults) List() []Fault {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	return append([]Fault{}, fs.faults...)
}

// take returns the first fault that hits the request and is of a wanted kind, and counts it.
func (fs *Faults) take(path string, wanted func(FaultKind) bool) (Fault, bool) {
	fs.mu.Lock()
	defer fs.mu.Unlock()
	for i := range fs.faults {
		f := &fs.faults[i]
		if !wanted(f.Kind) || !strings.HasPrefix(path, f.Path) {
			continue
		}
		if f.Probability > 0 && rand.Float64() >= f.Probability {
			continue
		}
		hit := *f
		if f.Count == 1 {
			fs.faults = append(fs.faults[:i], fs.faults[i+1:]...)
		} else if f.Count > 1 {
			f.Count--
		}
		return hit, true
	}
	return Fault{}, false
}

// takeKind takes a fault of one kind.
func (fs *Faults) takeKind(path string, kind FaultKind) (Fault, bool) {
	return fs.take(path, func(k FaultKind) bool { return k == kind })
}

// stream changes the selectors of a stream by the stream faults that hit it. It
// returns the number of events after which the stream ends in a well-formed way, or -1.
func (fs *Faults) stream(path string, sel *selectors) (endAfter int) {
	f, ok := fs.take(path, FaultKind.stream)
	if !ok {
		return -1
	}
	switch f.Kind {
	case PingOnly:
		sel.PingOnly = true
	case StreamError:
		sel.Error, sel.ErrorAfter = f.Code, f.After
		if sel.Error == "" {
			sel.Error = "internal_server_error"
		}
	case ResetMidStream:
		sel.ResetAfter = max(f.After, 1)
	case CutMidStream:
		sel.CutAfter = max(f.After, 1)
	case EndMidStream:
		return f.After
	}
	return -1
}
