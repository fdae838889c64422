package proxy

import (
	"context"
	"io"
	"slices"
	"time"

	"difylb/pkg/h1"
	"difylb/pkg/lb"
	"difylb/pkg/stats"
)

// stopTimeout bounds how long the answer to a stop waits for instances that
// were only asked to be sure.
const stopTimeout = 5 * time.Second

// taskLifetime is how long a task's instance is remembered. Dify forgets who
// owns a task after 30 minutes.
const taskLifetime = 30 * time.Minute

// forwardStop stops a task where it runs. Dify answers success to every stop,
// also where nothing was stopped, so a stop that went astray can't be noticed.
// Where the instance is known the stop goes there and nowhere else; where it is
// not, to every instance that may hold the task, each with its own token. done
// is false when no instance may take it. A body that can't be sent several
// times goes to the user's own instance only.
func (x *exchange) forwardStop() (ref *refusal, done bool) {
	if name, ok := x.p.tasks.find(x.app.app.Decl.Name, x.kind.TaskID); ok {
		if i := x.app.app.Index(name); i >= 0 && x.app.app.Instances[i].Decl.State != lb.Disabled {
			if ref, next := x.try(i); next == none {
				return ref, true
			}
		}
	}
	own := x.choose(x.now)
	others := x.stopCandidates(own)
	if own < 0 && len(others) > 0 { // only draining ones are left
		own, others = others[0], others[1:]
	}
	if len(others) > 0 && x.keepWhole() {
		for _, i := range others {
			x.stopBeside(i)
		}
	}
	if own < 0 {
		return nil, false
	}
	for own >= 0 {
		ref, own = x.try(own)
	}
	return ref, true
}

// stopCandidates lists the instances beside the user's own that may hold the
// task: one of each domain, because what shares Redis shares its tasks.
func (x *exchange) stopCandidates(own int) []int {
	app := x.app.app
	domains := make(map[string]bool)
	if own >= 0 {
		domains[app.Instances[own].Decl.Domain] = true
	}
	var out []int
	for i := range app.Instances {
		decl := app.Instances[i].Decl
		if i == own || slices.Contains(x.tried, i) || decl.State == lb.Disabled || (decl.Domain != "" && domains[decl.Domain]) {
			continue
		}
		domains[decl.Domain] = true
		out = append(out, i)
	}
	return out
}

// keepWhole reads the body to its end, if it is known to fit into memory, and
// reports whether all of it is kept.
func (x *exchange) keepWhole() bool {
	b := x.body
	if b == nil || b.whole() {
		return b == nil || b.inMemory()
	}
	if n := b.length(); n < 0 || n > memoryBound || !b.replayable() || b.file != nil {
		return false
	}
	buf := getBuffer()
	defer putBuffer(buf)
	for {
		_, err := b.next(*buf, b.read)
		if err == io.EOF {
			return b.inMemory()
		}
		if err != nil {
			return false
		}
	}
}

// stopBeside asks one further instance, and counts the attempt there. It does
// not wait: the client's answer comes from his own instance, and a stop once
// asked for is delivered even when the client has gone.
func (x *exchange) stopBeside(i int) {
	in, to, shard, s := x.app.instances[i], &x.app.app.Instances[i], x.shard, x.s
	q := request{method: x.req.Method, limits: &s.heads, timeout: stopTimeout}
	h := h1.Head{}
	x.appendRequestHead(&h, &target{host: to.Host, authorization: to.Authorization.Reveal(), app: x.app.app.Decl.Name, instance: to.Decl.Name})
	if x.body != nil {
		h.FieldInt("Content-Length", int64(len(x.body.mem)))
	} else if x.req.Body == h1.BodyLength {
		h.FieldInt("Content-Length", 0)
	}
	h.End()
	if h.Err != nil {
		return
	}
	if q.bytes = h.Buf; x.body != nil {
		q.bytes = append(q.bytes, x.body.mem...)
	}
	in.gate.Force()
	in.stats.Begin(shard)
	s.requests.add(1)
	go func() { // ends within stopTimeout; Server.Shutdown waits for it
		defer s.requests.add(-1)
		defer in.gate.Release()
		start := time.Now()
		sample := stats.Sample{Reason: lb.ReasonConnectFailed}
		if status, err := in.upstream.roundTrip(&q); err == nil {
			sample.Reason = judge(status)
		}
		sample.Latency = time.Since(start)
		in.stats.End(shard, sample)
	}()
}

// request is a request that is known whole, and of whose answer only the
// status is of interest.
type request struct {
	bytes   []byte
	method  h1.Method
	limits  *h1.Limits
	timeout time.Duration

	conn *instanceConn
	buf  []byte
	n    int
	resp h1.Response
	err  error
}

// roundTrip sends it on a connection of its own and returns the status of the
// answer. It blocks, for as long as the request's timeout at most.
func (u *upstream) roundTrip(q *request) (status int, err error) {
	ctx, cancel := context.WithTimeout(context.Background(), q.timeout)
	defer cancel()
	until := monotonic() + int64(q.timeout)
	if q.conn, err = u.dial(ctx, 0); err != nil {
		return 0, err
	}
	defer q.conn.close()
	if _, err := q.conn.write(q.bytes, q.timeout); err != nil {
		return 0, err
	}
	q.buf = make([]byte, 4<<10)
	q.conn.expectAt(until)
	if err := q.conn.await(q); err != nil {
		return 0, err
	}
	return q.resp.Status, q.err
}

func (q *request) ready() bool {
	for {
		if q.n == len(q.buf) {
			q.buf = append(q.buf, make([]byte, len(q.buf))...) // the limit of heads bounds it
		}
		n, err := q.conn.read(q.buf[q.n:])
		if err == errAgain {
			return false
		}
		if q.err = err; err != nil {
			return true
		}
		q.n += n
		for {
			size, err := q.resp.Parse(q.buf[:q.n], q.method, q.limits)
			if err == h1.ErrIncomplete {
				break
			}
			if q.err = err; err != nil || !q.resp.Interim() {
				return true
			}
			q.n = copy(q.buf, q.buf[size:q.n])
			q.resp.Reset()
		}
	}
}

func (q *request) woken() error {
	if q.conn.expired() {
		return errUpstreamTimeout
	}
	return nil
}
