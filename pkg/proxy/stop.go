package proxy

import (
	"bytes"
	"context"
	"io"
	"slices"
	"time"

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
			if ref, next := x.attempt(i); next == none {
				return ref, true
			}
		}
	}
	own := x.choose(time.Now())
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
		ref, own = x.attempt(own)
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
	if x.body == nil || x.body.whole() {
		return true
	}
	if n := x.body.length(); n < 0 || n > memoryBound {
		return false
	}
	r := x.body.reader()
	_, err := io.Copy(io.Discard, io.LimitReader(r, memoryBound+1))
	r.Close()
	return err == nil && x.body.replayable() && x.body.length() <= memoryBound
}

// stopBeside asks one further instance, and counts the attempt there. It does
// not wait: the client's answer comes from his own instance, and a stop once
// asked for is delivered even when the client has gone.
func (x *exchange) stopBeside(i int) {
	in := x.app.instances[i]
	ctx, cancel := context.WithTimeout(context.WithoutCancel(x.r.Context()), stopTimeout)
	a := &attempt{x: x, i: i, in: in, route: &x.app.app.Instances[i], ctx: ctx}
	req := a.head()
	if x.body != nil {
		mem := x.body.bytes()
		req.Body, req.ContentLength = io.NopCloser(bytes.NewReader(mem)), int64(len(mem))
	}
	in.gate.Force()
	in.stats.Begin(x.shard)
	x.s.requests.add(1)
	go func() { // ends within stopTimeout; Server.Shutdown waits for it
		defer x.s.requests.add(-1)
		defer cancel()
		defer in.gate.Release()
		start := time.Now()
		sample := stats.Sample{Reason: lb.ReasonConnectFailed}
		if resp, err := in.upstream.transport.RoundTrip(req); err == nil {
			_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, errorBound))
			resp.Body.Close()
			sample.Reason = judge(resp.StatusCode)
		}
		sample.Latency = time.Since(start)
		in.stats.End(x.shard, sample)
	}()
}
