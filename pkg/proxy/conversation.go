package proxy

import (
	"bytes"
	"io"
	"net/http"
	"slices"
	"time"

	"difylb/pkg/dify"
	"difylb/pkg/lb"
	"difylb/pkg/userid"
)

// Conversations live where they were begun: Dify looks one up in its own
// database, and another installation answers 404 to it. A user who has moved
// (his instance drains, the weights changed) takes new conversations to the
// new instance; requests that name an old one go home, for as long as home
// lives. Where home is not known, the application's other worlds are asked
// before the client sees a 404, and the answer is remembered.

// search is what a call that names a conversation knows about it. The zero
// value is that of a call that names none.
type search struct {
	id    string      // "" also where the application has one world only
	home  bool        // the instance asked now is known to hold it
	asked []int       // instances that do not know it, or could not say
	kept  *keptAnswer // the first 404, held back while others are asked
}

// keptAnswer is an answer held back.
type keptAnswer struct {
	status   int
	header   http.Header
	body     []byte
	instance string
}

// begin returns the instance to ask first: home of the conversation that the
// call names, else where the ring says.
func (x *exchange) begin() int {
	if x.app.app.Worlds > 1 {
		if x.search.id = x.namedConversation(); x.search.id != "" {
			if home := x.home(); home >= 0 {
				x.search.home = true
				return home
			}
		}
	}
	return x.choose(x.start)
}

// namedConversation returns the id of the conversation that the call is about,
// as far as it has been read: a body that need not be read for its user id is
// not waited for.
func (x *exchange) namedConversation() string {
	switch {
	case x.kind.Conversation != "":
		return x.kind.Conversation
	case x.kind.ConversationIn == dify.Query:
		id, _ := userid.FromQuery(x.query, "conversation_id")
		return id
	case x.kind.ConversationIn == dify.JSON && x.body != nil && x.body.whole():
		return x.bodyConversation()
	}
	return ""
}

// bodyConversation finds the id in a JSON body that is kept whole. Requests
// carry it under the name and in the place of answers.
func (x *exchange) bodyConversation() string {
	w := watchers.Get().(*dify.Watcher)
	defer watchers.Put(w)
	w.Reset("application/json", http.StatusOK, x.kind)
	r := x.body.reader()
	defer r.Close()
	buf := getBuffer()
	defer putBuffer(buf)
	for {
		n, err := r.Read(*buf)
		w.Write((*buf)[:n])
		if err != nil {
			break
		}
	}
	w.Close()
	return w.IDs().Conversation
}

// home returns the instance that holds the conversation, as far as that is
// known and it can be asked. One that drains can: it alone has what it has.
func (x *exchange) home() int {
	app := x.app.app
	if name, ok := x.p.conversations.find(app.Decl.Name, x.search.id); ok {
		if i := app.Index(name); i >= 0 && x.alive(i) {
			return i
		}
		return none
	}
	// Never seen by this proxy; but if the user's own instance drains, then it
	// is most likely there.
	if x.user != "" {
		owner := app.Ring.Owner(x.point)
		if owner >= 0 && app.Instances[owner].Decl.State == lb.Draining && x.alive(owner) {
			return owner
		}
	}
	return none
}

// alive reports whether an instance answers, whatever the operator has in mind
// for it.
func (x *exchange) alive(i int) bool {
	in, decl := x.app.instances[i], x.app.app.Instances[i].Decl
	if decl.State == lb.Disabled || in.passive.Ejected(time.Now()) {
		return false
	}
	h := *in.health.Load()
	return h != lb.Unhealthy && h != lb.TokenRejected
}

// lookElsewhere deals with an answer to a call that names a conversation. It
// returns the instance to ask next, or answered when the client has got the
// first 404 after all. Neither: the answer is the one to pass on.
func (a *attempt) lookElsewhere(resp *http.Response) (next int, answered bool) {
	s := &a.x.search
	unknown := resp.StatusCode == http.StatusNotFound && a.code(resp) == "not_found"
	if unknown && s.id == "" && a.x.app.app.Worlds > 1 {
		s.id = a.x.namedConversation() // by now the body has been read
	}
	switch {
	case s.id == "":
		return none, false
	case unknown && s.kept == nil && !a.keep(resp):
		return none, false
	case !unknown && s.kept == nil:
		return none, false
	case !unknown && a.reason == lb.ReasonOK: // found
		if resp.StatusCode < 300 {
			a.x.p.conversations.learn(a.x.app.app.Decl.Name, s.id, a.route.Decl.Name)
		}
		return none, false
	}
	return a.elsewhere()
}

// elsewhere gives this instance up and returns one of a world that was not
// asked yet; without one it answers with the 404 held back.
func (a *attempt) elsewhere() (next int, answered bool) {
	x, s := a.x, &a.x.search
	s.home = false
	s.asked = append(s.asked, a.i)
	if x.body == nil || x.body.replayable() {
		for i := range x.app.app.Instances {
			same := func(j int) bool { return x.app.app.SameWorld(i, j) }
			if x.alive(i) && !slices.ContainsFunc(s.asked, same) {
				return i, false
			}
		}
	}
	x.answerKept()
	return none, true
}

// keep holds a 404 back, if it is short.
func (a *attempt) keep(resp *http.Response) bool {
	if a.x.body != nil && !a.x.body.replayable() {
		return false
	}
	head, err := io.ReadAll(io.LimitReader(resp.Body, errorBound+1))
	resp.Body = putBack{io.MultiReader(bytes.NewReader(head), resp.Body), resp.Body}
	if err != nil || len(head) > errorBound {
		return false
	}
	a.x.search.kept = &keptAnswer{resp.StatusCode, resp.Header, head, a.route.Decl.Name}
	return true
}

// answerKept passes on the answer that was held back.
func (x *exchange) answerKept() {
	k := x.search.kept
	x.instance = k.instance
	x.answerHeader(x.w.Header(), k.header)
	x.status, x.reason, x.firstByte = k.status, lb.ReasonOK, time.Since(x.start)
	x.begun = true
	x.beforeWrite()
	x.w.WriteHeader(k.status)
	n, _ := x.w.Write(k.body)
	x.bytesOut += int64(n)
}

// staysHome reports whether a call must not be tried in another world: its
// conversation is known to live in this one, so there it could only be denied.
func (x *exchange) staysHome(from, to int) bool {
	return x.search.home && !x.app.app.SameWorld(from, to)
}
