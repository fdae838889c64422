package proxy

// finish accounts for the call, once, whatever became of it. It runs also when
// serving it panics.
func (x *exchange) finish() {
	x.countBody()
	x.dropBody()
	if x.app != nil {
		x.app.state.stats.End(x.shard, x.reason)
		if x.user != "" {
			x.app.state.stats.Seen(string(x.app.app.Ring.Algorithm()), uint64(x.point), x.now)
		}
	} else if !local(x.path) {
		x.p.opts.Registry.Unrouted(x.shard, x.reason)
	}
	if x.traced != nil {
		x.endTrace(x.now)
	}
	if x.p.opts.AccessLog != nil {
		x.p.opts.AccessLog.write(&x.call, x.now)
	}
}

// countBody counts what came of the request's body.
func (x *exchange) countBody() {
	if x.body == nil || x.upgraded {
		return
	}
	x.bytesIn = x.body.read
	if n := len(x.tried); n > 0 {
		x.app.instances[x.tried[n-1]].stats.Flow(x.shard, x.bytesIn, 0)
	}
}

// dropBody lets go of the request's body.
func (x *exchange) dropBody() {
	if x.body != nil {
		x.body.close()
		x.body = nil
	}
}

func local(path string) bool { return path == "/health" || path == "/status" }
