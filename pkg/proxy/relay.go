package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
	"maps"
	"net/http"
	"net/http/httptrace"
	"net/textproto"
	"net/url"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"difylb/pkg/dify"
	"difylb/pkg/lb"
	"difylb/pkg/limit"
	"difylb/pkg/route"
	"difylb/pkg/stats"
)

// forward tries instances until one answers, and relays its answer.
func (x *exchange) forward() *refusal {
	if x.kind.Stop {
		if ref, done := x.forwardStop(); done {
			return ref
		}
	}
	ref := refuse(lb.ReasonNoInstance, "no instance of the application may take the request now")
	for i := x.begin(); i >= 0; {
		ref, i = x.attempt(i)
	}
	return ref
}

// none stands for the index of an instance where there is none.
const none = -1

// attempt sends the request to instance i. It returns the refusal to answer
// with, nil when the answer was relayed, or else the instance to try next.
func (x *exchange) attempt(i int) (ref *refusal, next int) {
	in := x.app.instances[i]
	if ref := x.enter(in); ref != nil {
		if x.search.kept != nil {
			x.answerKept() // nobody who could be asked knows better
			return nil, none
		}
		return ref, none
	}
	x.try(i)
	a := &attempt{x: x, i: i, in: in, route: &x.app.app.Instances[i], start: time.Now(), retry: x.attempts > 1}
	in.stats.Begin(x.shard)
	defer a.end()
	resp, reason := a.send()
	if resp == nil {
		return a.failed(reason)
	}
	defer resp.Body.Close()
	a.status = resp.StatusCode
	a.firstByte = time.Since(a.start)
	a.reason = judge(resp.StatusCode)
	if resp.StatusCode == http.StatusTooManyRequests && a.busy(resp) {
		a.reason = lb.ReasonBusy
	}
	if next, answered := a.lookElsewhere(resp); answered || next >= 0 {
		return nil, next
	}
	if a.reason != lb.ReasonOK {
		if next := x.next(i, a.reason, resp.StatusCode); next >= 0 {
			return nil, next
		}
		// Its answer is worth more than one of ours, but for a 401, which the
		// user would take for his own.
		if a.reason == lb.ReasonTokenRejected {
			return refuse(a.reason, failureMessage(a.reason)), none
		}
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return a.tunnel(resp), none
	}
	a.relay(resp)
	return nil, none
}

// next returns the instance to try after an attempt at instance i that ended
// for that reason, none when that was the last. An instance on trial admits one
// request at a time, so what is chosen here is to be tried.
func (x *exchange) next(i int, reason lb.Reason, status int) int {
	now := time.Now()
	if !x.mayRetry(reason, status, now) || (x.body != nil && !x.body.replayable()) {
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
	err := in.gate.Acquire(x.r.Context(), x.user, x.app.app.Decl.Queue.Timeout.D())
	switch {
	case err == nil:
		return nil
	case errors.Is(err, limit.ErrQueueFull):
		return refuse(lb.ReasonQueueFull, "the user's instance is busy and its queue is full")
	case errors.Is(err, limit.ErrQueueTimeout):
		return refuse(lb.ReasonQueueTimeout, "the user's instance was busy for too long")
	}
	return refuse(x.interrupted(), failureMessage(lb.ReasonShutdown))
}

// attempt is one request to one instance.
type attempt struct {
	x     *exchange
	i     int
	in    *instanceState
	route *route.Instance
	start time.Time
	retry bool

	ctx    context.Context
	cancel context.CancelCauseFunc
	watch  *watchdog // cancels when nothing moves
	reader *bodyReader

	reason    lb.Reason
	status    int
	firstByte time.Duration
	stream    bool
}

// end accounts for the attempt, whatever became of it.
func (a *attempt) end() {
	a.watch.stop()
	a.cancel(nil)
	if a.reader != nil {
		a.reader.Close() // the transport may still be at it
	}
	now := time.Now()
	a.in.stats.End(a.x.shard, stats.Sample{
		Reason: a.reason, Retry: a.retry, Stream: a.stream,
		Latency: now.Sub(a.start), FirstByte: a.firstByte,
	})
	a.in.gate.Release()
	a.x.observe(a.i, a.reason, a.status, now)
}

// failed decides what follows an attempt without an answer.
func (a *attempt) failed(reason lb.Reason) (*refusal, int) {
	x := a.x
	a.reason = reason
	if x.body != nil && reason != lb.ReasonConnectFailed {
		if fault := x.body.fault(); fault != nil { // the client's doing, not the instance's
			a.reason = fault.reason
			return x.bodyRefusal(fault), none
		}
	}
	if x.search.kept != nil && !interruption(reason) {
		next, answered := a.elsewhere()
		if answered {
			return nil, none
		}
		return nil, next
	}
	return refuse(reason, failureMessage(reason)), x.next(a.i, reason, 0)
}

// interruption reports reasons that end the call, not just an attempt.
func interruption(reason lb.Reason) bool {
	return reason == lb.ReasonClientGone || reason == lb.ReasonShutdown
}

// send writes the request and waits for the head of the answer. A nil response
// comes with the reason.
func (a *attempt) send() (*http.Response, lb.Reason) {
	x, timeouts := a.x, &a.x.app.app.Decl.Timeouts
	a.in.upstream.connect.Store(int64(timeouts.Connect))
	ctx, cancel := context.WithCancelCause(x.r.Context())
	a.cancel = cancel
	a.watch = newWatchdog(timeouts.Connect.D()+timeouts.Read.D(), func() { cancel(errUpstreamTimeout) })

	var connected atomic.Bool
	var conn atomic.Pointer[upstreamConn]
	var use atomic.Uint64 // of conn
	informational := &informational{x: x}
	a.ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn: func(info httptrace.GotConnInfo) {
			c := upstreamConnOf(info.Conn)
			use.Store(c.begin(info.Reused, info.IdleTime))
			conn.Store(c)
			connected.Store(true)
			a.watch.expect(timeouts.Read.D())
		},
		PutIdleConn: func(err error) {
			if c := conn.Load(); c != nil && err == nil {
				c.end(use.Load())
			}
		},
		Got1xxResponse: informational.forward,
	})
	resp, err := a.in.upstream.transport.RoundTrip(a.request())
	for err != nil && ctx.Err() == nil && conn.Load().unwritten() && (x.body == nil || x.body.replayable()) {
		// An idle connection that the instance had closed: this was no attempt.
		conn.Store(nil)
		connected.Store(false)
		if a.reader != nil {
			a.reader.Close()
		}
		resp, err = a.in.upstream.transport.RoundTrip(a.request())
	}
	informational.done()
	if err != nil {
		return nil, failure(ctx, err, connected.Load())
	}
	a.watch.expect(timeouts.Read.D())
	return resp, lb.ReasonOK
}

func (a *attempt) request() *http.Request {
	req := a.head()
	if a.x.body != nil {
		a.addBody(req)
	}
	return req
}

// head returns the request without a body.
func (a *attempt) head() *http.Request {
	x := a.x
	scheme := "http"
	if a.route.TLS {
		scheme = "https"
	}
	req := &http.Request{
		Method: x.method,
		// Opaque keeps the path byte for byte.
		URL:    &url.URL{Scheme: scheme, Host: a.route.Host, Opaque: x.path, RawQuery: x.query, ForceQuery: x.query == "" && strings.HasSuffix(x.r.RequestURI, "?")},
		Header: x.upstreamHeader(a.route),
		Host:   a.route.Host,
		Proto:  "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
	}
	if a.route.PreserveHost {
		req.Host = x.r.Host
	}
	return req.WithContext(a.ctx)
}

// addBody gives the request the client's body.
func (a *attempt) addBody(req *http.Request) {
	x := a.x
	req.ContentLength = x.body.length()
	var trailer http.Header
	if len(x.r.Trailer) > 0 {
		req.ContentLength = -1 // only a chunked body has trailers
		trailer = make(http.Header)
		for name := range x.r.Trailer {
			if trailerAllowed(name) {
				trailer[name] = nil
			}
		}
		req.Trailer = trailer
	}
	a.reader = x.body.reader()
	req.Body = &uploadReader{bodyReader: a.reader, a: a, trailer: trailer}
}

// uploadReader tells the watchdog whom it waits for: the client while it is
// being read, which has a time limit of its own, else the instance that is to
// take what was read.
type uploadReader struct {
	*bodyReader
	a       *attempt
	trailer http.Header // filled in at the end; nil for none
}

func (r *uploadReader) Read(p []byte) (int, error) {
	r.a.watch.pause()
	n, err := r.bodyReader.Read(p)
	timeouts := &r.a.x.app.app.Decl.Timeouts
	if err == nil {
		r.a.watch.expect(timeouts.Send.D())
		return n, nil
	}
	r.a.watch.expect(timeouts.Read.D())
	if err == io.EOF && r.trailer != nil {
		for name := range r.trailer {
			r.trailer[name] = r.a.x.r.Trailer[name]
		}
	}
	return n, err
}

// watchdog calls a function when nothing has happened for as long as it was
// told to expect. Safe for concurrent use.
type watchdog struct {
	mu      sync.Mutex // guards timer against a late expect
	timer   *time.Timer
	stopped bool
}

func newWatchdog(d time.Duration, bark func()) *watchdog {
	return &watchdog{timer: time.AfterFunc(d, bark)}
}

// expect begins to wait anew.
func (w *watchdog) expect(d time.Duration) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.stopped {
		w.timer.Reset(d)
	}
}

// pause stops waiting until the next expect.
func (w *watchdog) pause() { w.timer.Stop() }

// stop stops waiting for good.
func (w *watchdog) stop() {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.stopped = true
	w.timer.Stop()
}

// informational passes 1xx answers on. They come from the transport's
// goroutine, and not after the final answer.
type informational struct {
	x     *exchange
	mu    sync.Mutex // guards the fields below, and x.w before the final answer
	ended bool
	count int
}

func (f *informational) forward(code int, header textproto.MIMEHeader) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	// 100 was for us, 101 is the final answer to an upgrade, and HTTP/1.0 knows
	// none (RFC 9110 section 15.2).
	if f.ended || code == http.StatusContinue || code == http.StatusSwitchingProtocols || !f.x.r.ProtoAtLeast(1, 1) {
		return nil
	}
	if f.count++; f.count > maxInformational {
		return errTooManyInformational
	}
	fields := http.Header(header)
	removeHopByHop(fields)
	fields.Del("Authorization")
	h := f.x.w.Header()
	ours := h.Clone()
	maps.Copy(h, fields)
	f.x.begun = true
	f.x.beforeWrite()
	f.x.w.WriteHeader(code)
	f.x.afterWrite()
	clear(h)
	maps.Copy(h, ours)
	return nil
}

// maxInformational is how many interim answers an instance may send.
const maxInformational = 8

var errTooManyInformational = errors.New("too many 1xx answers")

func (f *informational) done() {
	f.mu.Lock()
	f.ended = true
	f.mu.Unlock()
}

// errorBound is how much of an error answer is looked at.
const errorBound = 4 << 10

// busy reports whether a 429 is Dify's own concurrency cap, which says that
// nothing was started.
func (a *attempt) busy(resp *http.Response) bool {
	return dify.Busy(resp.StatusCode, a.code(resp))
}

// code returns the code of an error answer, "" if it has none that can be
// read. It reads the beginning of the body and puts it back.
func (a *attempt) code(resp *http.Response) string {
	if resp.Header.Get("Content-Encoding") != "" {
		return ""
	}
	head, err := io.ReadAll(io.LimitReader(resp.Body, errorBound))
	resp.Body = putBack{io.MultiReader(bytes.NewReader(head), resp.Body), resp.Body}
	if err != nil {
		return ""
	}
	return dify.ErrorCode(head)
}

type putBack struct {
	io.Reader
	io.Closer
}

var watchers = sync.Pool{New: func() any { return new(dify.Watcher) }}

// relay passes the answer on as it arrives.
func (a *attempt) relay(resp *http.Response) {
	x := a.x
	contentType := resp.Header.Get("Content-Type")
	a.stream = strings.HasPrefix(contentType, "text/event-stream")
	if a.stream {
		a.in.stats.StreamBegin(x.shard)
	}
	x.status, x.reason, x.firstByte = resp.StatusCode, a.reason, time.Since(x.start)
	var watcher *dify.Watcher
	if resp.Header.Get("Content-Encoding") == "" {
		watcher = watchers.Get().(*dify.Watcher)
		watcher.Reset(contentType, resp.StatusCode, x.kind)
		defer watchers.Put(watcher)
	}
	a.answerHead(resp)
	err := a.copy(resp, watcher)
	if watcher != nil {
		a.learn(watcher, resp.StatusCode)
	}
	switch {
	case err == nil:
		a.answerTrailer(resp)
		return
	case errors.Is(err, errClientGone):
		a.reason = lb.ReasonClientGone
	default:
		a.reason = failure(a.ctx, err, true)
		if x.body != nil {
			if fault := x.body.fault(); fault != nil && a.reason != lb.ReasonUpstreamTimeout {
				a.reason = fault.reason // the client broke off sending, so the instance did, too
			}
		}
	}
	x.reason = a.reason
	// The head is gone out: only breaking off tells the client that this is
	// not the end. net/http does that when a handler panics with this value.
	panic(http.ErrAbortHandler)
}

func (a *attempt) answerHead(resp *http.Response) {
	x := a.x
	h := x.w.Header()
	x.answerHeader(h, resp.Header)
	if _, ok := h["Content-Type"]; !ok {
		h["Content-Type"] = nil // keeps net/http from guessing one
	}
	for name := range resp.Trailer {
		if trailerAllowed(name) {
			h.Add("Trailer", name)
		}
	}
	x.begun = true
	x.beforeWrite()
	x.w.WriteHeader(resp.StatusCode)
}

func (a *attempt) answerTrailer(resp *http.Response) {
	for name, values := range resp.Trailer {
		if trailerAllowed(name) {
			a.x.w.Header()[http.TrailerPrefix+name] = values
		}
	}
}

// headDelay is how long the head of an answer waits for the first bytes of the
// body, to go out in one packet with them.
const headDelay = 2 * time.Millisecond

// flushHead sends the head of an answer whose body lets itself be waited for:
// at once if it is a stream. The returned function is due when the body has
// begun, and before anything else is written.
func (a *attempt) flushHead(resp *http.Response) (begun func()) {
	x := a.x
	if a.stream {
		_ = x.rc.Flush()
		x.afterWrite()
		return func() {}
	}
	if resp.ContentLength == 0 || resp.Body == http.NoBody {
		return func() {}
	}
	var mu sync.Mutex
	over := false
	timer := time.AfterFunc(headDelay, func() {
		mu.Lock()
		defer mu.Unlock()
		if !over {
			_ = x.rc.Flush()
			x.afterWrite()
		}
	})
	return func() {
		if !timer.Stop() {
			mu.Lock() // it may be at it
			defer mu.Unlock()
			over = true
		}
	}
}

// copy moves the body, each piece as soon as it is there.
func (a *attempt) copy(resp *http.Response, watcher *dify.Watcher) error {
	x := a.x
	pool := &bufferPool
	if a.stream {
		pool = &eventPool
	}
	buf := pool.Get().(*[]byte)
	defer pool.Put(buf)
	begun := a.flushHead(resp)
	read := x.app.app.Decl.Timeouts.Read.D()
	left := resp.ContentLength
	for first := true; ; first = false {
		n, err := resp.Body.Read(*buf)
		if first {
			begun()
		}
		if n > 0 {
			a.watch.expect(read)
			if watcher != nil {
				a.saw(watcher, watcher.Write((*buf)[:n]))
			}
			// With the last piece of a known length net/http flushes by itself.
			left -= int64(n)
			if werr := a.pass((*buf)[:n], left != 0 && err != io.EOF); werr != nil {
				return werr
			}
		}
		if err == io.EOF {
			x.beforeWrite() // for what net/http still holds
			return nil
		}
		if err != nil {
			if x.r.Context().Err() != nil && x.interrupted() == lb.ReasonClientGone {
				return errClientGone
			}
			return err
		}
	}
}

// pass writes a piece of the answer to the client.
func (a *attempt) pass(p []byte, more bool) error {
	x := a.x
	x.beforeWrite()
	if _, err := x.w.Write(p); err != nil {
		return errClientGone
	}
	x.bytesOut += int64(len(p))
	a.in.stats.Flow(x.shard, 0, int64(len(p)))
	if !more {
		return nil
	}
	if err := x.rc.Flush(); err != nil {
		return errClientGone
	}
	x.afterWrite()
	return nil
}

// saw notes what a piece of the answer brought.
func (a *attempt) saw(w *dify.Watcher, seen dify.Seen) {
	if seen&dify.SawFirst != 0 && a.stream {
		a.firstByte = time.Since(a.start) // of a stream, the first event that is not a ping
	}
	if seen&dify.SawIDs == 0 {
		return
	}
	ids, app, p := w.IDs(), a.x.app.app, a.x.p
	if a.stream { // what a blocking call ran has ended
		p.tasks.learn(app.Decl.Name, ids.Task, a.route.Decl.Name)
	}
	if app.Worlds > 1 {
		p.conversations.learn(app.Decl.Name, ids.Conversation, a.route.Decl.Name)
	}
	if p.opts.FilesRoute {
		p.files.learn("", ids.File, originKey(a.route))
	}
}

// learn takes from a finished answer what it said about itself.
func (a *attempt) learn(w *dify.Watcher, status int) {
	x := a.x
	a.saw(w, w.Close())
	x.events = uint64(w.Events())
	if u, ok := w.Usage(); ok {
		a.in.stats.AddUsage(x.shard, x.label, usageOf(&u))
	}
	if code, bad := w.StreamError(); bad {
		a.reason, x.reason = lb.ReasonStreamError, lb.ReasonStreamError
		x.p.log.Debug().Str("request_id", x.id).Str("code", code).Msg("error event in stream")
	} else if dify.ProviderFault(status, w.ErrorCode()) {
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

// tunnel joins the two connections after the instance agreed to an upgrade.
func (a *attempt) tunnel(resp *http.Response) *refusal {
	x := a.x
	upstream, ok := resp.Body.(io.ReadWriteCloser)
	protocol := upgradeOf(resp.Header)
	if !ok || !offered(x.base["Upgrade"], protocol) {
		a.reason = lb.ReasonUpstreamInvalid
		return refuse(a.reason, "the instance switched to a protocol that was not asked for")
	}
	client, buffered, err := x.rc.Hijack()
	if err != nil {
		a.reason = lb.ReasonInternal
		return refuse(a.reason, "the connection can't be upgraded")
	}
	defer client.Close()
	defer x.s.tunnel(client)()
	a.watch.stop() // a tunnel may be silent for as long as both ends like
	_ = client.SetDeadline(time.Time{})
	h := make(http.Header)
	x.answerHeader(h, resp.Header)
	h.Set("Connection", "Upgrade")
	h.Set("Upgrade", protocol)
	x.status, x.reason, x.upgraded, x.firstByte = resp.StatusCode, lb.ReasonOK, true, time.Since(x.start)
	head := &http.Response{StatusCode: resp.StatusCode, ProtoMajor: 1, ProtoMinor: 1, Header: h}
	if err := head.Write(client); err != nil {
		a.reason, x.reason = lb.ReasonClientGone, lb.ReasonClientGone
		return nil
	}
	in, out := pipe(client, buffered.Reader, upstream)
	x.bytesIn, x.bytesOut = in, out
	a.in.stats.Flow(x.shard, in, out)
	return nil
}

// pipe copies both ways until one of them ends, then closes both and waits.
func pipe(client io.ReadWriteCloser, fromClient io.Reader, upstream io.ReadWriteCloser) (in, out int64) {
	var wg sync.WaitGroup
	var once sync.Once
	closeBoth := func() { once.Do(func() { client.Close(); upstream.Close() }) }
	move := func(dst io.Writer, src io.Reader, n *int64) {
		defer wg.Done()
		defer closeBoth()
		buf := getBuffer()
		defer putBuffer(buf)
		*n, _ = io.CopyBuffer(struct{ io.Writer }{dst}, struct{ io.Reader }{src}, *buf)
	}
	wg.Add(2)
	go move(upstream, fromClient, &in)
	go move(client, upstream, &out)
	wg.Wait()
	return in, out
}
