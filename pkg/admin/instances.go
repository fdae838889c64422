package admin

import (
	"context"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	"difylb/pkg/document"
	"difylb/pkg/lb"
	"difylb/pkg/store"
)

func quote(name string) string { return strconv.Quote(name) }

func (s *Server) listInstances(w http.ResponseWriter, r *http.Request, q *query) error {
	a, err := s.app(r)
	if err != nil {
		return err
	}
	out := declaredPage(q, view(a).Instances, func(in Instance) string { return in.Name })
	if err := q.err(); err != nil {
		return err
	}
	s.observe(r.Context(), a, out.Items)
	return answer(w, http.StatusOK, out)
}

// observe adds to instances what is known of them beside their declaration.
func (s *Server) observe(ctx context.Context, a *lb.Application, list []Instance) {
	snap := s.store.Current()
	last := s.lastProbes(ctx)
	st := s.hub.Status()
	var shares []float64
	var at func(instance string) int
	if t, err := s.tableOf(snap); err == nil {
		if app := t.App(a.Name); app != nil {
			shares, at = app.Ring.Share(), app.Index
		}
	}
	for i := range list {
		in := &list[i]
		if shares != nil {
			if j := at(in.Name); j >= 0 {
				in.RingShare = &shares[j]
			}
		}
		v := snap.HealthOf(a.Name, in.Name)
		in.Probe = &InstanceProbe{Health: v.Health, Reason: v.Reason, By: v.By}
		if v.Health == "" {
			in.Probe.Health = lb.HealthUnknown
		}
		if !v.Since.IsZero() {
			in.Probe.Since = &v.Since
		}
		in.LastProbe = last(a.Name, in.Name)
		if seen := instanceOf(st, a.Name, in.Name); seen != nil {
			in.EjectedBy, in.EjectedSince = seen.EjectedBy, seen.EjectedSince
		}
	}
}

// findInstance returns the instance of the path and its place, or a 404 that names it.
func findInstance(a *lb.Application, r *http.Request) (*lb.Instance, int, error) {
	name := r.PathValue("name")
	if in, i := a.Instance(name); in != nil {
		return in, i, nil
	}
	return nil, -1, notFound("instance", a.Name+"/"+name, qualified(a))
}

// qualified names instances as 404 answers do.
func qualified(a *lb.Application) []string {
	names := instanceNames(a)
	for i := range names {
		names[i] = a.Name + "/" + names[i]
	}
	return names
}

func (s *Server) getInstance(w http.ResponseWriter, r *http.Request, q *query) error {
	if err := q.err(); err != nil {
		return err
	}
	a, err := s.app(r)
	if err != nil {
		return err
	}
	in, _, err := findInstance(a, r)
	if err != nil {
		return err
	}
	out := []Instance{viewInstance(*in)}
	s.observe(r.Context(), a, out)
	return answerObject(w, r, http.StatusOK, in.Revision, out[0])
}

func (s *Server) createInstance(w http.ResponseWriter, r *http.Request, q *query) error {
	data, err := s.declaration(w, r, q)
	if err != nil {
		return err
	}
	named, fs := document.ParseInstance(data, "")
	if unreadable(fs) {
		return declarationFaults(fs)
	}
	app := r.PathValue("app")
	_, snap, err := s.update(r, "instance.create", app+"/"+named.Name, func(d *store.Draft) error {
		a, err := draftApp(d, r)
		if err != nil {
			return err
		}
		if old, _ := a.Instance(named.Name); old != nil {
			return fail(http.StatusConflict, "exists", "instance %q of application %q exists already; PUT or PATCH changes it", named.Name, app)
		}
		return putInstance(d, a, len(a.Instances), data)
	})
	if err != nil {
		return err
	}
	return s.answerInstance(w, r, http.StatusCreated, snap, app, named.Name)
}

// putInstance declares the body as the instance at the place, which may be
// the one behind the last.
func putInstance(d *store.Draft, a *lb.Application, at int, data []byte) error {
	in, fs := document.ParseInstance(data, fmt.Sprintf("%s.instances[%d]", appPath(a.Name), at))
	if unreadable(fs) {
		return declarationFaults(fs)
	}
	return placeInstance(d, a, at, in, fs)
}

func placeInstance(d *store.Draft, a *lb.Application, at int, in *lb.Instance, fs lb.Faults) error {
	if at == len(a.Instances) {
		a.Instances = append(a.Instances, lb.Instance{})
	} else if name := a.Instances[at].Name; in.Name == "" {
		in.Name = name
	} else if in.Name != name {
		fs.Add(fmt.Sprintf("%s.instances[%d].name", appPath(a.Name), at), "%q is not the instance %q that is written to; an instance is not renamed, because its name is its place on the ring", in.Name, name)
	}
	a.Instances[at] = *in
	if err := settle(d, a, fs); err != nil {
		return err
	}
	d.Put(a)
	return nil
}

func (s *Server) answerInstance(w http.ResponseWriter, r *http.Request, status int, snap *lb.Snapshot, app, name string) error {
	if a := snap.Application(app); a != nil {
		if in, _ := a.Instance(name); in != nil {
			if status == http.StatusCreated {
				w.Header().Set("Location", Base+"/apps/"+url.PathEscape(app)+"/instances/"+url.PathEscape(name))
			}
			return answerObject(w, r, status, in.Revision, viewInstance(*in))
		}
	}
	return lb.Errorf(lb.ErrUnavailable, "instance %q of application %q was written, but someone deleted it, or the store does not answer", name, app)
}

func (s *Server) putInstance(w http.ResponseWriter, r *http.Request, q *query) error {
	data, err := s.declaration(w, r, q)
	if err != nil {
		return err
	}
	app, name, status := r.PathValue("app"), r.PathValue("name"), 0
	_, snap, err := s.update(r, "instance.put", app+"/"+name, func(d *store.Draft) error {
		a, err := draftApp(d, r)
		if err != nil {
			return err
		}
		status = http.StatusCreated
		var revision int64
		old, at := a.Instance(name)
		if old != nil {
			status, revision = http.StatusOK, old.Revision
		}
		if err := conditionOf(r).check("instance "+quote(app+"/"+name), revision); err != nil {
			return err
		}
		if old == nil {
			at = len(a.Instances)
			a.Instances = append(a.Instances, lb.Instance{Name: name})
		}
		return putInstance(d, a, at, data)
	})
	if err != nil {
		return err
	}
	return s.answerInstance(w, r, status, snap, app, name)
}

func (s *Server) patchInstance(w http.ResponseWriter, r *http.Request, q *query) error {
	if err := q.err(); err != nil {
		return err
	}
	patch, err := readBody(w, r, maxBodyBytes, patchTypes...)
	if err != nil {
		return err
	}
	app, name := r.PathValue("app"), r.PathValue("name")
	snap, _, err := s.changeInstance(r, "instance.patch", limits{}, func(d *store.Draft, a *lb.Application, at int) error {
		whole, err := a.Instances[at].MarshalSecret()
		if err != nil {
			return err
		}
		data, err := patched(whole, patch)
		if err != nil {
			return err
		}
		in, fs := document.ParseInstance(data, fmt.Sprintf("%s.instances[%d]", appPath(a.Name), at))
		return placeInstance(d, a, at, in, withoutLines(fs))
	})
	if err != nil {
		return err
	}
	return s.answerInstance(w, r, http.StatusOK, snap, app, name)
}

// changeInstance changes the instance of the path, which must exist and be
// at the revision that the request names. In a dry run it tells what that would
// do, and returns no snapshot.
func (s *Server) changeInstance(r *http.Request, action string, l limits, f func(d *store.Draft, a *lb.Application, at int) error) (*lb.Snapshot, *ApplyResult, error) {
	id := r.PathValue("app") + "/" + r.PathValue("name")
	change := func(d *store.Draft) error {
		a, err := draftApp(d, r)
		if err != nil {
			return err
		}
		in, at, err := findInstance(a, r)
		if err != nil {
			return err
		}
		if err := conditionOf(r).check("instance "+quote(id), in.Revision); err != nil {
			return err
		}
		return f(d, a, at)
	}
	if !l.asked() {
		_, snap, err := s.update(r, action, id, change)
		return snap, nil, err
	}
	out, res, err := s.foresee(r, action, id, l, change)
	if err != nil || l.dryRun {
		return nil, &out, err
	}
	return s.settled(r.Context(), res.Revision), nil, nil
}

func (s *Server) deleteInstance(w http.ResponseWriter, r *http.Request, q *query) error {
	l := limitsOf(q)
	if err := q.err(); err != nil {
		return err
	}
	_, plan, err := s.changeInstance(r, "instance.delete", l, func(d *store.Draft, a *lb.Application, at int) error {
		a.Instances = append(a.Instances[:at], a.Instances[at+1:]...)
		d.Put(a)
		return nil
	})
	if err != nil {
		return err
	}
	if plan != nil {
		return answer(w, http.StatusOK, plan)
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

func (s *Server) drain(w http.ResponseWriter, r *http.Request, q *query) error {
	return s.setState(w, r, q, "instance.drain", lb.Draining)
}

func (s *Server) activate(w http.ResponseWriter, r *http.Request, q *query) error {
	return s.setState(w, r, q, "instance.activate", lb.Active)
}

func (s *Server) disable(w http.ResponseWriter, r *http.Request, q *query) error {
	return s.setState(w, r, q, "instance.disable", lb.Disabled)
}

func (s *Server) setState(w http.ResponseWriter, r *http.Request, q *query, action string, state lb.State) error {
	wait, l := q.wait(), limitsOf(q)
	if err := q.err(); err != nil {
		return err
	}
	patience(w, wait)
	changed := false
	snap, plan, err := s.changeInstance(r, action, l, func(d *store.Draft, a *lb.Application, at int) error {
		changed = a.Instances[at].State != state
		if !changed {
			return nil
		}
		a.Instances[at].State = state
		d.Put(a)
		return nil
	})
	if err != nil {
		return err
	}
	if plan != nil {
		return answer(w, http.StatusOK, plan)
	}
	out := InstanceState{App: r.PathValue("app"), Instance: r.PathValue("name"), State: state}
	if a := snap.Application(out.App); a != nil {
		if in, _ := a.Instance(out.Instance); in != nil {
			out.Revision = in.Revision
		}
	}
	s.followDrain(r.Context(), &out, wait, changed)
	return answerObject(w, r, http.StatusOK, out.Revision, out)
}

const (
	drainPoll = 50 * time.Millisecond
	// drainSettle is how long nothing must have been open, after every proxy
	// has the change in force, before the instance counts as drained. A proxy
	// reports each second; what it let in just before the change shows one
	// report later.
	drainSettle = 1500 * time.Millisecond
)

// followDrain fills in what is still open, waiting until that is nothing.
func (s *Server) followDrain(ctx context.Context, out *InstanceState, wait time.Duration, changed bool) {
	deadline := time.Now().Add(wait)
	var idle time.Time // since when nothing was seen open; zero: something is
	settle := drainSettle
	if !changed {
		settle = 0
	}
	for {
		var known bool
		out.Open, known = s.open(out.App, out.Instance)
		now := time.Now()
		if out.Open > 0 || !known || !s.everyProxyHas(out.Revision) {
			idle = time.Time{}
		} else if idle.IsZero() {
			idle = now
		}
		quiet := !idle.IsZero() && (now.Sub(idle) >= settle || s.noProxies())
		if out.State != lb.Active && quiet {
			out.Drained = true
			return
		}
		// An activated instance is waited for only until all know of it.
		if (out.State == lb.Active && s.everyProxyHas(out.Revision)) || !now.Before(deadline) {
			return
		}
		if !s.pause(ctx, min(drainPoll, time.Until(deadline))) {
			return
		}
	}
}

// open returns what the instance serves now, and whether every proxy was heard.
func (s *Server) open(app, instance string) (int64, bool) {
	st := s.hub.Status()
	if st == nil {
		return 0, false
	}
	known := st.Nodes.Reporting >= st.Nodes.Proxies
	if a := st.Applications[app]; a != nil {
		if in := a.Instances[instance]; in != nil {
			return in.Active, known
		}
	}
	return 0, known
}

func (s *Server) everyProxyHas(revision int64) bool {
	for _, n := range s.hub.Nodes() {
		if n.Role == lb.RoleProxy && (n.ConfigRevision < revision || !n.Connected) {
			return false
		}
	}
	return true
}

func (s *Server) noProxies() bool {
	for _, n := range s.hub.Nodes() {
		if n.Role == lb.RoleProxy {
			return false
		}
	}
	return true
}
