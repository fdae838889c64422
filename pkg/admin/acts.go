package admin

import (
	"context"
	"encoding/json"
	"net/http"
	"sync"
	"sync/atomic"
	"time"

	"difylb/pkg/lb"
)

// The acts of operators that change no declaration. They stand in the log of
// the lb-admin that was asked and are events of all lb-admins, of the type that
// is their name. They are no part of the history: an entry of it is a change of
// the configuration and makes a revision, which proxies would have to put in
// force, or hold back in the place of the one that was just accepted.
const (
	EventAccept        = "node.accept"    // ActEvent
	EventSecretsExport = "export.secrets" // ActEvent
)

// EventTypes are all types of events.
var EventTypes = []string{EventConfiguration, EventHealth, EventNode, EventAccept, EventSecretsExport, EventReset}

// ActEvent tells of an operator's act.
type ActEvent struct {
	Time  time.Time `json:"time"`  // by the clock of Admin
	Who   string    `json:"who"`   // name of the access token
	From  string    `json:"from"`  // remote address
	Admin string    `json:"admin"` // id of the lb-admin that was asked
	// Node, Revision and Epoch are of EventAccept: the lb-proxy that was told
	// to put what it held back in force, and what that was.
	Node     string `json:"node,omitempty"`
	Revision int64  `json:"revision,omitempty"`
	Epoch    string `json:"epoch,omitempty"`
}

// act tells all who listen to events, here and at the other lb-admins, what
// the caller did. It blocks for a second at most.
func (s *Server) act(r *http.Request, kind string, e ActEvent) {
	c := callerOf(r)
	e.Time, e.Who, e.From, e.Admin = time.Now().UTC().Truncate(time.Millisecond), c.name, c.address(), s.nodeID
	data, err := json.Marshal(e)
	if err != nil {
		s.log.Error().Err(err).Str("action", kind).Msg("an event is not encodable")
		return
	}
	s.acts.tell(kind, data)
	if s.announce != nil {
		ctx, cancel := context.WithTimeout(context.WithoutCancel(r.Context()), announceTime)
		defer cancel()
		s.announce(ctx, kind, data)
	}
}

// announceTime bounds how long other lb-admins are told of an act.
const announceTime = time.Second

// Announced takes an event that another lb-admin tells of. Types that this
// version does not know are an error of kind Invalid.
func (s *Server) Announced(kind string, data []byte) error {
	if (kind != EventAccept && kind != EventSecretsExport) || !json.Valid(data) {
		return lb.Errorf(lb.ErrInvalid, "%q is no event that lb-admins tell each other", kind)
	}
	s.acts.tell(kind, data)
	return nil
}

// acts passes acts on to open event streams.
type acts struct {
	mu        sync.Mutex // guards listeners
	listeners map[*listener]struct{}
}

type told struct {
	kind string
	data json.RawMessage
}

// listener is one event stream. One that does not read is told that it missed
// something instead of being waited for.
type listener struct {
	told   chan told // never closed
	missed atomic.Bool
}

const maxUntold = 64

func (a *acts) listen() *listener {
	l := &listener{told: make(chan told, maxUntold)}
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.listeners == nil {
		a.listeners = make(map[*listener]struct{})
	}
	a.listeners[l] = struct{}{}
	return l
}

func (a *acts) leave(l *listener) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.listeners, l)
}

func (a *acts) tell(kind string, data json.RawMessage) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for l := range a.listeners {
		select {
		case l.told <- told{kind, data}:
		default:
			l.missed.Store(true)
		}
	}
}
