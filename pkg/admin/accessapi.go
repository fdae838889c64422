package admin

import (
	"net/http"
	"net/url"
	"regexp"
	"strings"

	"difylb/pkg/lb"
	"difylb/pkg/store"
)

// accessPrefix begins the access tokens that are made here.
const accessPrefix = "lb-"

var accessName = regexp.MustCompile(`^[A-Za-z0-9][A-Za-z0-9_.@-]{0,62}$`)

func viewAccess(t store.AccessToken) AccessToken {
	v := AccessToken{ID: t.SHA256.ID(), Name: t.Name, Role: AccessRole(t.Role), Hint: t.Hint}
	if !t.Created.IsZero() {
		v.Created = &t.Created
	}
	return v
}

func newAccess(name string, role AccessRole, token lb.Secret) store.AccessToken {
	return store.AccessToken{SHA256: token.Hash(), Name: name, Role: store.AccessRole(role), Hint: token.Hint(), Created: now()}
}

func (s *Server) listAccess(w http.ResponseWriter, r *http.Request, q *query) error {
	p := page(q, s.store.AccessTokens(), func(t store.AccessToken) string { return t.Name })
	if err := q.err(); err != nil {
		return err
	}
	out := List[AccessToken]{Items: []AccessToken{}, Continue: p.Continue}
	for _, t := range p.Items {
		v := viewAccess(t)
		v.LastUsed = s.used.of(t.SHA256)
		out.Items = append(out.Items, v)
	}
	return answer(w, http.StatusOK, out)
}

func (s *Server) createAccess(w http.ResponseWriter, r *http.Request, q *query) error {
	if err := q.err(); err != nil {
		return err
	}
	data, err := readBody(w, r, maxBodyBytes, "application/json", "application/x-www-form-urlencoded")
	if err != nil {
		return err
	}
	var body AccessRequest
	if err := decodeJSON(data, &body); err != nil {
		return err
	}
	var fs lb.Faults
	if !accessName.MatchString(body.Name) {
		fs.Add("name", "%q is not a name of 1 to 63 letters, digits, '_', '.', '@', '-'", body.Name)
	}
	if body.Role.rank() == 0 {
		roles := []string{string(RoleViewer), string(RoleOperator), string(RoleAdmin)}
		fs.Add("role", "%q is not one of %s%s", string(body.Role), strings.Join(roles, ", "), lb.DidYouMean(string(body.Role), roles))
	}
	if err := fs.Err(); err != nil {
		return err
	}
	for _, t := range s.store.AccessTokens() {
		if t.Name == body.Name {
			return fail(http.StatusConflict, "exists", "access token %q exists already", body.Name)
		}
	}
	token := lb.NewSecret(accessPrefix)
	t := newAccess(body.Name, body.Role, token)
	if err := s.store.ChangeAccess(r.Context(), audit(r, "access.create", body.Name), t, false); err != nil {
		return err
	}
	s.noteAccess(r, "access token made", t)
	v := viewAccess(t)
	v.Token = token.Reveal()
	w.Header().Set("Location", Base+"/access/"+url.PathEscape(v.ID))
	return answer(w, http.StatusCreated, v)
}

func (s *Server) deleteAccess(w http.ResponseWriter, r *http.Request, q *query) error {
	if err := q.err(); err != nil {
		return err
	}
	id := r.PathValue("id")
	var ids []string
	var found *store.AccessToken
	admins := 0
	for _, t := range s.store.AccessTokens() {
		ids = append(ids, t.SHA256.ID())
		if t.SHA256.ID() == id {
			found = &t
		}
		if AccessRole(t.Role) == RoleAdmin {
			admins++
		}
	}
	if found == nil {
		return notFound("access token", id, ids)
	}
	// Two admins who delete each other at the same moment get past this; the
	// next start of an lb-admin then makes a new token.
	if AccessRole(found.Role) == RoleAdmin && admins == 1 {
		return fail(http.StatusConflict, "exists", "access token %q is the last with the role admin; make another one first", found.Name)
	}
	if err := s.store.ChangeAccess(r.Context(), audit(r, "access.delete", found.Name), *found, true); err != nil {
		return err
	}
	s.noteAccess(r, "access token revoked", *found)
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// noteAccess puts who may do what into the log, too: it is kept longer than the
// history, and elsewhere.
func (s *Server) noteAccess(r *http.Request, what string, t store.AccessToken) {
	c := callerOf(r)
	s.log.Info().Str("who", c.name).Str("from", c.address()).Str("name", t.Name).Str("id", t.SHA256.ID()).
		Str("role", string(t.Role)).Msg(what)
}
