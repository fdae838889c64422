package stats

import (
	"time"

	"difylb/pkg/sketch"
)

// Seen notes that a request of the user at a point of the application's ring
// was served; kind is the ring's algorithm. It does not allocate.
func (a *App) Seen(kind string, point uint64, now time.Time) { a.recent.Seen(kind, point, now) }

// Recent are the users of the application that were seen within the last day.
func (a *App) Recent() *sketch.Recent { return &a.recent }

// WithRecent returns the applications of which a user was ever seen, in no order.
func (r *Registry) WithRecent() []*App {
	r.mu.RLock()
	defer r.mu.RUnlock()
	var out []*App
	for _, a := range r.apps {
		if a.recent.Version() > 0 {
			out = append(out, a)
		}
	}
	return out
}
