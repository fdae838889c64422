package admin

import (
	"context"
	"net/http"
	"strings"
	"time"

	"difylb/pkg/cluster"
	"difylb/pkg/lb"
)

// Hub is what the API asks of the link to the proxies; *cluster.Hub is one.
type Hub interface {
	Status() *cluster.Status
	Nodes() []cluster.NodeStatus
	acceptor
	WaitReceipts(ctx context.Context, configRevision int64) ([]cluster.Lagging, error)
	Check(ctx context.Context, app string) []cluster.NodeCheck
}

func (s *Server) explain(w http.ResponseWriter, r *http.Request, q *query) error {
	app, token, user := q.text("app"), lb.Secret(q.text("token")), q.text("user")
	if (app == "") == (token == "") {
		q.faults.Add("query", "give one of app and token")
	}
	if user == "" {
		q.faults.Add("query.user", "is missing")
	}
	if err := q.err(); err != nil {
		return err
	}
	snap := s.store.Current()
	t, err := s.tableOf(snap)
	if err != nil {
		return err
	}
	if token != "" {
		name, ok := t.AppByToken(token.Hash())
		if !ok {
			return fail(http.StatusNotFound, "not-found", "no application has this token, or it is disabled")
		}
		app = name
	}
	if snap.Application(app) == nil {
		return notFound("application", app, appNames(snap))
	}
	st := s.hub.Status()
	e, err := t.Explain(app, user, func(app, instance string) string { return statusWord(st, app, instance) })
	if err != nil {
		return err
	}
	for i := range e.Order {
		if in := instanceOf(st, app, e.Order[i].Instance); in != nil {
			e.Order[i].EjectedBy, e.Order[i].EjectedSince = in.EjectedBy, in.EjectedSince
		}
	}
	return answer(w, http.StatusOK, e)
}

// instanceOf returns nil where the document has nothing of the instance.
func instanceOf(st *cluster.Status, app, instance string) *cluster.InstanceStatus {
	if st != nil && st.Applications[app] != nil {
		return st.Applications[app].Instances[instance]
	}
	return nil
}

func statusWord(st *cluster.Status, app, instance string) string {
	if in := instanceOf(st, app, instance); in != nil {
		return in.Status
	}
	return cluster.StatusUnknown
}

func (s *Server) listNodes(w http.ResponseWriter, r *http.Request, q *query) error {
	out := page(q, s.hub.Nodes(), func(n cluster.NodeStatus) string { return string(n.Role) + "/" + n.ID })
	if err := q.err(); err != nil {
		return err
	}
	return answer(w, http.StatusOK, out)
}

func (s *Server) status(w http.ResponseWriter, r *http.Request, q *query) error {
	if err := q.err(); err != nil {
		return err
	}
	st := s.hub.Status()
	if st == nil {
		return lb.Errorf(lb.ErrUnavailable, "nothing is known of the cluster yet")
	}
	st = st.WithProbes(s.lastProbes(r.Context()))
	data, err := st.MarshalJSON() // as it is: encoding/json would read it all again
	if err != nil {
		return err
	}
	writeJSON(w, http.StatusOK, data)
	return nil
}

func now() time.Time { return time.Now().UTC().Truncate(time.Second) }

func (s *Server) health(w http.ResponseWriter, _ *http.Request, _ *query) error {
	return answer(w, http.StatusOK, Health{Status: "ok", Timestamp: now(), Version: s.version})
}

const checkTime = 2 * time.Second

// ready answers 503 with the reason when a check fails. Alarms of etcd do not
// make it unready: reads go on, and only an operator can end them.
func (s *Server) ready(w http.ResponseWriter, r *http.Request, _ *query) error {
	ctx, cancel := context.WithTimeout(r.Context(), checkTime)
	defer cancel()
	h := Health{Status: "ok", Timestamp: now(), Version: s.version, Checks: map[string]string{"store": "ok"}}
	var failed []string
	check := func(name string, err error) {
		h.Checks[name] = "ok"
		if err != nil {
			h.Checks[name] = err.Error()
			failed = append(failed, name+": "+err.Error())
		}
	}
	err := s.store.Ping(ctx)
	check("store", err)
	if err == nil {
		if alarms, err := s.store.Alarms(ctx); err == nil && len(alarms) > 0 {
			h.Checks["alarms"] = strings.Join(alarms, "; ")
		}
	}
	for name, f := range s.checks {
		check(name, f(ctx))
	}
	if len(failed) > 0 {
		f := fail(http.StatusServiceUnavailable, "unavailable", "%s", strings.Join(failed, "; "))
		f.after = retryUnavailable
		f.write(w, r)
		return nil
	}
	return answer(w, http.StatusOK, h)
}

func (s *Server) description(w http.ResponseWriter, _ *http.Request, _ *query) error {
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(s.openapi) // an error is the client's going away
	return nil
}
