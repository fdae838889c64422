package proxy

import (
	"bytes"
	"context"
	"io"
	"net/http"
	"sync"
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/stats"
)

// stopTimeout bounds how long the answer to a stop waits for instances that
// were only asked to be sure.
const stopTimeout = 5 * time.Second

// forwardStop stops a task where it runs. Dify answers success to every stop,
// also where nothing was stopped, so a stop that went astray can't be noticed.
// Where the instance is known the stop goes there and nowhere else; where it is
// not, to every instance that may hold the task, each with its own token. done
// is false when the call is to be routed like any other: one candidate only,
// or a body that can't be sent several times.
func (x *exchange) forwardStop() (ref *refusal, done bool) {
	if name, ok := x.p.tasks.find(x.app.app.Decl.Name, x.kind.TaskID); ok {
		if i := x.app.app.Index(name); i >= 0 && x.app.app.Instances[i].Decl.State != lb.Disabled {
			ref, again := x.attempt(i)
			if !again {
				return ref, true
			}
		}
	}
	others := x.stopCandidates()
	if len(others) == 0 || !x.keepWhole() {
		return nil, false
	}
	ctx, cancel := context.WithTimeout(x.r.Context(), stopTimeout)
	defer cancel()
	var wg sync.WaitGroup
	defer wg.Wait() // before the body is let go
	for _, i := range others {
		wg.Add(1)
		go func() {
			defer wg.Done()
			x.stopAt(ctx, i)
		}()
	}
	return nil, false
}

// stopCandidates lists the instances beside the user's own that may hold the
// task: one of each domain, because what shares Redis shares its tasks.
func (x *exchange) stopCandidates() []int {
	app := x.app.app
	domains := make(map[string]bool)
	own := x.choose(time.Now())
	if own >= 0 {
		domains[app.Instances[own].Decl.Domain] = true
	}
	var out []int
	for i := range app.Instances {
		decl := app.Instances[i].Decl
		if i == own || decl.State == lb.Disabled || (decl.Domain != "" && domains[decl.Domain]) {
			continue
		}
		domains[decl.Domain] = true
		out = append(out, i)
	}
	return out
}

// keepWhole reads the body to its end, if that leaves it replayable.
func (x *exchange) keepWhole() bool {
	if x.body == nil {
		return true
	}
	r := x.body.reader()
	_, err := io.Copy(io.Discard, io.LimitReader(r, memoryBound+1))
	r.Close()
	return err == nil && x.body.replayable() && x.body.length() <= memoryBound
}

// stopAt asks one further instance, and counts the attempt there.
func (x *exchange) stopAt(ctx context.Context, i int) {
	in, to := x.app.instances[i], &x.app.app.Instances[i]
	in.gate.Force()
	defer in.gate.Release()
	in.stats.Begin(x.shard)
	sample := stats.Sample{Reason: lb.ReasonConnectFailed}
	start := time.Now()
	defer func() {
		sample.Latency = time.Since(start)
		in.stats.End(x.shard, sample)
	}()
	a := &attempt{x: x, i: i, in: in, route: to, ctx: ctx, watch: time.NewTimer(stopTimeout)}
	defer a.watch.Stop()
	req := a.request(stopTimeout)
	if x.body != nil {
		req.Body = io.NopCloser(bytes.NewReader(x.body.mem)) // kept whole, and no longer written to
	}
	resp, err := in.upstream.transport.RoundTrip(req)
	if err != nil {
		return
	}
	defer resp.Body.Close()
	_, _ = io.Copy(io.Discard, io.LimitReader(resp.Body, errorBound))
	sample.Reason = judge(resp.StatusCode)
	if resp.StatusCode != http.StatusOK && sample.Reason == lb.ReasonOK {
		x.p.log.Debug().Str("request_id", x.id).Int("status", resp.StatusCode).Msg("stop refused by an instance that was asked to be sure")
	}
}
