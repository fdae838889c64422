package proxy

import (
	"bytes"
	"net/http"
	"slices"
	"time"

	"difylb/pkg/dify"
	"difylb/pkg/h1"
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
	id      string      // "" also where the application has one world only
	home    bool        // the world asked now is known to hold it
	sure    bool        // the world that was known to hold it does no longer
	denied  []int       // instances that do not know it
	skipped []int       // instances that count as tried and were not asked
	kept    *keptAnswer // the first 404, held back while others are asked
}

// keptAnswer is an answer held back.
type keptAnswer struct {
	resp h1.Response
	head []byte
	body []byte
	from int // instance
}

// firstInstance returns the instance to ask first: home of the conversation that the
// call names, else where the ring says. It is none when home is known and can't
// be asked: elsewhere the conversation could only be denied.
func (x *exchange) firstInstance() int {
	if x.app.app.Worlds > 1 {
		if x.search.id = x.namedConversation(); x.search.id != "" {
			if home, known := x.home(); known {
				x.search.home = true
				return home
			}
			if owner := x.drainingOwner(); owner >= 0 {
				return owner
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

// namesConversation reports whether JSON may name a conversation: clients send
// an empty conversation_id to begin one. Looking for the '_', which is rare,
// takes a tenth of looking for the whole.
func namesConversation(p []byte) bool {
	const before = len(`"conversation`)
	for at := 0; ; at++ {
		next := bytes.IndexByte(p[at:], '_')
		if next < 0 {
			return false
		}
		at += next
		from := at - before
		if from < 0 || !bytes.HasPrefix(p[from:], conversationKey) {
			continue
		}
		value := p[from+len(conversationKey):]
		for len(value) > 0 && (value[0] == ':' || value[0] == ' ' || value[0] == '\t' || value[0] == '\r' || value[0] == '\n') {
			value = value[1:]
		}
		if !bytes.HasPrefix(value, emptyString) {
			return true
		}
	}
}

var conversationKey, emptyString = []byte(`"conversation_id"`), []byte(`""`)

// bodyConversation finds the id in a JSON body that is kept whole. Requests
// carry it under the name and in the place of answers.
func (x *exchange) bodyConversation() string {
	if x.body.file == nil && !namesConversation(x.body.mem) {
		return ""
	}
	w := watchers.Get().(*dify.Watcher)
	defer watchers.Put(w)
	w.Reset("application/json", http.StatusOK, x.kind)
	if x.body.file == nil {
		w.Write(x.body.mem)
		w.Close()
		return string(w.IDs().Conversation)
	}
	buf := getBuffer()
	defer putBuffer(buf)
	for off := int64(0); off < x.body.kept; {
		n, err := x.body.next(*buf, off)
		w.Write((*buf)[:n])
		if off += int64(n); err != nil {
			break
		}
	}
	w.Close()
	return string(w.IDs().Conversation)
}

// home returns the instance to ask in the world that is known to hold the
// conversation, none if nobody there can be asked.
func (x *exchange) home() (i int, known bool) {
	app := x.app.app
	name, ok := x.p.conversations.find(app.Decl.Name, x.search.id)
	if !ok {
		return none, false
	}
	home := app.Index(name)
	if home < 0 || x.world(home, func(i int) bool { return app.Instances[i].Decl.State != lb.Disabled }) < 0 {
		return none, false // it was taken away for good, for all we know
	}
	if i := x.inWorld(home); i >= 0 {
		return i, true
	}
	// Nobody else has what it has, so what only the probes hold against it does
	// not count: a prober that was cut off must not stop traffic.
	return x.world(home, func(i int) bool {
		in := x.app.instances[i]
		return app.Instances[i].Decl.State != lb.Disabled && *in.health.Load() == lb.Unhealthy && !in.passive.Ejected(time.Now())
	}), true
}

// drainingOwner returns the user's own instance if that drains: a conversation
// that this proxy has never seen is most likely there. Else it is none.
func (x *exchange) drainingOwner() int {
	if x.user == "" {
		return none
	}
	owner := x.app.app.Ring.Owner(x.point)
	if owner < 0 || x.app.app.Instances[owner].Decl.State != lb.Draining {
		return none
	}
	return x.inWorld(owner)
}

// inWorld returns the instance to ask in the world of instance i: the one that
// the user's calls go to there, and where no one takes new requests, one that
// still answers. One that drains can be asked: it alone has what it has.
func (x *exchange) inWorld(i int) int {
	app, now := x.app.app, time.Now()
	at := app.Ring.OwnerIn(x.point, func(j int) bool {
		decl := app.Instances[j].Decl
		return app.SameWorld(i, j) && x.app.instances[j].condition(now, decl.FailTimeout.D()).Usable(decl.State)
	})
	if at >= 0 {
		return at
	}
	return x.world(i, x.alive)
}

// world returns the first instance in the world of instance i that is fit, i
// itself before the others; none where there is none.
func (x *exchange) world(i int, fit func(int) bool) int {
	if fit(i) {
		return i
	}
	for j := range x.app.app.Instances {
		if x.app.app.SameWorld(i, j) && fit(j) {
			return j
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
// returns the instance to ask next, or answered when the client has got its
// answer after all. Neither: the answer is the one to pass on.
func (a *attempt) lookElsewhere() (next int, answered bool) {
	x, s := a.x, &a.x.search
	if x.app.app.Worlds < 2 {
		return none, false
	}
	notFound := a.resp.Status == http.StatusNotFound
	if a.sender != nil && (notFound || s.kept != nil) {
		a.stopSender() // what is decided below is decided by the body
	}
	if notFound && s.id == "" {
		s.id = x.namedConversation() // by now the body may have been read
	}
	switch {
	case s.id == "":
		return none, false
	case notFound && a.code() == "not_found":
		if s.kept == nil && !a.keep() {
			return none, false
		}
		s.denied = append(s.denied, a.i)
		s.sure = s.sure || s.home
		s.home = false
		return a.elsewhere()
	case s.kept == nil:
		return none, false
	case a.reason == lb.ReasonOK && !a.closed(): // found
		if a.resp.Status < 300 {
			x.p.conversations.learn(x.app.app.Decl.Name, s.id, a.route.Decl.Name, x.now)
		}
		return none, false
	case !a.harmless():
		return none, false
	}
	return a.elsewhere()
}

// closed reports a 403 that is about the whole application, not this call.
func (a *attempt) closed() bool {
	return a.resp.Status == http.StatusForbidden && dify.TokenRejected(a.resp.Status, a.code())
}

// harmless reports whether the call may be made once more after this attempt,
// which did not bring a 404.
func (a *attempt) harmless() bool {
	switch a.reason {
	case lb.ReasonOK, lb.ReasonConnectFailed, lb.ReasonBusy, lb.ReasonTokenRejected:
		return true // nothing was started
	}
	return idempotent(a.x.method) || a.x.app.app.Decl.Retry.NonIdempotent
}

// elsewhere gives this instance up and returns one of a world that was not
// asked yet; without one it answers.
func (a *attempt) elsewhere() (next int, answered bool) {
	x := a.x
	if a.resp.Status == 0 && !a.harmless() {
		x.refuse(refuse(a.reason, failureMessage(a.reason)))
		return none, true
	}
	if x.body == nil || x.body.replayable() {
		if next := x.unasked(); next >= 0 {
			return next, false
		}
	}
	x.answerKept()
	return none, true
}

// unasked returns an instance of a world that was not asked yet: of home, where
// that has become known meanwhile, else in the user's failover order.
func (x *exchange) unasked() int {
	app := x.app.app
	if home, known := x.home(); known && home >= 0 && !x.asked(home) {
		x.search.home = true
		return home
	}
	for walk := app.Ring.Walk(x.point); ; {
		i, ok := walk.Next()
		if !ok {
			break
		}
		if next := x.askable(i); next >= 0 {
			return next
		}
	}
	for i := range app.Instances { // those without weight
		if next := x.askable(i); next >= 0 {
			return next
		}
	}
	return none
}

// askable returns whom to ask in the world of instance i, none if it was asked.
func (x *exchange) askable(i int) int {
	if x.asked(i) {
		return none
	}
	return x.inWorld(i)
}

// asked reports whether the world of instance i was asked.
func (x *exchange) asked(i int) bool {
	return slices.ContainsFunc(x.tried, func(j int) bool {
		return x.app.app.SameWorld(i, j) && !slices.Contains(x.search.skipped, j)
	})
}

// deniedByAll reports whether a 404 is the truth: every world that may hold the
// conversation has said so, or the one that held it.
func (x *exchange) deniedByAll() bool {
	if x.search.sure {
		return true
	}
	app := x.app.app
	for i := range app.Instances {
		said := func(j int) bool { return app.SameWorld(i, j) }
		if app.Instances[i].Decl.State != lb.Disabled && !slices.ContainsFunc(x.search.denied, said) {
			return false
		}
	}
	return true
}

// keep holds a 404 back, if it is short.
func (a *attempt) keep() bool {
	if a.x.body != nil && !a.x.body.replayable() {
		return false
	}
	a.hold(errorBound + 1)
	if a.err != nil || len(a.held) > errorBound {
		return false
	}
	k := &keptAnswer{resp: *a.resp, head: slices.Clone(a.head), body: a.held, from: a.i}
	k.resp.Fields = slices.Clone(a.resp.Fields)
	a.x.search.kept = k
	return true
}

// answerKept ends a search that found nothing: with the answer that was held
// back, unless an instance that could not be asked may know better. On a 404
// clients forget the conversation.
func (x *exchange) answerKept() {
	if x.line.over() {
		x.refuse(refuse(x.line.reason(), failureMessage(lb.ReasonShutdown)))
		return
	}
	if !x.deniedByAll() {
		x.refuse(refuse(lb.ReasonNoInstance, "no instance that answers knows the conversation, and not all could be asked"))
		return
	}
	k := x.search.kept
	x.instance = x.app.app.Instances[k.from].Decl.Name
	x.status, x.reason, x.firstByte = k.resp.Status, lb.ReasonOK, time.Since(x.start)
	x.begun = true
	x.writeAnswerFields(x.down.begin(k.resp.Status), &k.resp, k.head)
	n := x.answerBody(k.body)
	x.bytesOut += n
	x.app.instances[k.from].stats.Flow(x.shard, 0, n)
}

// staysHome reports whether a call must not be tried in another world: its
// conversation is known to live in this one, so there it could only be denied.
func (x *exchange) staysHome(from, to int) bool {
	if !x.search.home || x.app.app.SameWorld(from, to) {
		return false
	}
	x.search.skipped = append(x.search.skipped, to)
	return true
}
