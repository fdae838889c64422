package admin

import (
	"context"
	"errors"
	"net/http"
	"net/url"
	"time"

	"difylb/pkg/cluster"
	"difylb/pkg/lb"
)

// acceptor is the part of the Hub by which an operator's word reaches a proxy.
type acceptor interface {
	Accept(node string, a cluster.Acceptance) (cluster.Acceptance, error)
	WaitAccepted(ctx context.Context, node string, a cluster.Acceptance) (cluster.NodeStatus, error)
}

// AcceptRequest names the configuration that an lb-proxy holds back and is to
// put in force, as GET /nodes shows it. Both fields empty: whatever it is at
// the moment. A store in which nothing was ever declared has revision 0.
type AcceptRequest struct {
	Revision int64  `json:"refused_revision,omitempty"` // as `refused_revision` of the node tells it; left out: whatever is held back
	Epoch    string `json:"refused_epoch,omitempty"`    // as `refused_epoch` of the node tells it; goes with the revision
}

// acceptTime bounds how long a proxy may take to put in force what it is told to.
const acceptTime = 10 * time.Second

// acceptNode passes the operator's word on, and answers when the proxy has
// acted on it.
func (s *Server) acceptNode(w http.ResponseWriter, r *http.Request, q *query) error {
	if err := q.err(); err != nil {
		return err
	}
	var body AcceptRequest
	if err := decodeOptional(w, r, &body); err != nil {
		return err
	}
	if body.Revision != 0 && body.Epoch == "" {
		return lb.Faults{{Path: "refused_epoch", Message: "goes with refused_revision: give both, as GET /nodes shows them, or none"}}
	}
	node, who := r.PathValue("node"), audit(r, EventAccept, "")
	log := func(a cluster.Acceptance, err error) {
		s.log.Warn().Str("who", who.Who).Str("from", who.From).Str("action", who.Action).Str("node", node).
			Int64("revision", a.Revision).Str("epoch", a.Epoch).AnErr("err", err).Msg("an operator accepted what a proxy holds back")
	}
	a, err := s.hub.Accept(node, cluster.Acceptance{Epoch: body.Epoch, Revision: body.Revision})
	if err != nil {
		log(a, err)
		switch {
		case errors.Is(err, lb.ErrConflict):
			return fail(http.StatusConflict, "changed", "%s; nothing was done", err) // and trying again is no help
		case errors.Is(err, lb.ErrNotFound):
			return s.noProxy(node)
		}
		return err
	}
	log(a, nil)
	patience(w, acceptTime+announceTime)
	s.act(r, EventAccept, ActEvent{Node: node, Revision: a.Revision, Epoch: a.Epoch})
	ctx, cancel := context.WithTimeout(r.Context(), acceptTime)
	defer cancel()
	defer context.AfterFunc(s.closing, cancel)()
	n, err := s.hub.WaitAccepted(ctx, node, a)
	if errors.Is(err, context.DeadlineExceeded) || errors.Is(err, context.Canceled) {
		return lb.Errorf(lb.ErrUnavailable, "proxy %q has not said within %s that it has revision %d in force; look at it again", node, acceptTime, a.Revision)
	}
	if err != nil {
		return err
	}
	return answer(w, http.StatusOK, n)
}

// noProxy is the 404 of a node that is no live lb-proxy.
func (s *Server) noProxy(id string) error {
	var proxies []string
	for _, n := range s.hub.Nodes() {
		switch {
		case n.Role == lb.RoleProxy:
			proxies = append(proxies, n.ID)
		case n.ID == id:
			return fail(http.StatusNotFound, "not-found", "%q is an lb-admin, which holds nothing back; only an lb-proxy does", id)
		}
	}
	return notFound("live proxy", id, proxies)
}

// AcceptNode lets an lb-proxy put in force what it holds back, and waits until
// it has. The zero AcceptRequest means what it holds back at the moment.
func (c *Client) AcceptNode(ctx context.Context, node string, what AcceptRequest) (*Node, error) {
	return object[Node](ctx, c, http.MethodPost, "/nodes/"+url.PathEscape(node)+"/accept", what)
}
