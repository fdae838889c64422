package store

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"difylb/pkg/lb"
)

// AccessRole is what an admin token allows.
type AccessRole string

// The roles of admin tokens; each may do what the one before it may.
const (
	AccessViewer   AccessRole = "viewer"
	AccessOperator AccessRole = "operator"
	AccessAdmin    AccessRole = "admin"
)

// AccessToken is a token of the REST API as the cluster keeps it: its hash.
type AccessToken struct {
	SHA256  lb.TokenHash
	Name    string // who; appears in the history
	Role    AccessRole
	Hint    string // the token's last four characters
	Created time.Time
}

type accessWire struct {
	Name    string     `json:"name"`
	Role    AccessRole `json:"role"`
	Hint    string     `json:"hint,omitempty"`
	Created time.Time  `json:"created,omitzero"`
}

func decodeAccess(h lb.TokenHash, raw []byte) (AccessToken, error) {
	var w accessWire
	if err := unmarshal(raw, &w); err != nil {
		return AccessToken{}, err
	}
	if err := w.Role.check(); err != nil {
		return AccessToken{}, err
	}
	return AccessToken{SHA256: h, Name: w.Name, Role: w.Role, Hint: w.Hint, Created: w.Created.UTC()}, nil
}

func (r AccessRole) check() error {
	switch r {
	case AccessViewer, AccessOperator, AccessAdmin:
		return nil
	}
	return lb.Errorf(lb.ErrInvalid, "role: %q is not one of viewer, operator, admin", string(r))
}

// Access returns the admin token of that hash. It takes no lock and asks nobody.
func (s *Store) Access(h lb.TokenHash) (AccessToken, bool) {
	t, ok := s.view.Load().access[h]
	return t, ok
}

// AccessTokens returns every admin token, by name.
func (s *Store) AccessTokens() []AccessToken {
	v := s.view.Load()
	tokens := make([]AccessToken, 0, len(v.access))
	for _, t := range v.access {
		tokens = append(tokens, t)
	}
	slices.SortFunc(tokens, func(a, b AccessToken) int {
		if c := strings.Compare(a.Name, b.Name); c != 0 {
			return c
		}
		return strings.Compare(a.SHA256.String(), b.SHA256.String())
	})
	return tokens
}

// PutAccess stores an admin token, new or changed. It does not need Run; if
// the mirror runs, Access knows the token when PutAccess returns. Error kinds:
// lb.ErrInvalid, lb.ErrUnavailable.
func (s *Store) PutAccess(ctx context.Context, t AccessToken) error {
	if err := t.Role.check(); err != nil {
		return err
	}
	if t.SHA256 == (lb.TokenHash{}) || t.Name == "" {
		return lb.Errorf(lb.ErrInvalid, "an admin token needs a name and a hash")
	}
	if t.Created.IsZero() {
		t.Created = s.now().UTC()
	}
	key := accessKey(t.SHA256)
	old, err := s.get(ctx, key)
	if err != nil {
		return err
	}
	value := mustMarshal(accessWire{Name: t.Name, Role: t.Role, Hint: t.Hint, Created: t.Created})
	if len(old.Kvs) > 0 {
		value = keepUnknown(accessWire{}, old.Kvs[0].Value, value)
	}
	return s.accessOp(ctx, "put", t.SHA256, clientv3.OpPut(s.prefix+key, string(value)))
}

// DeleteAccess removes an admin token; it is refused from then on. Error
// kinds: lb.ErrNotFound, lb.ErrUnavailable.
func (s *Store) DeleteAccess(ctx context.Context, h lb.TokenHash) error {
	resp, err := s.get(ctx, accessKey(h), clientv3.WithKeysOnly())
	if err != nil {
		return err
	}
	if len(resp.Kvs) == 0 {
		return lb.Errorf(lb.ErrNotFound, "there is no admin token %s", h.ID())
	}
	return s.accessOp(ctx, "delete", h, clientv3.OpDelete(s.prefix+accessKey(h)))
}

// ChangeAccess stores an admin token or, with remove, takes it away, and puts
// that into the history: both or neither. It counts as a change of the
// configuration, which stays the same. It needs Run. Error kinds: lb.ErrInvalid,
// lb.ErrExists for a name that another token has, lb.ErrNotFound for one to
// remove that is not there, lb.ErrConflict, lb.ErrUnavailable.
func (s *Store) ChangeAccess(ctx context.Context, audit lb.Audit, t AccessToken, remove bool) error {
	if err := t.Role.check(); err != nil {
		return err
	}
	if t.SHA256 == (lb.TokenHash{}) || t.Name == "" {
		return lb.Errorf(lb.ErrInvalid, "an admin token needs a name and a hash")
	}
	if t.Created.IsZero() {
		t.Created = s.now().UTC()
	}
	key := accessKey(t.SHA256)
	for range maxConflicts {
		b, err := s.base(ctx)
		if err != nil {
			return err
		}
		old, err := s.get(ctx, key)
		if err != nil {
			return err
		}
		r := record{Key: key}
		var mod int64
		if len(old.Kvs) > 0 {
			mod, r.Before = old.Kvs[0].ModRevision, old.Kvs[0].Value
		}
		if remove && mod == 0 {
			return lb.Errorf(lb.ErrNotFound, "there is no admin token %s", t.SHA256.ID())
		}
		if !remove {
			for _, other := range s.AccessTokens() {
				if other.Name == t.Name && other.SHA256 != t.SHA256 {
					return lb.Errorf(lb.ErrExists, "access token %q exists already", t.Name)
				}
			}
			r.After = mustMarshal(accessWire{Name: t.Name, Role: t.Role, Hint: t.Hint, Created: t.Created})
		}
		e := s.newEntry(audit, b)
		e.Records, e.Count = []record{r}, 1
		conds := []clientv3.Cmp{
			clientv3.Compare(clientv3.CreateRevision(s.prefix+keyPending), "=", 0),
			clientv3.Compare(clientv3.ModRevision(s.prefix+key), "=", mod),
		}
		rev, err := s.commitEntry(ctx, e, b, conds, []clientv3.Op{s.write(&r, 0)})
		if err == nil {
			s.catchUp(ctx, rev)
			return nil
		}
		var beaten *conflict
		if !errors.As(err, &beaten) {
			return s.client.unanswered("change admin token", err)
		}
		if err := s.waitFor(ctx, beaten.revision); err != nil {
			return err
		}
	}
	return lb.Errorf(lb.ErrConflict, "others kept changing the configuration; try again")
}

func (s *Store) accessOp(ctx context.Context, verb string, h lb.TokenHash, op clientv3.Op) error {
	var rev int64
	err := s.again(ctx, func(ctx context.Context, cli *clientv3.Client) error {
		resp, err := cli.Txn(ctx).Then(op).Commit()
		if err == nil {
			rev = resp.Header.Revision
		}
		return err
	})
	if err != nil {
		return unavailable(fmt.Sprintf("%s admin token %s", verb, h.ID()), err)
	}
	if s.Current() != nil {
		s.catchUp(ctx, rev)
	}
	return nil
}
