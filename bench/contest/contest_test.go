//go:build linux

package contest

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
)

// TestMain plays the parts that the contest starts this program for.
func TestMain(m *testing.M) {
	if played, err := Role(os.Args[1:]); played {
		if err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func TestRun_MeasuresEveryLoad(t *testing.T) {
	r, err := Run(t.Context(), Options{tiny: true, Contestants: []string{ReverseProxy}, Progress: t.Output()})
	if err != nil {
		t.Fatal(err)
	}
	for _, s := range r.Scenarios {
		if len(s.Rounds) != 1 {
			t.Errorf("%s: %d rounds; notes: %q", s.Title, len(s.Rounds), r.Notes)
			continue
		}
		for _, m := range s.Metrics {
			v, measured := s.Rounds[0][ReverseProxy][m.Key]
			switch m.Key {
			case mSyscalls: // not every kernel lets us count
			case mStream, mAdded50, mAdded99: // may be 0 or less for so few
				if !measured {
					t.Errorf("%s: no %s", s.Title, m.Title)
				}
			default:
				if v <= 0 {
					t.Errorf("%s: %s is %v", s.Title, m.Title, v)
				}
			}
		}
	}
	if want := len(tiny.scenarios()); len(r.Scenarios) != want || want < 9 {
		t.Errorf("%d scenarios of %d", len(r.Scenarios), want)
	}
	if text := r.Markdown(); !strings.Contains(text, "not measured") || strings.Contains(text, "NaN") {
		t.Errorf("report:\n%s", text)
	}
}

func TestRun_EndsAtItsLimitAndLeavesNothing(t *testing.T) {
	start := time.Now()
	r, err := Run(t.Context(), Options{tiny: true, Contestants: []string{ReverseProxy}, Rounds: 1000, Scenarios: []string{"blocking"}, Limit: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	if took := time.Since(start); took > 10*time.Second {
		t.Errorf("took %v", took)
	}
	if !slices.ContainsFunc(r.Notes, func(n string) bool { return strings.HasPrefix(n, "stopped before the end") }) {
		t.Errorf("notes %q", r.Notes)
	}
	children, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/children", os.Getpid()))
	if err != nil || len(children) == 0 {
		t.Skip("this kernel does not list children")
	}
	for _, file := range children {
		if list, _ := os.ReadFile(file); len(strings.TrimSpace(string(list))) > 0 {
			t.Errorf("still runs: %s", list)
		}
	}
}

func TestRun_RefusesWhatItDoesNotKnow(t *testing.T) {
	if _, err := Run(t.Context(), Options{tiny: true, Contestants: []string{"squid"}}); err == nil {
		t.Error("an unknown contestant")
	}
	if _, err := Run(t.Context(), Options{tiny: true, Contestants: []string{ReverseProxy}, Scenarios: []string{"x"}}); err == nil {
		t.Error("an unknown scenario")
	}
}

func TestProcess_CPUTimeCountsAChildsWorkersToo(t *testing.T) {
	// The shell itself idles; its child works, and then lives on.
	p, err := start(t.TempDir(), "work", nil, "sh", "-c", "sh -c 'i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done; echo done; sleep 60'; true")
	if err != nil {
		t.Fatal(err)
	}
	defer p.stop()
	for end := time.Now().Add(30 * time.Second); !strings.Contains(p.said(), "done"); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			t.Fatal("the loop does not end")
		}
	}
	if used := p.cpuTime(); used < 5*time.Millisecond || used > 30*time.Second {
		t.Errorf("used %v", used)
	}
	if bytes := p.resident(); bytes < 256<<10 {
		t.Errorf("%d bytes resident", bytes)
	}
	if n := len(p.pids()); n < 2 {
		t.Errorf("%d processes", n)
	}
}

func TestProcess_StopEndsWhoWillNotListen(t *testing.T) {
	p, err := start(t.TempDir(), "deaf", nil, "sh", "-c", "trap '' TERM; echo deaf; while :; do sleep 1; done")
	if err != nil {
		t.Fatal(err)
	}
	for !strings.Contains(p.said(), "deaf") {
		time.Sleep(time.Millisecond)
	}
	p.grace = 100 * time.Millisecond
	p.stop()
	if p.cmd.ProcessState == nil || p.cmd.ProcessState.Success() {
		t.Errorf("state %v", p.cmd.ProcessState)
	}
}

func TestTemplates_AreUnderstood(t *testing.T) {
	a, err := newArena(Options{tiny: true})
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(a.dir)
	for range instanceCount {
		addr, err := a.freeAddr()
		if err != nil {
			t.Fatal(err)
		}
		a.instances = append(a.instances, addr)
	}
	addr, err := a.freeAddr()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range contestants {
		if c.name != Nginx && c.name != HAProxy {
			continue
		}
		if c.version(a) == "" {
			t.Logf("%s is not installed", c.name)
			continue
		}
		command, err := c.command(t.Context(), a, 2, addr)
		if err != nil {
			t.Fatal(err)
		}
		check := map[string]string{Nginx: "-t", HAProxy: "-c"}[c.name]
		if out, err := exec.Command(command[0], append(command[1:], check)...).CombinedOutput(); err != nil {
			t.Errorf("%s: %v: %s", c.name, err, out)
		}
	}
	if file, err := a.write("difylb.yaml", a.settings(1, addr)); err != nil {
		t.Error(err)
	} else if text, _ := os.ReadFile(file); strings.Count(string(text), "name: dify") != instanceCount {
		t.Errorf("configuration:\n%s", text)
	}
}

func TestPlan_KeepsProxyAndLoadApart(t *testing.T) {
	for cpus := 1; cpus <= 8; cpus++ {
		var list []int
		for i := range cpus {
			list = append(list, 2*i)
		}
		p := planFor(list)
		if cpus == 1 {
			if len(p.Proxy)+len(p.Load)+len(p.Instances) != 0 || !p.Shared {
				t.Errorf("one CPU: %+v", p)
			}
			continue
		}
		one := p.proxy(1)
		if len(one) != 1 || slices.Contains(p.Load, one[0]) || slices.Contains(p.Instances, one[0]) {
			t.Errorf("%d CPUs: %+v", cpus, p)
		}
		shared := false
		for _, c := range p.proxy(2) {
			shared = shared || slices.Contains(p.Load, c) || slices.Contains(p.Instances, c)
		}
		if shared != p.Shared {
			t.Errorf("%d CPUs: shared %v, says %v", cpus, shared, p.Shared)
		}
	}
}
