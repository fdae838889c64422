package standin

import (
	"time"
)

// stream writes the events of a run as they fall due, from step number from on. It
// returns when the run's last event is sent, the client is gone, or a fault says so.
func (s *Server) stream(x *exchange, r *run, from int, sel selectors, endAfter int) {
	st := &streamWriter{s: s, x: x, sel: sel, endAfter: endAfter}
	outcome := broken
	s.counts.add(func(c *Counts) { c.StreamsStarted++ })
	defer func() { // a fault may leave by a panic
		s.counts.add(func(c *Counts) {
			switch outcome {
			case finished:
				c.StreamsFinished++
			case cancelled:
				c.StreamsCancelled++
			default:
				c.StreamsBroken++
			}
		})
	}()
	x.Header().Set("Content-Type", "text/event-stream; charset=utf-8")
	outcome = st.run(r, from)
	if outcome == cancelled {
		select {
		case <-running(x.r.Context()):
			outcome = broken // the client did not go: Run ended, and closed the connection
		default:
		}
	}
}

type outcome int

const (
	broken outcome = iota
	finished
	cancelled
)

type streamWriter struct {
	s        *Server
	x        *exchange
	sel      selectors
	endAfter int // events, -1: never
	events   int

	silentSince time.Time // last event, or begin
	nextPing    time.Time
}

func (st *streamWriter) run(r *run, from int) outcome {
	graph := r.app.Mode.graph()
	now := time.Now()
	st.silentSince, st.nextPing = now, now.Add(st.sel.pingInterval())
	st.x.WriteHeader(200)
	st.x.Flush()
	// The relay of chatflows and workflows begins with a ping, before any work is done.
	if graph && !st.ping() {
		return cancelled
	}
	if st.endAfter == 0 {
		return broken
	}
	for i := from; ; {
		step, due, at, changed := st.s.opts.World.due(r, i, time.Now())
		if st.sel.PingOnly {
			due, at, changed = false, time.Time{}, nil
		}
		if due {
			i++
			if o, over := st.send(r, step); over {
				return o
			}
			continue
		}
		if graph {
			if limit := st.silentSince.Add(st.s.opts.StreamIdle); at.IsZero() || limit.Before(at) {
				if !time.Now().Before(limit) {
					return finished
				}
				at = limit
			}
		}
		if o, over := st.wait(graph, at, changed); over {
			return o
		}
	}
}

// wait blocks until at, something changed, or a ping is due, which it sends.
func (st *streamWriter) wait(graph bool, at time.Time, changed <-chan struct{}) (outcome, bool) {
	ping := at.IsZero() || st.nextPing.Before(at)
	if ping {
		at = st.nextPing
	}
	t := time.NewTimer(time.Until(at))
	defer t.Stop()
	ctx := st.x.r.Context()
	select {
	case <-t.C:
		if ping {
			// Chat pings at marks since its start, the relay after silence; events push the latter's mark.
			st.nextPing = st.nextPing.Add(st.sel.pingInterval())
			if !st.ping() {
				return cancelled, true
			}
		}
	case <-changed:
	case <-ctx.Done():
		return cancelled, true
	case <-running(ctx):
		return broken, true
	}
	return broken, false
}

// send writes one event. It reports over when the stream ends with it.
func (st *streamWriter) send(r *run, step step) (o outcome, over bool) {
	event := step.event
	if event == nil {
		event = r.deltaEvent(step.delta)
	}
	frame := append([]byte("data: "), encodeJSON(event, st.s.opts.SpacedJSON)...)
	if _, err := st.x.Write(append(frame, "\n\n"...)); err != nil || st.x.Flush() != nil {
		return cancelled, true
	}
	st.events++
	st.s.counts.add(func(c *Counts) { c.Events++ })
	st.silentSince = time.Now()
	if r.app.Mode.graph() {
		st.nextPing = st.silentSince.Add(st.sel.pingInterval())
	}
	switch st.events {
	case st.sel.ResetAfter:
		st.x.reset()
		return broken, true
	case st.sel.CutAfter:
		st.x.cut()
		return broken, true
	case st.endAfter:
		return broken, true
	}
	return finished, step.last
}

func (st *streamWriter) ping() bool {
	if _, err := st.x.Write([]byte("event: ping\n\n")); err != nil || st.x.Flush() != nil {
		return false
	}
	st.s.counts.add(func(c *Counts) { c.Pings++ })
	return true
}
