package cluster

import (
	"context"
	"errors"
	"io"
	"maps"
	"sync"
	"time"

	"google.golang.org/grpc"

	"difylb/pkg/lb"
	"difylb/pkg/stats"
	pb "difylb/proto"
)

const (
	// probesEvery is how old what another lb-admin told of its probes may be
	// when somebody looks.
	probesEvery = time.Second
	// probesPatience bounds how long somebody who looks waits for it.
	probesPatience = time.Second
	// maxFound bounds the text of a probe that another lb-admin tells.
	maxFound = 1024
	// probeTime is RFC 3339 in UTC to the millisecond.
	probeTime = "2006-01-02T15:04:05.999Z"
)

// LastProbe is the newest active probe of an instance.
type LastProbe struct {
	Time       time.Time `json:"time"`        // when it ended, UTC, to the millisecond
	DurationMS float64   `json:"duration_ms"` // how long it took
	Verdict    lb.Health `json:"verdict"`     // health of the instance by it and those before it
	Found      string    `json:"found"`       // what this one found, in words
	By         string    `json:"by"`          // the lb-admin that probed
}

// Prober is what an lb-admin's own prober knows. Its methods may be called at
// the same time and do not wait for the network.
type Prober interface {
	// Elected reports whether this lb-admin is the one that probes.
	Elected() bool
	// LastProbe returns the newest probe of an instance that this process made.
	LastProbe(app, instance string) (LastProbe, bool)
	// LastProbes calls f with all those that came after the given one; they are
	// counted within this process. f does nothing that waits.
	LastProbes(after int64, f func(app, instance string, seq int64, p LastProbe))
}

// probes is what other lb-admins told of their probes.
type probes struct {
	asking chan struct{} // size 1: held while another lb-admin is asked

	mu    sync.Mutex // guards all below
	known map[stats.Key]LastProbe
	asked time.Time // when the last asking ended
	from  bootKey   // who knew
	after int64     // the newest probe that it told of, by its count
}

func (p *probes) init() {
	p.asking, p.known = make(chan struct{}, 1), make(map[stats.Key]LastProbe)
}

// LastProbes returns what finds the newest probe of an instance. Where another
// lb-admin is the elected one it is asked first, at most once a second; while
// it does not answer, what is known already is what there is. It blocks for a
// second at most.
func (h *Hub) LastProbes(ctx context.Context) func(app, instance string) *LastProbe {
	if h.opts.Probes == nil || !h.opts.Probes.Elected() {
		h.askForProbes(ctx)
	}
	h.probes.mu.Lock()
	defer h.probes.mu.Unlock()
	known := h.probes.known // replaced, never changed
	return func(app, instance string) *LastProbe {
		p, found := known[stats.Key{App: app, Instance: instance}]
		if h.opts.Probes != nil {
			if own, ok := h.opts.Probes.LastProbe(app, instance); ok && (!found || own.Time.After(p.Time)) {
				p, found = own, true
			}
		}
		if !found {
			return nil
		}
		return &p
	}
}

// askForProbes brings what is known of the elected lb-admin's probes up to date.
func (h *Hub) askForProbes(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, probesPatience)
	defer cancel()
	select {
	case h.probes.asking <- struct{}{}:
		defer func() { <-h.probes.asking }()
	case <-ctx.Done():
		return
	}
	h.probes.mu.Lock()
	fresh := !h.probes.asked.IsZero() && h.now().Sub(h.probes.asked) < probesEvery
	from, after := h.probes.from, h.probes.after
	h.probes.mu.Unlock()
	if fresh {
		return
	}
	h.mu.Lock()
	snap := h.snapshot
	h.mu.Unlock()
	if snap == nil {
		return
	}
	var wg sync.WaitGroup
	var mu sync.Mutex // guards best
	var best *toldProbes
	for _, n := range h.others(snap) {
		since := int64(0)
		if from == (bootKey{n.ID, n.BootID}) {
			since = after
		}
		wg.Go(func() {
			told, err := n.probes(ctx, since)
			if err != nil {
				h.log.Debug().Err(err).Str("admin", n.ID).Msg("another lb-admin does not tell of its probes")
				return
			}
			mu.Lock()
			defer mu.Unlock()
			if told.elected && best == nil {
				best = told
				cancel() // no other is elected
			}
		})
	}
	wg.Wait()
	h.probes.take(best, snap, h.now())
}

// toldProbes is what one lb-admin told.
type toldProbes struct {
	from    bootKey
	elected bool
	newest  int64
	probes  map[stats.Key]LastProbe
}

// take merges what was told, nil for nothing, and forgets what is not declared.
func (p *probes) take(told *toldProbes, snap *lb.Snapshot, now time.Time) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.asked = now
	if told == nil {
		return
	}
	p.from, p.after = told.from, told.newest
	if len(told.probes) == 0 {
		return
	}
	known := maps.Clone(p.known)
	maps.Copy(known, told.probes)
	maps.DeleteFunc(known, func(key stats.Key, _ LastProbe) bool {
		app := snap.Application(key.App)
		if app == nil {
			return true
		}
		in, _ := app.Instance(key.Instance)
		return in == nil
	})
	p.known = known
}

// probes asks the lb-admin for the probes that it made after those.
func (o *otherAdmin) probes(ctx context.Context, after int64) (told *toldProbes, err error) {
	err = o.call(ctx, func(ctx context.Context, c pb.ClusterClient) error {
		stream, err := c.Probes(ctx, &pb.ProbesQuery{After: after})
		if err != nil {
			return err
		}
		told, err = receiveProbes(stream, o, after)
		return err
	})
	return told, err
}

func receiveProbes(stream grpc.ServerStreamingClient[pb.ProbesPart], from *otherAdmin, after int64) (*toldProbes, error) {
	told := &toldProbes{from: bootKey{from.ID, from.BootID}, newest: after, probes: make(map[stats.Key]LastProbe)}
	for {
		part, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return told, nil
		}
		if err != nil {
			return nil, err
		}
		told.elected = told.elected || part.GetElected()
		told.newest = max(told.newest, part.GetNewest())
		for _, w := range part.GetProbes() {
			found := w.GetFound()
			told.probes[stats.Key{App: w.GetApp(), Instance: w.GetInstance()}] = LastProbe{
				Time: fromUnixMilli(w.GetUnixMilli()), DurationMS: float64(w.GetMicros()) / 1000,
				Verdict: lb.Health(w.GetHealth()), Found: found[:min(len(found), maxFound)], By: from.ID,
			}
		}
	}
}

// Probes tells another lb-admin of the probes that this one made.
func (h *Hub) Probes(q *pb.ProbesQuery, stream grpc.ServerStreamingServer[pb.ProbesPart]) error {
	if err := h.authorize(stream.Context()); err != nil {
		return err
	}
	own := h.opts.Probes
	if own == nil || !own.Elected() {
		return stream.Send(&pb.ProbesPart{})
	}
	newest := q.GetAfter()
	var all []*pb.Probe
	own.LastProbes(newest, func(app, instance string, seq int64, p LastProbe) {
		newest = max(newest, seq)
		all = append(all, &pb.Probe{
			App: app, Instance: instance, UnixMilli: unixMilli(p.Time), Micros: int64(p.DurationMS * 1000),
			Health: string(p.Verdict), Found: p.Found,
		})
	})
	for {
		n := min(len(all), partSeries)
		if err := stream.Send(&pb.ProbesPart{Elected: true, Probes: all[:n], Newest: newest}); err != nil {
			return err
		}
		if all = all[n:]; len(all) == 0 {
			return nil
		}
	}
}

// WithProbes returns a copy of the document in which each instance has its
// newest probe, as last finds it.
func (s *Status) WithProbes(last func(app, instance string) *LastProbe) *Status {
	out := *s
	out.Applications = make(map[string]*ApplicationStatus, len(s.Applications))
	for app, a := range s.Applications {
		copied := *a
		copied.Instances = make(map[string]*InstanceStatus, len(a.Instances))
		for name, in := range a.Instances {
			if p := last(app, name); p != nil {
				probed := *in
				probed.LastProbe = p
				in = &probed
			}
			copied.Instances[name] = in
		}
		out.Applications[app] = &copied
	}
	return &out
}
