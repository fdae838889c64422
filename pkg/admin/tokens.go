package admin

import (
	"net/http"
	"net/url"
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/store"
)

// userPrefix begins the user tokens that are made here.
const userPrefix = "ut-"

// tokenBody is the body of POST …/tokens.
type tokenBody struct {
	Token    string `json:"token,omitempty"`    // empty: one is made
	Label    string `json:"label,omitempty"`    // the operator's name for it; it stands in the access log and in usage
	Disabled bool   `json:"disabled,omitempty"` // answer 401 to it, as if it did not exist
}

func (s *Server) listTokens(w http.ResponseWriter, r *http.Request, q *query) error {
	a, err := s.app(r)
	if err != nil {
		return err
	}
	out := declaredPage(q, view(a).UserTokens, func(t UserToken) string { return t.ID })
	if err := q.err(); err != nil {
		return err
	}
	return answer(w, http.StatusOK, out)
}

func (s *Server) createToken(w http.ResponseWriter, r *http.Request, q *query) error {
	if err := q.err(); err != nil {
		return err
	}
	var body tokenBody
	if err := decodeOptional(w, r, &body); err != nil {
		return err
	}
	token, made := lb.Secret(body.Token), body.Token == ""
	if made {
		token = lb.NewSecret(userPrefix)
	} else if err := lb.CheckToken(token); err != nil {
		return lb.Faults{{Path: "token", Message: err.Error()}}
	}
	t := lb.NewUserToken(token, body.Label, body.Disabled)
	t.Created = time.Now().UTC().Truncate(time.Second)
	name := r.PathValue("app")
	_, snap, err := s.update(r, "token.create", name+"/"+t.ID(), func(d *store.Draft) error {
		app, err := draftApp(d, r)
		if err != nil {
			return err
		}
		if app.Token(t.SHA256.String()) != nil {
			return fail(http.StatusConflict, "exists", "application %q has this token already, as %s", name, t.ID())
		}
		app.UserTokens = append(app.UserTokens, t)
		if err := settle(d, app, nil); err != nil {
			return err
		}
		d.Put(app)
		return nil
	})
	if err != nil {
		return err
	}
	v := viewToken(t)
	if made {
		v.Token = token.Reveal()
	}
	w.Header().Set("Location", Base+tokensPath(name)+"/"+url.PathEscape(v.ID))
	if a := snap.Application(name); a != nil {
		w.Header().Set("ETag", ETag(a.Revision))
	}
	return answer(w, http.StatusCreated, v)
}

func (s *Server) deleteToken(w http.ResponseWriter, r *http.Request, q *query) error {
	if err := q.err(); err != nil {
		return err
	}
	name, id := r.PathValue("app"), r.PathValue("id")
	_, _, err := s.update(r, "token.delete", name+"/"+id, func(d *store.Draft) error {
		app, err := draftApp(d, r)
		if err != nil {
			return err
		}
		var ids []string
		at := -1
		for i, t := range app.UserTokens {
			ids = append(ids, t.ID())
			if t.ID() == id {
				at = i
			}
		}
		if at < 0 {
			return notFound("token", id, ids)
		}
		if err := conditionOf(r).check("application "+quote(name), app.Revision); err != nil {
			return err
		}
		app.UserTokens = append(app.UserTokens[:at], app.UserTokens[at+1:]...)
		d.Put(app)
		return nil
	})
	if err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}
