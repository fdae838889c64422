package proxy

import (
	"bytes"
	"context"
	"errors"
	"io"
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
	last := refuse(lb.ReasonNoInstance, "no instance of the application may take the request now")
	for i := x.choose(x.start); i >= 0; i = x.choose(time.Now()) {
		ref, again := x.attempt(i)
		if !again {
			return ref
		}
		if ref != nil {
			last = ref
		}
		if x.body != nil && !x.body.replayable() {
			return last
		}
	}
	return last
}

// attempt sends the request to instance i. again: another instance may be
// tried; ref is then what to answer if there is none.
func (x *exchange) attempt(i int) (ref *refusal, again bool) {
	in := x.app.instances[i]
	if ref := x.enter(in); ref != nil {
		return ref, false
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
	if a.reason != lb.ReasonOK {
		// Its answer is worth more than one of ours, but for a 401, which the
		// user would take for his own.
		if x.mayRetry(a.reason, resp.StatusCode, time.Now()) && (x.body == nil || x.body.replayable()) && x.choose(time.Now()) >= 0 {
			return nil, true
		}
		if a.reason == lb.ReasonTokenRejected {
			return refuse(a.reason, failureMessage(a.reason)), false
		}
	}
	if resp.StatusCode == http.StatusSwitchingProtocols {
		return a.tunnel(resp), false
	}
	return a.relay(resp), false
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
	return refuse(lb.ReasonClientGone, "")
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
	watch  *time.Timer // cancels when nothing moves for timeouts.read
	reader *bodyReader

	reason    lb.Reason
	status    int
	firstByte time.Duration
	stream    bool
}

// end accounts for the attempt, whatever became of it.
func (a *attempt) end() {
	if a.watch != nil {
		a.watch.Stop()
	}
	if a.cancel != nil {
		a.cancel(nil)
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
func (a *attempt) failed(reason lb.Reason) (*refusal, bool) {
	x := a.x
	a.reason = reason
	if x.body != nil {
		if fault := x.body.fault(); fault != nil { // the client's doing, not the instance's
			a.reason = fault.reason
			return x.bodyRefusal(fault), false
		}
	}
	if reason == lb.ReasonClientGone {
		return refuse(reason, ""), false
	}
	ref := refuse(reason, failureMessage(reason))
	return ref, x.mayRetry(reason, 0, time.Now())
}

// send writes the request and waits for the head of the answer. A nil response
// comes with the reason.
func (a *attempt) send() (*http.Response, lb.Reason) {
	x, app := a.x, a.x.app.app.Decl
	a.in.upstream.connect.Store(int64(app.Timeouts.Connect))
	ctx, cancel := context.WithCancelCause(x.r.Context())
	a.cancel = cancel
	read := app.Timeouts.Read.D()
	a.watch = time.AfterFunc(app.Timeouts.Connect.D()+read, func() { cancel(errUpstreamTimeout) })

	var connected atomic.Bool
	informational := &informational{x: x}
	a.ctx = httptrace.WithClientTrace(ctx, &httptrace.ClientTrace{
		GotConn:        func(httptrace.GotConnInfo) { connected.Store(true); a.watch.Reset(read) },
		Got1xxResponse: informational.forward,
	})
	req := a.request(read)
	resp, err := a.in.upstream.transport.RoundTrip(req)
	informational.done()
	if err != nil {
		if a.reader != nil {
			a.reader.Close() // the transport may still be at it
		}
		return nil, failure(ctx, err, connected.Load())
	}
	a.watch.Reset(read)
	return resp, lb.ReasonOK
}

func (a *attempt) request(read time.Duration) *http.Request {
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
	if x.body != nil {
		a.reader = x.body.reader()
		req.Body = progressReader{a.reader, func() { a.watch.Reset(read) }}
		req.ContentLength = x.body.length()
		if len(x.r.Trailer) > 0 {
			req.Trailer = x.r.Trailer // filled in when the body has been read
		}
	}
	return req.WithContext(a.ctx)
}

// progressReader tells of every piece, so that a slow upload is not taken for
// a silent instance.
type progressReader struct {
	*bodyReader
	progress func()
}

func (r progressReader) Read(p []byte) (int, error) {
	n, err := r.bodyReader.Read(p)
	r.progress()
	return n, err
}

// informational passes 1xx answers on. They come from the transport's
// goroutine, and not after the final answer.
type informational struct {
	x     *exchange
	mu    sync.Mutex
	ended bool
}

func (f *informational) forward(code int, header textproto.MIMEHeader) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	// 100 was for us, 101 is the final answer to an upgrade.
	if f.ended || code == http.StatusContinue || code == http.StatusSwitchingProtocols {
		return nil
	}
	h := f.x.w.Header()
	fields := http.Header(header)
	removeHopByHop(fields)
	for k, vv := range fields {
		h[k] = vv
	}
	f.x.w.WriteHeader(code)
	clear(h)
	return nil
}

func (f *informational) done() {
	f.mu.Lock()
	f.ended = true
	f.mu.Unlock()
}

// errorBound is how much of an error answer is looked at.
const errorBound = 4 << 10

// busy reports whether a 429 is Dify's own concurrency cap, which says that
// nothing was started. It reads the beginning of the body and puts it back.
func (a *attempt) busy(resp *http.Response) bool {
	if resp.Header.Get("Content-Encoding") != "" {
		return false
	}
	head, err := io.ReadAll(io.LimitReader(resp.Body, errorBound))
	resp.Body = putBack{io.MultiReader(bytes.NewReader(head), resp.Body), resp.Body}
	return err == nil && dify.Busy(resp.StatusCode, dify.ErrorCode(head))
}

type putBack struct {
	io.Reader
	io.Closer
}

var watchers = sync.Pool{New: func() any { return new(dify.Watcher) }}

// relay passes the answer on as it arrives.
func (a *attempt) relay(resp *http.Response) *refusal {
	x := a.x
	x.answerHeader(x.w.Header(), resp.Header)
	for name := range resp.Trailer {
		x.w.Header().Add("Trailer", name)
	}
	contentType := resp.Header.Get("Content-Type")
	a.stream = strings.HasPrefix(contentType, "text/event-stream")
	if a.stream {
		a.in.stats.StreamBegin(x.shard)
	}
	x.status, x.reason, x.firstByte = resp.StatusCode, a.reason, time.Since(x.start)
	x.w.WriteHeader(resp.StatusCode)
	if a.stream {
		_ = x.rc.Flush() // the head at once, before the first event
	}
	var watcher *dify.Watcher
	if resp.Header.Get("Content-Encoding") == "" {
		watcher = watchers.Get().(*dify.Watcher)
		watcher.Reset(contentType, resp.StatusCode, x.kind)
		defer watchers.Put(watcher)
	}
	err := a.copy(resp, watcher)
	if watcher != nil {
		a.learn(watcher, resp.StatusCode)
	}
	switch {
	case err == nil:
		for name, values := range resp.Trailer {
			x.w.Header()[name] = values
		}
		return nil
	case errors.Is(err, errClientGone):
		a.reason, x.reason = lb.ReasonClientGone, lb.ReasonClientGone
	default:
		a.reason = failure(a.ctx, err, true)
		x.reason = a.reason
	}
	// The head is gone out: only breaking off tells the client that this is
	// not the end. net/http does that when a handler panics with this value.
	panic(http.ErrAbortHandler)
}

// copy moves the body, each piece as soon as it is there.
func (a *attempt) copy(resp *http.Response, watcher *dify.Watcher) error {
	x := a.x
	buf := getBuffer()
	defer putBuffer(buf)
	read := x.app.app.Decl.Timeouts.Read.D()
	write := x.p.opts.Limits.WriteTimeout
	left := resp.ContentLength
	for {
		n, err := resp.Body.Read(*buf)
		if n > 0 {
			a.watch.Reset(read)
			if watcher != nil {
				a.saw(watcher, watcher.Write((*buf)[:n]))
			}
			_ = x.rc.SetWriteDeadline(time.Now().Add(write))
			if _, werr := x.w.Write((*buf)[:n]); werr != nil {
				return errClientGone
			}
			x.bytesOut += int64(n)
			a.in.stats.Flow(x.shard, 0, int64(n))
			// With the last piece of a known length net/http flushes by itself.
			if left -= int64(n); left != 0 && err == nil {
				if ferr := x.rc.Flush(); ferr != nil {
					return errClientGone
				}
			}
		}
		if err == io.EOF {
			_ = x.rc.SetWriteDeadline(time.Time{})
			return nil
		}
		if err != nil {
			if x.r.Context().Err() != nil && !errors.Is(context.Cause(x.r.Context()), errShutdown) {
				return errClientGone
			}
			return err
		}
	}
}

// saw notes what a piece of the answer brought.
func (a *attempt) saw(w *dify.Watcher, seen dify.Seen) {
	if seen&dify.SawFirst != 0 && a.stream {
		a.firstByte = time.Since(a.start) // of a stream, the first event that is not a ping
	}
	if seen&dify.SawIDs != 0 && a.stream {
		if task := w.IDs().Task; task != "" {
			a.x.p.tasks.learn(a.x.app.app.Decl.Name, task, a.route.Decl.Name)
		}
	}
}

// learn takes from a finished answer what it said about itself.
func (a *attempt) learn(w *dify.Watcher, status int) {
	x := a.x
	a.saw(w, w.Close())
	x.events = uint64(w.Events())
	if code, bad := w.StreamError(); bad {
		a.reason, x.reason = lb.ReasonStreamError, lb.ReasonStreamError
		x.p.log.Debug().Str("request_id", x.id).Str("code", code).Msg("error event in stream")
	} else if dify.ProviderFault(status, w.ErrorCode()) {
		a.reason, x.reason = lb.ReasonProviderError, lb.ReasonProviderError
	}
}

// tunnel joins the two connections after the instance agreed to an upgrade.
func (a *attempt) tunnel(resp *http.Response) *refusal {
	x := a.x
	upstream, ok := resp.Body.(io.ReadWriteCloser)
	if !ok || !strings.EqualFold(upgradeOf(resp.Header), upgradeOf(x.r.Header)) || upgradeOf(x.r.Header) == "" {
		a.reason = lb.ReasonUpstreamInvalid
		return refuse(a.reason, "the instance switched to a protocol that was not asked for")
	}
	client, buffered, err := x.rc.Hijack()
	if err != nil {
		a.reason = lb.ReasonInternal
		return refuse(a.reason, "the connection can't be upgraded")
	}
	defer client.Close()
	if x.s != nil {
		defer x.s.tunnel(client)()
	}
	a.watch.Stop() // a tunnel may be silent for as long as both ends like
	_ = client.SetDeadline(time.Time{})
	protocol := resp.Header["Upgrade"]
	x.answerHeader(http.Header{}, resp.Header) // removes what is not to be passed on
	resp.Header.Set("Connection", "Upgrade")
	resp.Header["Upgrade"] = protocol
	resp.Header.Set("X-Request-Id", x.id)
	x.status, x.upgraded, x.firstByte = resp.StatusCode, true, time.Since(x.start)
	head := &http.Response{StatusCode: resp.StatusCode, ProtoMajor: 1, ProtoMinor: 1, Header: resp.Header}
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
