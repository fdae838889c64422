package admin

import (
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"difylb/pkg/lb"
)

// WhoAmI answers GET /whoami.
type WhoAmI struct {
	Name string     `json:"name"` // of the access token
	ID   string     `json:"id"`   // of the token that was shown
	Role AccessRole `json:"role"` // what its holder may do
	From string     `json:"from"` // the address that the history would name
	Node string     `json:"node"` // the lb-admin that answers
}

func init() {
	// Behind the init of endpoints.go: files come by name.
	endpoints = append(endpoints, endpoint{
		method: "GET", path: Base + "/whoami", role: RoleViewer, summary: "Say whose the access token is and what it may do", answer: WhoAmI{}, handle: (*Server).whoami,
	})
}

func (s *Server) whoami(w http.ResponseWriter, r *http.Request, q *query) error {
	if err := q.err(); err != nil {
		return err
	}
	c := callerOf(r)
	return answer(w, http.StatusOK, WhoAmI{Name: c.name, ID: c.hash.ID(), Role: c.role, From: c.address(), Node: s.nodeID})
}

// lastUsed remembers when each access token was last shown here. It is not
// stored: a write for every read would be too dear. There are as many entries
// as valid tokens were used since the start.
type lastUsed struct {
	at sync.Map // lb.TokenHash → *atomic.Int64, Unix seconds
}

func (l *lastUsed) note(h lb.TokenHash, now time.Time) {
	v, ok := l.at.Load(h)
	if !ok {
		v, _ = l.at.LoadOrStore(h, new(atomic.Int64))
	}
	v.(*atomic.Int64).Store(now.Unix())
}

// of returns when it was last used, nil when never since the start.
func (l *lastUsed) of(h lb.TokenHash) *time.Time {
	v, ok := l.at.Load(h)
	if !ok {
		return nil
	}
	t := time.Unix(v.(*atomic.Int64).Load(), 0).UTC()
	return &t
}
