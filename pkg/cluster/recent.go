package cluster

import (
	"sync"
	"time"

	"difylb/pkg/sketch"
	"difylb/pkg/stats"
	pb "difylb/proto"
)

const (
	// samplesEvery is how often a stream carries the samples that changed.
	samplesEvery = 15 * time.Second
	// samplesAgain is when one is sent although nobody new came: users leave it.
	samplesAgain = time.Hour
	// samplesAtOnce bounds what a report takes along: up to 1 MiB.
	samplesAtOnce = 256
	// maxSamples bounds the applications of which a hub keeps samples of a node.
	maxSamples = 1 << 17
	// samplesStale is when a sample that was not repeated has lost all its users.
	samplesStale = sketch.Window + time.Hour
)

// sentSamples is which samples an open stream has carried. It is owned by the
// stream's sender.
type sentSamples struct {
	due  time.Time // of the next look; zero: at once
	left []*stats.App
	sent map[string]sentSample
}

type sentSample struct {
	version uint64
	at      time.Time
}

// next returns the samples that should go out now, a bounded number at a time;
// every is the time between two looks at all of them.
func (s *sentSamples) next(registry *stats.Registry, now time.Time, every time.Duration) []*pb.ProxyMessage {
	if len(s.left) == 0 {
		if now.Before(s.due) {
			return nil
		}
		s.due, s.left = now.Add(every), registry.WithRecent()
	}
	var out []*pb.ProxyMessage
	for len(s.left) > 0 && len(out) < samplesAtOnce {
		app := s.left[0]
		s.left = s.left[1:]
		version := app.Recent().Version()
		if was, known := s.sent[app.Name()]; known && was.version == version && now.Sub(was.at) < samplesAgain {
			continue
		}
		sample, err := app.Recent().Sample(now).AppendBinary(nil)
		if err != nil {
			continue // of a kind that no algorithm has
		}
		if s.sent == nil {
			s.sent = make(map[string]sentSample)
		}
		s.sent[app.Name()] = sentSample{version, now}
		out = append(out, &pb.ProxyMessage{Kind: &pb.ProxyMessage_RecentUsers{RecentUsers: &pb.RecentUsers{App: app.Name(), Sample: sample}}})
	}
	return out
}

// recentUsers is what proxies told of their users, by application and node.
type recentUsers struct {
	mu   sync.Mutex // guards apps
	apps map[string]map[string]*nodeSample
}

// nodeSample is what a node told of an application's users: the boot that runs,
// and those before it, which know of users that the new one has not seen yet.
type nodeSample struct {
	boot      string
	now       sketch.Sample
	at        time.Time
	earlier   sketch.Sample
	earlierAt time.Time
}

func (r *recentUsers) take(node, boot string, w *pb.RecentUsers, now time.Time) {
	var s sketch.Sample
	if w.GetApp() == "" || len(w.GetApp()) > maxNameBytes || s.UnmarshalBinary(w.GetSample()) != nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	nodes := r.apps[w.GetApp()]
	if nodes == nil {
		if len(r.apps) >= maxSamples {
			return
		}
		if r.apps == nil {
			r.apps = make(map[string]map[string]*nodeSample)
		}
		nodes = make(map[string]*nodeSample)
		r.apps[w.GetApp()] = nodes
	}
	n := nodes[node]
	if n == nil {
		n = &nodeSample{boot: boot}
		nodes[node] = n
	}
	if n.boot != boot {
		n.earlier, n.earlierAt = n.merged(now), now
		n.boot = boot
	}
	n.now, n.at = s, now
	for id, other := range nodes {
		if id != node && now.Sub(other.at) > samplesStale {
			delete(nodes, id)
		}
	}
}

func (n *nodeSample) merged(now time.Time) sketch.Sample {
	var s sketch.Sample
	if now.Sub(n.at) < samplesStale {
		s = n.now
	}
	if n.earlier.Len() > 0 && now.Sub(n.earlierAt) < samplesStale {
		if s.Len() == 0 {
			return n.earlier
		}
		if s.Kind == n.earlier.Kind {
			s = sketch.Merge(s, n.earlier)
		}
	}
	return s
}

// forget drops an application that is no longer declared.
func (r *recentUsers) forget(app string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.apps, app)
}

// declared reports whether the application is part of the configuration.
func (h *Hub) declared(app string) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.snapshot != nil && h.snapshot.Application(app) != nil
}

func (r *recentUsers) of(app string, now time.Time) sketch.Sample {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out sketch.Sample
	for _, n := range r.apps[app] {
		if s := n.merged(now); s.Len() > 0 {
			if out.Len() == 0 {
				out = s
			} else {
				out = sketch.Merge(out, s)
			}
		}
	}
	return out
}

// Recent returns a sample of the users of an application that proxies saw within
// the last day: those that are linked, and of those that were restarted or have
// left, what they last told this lb-admin. It has no users where none told.
func (h *Hub) Recent(app string) sketch.Sample { return h.recent.of(app, h.now()) }
