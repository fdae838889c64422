//go:build linux

package contest

import (
	"context"
	"fmt"
	"slices"
	"time"

	"difylb/bench/load"
)

// Keys of metrics, in results.json as well.
const (
	mCPU      = "cpu_us"       // per request or event
	mRate     = "per_second"   // requests or events
	mBusy     = "cores_busy"   // CPU time per time
	mP50      = "p50_us"       // from when a request should have been sent
	mP99      = "p99_us"       //
	mAdded50  = "added_p50_us" // over what a client without a proxy sees in the same round
	mAdded99  = "added_p99_us"
	mSyscalls = "syscalls" // per request
	mStream   = "kib_per_stream"
	mResident = "rss_mib"
	mUpload   = "cpu_s_per_gib"
	mSpeed    = "mib_per_second"
	mScaling  = "speedup" // over one core, in the same round
	mFailed   = "failures"
)

// metric is one figure of a scenario.
type metric struct {
	key, title string
	digits     int
	ratio      bool // to nginx means something
}

// scenario is one kind of load.
type scenario struct {
	key, title string
	cores      int
	fresh      bool // a proxy just started: what was before must not show
	alone      bool // no other proxy runs: together they keep more connections than the instances have descriptors
	direct     bool // also without a proxy
	floor      bool // also through the relay
	rounds     int  // at most; 0 is as many as there are
	metrics    []metric
	measure    func(ctx context.Context, r *running) (figures, error)
}

// figures are what one measurement of one contestant brought, by metric.
type figures map[string]float64

// pace says how long and how much; see quick and full.
type pace struct {
	rounds           int           // many and short: a neighbour's noise lasts for seconds, and a turn that it meets is one of many
	warmup, measure  time.Duration // of a turn
	mostWarmup       time.Duration // with most connections
	few, many, most  int           // connections; most 0 leaves that scenario out
	rate             float64
	streams          int
	settle           time.Duration
	calm             time.Duration // before what is resident is read: what a burst has left behind is not what streams take
	held, heldMany   int           // streams; heldMany 0 leaves that scenario out
	heldManyRounds   int
	fileSize         int64
	files, behind    int           // uploads; behind 0 leaves that scenario out
	limit            time.Duration // of the whole, building and Go benchmarks aside
	benchmarkRepeats int
}

var (
	// quick takes about two minutes with four contestants, full about fifteen.
	quick = pace{
		rounds: 5, warmup: 200 * time.Millisecond, measure: 600 * time.Millisecond, few: 64, many: 512, rate: 8000,
		streams: 500, settle: 400 * time.Millisecond, calm: 2500 * time.Millisecond, held: 2000, fileSize: 64 << 20, files: 8, limit: 5 * time.Minute, benchmarkRepeats: 3,
	}
	full = pace{
		rounds: 25, warmup: 250 * time.Millisecond, measure: 750 * time.Millisecond, few: 64, many: 512, most: 8192, mostWarmup: 2 * time.Second, rate: 8000,
		streams: 500, settle: 600 * time.Millisecond, calm: 3 * time.Second, held: 2000, heldMany: 9000, heldManyRounds: 3,
		fileSize: 128 << 20, files: 8, behind: 4, limit: 25 * time.Minute, benchmarkRepeats: 7,
	}
	// tiny is for the test of this package.
	tiny = pace{
		rounds: 1, warmup: 50 * time.Millisecond, measure: 200 * time.Millisecond, few: 4, many: 16, most: 24, mostWarmup: 50 * time.Millisecond, rate: 200,
		streams: 10, settle: 50 * time.Millisecond, calm: 50 * time.Millisecond, held: 20, heldMany: 30, heldManyRounds: 1,
		fileSize: 1 << 20, files: 4, behind: 2, limit: time.Minute, benchmarkRepeats: 1,
	}
)

func (p pace) scenarios() []scenario {
	blocking := []metric{
		{mCPU, "CPU µs per request", 1, true}, {mRate, "requests/s", 0, true}, {mBusy, "cores busy", 2, false},
		{mP50, "p50 µs", 0, false}, {mP99, "p99 µs", 0, false},
	}
	list := []scenario{
		{
			key: "blocking", title: fmt.Sprintf("blocking, %d connections", p.few), cores: 1, floor: true,
			metrics: append(slices.Clip(blocking), metric{mSyscalls, "system calls per request", 1, true}),
			measure: p.requests(p.few, 0),
		},
		{
			key: "many", title: fmt.Sprintf("blocking, %d connections", p.many), cores: 1, floor: true, metrics: blocking,
			measure: p.requests(p.many, 0),
		},
		{
			key: "most", title: fmt.Sprintf("blocking, %d connections", p.most), cores: 1, alone: true, rounds: 3, metrics: blocking,
			measure: p.withMost().requests(p.most, 0),
		},
		{
			key: "rate", title: fmt.Sprintf("blocking, %.0f requests/s offered", p.rate), cores: 1, direct: true, floor: true,
			metrics: []metric{
				{mCPU, "CPU µs per request", 1, true}, {mRate, "requests/s", 0, false}, {mBusy, "cores busy", 2, false},
				{mP50, "p50 µs", 0, false}, {mP99, "p99 µs", 0, false}, {mAdded50, "added p50 µs", 0, true}, {mAdded99, "added p99 µs", 0, true},
			},
			measure: p.requests(p.few, p.rate),
		},
		{
			key: "events", title: fmt.Sprintf("%d streams, an event each 30 ms", p.streams), cores: 1, floor: true, rounds: 15,
			metrics: []metric{
				{mCPU, "CPU µs per event", 1, true}, {mRate, "events/s", 0, false}, {mBusy, "cores busy", 2, false},
				{mP50, "delay p50 µs", 0, false}, {mP99, "delay p99 µs", 0, false},
			},
			measure: p.events,
		},
		{
			key: "held", title: fmt.Sprintf("%d streams held open, an event each second", p.held), cores: 1, fresh: true, rounds: 3,
			metrics: []metric{{mStream, "resident KiB per stream", 1, true}, {mResident, "resident MiB in all", 1, true}},
			measure: p.heldStreams(p.held),
		},
	}
	if p.most == 0 {
		list = slices.DeleteFunc(list, func(s scenario) bool { return s.key == "most" })
	}
	if p.heldMany > 0 {
		list = append(list, scenario{
			key: "held-many", title: fmt.Sprintf("%d streams held open, an event each second", p.heldMany), cores: 1, fresh: true, rounds: p.heldManyRounds,
			metrics: []metric{{mStream, "resident KiB per stream", 1, true}, {mResident, "resident MiB in all", 1, true}},
			measure: p.heldStreams(p.heldMany),
		})
	}
	upload := []metric{{mUpload, "CPU-s per GiB", 2, true}, {mSpeed, "MiB/s", 0, true}}
	list = append(list, scenario{
		key: "upload", title: fmt.Sprintf("uploads of %d MiB, user in a header", p.fileSize>>20), cores: 1, rounds: 9, metrics: upload,
		measure: p.uploads(p.files, false),
	})
	if p.behind > 0 {
		list = append(list, scenario{
			key: "upload-behind", title: fmt.Sprintf("uploads of %d MiB, user behind the file (only lb-proxy looks for it)", p.fileSize>>20), cores: 1, rounds: 3,
			metrics: upload, measure: p.uploads(p.behind, true),
		})
	}
	return append(list, scenario{
		key: "two-cores", title: fmt.Sprintf("blocking, %d connections, two cores", p.few), cores: 2, rounds: 15,
		metrics: []metric{{mCPU, "CPU µs per request", 1, true}, {mRate, "requests/s", 0, true}, {mScaling, "times one core", 2, false}},
		measure: p.requests(p.few, 0),
	})
}

func sleep(ctx context.Context, d time.Duration) error {
	select {
	case <-time.After(d):
		return nil
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// meter measures what a contestant uses within a load.Window.
type meter struct {
	r        *running
	from, to time.Duration // CPU time
}

func (m *meter) window() load.Window {
	if m.r.process == nil {
		return load.Window{}
	}
	return load.Window{
		Begin: func() { m.from = m.r.cpuTime() },
		End:   func() { m.to = m.r.cpuTime() },
	}
}

func (m *meter) used() time.Duration { return m.to - m.from }

func micros(d time.Duration) float64 { return float64(d) / float64(time.Microsecond) }

// perCPU adds what the proxy used for n things in so much time.
func (f figures) perCPU(m *meter, n int64, elapsed time.Duration) {
	f[mRate] = float64(n) / elapsed.Seconds()
	if m.r.process != nil && n > 0 {
		f[mCPU] = micros(m.used()) / float64(n)
		f[mBusy] = m.used().Seconds() / elapsed.Seconds()
	}
}

// failed adds the failures, of which more than one in fifty are too many to
// call the rest a measurement.
func (f figures) failed(n, of int64, last error) error {
	f[mFailed] = float64(n)
	if n*50 > of {
		return fmt.Errorf("%d failures, %d successes; the last: %w", n, of, last)
	}
	return nil
}

// withMost is the pace of a turn with most connections, which takes longer to begin.
func (p pace) withMost() pace {
	p.warmup, p.measure = p.mostWarmup, 2*p.measure
	return p
}

func (p pace) requests(connections int, rate float64) func(context.Context, *running) (figures, error) {
	return func(ctx context.Context, r *running) (figures, error) {
		m := &meter{r: r}
		o := load.RequestOptions{Connections: connections, Rate: rate, Warmup: p.warmup, Measure: p.measure}
		res, err := load.Requests(ctx, r.target(), o, m.window())
		if err != nil {
			return nil, err
		}
		f := figures{mP50: micros(res.Latency.Quantile(0.5)), mP99: micros(res.Latency.Quantile(0.99))}
		f.perCPU(m, res.Requests, res.Elapsed)
		return f, f.failed(res.Failures, res.Requests, res.LastFail)
	}
}

// syscallsPer measures system calls per request, apart from the rest because
// counting slows down. It returns 0 where the kernel does not let us count.
func (p pace) syscallsPer(ctx context.Context, r *running) (float64, error) {
	calls, err := r.countSyscalls()
	if err != nil {
		return 0, nil
	}
	defer calls.close()
	var from, to uint64
	res, err := load.Requests(ctx, r.target(), load.RequestOptions{Connections: p.few, Warmup: p.warmup, Measure: p.measure / 2},
		load.Window{Begin: func() { from = calls.count() }, End: func() { to = calls.count() }})
	if err != nil || res.Requests == 0 {
		return 0, err
	}
	return float64(to-from) / float64(res.Requests), nil
}

func (p pace) events(ctx context.Context, r *running) (figures, error) {
	m := &meter{r: r}
	o := load.StreamOptions{Streams: p.streams, Interval: 30 * time.Millisecond, Settle: p.settle, Measure: p.measure}
	res, err := load.Streams(ctx, r.target(), o, m.window())
	if err != nil {
		return nil, err
	}
	f := figures{mP50: micros(res.Delay.Quantile(0.5)), mP99: micros(res.Delay.Quantile(0.99))}
	f.perCPU(m, res.Events, res.Elapsed)
	return f, f.failed(res.Failures, int64(res.Open), res.LastFail)
}

func (p pace) heldStreams(n int) func(context.Context, *running) (figures, error) {
	return func(ctx context.Context, r *running) (figures, error) {
		// Caches and pools of ordinary traffic belong to the proxy, not to the streams.
		if _, err := load.Requests(ctx, r.target(), load.RequestOptions{Connections: p.few, Measure: p.warmup}, load.Window{}); err != nil {
			return nil, err
		}
		if err := sleep(ctx, p.calm); err != nil {
			return nil, err
		}
		before := r.resident()
		var after int64
		o := load.StreamOptions{Streams: n, Interval: time.Second, Settle: p.calm}
		res, err := load.Streams(ctx, r.target(), o, load.Window{End: func() { after = r.resident() }})
		if err != nil {
			return nil, err
		}
		if res.Open == 0 {
			return nil, fmt.Errorf("no stream stayed open: %w", res.LastFail)
		}
		f := figures{mStream: float64(after-before) / 1024 / float64(res.Open), mResident: float64(after) / (1 << 20)}
		return f, f.failed(res.Failures, int64(res.Open), res.LastFail)
	}
}

func (p pace) uploads(count int, behind bool) func(context.Context, *running) (figures, error) {
	return func(ctx context.Context, r *running) (figures, error) {
		m := &meter{r: r}
		o := load.UploadOptions{Connections: 4, Count: count, Size: p.fileSize, Behind: behind}
		res, err := load.Uploads(ctx, r.target(), o, m.window())
		if err != nil {
			return nil, err
		}
		f := figures{}
		if gib := float64(res.Bytes) / (1 << 30); gib > 0 {
			f[mUpload] = m.used().Seconds() / gib
			f[mSpeed] = gib * 1024 / res.Elapsed.Seconds()
		}
		return f, f.failed(res.Failures, int64(count), res.LastFail)
	}
}
