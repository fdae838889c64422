//go:build linux

// Package contest compares lb-proxy with other proxies on one machine: it
// starts them and what they need, loads them in turn in one run, and says how
// they compare. Every figure is the median over rounds, in each of which each
// contestant has its turn (A B C, B C A, ...), and ratios are taken within a
// round: what slows the machine for a while slows all. It refuses to know how
// any proxy works inside, and to be kind to ours.
package contest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"time"
)

// Options of a contest.
type Options struct {
	// Quick takes about two minutes instead of fifteen.
	Quick bool
	// Contestants and Scenarios are names; empty means all that are there.
	Contestants, Scenarios []string
	// Rounds 0 means what Quick says.
	Rounds int
	// Limit ends the contest with what it has; 0 means what Quick says.
	Limit time.Duration
	// Bins is where lb-admin and lb-proxy are; empty builds them.
	Bins string
	// Old is the directory of another lb-proxy, which takes part as well; empty: none does.
	Old string
	// Benchmarks runs the Go benchmarks as well.
	Benchmarks bool
	// Progress takes a line for each step.
	Progress io.Writer

	tiny bool // for tests: also leaves this process on its CPUs
}

func (o Options) pace() pace {
	p := full
	switch {
	case o.tiny:
		p = tiny
	case o.Quick:
		p = quick
	}
	if o.Rounds > 0 {
		p.rounds = o.Rounds
	}
	if o.Limit > 0 {
		p.limit = o.Limit
	}
	return p
}

// Result is all that a contest brought.
type Result struct {
	Started     time.Time     `json:"started"`
	Took        time.Duration `json:"took_ns"`
	Quick       bool          `json:"quick"`
	Machine     Machine       `json:"machine"`
	Shared      bool          `json:"two_cores_shared"`
	Contestants []Contestant  `json:"contestants"`
	Scenarios   []Scenario    `json:"scenarios"`
	Benchmarks  []Benchmark   `json:"benchmarks,omitempty"`
	// Notes say what is missing and why.
	Notes []string `json:"notes,omitempty"`
}

// Contestant is one proxy of a Result.
type Contestant struct {
	Name, Version, About string
}

// Scenario is one kind of load of a Result.
type Scenario struct {
	Key     string   `json:"key"`
	Title   string   `json:"title"`
	Metrics []Metric `json:"metrics"`
	// Rounds hold the figures of each contestant by name, and by metric.
	Rounds []map[string]figures `json:"rounds"`
}

// Metric is one figure of a Scenario.
type Metric struct {
	Key    string `json:"key"`
	Title  string `json:"title"`
	Digits int    `json:"digits"`
	Ratio  bool   `json:"ratio"` // to nginx means something
}

// arena is where a contest takes place.
type arena struct {
	dir       string
	self      string // this program
	bins      string
	plan      plan
	machine   Machine
	instances []netip.AddrPort
	etcd      string // once there is one
	used      map[uint16]bool
	others    []*process // what is not measured
	running   map[string]*running
	unfit     map[string]bool // could not be started
	pace      pace
	progress  io.Writer
	result    *Result
}

// Run holds a contest. It ends everything that it starts before it returns.
// When ctx ends or the limit is reached, the Result is what there is until
// then, with a note. While it runs, this process keeps to the generator's CPUs.
func Run(ctx context.Context, o Options) (*Result, error) {
	a, err := newArena(o)
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(a.dir)
	defer a.stopAll()
	list, err := a.entrants(ctx, o)
	if err != nil {
		return nil, err
	}
	if o.Benchmarks {
		if a.result.Benchmarks, err = a.benchmarks(ctx); err != nil {
			return nil, err
		}
	}
	scenarios, err := selected(a.pace.scenarios(), o.Scenarios)
	if err != nil {
		return nil, err
	}
	if !o.tiny {
		if err := pinSelf(a.plan.Load); err != nil {
			return nil, err
		}
	}
	if err := a.startInstances(ctx); err != nil {
		return nil, err
	}
	if load, err := strconv.ParseFloat(a.machine.LoadBefore, 64); err == nil && load > 0.5 && !o.tiny {
		a.note("the machine was busy before the start (load average %.2f): do not trust these figures", load)
	}
	limited, cancel := context.WithTimeout(ctx, a.pace.limit)
	defer cancel()
	for _, s := range scenarios {
		a.play(limited, s, list)
	}
	a.result.derive()
	if limited.Err() != nil {
		a.note("stopped before the end: %v", context.Cause(limited))
	}
	a.result.Took = time.Since(a.result.Started).Round(time.Second)
	return a.result, nil
}

func newArena(o Options) (*arena, error) {
	cpus, err := allowedCPUs()
	if err != nil {
		return nil, err
	}
	descriptors, err := raiseLimit()
	if err != nil {
		return nil, err
	}
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "difylb-bench-")
	if err != nil {
		return nil, err
	}
	a := &arena{
		dir: dir, self: self, bins: o.Bins, plan: planFor(cpus), used: make(map[uint16]bool), running: make(map[string]*running), unfit: make(map[string]bool),
		pace: o.pace(), progress: o.Progress,
	}
	if o.tiny {
		a.plan = plan{Shared: true}
	}
	if a.bins != "" {
		if a.bins, err = filepath.Abs(a.bins); err != nil {
			return nil, err
		}
	}
	if a.progress == nil {
		a.progress = io.Discard
	}
	a.machine = describe(cpus, a.plan, descriptors)
	a.result = &Result{Started: time.Now(), Quick: o.Quick, Machine: a.machine, Shared: a.plan.Shared}
	return a, nil
}

// entrants returns the contestants that are installed and asked for.
func (a *arena) entrants(ctx context.Context, o Options) ([]contestant, error) {
	for _, name := range o.Contestants {
		if !slices.ContainsFunc(contestants, func(c contestant) bool { return c.name == name }) {
			return nil, fmt.Errorf("no contestant %q", name)
		}
	}
	var list []contestant
	all := contestants
	if o.Old != "" {
		all = append(slices.Clone(all), oldContestant(o.Old))
	}
	for _, c := range all {
		if c.name != LBProxyOld && len(o.Contestants) > 0 && !slices.Contains(o.Contestants, c.name) {
			continue
		}
		if c.name == LBProxy {
			if err := a.build(ctx); err != nil {
				return nil, err
			}
		}
		version := c.version(a)
		if version == "" {
			a.note("%s is not installed: not measured", c.name)
			continue
		}
		list = append(list, c)
		a.result.Contestants = append(a.result.Contestants, Contestant{c.name, version, c.about})
	}
	return list, nil
}

func selected(all []scenario, keys []string) ([]scenario, error) {
	if len(keys) == 0 {
		return all, nil
	}
	var list []scenario
	for _, key := range keys {
		i := slices.IndexFunc(all, func(s scenario) bool { return s.key == key })
		if i < 0 {
			return nil, fmt.Errorf("no scenario %q", key)
		}
		list = append(list, all[i])
	}
	return list, nil
}

func (a *arena) note(format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	a.result.Notes = append(a.result.Notes, text)
	fmt.Fprintln(a.progress, text)
}

func (a *arena) startInstances(ctx context.Context) error {
	file := filepath.Join(a.dir, "instances.json")
	p, err := start(a.dir, "instances", a.plan.Instances, a.self, roleInstances, file)
	if err != nil {
		return err
	}
	a.others = append(a.others, p)
	return p.await(ctx, func(context.Context) error {
		text, err := os.ReadFile(file)
		if err != nil {
			return err
		}
		return json.Unmarshal(text, &a.instances)
	})
}

func (a *arena) stopAll() {
	for _, r := range a.running {
		r.stop()
	}
	for _, p := range slices.Backward(a.others) {
		p.stop()
	}
}

// stopOthers stops every contestant but one. Their next turn starts them anew.
func (a *arena) stopOthers(name string) {
	for other, r := range a.running {
		if other != name {
			r.stop()
			delete(a.running, other)
		}
	}
}

// play holds all rounds of one scenario.
func (a *arena) play(ctx context.Context, s scenario, list []contestant) {
	out := Scenario{Key: s.key, Title: s.title}
	for _, m := range s.metrics {
		out.Metrics = append(out.Metrics, Metric{m.key, m.title, m.digits, m.ratio})
	}
	rounds := a.pace.rounds
	if s.rounds > 0 {
		rounds = min(rounds, s.rounds)
	}
	if !s.floor {
		list = slices.DeleteFunc(slices.Clone(list), func(c contestant) bool { return c.name == Relay })
	}
	if s.direct {
		list = append(slices.Clone(list), contestant{name: Direct})
	}
	broken := make(map[string]bool)
	for n := range rounds {
		round := make(map[string]figures)
		for i := range list {
			c := list[(i+n)%len(list)]
			if broken[c.name] || a.unfit[c.name] || ctx.Err() != nil {
				continue
			}
			f, err := a.turn(ctx, s, c, n)
			if err != nil {
				if !errors.Is(err, context.Cause(ctx)) || ctx.Err() == nil {
					broken[c.name] = true
					a.note("%s, %s: %v", s.title, c.name, err)
				}
				continue
			}
			round[c.name] = f
			fmt.Fprintf(a.progress, "%s, round %d of %d, %s: %s\n", s.title, n+1, rounds, c.name, f.text(out.Metrics))
		}
		if len(round) > 0 {
			out.Rounds = append(out.Rounds, round)
		}
	}
	for _, c := range list {
		if n := out.sum(c.name, mFailed); n > 0 {
			a.note("%s, %s: %.0f requests or streams failed in %d rounds", s.title, c.name, n, len(out.Rounds))
		}
	}
	a.result.Scenarios = append(a.result.Scenarios, out)
}

// turn measures one contestant once.
func (a *arena) turn(ctx context.Context, s scenario, c contestant, round int) (figures, error) {
	if c.name == Direct {
		return s.measure(ctx, &running{contestant: c, addr: a.instances[0]})
	}
	if s.alone {
		a.stopOthers(c.name)
	}
	r := a.running[c.name]
	if r != nil && (s.fresh || r.cores != s.cores) {
		r.stop()
		delete(a.running, c.name)
		r = nil
	}
	if r == nil {
		var err error
		if r, err = a.launch(ctx, c, s.cores); err != nil {
			a.unfit[c.name] = true
			return nil, err
		}
		a.running[c.name] = r
	}
	f, err := s.measure(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("%w; it said %s", err, r.said())
	}
	if round == 0 && slices.ContainsFunc(s.metrics, func(m metric) bool { return m.key == mSyscalls }) {
		n, err := a.pace.syscallsPer(ctx, r)
		if err != nil {
			return nil, err
		}
		if n > 0 {
			f[mSyscalls] = n
		}
	}
	return f, nil
}

// derive computes what takes more than one measurement of a round.
func (r *Result) derive() {
	byKey := make(map[string]*Scenario)
	for i := range r.Scenarios {
		byKey[r.Scenarios[i].Key] = &r.Scenarios[i]
	}
	if s := byKey["rate"]; s != nil {
		for _, round := range s.Rounds {
			direct, ok := round[Direct]
			for name, f := range round {
				if ok && name != Direct {
					f[mAdded50], f[mAdded99] = f[mP50]-direct[mP50], f[mP99]-direct[mP99]
				}
			}
		}
	}
	one, two := byKey["blocking"], byKey["two-cores"]
	if one == nil || two == nil {
		return
	}
	for i, round := range two.Rounds {
		for name, f := range round {
			if i >= len(one.Rounds) || one.Rounds[i][name] == nil {
				continue
			}
			g := one.Rounds[i][name]
			if f[mScaling] = f[mRate] / g[mRate]; r.Shared {
				// The rate can't double where the generator sits on the second
				// core, but the cost of a request tells what would be possible.
				f[mScaling] = 2 * g[mCPU] / f[mCPU]
			}
		}
	}
}
