package proxy

import (
	"errors"
	"io"
	"net/http"
	"runtime"
	"slices"
	"strings"
	"sync"
	"time"

	"difylb/pkg/dify"
	"difylb/pkg/h1"
	"difylb/pkg/lb"
	"difylb/pkg/limit"
	"difylb/pkg/route"
	"difylb/pkg/stats"
	"difylb/pkg/trace"
)

// forward tries instances until one answers, and relays its answer.
func (x *exchange) forward() *refusal {
	if x.kind.Stop {
		if ref, done := x.forwardStop(); done {
			return ref
		}
	}
	return x.tryAll(noInstance, x.firstInstance())
}

var noInstance = refuse(lb.ReasonNoInstance, "no instance of the application may take the request now")

// tryAll tries instance i, then those that follow. It returns ref where there is none.
func (x *exchange) tryAll(ref *refusal, i int) *refusal {
	for i >= 0 {
		ref, i = x.try(i)
	}
	return ref
}

// none stands for the index of an instance where there is none.
const none = -1

// try sends the request to instance i. It returns the refusal to answer
// with, nil when the answer was relayed or the exchange has left, or else the
// instance to try next.
func (x *exchange) try(i int) (ref *refusal, next int) {
	in := x.app.instances[i]
	if ref := x.enter(in); ref != nil {
		if x.search.kept != nil {
			x.answerKept() // nobody who could be asked knows better
			return nil, none
		}
		return ref, none
	}
	if x.away {
		x.nextTry = i
		return nil, none
	}
	x.note(i)
	a := &x.attempt
	a.prepare(i)
	in.stats.Begin(x.shard)
	return a.pursue(true)
}

// pursue asks, unless that is done, and does what the outcome wants. It
// returns what try does.
func (a *attempt) pursue(ask bool) (ref *refusal, next int) {
	x, i := a.x, a.i
	defer a.account()
	if ask {
		if a.ask(); x.away {
			return nil, none
		}
		if x.riding() && !a.plain() {
			x.leave(fromLate)
			return nil, none
		}
	}
	if a.reason != lb.ReasonOK {
		return a.failed()
	}
	a.firstByte = x.now.Sub(a.start)
	a.reason = judge(a.resp.Status)
	if a.resp.Status == http.StatusTooManyRequests && dify.Busy(a.resp.Status, a.code()) {
		a.reason = lb.ReasonBusy
	}
	if next, answered := a.lookElsewhere(); answered || next >= 0 {
		return nil, next
	}
	if a.reason != lb.ReasonOK {
		if next := x.next(i, a.reason, a.resp.Status); next >= 0 {
			return nil, next
		}
		// Its answer is worth more than one of ours, but for a 401, which the
		// user would take for his own.
		if a.reason == lb.ReasonTokenRejected {
			return refuse(a.reason, failureMessage(a.reason)), none
		}
	}
	if a.resp.Status == http.StatusSwitchingProtocols {
		return a.tunnel(), none
	}
	a.relay()
	return nil, none
}

// next returns the instance to try after an attempt at instance i that ended
// for that reason, none when that was the last. An instance on trial admits one
// request at a time, so what is chosen here is to be tried.
func (x *exchange) next(i int, reason lb.Reason, status int) int {
	now := x.tick()
	x.attempt.stopSender()
	if x.line.over() || !x.mayRetry(reason, status, now) || (x.body != nil && !x.body.replayable()) {
		return none
	}
	next := x.choose(now)
	for next >= 0 && x.staysHome(i, next) {
		x.tried = append(x.tried, next)
		next = x.choose(now)
	}
	return next
}

// enter waits for room at an instance that is at its max_in_flight. Stops pass.
func (x *exchange) enter(in *instanceState) *refusal {
	if x.kind.Stop {
		in.gate.Force()
		return nil
	}
	if in.gate.TryAcquire() {
		return nil
	}
	if x.riding() {
		x.leave(fromTry)
		return nil
	}
	ctx, release := x.line.context()
	defer release()
	defer x.tick()
	err := in.gate.Acquire(ctx, strings.Clone(x.user), x.app.app.Decl.Queue.Timeout.D())
	switch {
	case err == nil:
		return nil
	case errors.Is(err, limit.ErrQueueFull):
		return refuse(lb.ReasonQueueFull, "the user's instance is busy and its queue is full")
	case errors.Is(err, limit.ErrQueueTimeout):
		return refuse(lb.ReasonQueueTimeout, "the user's instance was busy for too long")
	}
	return refuse(x.line.reason(), failureMessage(lb.ReasonShutdown))
}

// attempt is one request to one instance. It belongs to its exchange, and is
// used again for the next.
type attempt struct {
	x     *exchange
	i     int            // index of the instance; none for those of no application
	in    *instanceState // nil likewise
	route *route.Instance
	up    *upstream
	to    target
	read  time.Duration // longest silence
	send  time.Duration
	start time.Time
	span  *trace.Attempt // nil: not traced
	retry bool

	conn   *instanceConn
	phase  phase
	err    error
	wrote  bool   // the whole request
	begun  bool   // a byte of it
	unsent []byte // what was not taken of it at once while riding
	gone   bool   // see letGo
	out    h1.Head
	sender *sender // carries a body that is still under way; nil: there is none

	in16     *[]byte // what has come: (*in16)[r:n] is not consumed
	long     []byte  // the same, for heads that need more
	r, n     int
	quiet    bool // all that was there is read
	heard    bool // a byte of the answer has come
	waited   bool // after that
	interims int

	head     []byte       // of the answer; resp has spans into it
	resp     *h1.Response // of the exchange's heads
	status   int          // of resp, as are the next two; they are needed for longer
	framing  h1.BodyKind
	reusable bool // the connection lives on
	chunked  h1.Chunked
	left     int64
	over     bool   // the body is complete
	clogged  bool   // carried: the client has to take what there is before more is read
	surplus  bool   // and something followed it
	held     []byte // data that was looked at before it may be passed on
	holding  int    // how much is to be held; 0: data goes to the client

	watcher   *dify.Watcher
	reason    lb.Reason
	firstByte time.Duration
	stream    bool
}

// phase is what an attempt waits for.
type phase uint8

const (
	phaseWrite phase = iota // nothing: the request is to be written
	phaseHead               // the head of the answer
	phaseBody               // its body
)

// prepare begins an attempt on instance i of the call's application.
func (a *attempt) prepare(i int) {
	x := a.x
	app := x.app.app
	in := &app.Instances[i]
	a.reset()
	a.i, a.in, a.route, a.up = i, x.app.instances[i], in, x.app.instances[i].upstream
	a.read, a.send = app.Decl.Timeouts.Read.D(), app.Decl.Timeouts.Send.D()
	a.up.connect.Store(int64(app.Decl.Timeouts.Connect))
	a.to = target{host: in.Host, authorization: in.Authorization.Reveal(), app: app.Decl.Name, instance: in.Decl.Name}
	if in.PreserveHost && !x.req.Host.Empty() {
		a.to.host = x.in(x.req.Host)
	}
	a.retry = x.attempts > 1
	a.start = x.now
	a.span = x.traced.Attempt(a.start)
}

// reset makes the attempt ready for use, keeping what can be used again.
func (a *attempt) reset() {
	*a = attempt{x: a.x, i: none, resp: a.resp}
	a.resp.Reset()
}

// account ends the attempt and accounts for it, whatever became of it.
func (a *attempt) account() {
	if a.x.away {
		return
	}
	if !a.gone {
		a.x.tick()
	}
	a.finish()
	now := a.x.now
	a.in.stats.End(a.x.shard, stats.Sample{
		Reason: a.reason, Retry: a.retry, Stream: a.stream,
		Latency: now.Sub(a.start), FirstByte: a.firstByte,
	})
	a.letGo(now)
}

// letGo ends what others can notice of the attempt: its place at the instance,
// and what its end says about that. It is due before the last bytes of the
// answer, so that a client who has them finds it done.
func (a *attempt) letGo(now time.Time) {
	if a.in == nil || a.gone {
		return
	}
	a.gone = true
	a.in.gate.Release()
	a.x.observe(a.i, a.reason, a.status, now)
}

// giveBack gives the connection back if it may be used again.
func (a *attempt) giveBack() {
	c := a.conn
	if c == nil {
		return
	}
	a.x.line.waitFor(nil)
	a.conn = nil
	if a.over && a.wrote && !a.surplus && a.r == a.n && a.reusable && a.err == nil {
		a.up.put(c, a.x.shard, clock(a.x.now))
	} else {
		c.close()
	}
}

// finish gives back what the attempt holds.
func (a *attempt) finish() {
	a.stopSender()
	a.giveBack()
	a.dropInput()
	a.endSpan()
}

func (a *attempt) dropInput() {
	if a.in16 != nil {
		putBuffer(a.in16)
		a.in16 = nil
	}
	a.long, a.r, a.n = nil, 0, 0
}

// failed decides what follows an attempt without an answer.
func (a *attempt) failed() (*refusal, int) {
	x := a.x
	if x.body != nil && a.reason != lb.ReasonConnectFailed {
		a.stopSender()
		if fault := x.body.err; fault != nil { // the client's doing, not the instance's
			a.reason = fault.reason
			return x.bodyRefusal(fault), none
		}
	}
	if x.search.kept != nil && !interruption(a.reason) {
		next, answered := a.elsewhere()
		if answered {
			return nil, none
		}
		return nil, next
	}
	reason := a.reason
	return refuse(reason, failureMessage(reason)), x.next(a.i, reason, 0)
}

// interruption reports reasons that end the call, not just an attempt.
func interruption(reason lb.Reason) bool {
	return reason == lb.ReasonClientGone || reason == lb.ReasonShutdown
}

// ask sends the request and waits for the head of the final answer. reason
// says what came of it, unless the exchange has left.
func (a *attempt) ask() {
	x := a.x
	for {
		if a.conn = a.up.take(x.shard, clock(x.now), x.riding()); a.conn == nil {
			if x.riding() {
				x.leave(fromAsk)
				return
			}
			if a.reason = a.connect(); a.reason != lb.ReasonOK {
				return
			}
		}
		a.phase, a.err = phaseWrite, nil
		x.line.waitFor(&a.conn.wire)
		if a.wait(); x.away || a.settle() {
			return
		}
	}
}

// connect makes a connection.
func (a *attempt) connect() lb.Reason {
	x := a.x
	ctx, release := x.line.context()
	conn, err := a.up.dial(ctx, x.shard)
	release()
	if err != nil {
		if x.line.over() {
			return x.line.reason()
		}
		return lb.ReasonConnectFailed
	}
	x.tick()
	a.conn = conn
	return lb.ReasonOK
}

// settle says what came of asking. It returns false where another connection
// is to be taken.
func (a *attempt) settle() bool {
	if a.err == nil {
		a.reason = lb.ReasonOK
		return true
	}
	// An idle connection that the instance had closed, and that took nothing
	// of the request, was no attempt.
	if !a.conn.used || a.err == errInterrupted || a.x.line.over() || a.begun && !a.repeatable() {
		a.reason = a.failure()
		return true
	}
	a.begun, a.wrote = false, false
	a.x.line.waitFor(nil)
	a.conn.close()
	a.conn = nil
	return false
}

// plain reports whether passing the answer on waits for nobody else.
func (a *attempt) plain() bool {
	return a.err == nil && a.resp.Status >= 200 && a.resp.Status < 400
}

// repeatable reports whether a request that was written to an idle connection,
// and had no byte of an answer when that ended, may be written to another of
// the same instance (RFC 9112 section 9.3.1): most likely the instance closed
// the connection in the moment in which it was used.
func (a *attempt) repeatable() bool {
	return !a.heard && a.sender == nil && idempotent(a.x.method) && a.failure() == lb.ReasonUpstreamBroke
}

// wait waits until the phase is over; err says whether well. Where nothing but
// the instance is to be waited for the exchange leaves instead.
func (a *attempt) wait() {
	if a.x.line.over() {
		a.err = errInterrupted
		return
	}
	if !a.mayLeave() {
		if a.x.riding() {
			a.x.leave(fromWait)
		} else {
			a.stay()
		}
		return
	}
	if a.phase == phaseBody && a.quiet && !a.conn.hup.Load() {
		a.rest()
	} else if a.ready() || a.x.away {
		return
	}
	switch {
	case a.sender != nil:
		a.stay()
	case a.phase == phaseBody:
		a.x.leave(fromBody)
	default:
		a.x.leave(fromHead)
	}
}

// stay is wait where the exchange must not leave.
func (a *attempt) stay() {
	if err := a.conn.await(a); err != nil && a.err == nil {
		a.err = err
	}
}

// mayLeave reports whether the exchange can go on without its goroutine.
func (a *attempt) mayLeave() bool {
	c, ok := a.x.down.(*clientConn)
	return ok && c.raw && a.conn.raw && a.in != nil && a.sender == nil && !a.x.kind.Stop
}

var (
	errInterrupted = errors.New("the client is gone, or the time of a shutdown is over")
	errBody        = errors.New("request body could not be read")
	errSurplus     = errors.New("too many interim answers")
)

// woken is called after an interruption.
func (a *attempt) woken() error {
	switch {
	case a.x.line.over():
		return errInterrupted
	case a.sender != nil && a.sender.failed.Load() && !a.heard:
		return a.sender.err
	case a.conn.expired() && !a.conn.readable(): // else it was us who were late
		return errUpstreamTimeout
	}
	return nil
}

// ready is called when bytes of the instance may be there, and once before.
func (a *attempt) ready() bool {
	a.quiet = false
	if a.phase == phaseWrite {
		a.phase = phaseHead
		if a.quiet = a.writeRequest(); !a.quiet && !a.begun {
			return true
		}
	}
	for pieces := 1; ; pieces++ {
		if a.r < a.n {
			done, fed := a.consume()
			if done {
				return true
			}
			if fed {
				continue
			}
		}
		if a.quiet && !a.conn.hup.Load() {
			a.rest()
			return false
		}
		if a.clogged || pieces%mostPieces == 0 && !a.goAhead() {
			return false
		}
		if !a.conn.raw {
			a.rest() // an ordinary read waits
		}
		var p []byte
		first := a.n == 0 && a.conn.conn != a.conn.tcp
		if first {
			p = make([]byte, 1) // behind TLS a read waits, and who waits holds no buffer
		} else {
			p = a.room()
		}
		n, err := a.conn.read(p)
		if err == errAgain {
			if a.conn.raw {
				a.rest()
			}
			return false
		}
		if err != nil {
			a.ended(err)
			return true
		}
		if first {
			copy(a.room(), p[:n])
		}
		if a.n += n; !a.heard {
			a.heard = true
			a.x.tick()
		}
		a.quiet = a.conn.drained(n, len(p))
	}
}

// mostPieces is how many pieces of an answer pass in a row before it is others' turn.
const mostPieces = 32

// goAhead lets others have their turn, and reports whether the owner may go on behind it.
func (a *attempt) goAhead() bool {
	if c, ok := a.x.down.(*clientConn); ok && c.riding {
		c.stuck = true
		return false
	}
	runtime.Gosched()
	return true
}

// room returns where to read to.
func (a *attempt) room() []byte {
	if a.long == nil && a.in16 == nil {
		a.in16 = getBuffer()
	}
	buf := a.input()
	if a.n == len(buf) {
		if a.r > 0 {
			a.n = copy(buf, buf[a.r:a.n])
			a.r = 0
		} else { // a long head; the limit of heads bounds it
			long := make([]byte, 2*len(buf))
			copy(long, buf)
			if a.in16 != nil {
				putBuffer(a.in16)
				a.in16 = nil
			}
			a.long = long
		}
	}
	return a.input()[a.n:]
}

func (a *attempt) input() []byte {
	if a.long != nil {
		return a.long
	}
	return *a.in16
}

// rest prepares for a wait: nothing is held that need not be, and the instance
// has its time from now on.
func (a *attempt) rest() {
	if a.r == a.n {
		a.dropInput()
	}
	if a.phase == phaseBody && a.holding == 0 && a.x.down.flush() != nil {
		a.err = errClientGone
		a.x.line.end(clientGone)
		a.conn.interrupt()
	}
	if a.heard {
		a.waited = true
		a.x.tick()
	}
	if a.sender == nil || a.sender.over.Load() {
		a.conn.expectAt(clock(a.x.now) + int64(a.read))
	} else if a.phase == phaseHead {
		a.conn.relax() // the sender has limits of its own
		if a.sender.over.Load() {
			a.conn.expect(a.read) // it was done just now, and its own expect may have come before relax
		}
	}
}

// consume works on what has come. done says that the phase is over, fed that
// something was consumed.
func (a *attempt) consume() (done, fed bool) {
	if a.phase == phaseHead {
		return a.consumeHead()
	}
	return a.consumeBody(), true
}

// consumeHead reads the head of the answer, and those before it.
func (a *attempt) consumeHead() (done, fed bool) {
	buf := a.input()[a.r:a.n]
	size, err := a.resp.Parse(buf, a.x.req.Method, &a.x.s.heads)
	if err == h1.ErrIncomplete {
		return false, false
	}
	if err != nil {
		a.err = err
		return true, false
	}
	a.r += size
	if a.resp.Interim() {
		a.err = a.passInterim(buf)
		a.resp.Reset()
		return a.err != nil, true
	}
	a.head = buf[:size]
	a.status, a.framing, a.reusable = a.resp.Status, a.resp.Body, a.resp.KeepAlive
	a.left, a.over = a.resp.ContentLength, a.resp.Body == h1.BodyNone
	switch a.resp.Body {
	case h1.BodyChunked:
		a.chunked.Reset(&a.x.s.heads)
	case h1.BodyLength:
		a.over = a.left == 0
	}
	if a.over && a.r < a.n && !a.resp.Upgraded {
		a.surplus = true
	}
	return true, true
}

// maxInterim is how many interim answers an instance may send.
const maxInterim = 8

// passInterim passes a 1xx answer on. 100 was for us.
func (a *attempt) passInterim(buf []byte) error {
	if a.interims++; a.interims > maxInterim {
		return errSurplus
	}
	if a.resp.Status == http.StatusContinue {
		return nil
	}
	a.x.begun = true
	err := a.x.down.interim(a.resp.Status, func(w fieldWriter) {
		for i := range a.resp.Fields {
			if f := &a.resp.Fields[i]; !f.Hop && f.ID != h1.Authorization && f.ID != h1.ContentLength {
				w.Copy(*f, buf)
			}
		}
	})
	if err != nil {
		return errClientGone
	}
	return nil
}

// consumeBody takes the framing off what has come and passes it on.
func (a *attempt) consumeBody() (done bool) {
	p := a.input()[a.r:a.n]
	data := p
	switch a.framing {
	case h1.BodyLength:
		data = p[:min(int64(len(p)), a.left)]
		a.left -= int64(len(data))
		a.over = a.left == 0
		a.r += len(data)
	case h1.BodyUntilClose:
		a.r = a.n
	default:
		var used int
		var err error
		if data, used, err = a.unchunk(p); err != nil {
			if a.err = a.pass(data, false); a.err == nil {
				a.err = err
			}
			return true
		}
		a.over = a.chunked.Done()
		a.r += used
	}
	a.surplus = a.over && a.r < a.n
	if a.holding > 0 {
		a.held = append(a.held, data...)
		return a.over || len(a.held) >= a.holding
	}
	a.err = a.pass(data, a.over)
	return a.over || a.err != nil
}

// unchunk returns the data of all chunks in p as one piece, and how much of p
// was consumed. It overwrites p.
func (a *attempt) unchunk(p []byte) (all []byte, used int, err error) {
	for used < len(p) && !a.chunked.Done() {
		data, n, err := a.chunked.Next(p[used:])
		if err != nil {
			return all, used, err
		}
		switch used += n; {
		case len(data) == 0:
		case len(all) == 0:
			all = data
		default:
			to := copy(p, all)
			all = p[:to+copy(p[to:], data)]
		}
	}
	return all, used, nil
}

// pass writes a piece of the answer to the client.
func (a *attempt) pass(p []byte, last bool) error {
	x := a.x
	if a.watcher != nil && len(p) > 0 {
		a.saw(a.watcher.Write(p))
	}
	last = last && !a.trailers()
	if len(p) == 0 && !last {
		return nil
	}
	if last {
		a.complete()
	}
	if err := x.down.write(p, last); err != nil {
		return errClientGone
	}
	x.bytesOut += int64(len(p))
	if a.in != nil {
		a.in.stats.Flow(x.shard, 0, int64(len(p)))
	}
	return nil
}

// complete is due when the whole answer is known, and before the end of it goes out.
func (a *attempt) complete() {
	if a.watcher != nil {
		a.learn()
	}
	if a.waited {
		a.x.tick()
	}
	a.letGo(a.x.now)
}

// trailers reports whether a trailer section is to be passed on.
func (a *attempt) trailers() bool {
	return a.framing == h1.BodyChunked && len(a.chunked.Trailer()) > 0
}

// ended is told that the instance has closed the connection, or broke it.
func (a *attempt) ended(err error) {
	if a.phase == phaseBody && a.framing == h1.BodyUntilClose && err == io.EOF {
		a.over = true
		if a.holding == 0 {
			a.err = a.pass(nil, true)
		}
		return
	}
	if a.err = err; err == io.EOF {
		a.err = io.ErrUnexpectedEOF
	}
}

// failure classifies why there is no answer, or no end of it.
func (a *attempt) failure() lb.Reason {
	var nonsense *h1.Error
	switch {
	case a.x.line.over():
		return a.x.line.reason()
	case a.err == errClientGone:
		return lb.ReasonClientGone
	case a.err == errUpstreamTimeout:
		return lb.ReasonUpstreamTimeout
	case a.err == errSurplus, errors.As(a.err, &nonsense):
		return lb.ReasonUpstreamInvalid
	case a.err == h1.ErrUnsafe:
		return lb.ReasonInternal
	}
	return lb.ReasonUpstreamBroke
}

// field returns the first value of a field of the answer.
func (a *attempt) field(id h1.KnownField) []byte { return a.resp.First(id).In(a.head) }

// errorBound is how much of an error answer is looked at.
const errorBound = 4 << 10

// code returns the code of an error answer, "" if it has none that can be
// read. What it reads is held, and passed on with the rest.
func (a *attempt) code() string {
	if a.resp.Has(h1.ContentEncoding) {
		return ""
	}
	a.hold(errorBound)
	return dify.ErrorCode(a.held[:min(len(a.held), errorBound)])
}

// hold reads data of the answer's body until there is so much, or all of it.
func (a *attempt) hold(bound int) {
	if a.over || a.err != nil || len(a.held) >= bound {
		return
	}
	a.head = slices.Clone(a.head) // its place is going to be read to
	a.phase, a.holding = phaseBody, bound
	for a.r < a.n {
		if a.consumeBody() {
			break
		}
	}
	if !a.over && a.err == nil && len(a.held) < bound {
		if a.x.line.over() {
			a.err = errInterrupted
		} else {
			a.stay()
		}
	}
	a.holding = 0
}

var watchers = sync.Pool{New: func() any { return new(dify.Watcher) }}

// relay passes the answer on as it arrives.
func (a *attempt) relay() {
	x := a.x
	contentType := stringOf(a.field(h1.ContentType))
	a.stream = strings.HasPrefix(contentType, "text/event-stream")
	if a.stream && a.in != nil {
		a.in.stats.StreamBegin(x.shard)
	}
	x.status, x.reason, x.firstByte = a.resp.Status, a.reason, x.now.Sub(x.start)
	if a.in != nil && !a.resp.Has(h1.ContentEncoding) {
		a.watcher = watchers.Get().(*dify.Watcher)
		a.watcher.Reset(contentType, a.resp.Status, x.kind)
	}
	a.relayBody(a.answerHead())
	switch {
	case x.away:
	case a.err != nil && x.riding():
		x.leave(fromBody)
	default:
		a.endRelay()
	}
}

// endRelay ends what relay has begun, well or not.
func (a *attempt) endRelay() {
	x := a.x
	if a.err == nil && a.trailers() {
		if err := x.down.endAnswer(a.chunked.Trailer(), a.chunked.TrailerBytes()); err != nil {
			a.err = errClientGone
		}
	}
	if a.watcher != nil {
		a.learn()
	}
	if a.err == nil {
		return
	}
	a.reason = a.failure()
	a.stopSender()
	if x.body != nil && x.body.err != nil && a.reason != lb.ReasonUpstreamTimeout && !interruption(a.reason) {
		a.reason = x.body.err.reason // the client broke off sending, so the instance did, too
	}
	x.reason = a.reason
	_ = x.down.flush()
	x.down.abort() // only breaking off tells the client that this is not the end
}

// answerHead writes the head of the answer.
func (a *attempt) answerHead() error {
	x := a.x
	w := x.down.begin(a.resp.Status)
	x.writeAnswerFields(w, a.resp, a.head)
	kind := a.resp.Body
	if kind == h1.BodyChunked && a.resp.Has(h1.Trailer) {
		announceTrailer(w, a.resp.Fields, a.head)
	}
	x.begun = true
	length := a.resp.ContentLength
	if a.resp.Status == http.StatusNoContent {
		length = -1 // RFC 9110 section 8.6; WSGI servers send a 0
	}
	return x.down.endHead(kind, length)
}

// relayBody passes the body on, what was held of it first.
func (a *attempt) relayBody(err error) {
	if a.err == nil {
		a.err = err
	}
	if a.err != nil && len(a.held) == 0 {
		return
	}
	a.phase = phaseBody
	fault := a.err // of what comes behind what is held
	a.err = nil
	if held := a.held; len(held) > 0 {
		a.held = nil
		a.err = a.pass(held, a.over && fault == nil)
	} else if a.over {
		a.complete()
		if err := a.x.down.endAnswer(nil, nil); err != nil {
			a.err = errClientGone
		}
		return
	}
	if a.err == nil {
		a.err = fault
	}
	for a.r < a.n && !a.over && a.err == nil {
		a.consumeBody()
	}
	if !a.over && a.err == nil {
		a.wait()
	}
}

// saw notes what a piece of the answer brought.
func (a *attempt) saw(seen dify.Seen) {
	if seen&dify.SawFirst != 0 && a.stream {
		a.firstByte = time.Since(a.start) // of a stream, the first event that is not a ping
	}
	if seen&dify.SawIDs == 0 {
		return
	}
	app, p := a.x.app.app, a.x.p
	if !a.stream && app.Worlds <= 1 && !p.opts.FilesRoute {
		return
	}
	ids := a.watcher.IDs()
	if a.stream { // what a blocking call ran has ended
		p.tasks.learn(app.Decl.Name, stringOf(ids.Task), a.route.Decl.Name, a.x.now)
	}
	if app.Worlds > 1 {
		p.conversations.learn(app.Decl.Name, stringOf(ids.Conversation), a.route.Decl.Name, a.x.now)
	}
	if p.opts.FilesRoute {
		p.files.learn("", stringOf(ids.File), originKey(a.route), a.x.now)
	}
}

// learn takes from a finished answer what it said about itself.
func (a *attempt) learn() {
	x, w := a.x, a.watcher
	defer func() {
		watchers.Put(w)
		a.watcher = nil
	}()
	a.saw(w.Close())
	x.events = uint64(w.Events())
	if u, ok := w.Usage(); ok {
		a.in.stats.AddUsage(x.shard, x.label, usageOf(&u))
	}
	if code, bad := w.StreamError(); bad {
		a.reason, x.reason = lb.ReasonStreamError, lb.ReasonStreamError
		x.p.log.Debug().Str("request_id", x.id).Str("code", code).Msg("error event in stream")
	} else if dify.ProviderFault(a.status, w.ErrorCode()) {
		a.reason, x.reason = lb.ReasonProviderError, lb.ReasonProviderError
	}
}

// usageOf brings what an answer has cost into the form that is counted.
func usageOf(u *dify.Usage) stats.Usage {
	out := stats.Usage{Prompt: uint64(u.Prompt), Completion: uint64(u.Completion), Total: uint64(u.Total), Answers: 1, Unpriced: uint64(u.Unpriced)}
	for _, c := range u.Costs() {
		out.AddCost(stats.Cost{Currency: c.Currency, Nano: uint64(c.Nano)})
	}
	return out
}
