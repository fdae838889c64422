package admin

import (
	"net/http"
	"net/url"

	"difylb/pkg/document"
	"difylb/pkg/lb"
	"difylb/pkg/store"
)

func (s *Server) listApps(w http.ResponseWriter, r *http.Request, q *query) error {
	p := page(q, s.store.Current().Applications, func(a *lb.Application) string { return a.Name })
	if err := q.err(); err != nil {
		return err
	}
	out := List[Application]{Items: make([]Application, len(p.Items)), Continue: p.Continue}
	for i, a := range p.Items {
		out.Items[i] = view(a)
	}
	return answer(w, http.StatusOK, out)
}

// app returns the application of the path, or a 404 that names it.
func (s *Server) app(r *http.Request) (*lb.Application, error) {
	return findApp(s.store.Current(), r)
}

func findApp(snap *lb.Snapshot, r *http.Request) (*lb.Application, error) {
	name := r.PathValue("app")
	if a := snap.Application(name); a != nil {
		return a, nil
	}
	return nil, notFound("application", name, appNames(snap))
}

// draftApp is app for a change that is being made; the caller may change it.
func draftApp(d *store.Draft, r *http.Request) (*lb.Application, error) {
	name := r.PathValue("app")
	if a := d.Application(name); a != nil {
		return a.Clone(), nil
	}
	return nil, notFound("application", name, appNames(d.Base()))
}

func (s *Server) getApp(w http.ResponseWriter, r *http.Request, q *query) error {
	if err := q.err(); err != nil {
		return err
	}
	a, err := s.app(r)
	if err != nil {
		return err
	}
	return answerObject(w, r, http.StatusOK, a.Revision, view(a))
}

func (s *Server) createApp(w http.ResponseWriter, r *http.Request, q *query) error {
	data, err := s.declaration(w, r, q)
	if err != nil {
		return err
	}
	// The name stands in the body: read once to learn it, and again for
	// faults whose paths name it.
	named, fs := document.ParseApplication(data, "", "")
	if unreadable(fs) {
		return declarationFaults(fs)
	}
	name := named.Name
	if name == "" {
		fs.Add("name", "is missing; every application has a name")
		return fs
	}
	_, snap, err := s.update(r, "application.create", name, func(d *store.Draft) error {
		if d.Application(name) != nil {
			return fail(http.StatusConflict, "exists", "application %q exists already; PUT or PATCH changes it", name)
		}
		app, err := declaredApp(d, data, name)
		if err != nil {
			return err
		}
		d.Put(app)
		return nil
	})
	if err != nil {
		return err
	}
	return s.answerApp(w, r, http.StatusCreated, snap, name)
}

// answerApp shows the application as it is after a change.
func (s *Server) answerApp(w http.ResponseWriter, r *http.Request, status int, snap *lb.Snapshot, name string) error {
	a := snap.Application(name)
	if a == nil {
		return lb.Errorf(lb.ErrUnavailable, "application %q was written, but someone deleted it, or the store does not answer", name)
	}
	if status == http.StatusCreated {
		w.Header().Set("Location", Base+"/apps/"+url.PathEscape(name))
	}
	return answerObject(w, r, status, a.Revision, view(a))
}

// declaration reads the body of a write that takes no parameters.
func (s *Server) declaration(w http.ResponseWriter, r *http.Request, q *query) ([]byte, error) {
	if err := q.err(); err != nil {
		return nil, err
	}
	return readBody(w, r, maxBodyBytes, bodyTypes...)
}

func (s *Server) putApp(w http.ResponseWriter, r *http.Request, q *query) error {
	data, err := s.declaration(w, r, q)
	if err != nil {
		return err
	}
	name, status := r.PathValue("app"), 0
	_, snap, err := s.update(r, "application.put", name, func(d *store.Draft) error {
		status = http.StatusCreated
		var revision int64
		if stored := d.Application(name); stored != nil {
			status, revision = http.StatusOK, stored.Revision
		}
		if err := conditionOf(r).check("application "+quote(name), revision); err != nil {
			return err
		}
		app, err := declaredApp(d, data, name)
		if err != nil {
			return err
		}
		d.Put(app)
		return nil
	})
	if err != nil {
		return err
	}
	return s.answerApp(w, r, status, snap, name)
}

func (s *Server) patchApp(w http.ResponseWriter, r *http.Request, q *query) error {
	if err := q.err(); err != nil {
		return err
	}
	patch, err := readBody(w, r, maxBodyBytes, patchTypes...)
	if err != nil {
		return err
	}
	name := r.PathValue("app")
	_, snap, err := s.update(r, "application.patch", name, func(d *store.Draft) error {
		stored, err := draftApp(d, r)
		if err != nil {
			return err
		}
		if err := conditionOf(r).check("application "+quote(name), stored.Revision); err != nil {
			return err
		}
		whole, err := document.MarshalApplication(stored, true)
		if err != nil {
			return err
		}
		data, err := patched(whole, patch)
		if err != nil {
			return err
		}
		app, fs := document.ParseApplication(data, name, appPath(name))
		if app.Name != name {
			fs.Add(appPath(name)+".name", "%q is not the application %q that is written to; an application is not renamed", app.Name, name)
			app.Name = name
		}
		// The whole has both lists, so one that is not there was removed.
		if app.Instances == nil {
			app.Instances = []lb.Instance{}
		}
		if app.UserTokens == nil {
			app.UserTokens = []lb.UserToken{}
		}
		if err := settle(d, app, withoutLines(fs)); err != nil {
			return err
		}
		d.Put(app)
		return nil
	})
	if err != nil {
		return err
	}
	return s.answerApp(w, r, http.StatusOK, snap, name)
}

// withoutLines drops lines that count in a merged object, which nobody wrote.
func withoutLines(fs lb.Faults) lb.Faults {
	for i := range fs {
		fs[i].Line = 0
	}
	return fs
}

func (s *Server) deleteApp(w http.ResponseWriter, r *http.Request, q *query) error {
	if err := q.err(); err != nil {
		return err
	}
	name := r.PathValue("app")
	_, _, err := s.update(r, "application.delete", name, func(d *store.Draft) error {
		stored, err := draftApp(d, r)
		if err != nil {
			return err
		}
		if err := conditionOf(r).check("application "+quote(name), stored.Revision); err != nil {
			return err
		}
		d.Delete(name)
		return nil
	})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
