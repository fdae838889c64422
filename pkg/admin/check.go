package admin

import (
	"context"
	"net/http"
	"time"

	"difylb/pkg/cluster"
)

// NodeCheck is what a proxy found.
type NodeCheck = cluster.NodeCheck

// Check answers POST /check: what this lb-admin and every proxy see right now.
type Check struct {
	Node    string      `json:"node"`    // the lb-admin that was asked
	Time    time.Time   `json:"time"`    // by its clock, to the millisecond
	Store   StoreCheck  `json:"store"`   // what this lb-admin sees of etcd
	Proxies []NodeCheck `json:"proxies"` // what each registered lb-proxy sees
}

// StoreCheck is what an lb-admin sees of etcd.
type StoreCheck struct {
	OK     bool     `json:"ok"`              // it answers
	Error  string   `json:"error,omitempty"` // why it does not answer
	MS     float64  `json:"ms"`              // of a linearizable read
	Alarms []string `json:"alarms"`          // of etcd's members, in words
	// StaleSeconds is for how long the configuration may have been out of date.
	StaleSeconds float64 `json:"stale_seconds"`
}

// checkPatience bounds a check; a proxy spends at most 8 s on its part.
const checkPatience = 12 * time.Second

func (s *Server) check(w http.ResponseWriter, r *http.Request, q *query) error {
	app := q.text("app")
	if err := q.err(); err != nil {
		return err
	}
	if snap := s.store.Current(); app != "" && snap.Application(app) == nil {
		return notFound("application", app, appNames(snap))
	}
	patience(w, checkPatience)
	// One at a time: it has all proxies dial all instances.
	select {
	case s.checking <- struct{}{}:
		defer func() { <-s.checking }()
	case <-r.Context().Done():
		return r.Context().Err()
	}
	ctx, cancel := context.WithTimeout(r.Context(), checkPatience)
	defer cancel()
	defer context.AfterFunc(s.closing, cancel)()
	out := Check{Node: s.nodeID, Time: time.Now().UTC().Truncate(time.Millisecond), Store: s.checkStore(ctx)}
	out.Proxies = s.hub.Check(ctx, app)
	if out.Proxies == nil {
		out.Proxies = []NodeCheck{}
	}
	return answer(w, http.StatusOK, out)
}

func (s *Server) checkStore(ctx context.Context) StoreCheck {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	began := time.Now()
	err := s.store.Ping(ctx)
	c := StoreCheck{OK: err == nil, MS: float64(time.Since(began).Microseconds()) / 1000, Alarms: []string{}, StaleSeconds: s.store.Lag().Seconds()}
	if err != nil {
		c.Error = err.Error()
		return c
	}
	alarms, err := s.store.Alarms(ctx)
	if err != nil {
		c.OK, c.Error = false, err.Error()
	}
	c.Alarms = append(c.Alarms, alarms...)
	return c
}
