package route

import (
	"fmt"
	"math"
	"math/rand/v2"
	"testing"

	"difylb/pkg/lb"
)

func app(name string, tokens []string, instances ...string) *lb.Application {
	a := lb.NewApplication(name)
	for _, t := range tokens {
		a.UserTokens = append(a.UserTokens, lb.NewUserToken(lb.Secret(t), "", false))
	}
	for i, in := range instances {
		x := lb.Instance{Name: in, Host: fmt.Sprintf("10.0.0.%d", i+1), Port: 80, Token: lb.Secret("app-" + in)}
		x.SetDefaults()
		a.Instances = append(a.Instances, x)
	}
	return a
}

func snapshot(rev int64, apps ...*lb.Application) *lb.Snapshot {
	return &lb.Snapshot{Revision: rev, ConfigRevision: rev, Epoch: "e", Applications: apps}
}

func build(t *testing.T, s *lb.Snapshot, prev *Table) *Table {
	t.Helper()
	tbl, err := Build(s, prev)
	if err != nil {
		t.Fatal(err)
	}
	return tbl
}

func lookup(t *Table, token string) string {
	name, _ := t.AppByToken(lb.Secret(token).Hash())
	return name
}

func TestBuild_RoutesByToken(t *testing.T) {
	a := app("shop", []string{"t1", "t2"}, "x", "y")
	a.UserTokens = append(a.UserTokens, lb.NewUserToken("off", "", true))
	tbl := build(t, snapshot(1, a, app("web", []string{"t3"}, "z")), nil)
	for token, want := range map[string]string{"t1": "shop", "t2": "shop", "t3": "web", "t4": "", "": "", "off": ""} {
		if got := lookup(tbl, token); got != want {
			t.Errorf("token %q opens %q, want %q", token, got, want)
		}
	}
	in := tbl.App("shop").Instances[1]
	if in.Address != "10.0.0.2:80" || in.Host != "10.0.0.2" || in.TLS != nil || in.Authorization.Reveal() != "Bearer app-y" {
		t.Errorf("instance %+v", in)
	}
}

func TestBuild_TakesOverWhatDidNotChange(t *testing.T) {
	a, b := app("a", []string{"ta"}, "x", "y"), app("b", []string{"tb"}, "x", "y")
	t1 := build(t, snapshot(1, a, b), nil)
	b2 := b.Clone()
	b2.Instances[0].Port = 81 // the ring does not depend on it
	t2 := build(t, snapshot(2, a, b2), t1)
	if t1.App("a") != t2.App("a") {
		t.Error("an unchanged application was compiled again")
	}
	if t1.App("b") == t2.App("b") || t1.App("b").Ring != t2.App("b").Ring || t2.App("b").Instances[0].Address != "10.0.0.1:81" {
		t.Error("want a new application around the same ring")
	}
	if t1.Checksum() != t2.Checksum() {
		t.Error("the checksum depends on more than the placement")
	}
	b3 := b2.Clone()
	b3.Instances[0].Weight = 2
	if t3 := build(t, snapshot(3, a, b3), t2); t3.Checksum() == t2.Checksum() {
		t.Error("another placement has the same checksum")
	}
	if t1.App("b").Instances[0].Address != "10.0.0.1:80" {
		t.Error("the old table changed")
	}
}

// TestBuild_IncrementalEqualsWhole drives random edits and compares each table
// that came about step by step with one built from nothing.
func TestBuild_IncrementalEqualsWhole(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	apps := map[string]*lb.Application{}
	owner := map[string]string{} // token → application
	names := []string{"a", "b", "c", "d", "e", "f"}
	var tbl *Table
	for step := range 400 {
		for range 1 + rnd.IntN(3) {
			name := names[rnd.IntN(len(names))]
			for tok, o := range owner {
				if o == name {
					delete(owner, tok)
				}
			}
			if rnd.IntN(4) == 0 {
				delete(apps, name)
				continue
			}
			var tokens []string
			for range rnd.IntN(5) {
				tok := fmt.Sprint("tok", rnd.IntN(30))
				if owner[tok] == "" {
					owner[tok] = name
					tokens = append(tokens, tok)
				}
			}
			var ins []string
			for i := range 1 + rnd.IntN(4) {
				ins = append(ins, fmt.Sprint("i", i))
			}
			apps[name] = app(name, tokens, ins...)
		}
		var list []*lb.Application
		for _, n := range names {
			if apps[n] != nil {
				list = append(list, apps[n])
			}
		}
		snap := snapshot(int64(step), list...)
		tbl = build(t, snap, tbl)
		whole := build(t, snap, nil)
		if tbl.Checksum() != whole.Checksum() || len(tbl.Apps()) != len(whole.Apps()) {
			t.Fatalf("step %d: tables differ", step)
		}
		for i := range 30 {
			tok := fmt.Sprint("tok", i)
			if got := lookup(tbl, tok); got != owner[tok] || got != lookup(whole, tok) {
				t.Fatalf("step %d: token %s opens %q, want %q", step, tok, got, owner[tok])
			}
		}
		for slot, a := range tbl.Slots() {
			if a != nil && (a.Slot != slot || tbl.App(a.Decl.Name) != a) {
				t.Fatalf("step %d: application %s is not in its slot", step, a.Decl.Name)
			}
		}
		if n := len(tbl.Slots()); n > len(names) {
			t.Fatalf("step %d: %d slots for at most %d applications", step, n, len(names))
		}
	}
}

func TestBuild_RefusesAnUnsortedSnapshot(t *testing.T) {
	if _, err := Build(snapshot(1, app("b", nil), app("a", nil)), nil); err == nil {
		t.Error("no error")
	}
}

func conditions(cs ...Condition) func(int) Condition { return func(i int) Condition { return cs[i] } }

func TestChoose_SkipsClockwiseAndComesBack(t *testing.T) {
	tbl := build(t, snapshot(1, app("shop", nil, "a", "b", "c")), nil)
	a := tbl.App("shop")
	ok := Condition{Health: lb.Healthy}
	for u := range 500 {
		p := a.Point(fmt.Sprint("u", u))
		owner := a.Ring.Owner(p)
		all := []Condition{ok, ok, ok}
		if got, open := a.Choose(p, nil, conditions(all...)); got != owner || open {
			t.Fatalf("user %d goes to %d, owner %d", u, got, owner)
		}
		for bad := range 3 {
			cs := append([]Condition(nil), all...)
			cs[bad] = Condition{Health: lb.Unhealthy}
			got, open := a.Choose(p, nil, conditions(cs...))
			if open || got == bad || (bad != owner && got != owner) {
				t.Fatalf("user %d with %d down goes to %d, owner %d", u, bad, got, owner)
			}
		}
		next, _ := a.Choose(p, []int{owner}, conditions(all...))
		last, _ := a.Choose(p, []int{owner, next}, conditions(all...))
		none, open := a.Choose(p, []int{owner, next, last}, conditions(all...))
		if next == owner || last == owner || last == next || none != -1 || open {
			t.Fatalf("retries: %d %d %d %d", owner, next, last, none)
		}
	}
}

func TestChoose_FailsOpenInOrder(t *testing.T) {
	decl := app("shop", nil, "a", "b", "c", "d")
	decl.Instances[3].State = lb.Disabled
	a := build(t, snapshot(1, decl), nil).App("shop")
	down, rejected, ejected := Condition{Health: lb.Unhealthy}, Condition{Health: lb.TokenRejected}, Condition{Ejected: true}
	for u := range 200 {
		p := a.Point(fmt.Sprint(u))
		for _, c := range []struct {
			conds []Condition
			want  int
		}{
			{[]Condition{down, rejected, ejected, {}}, 0},
			{[]Condition{rejected, ejected, ejected, {}}, 0},
			{[]Condition{ejected, ejected, {}, {}}, 2},
		} {
			got, open := a.Choose(p, nil, conditions(c.conds...))
			if got != c.want || open != (c.want != 2) {
				t.Fatalf("conditions %v: %d, fail open %v", c.conds, got, open)
			}
		}
		got, open := a.Choose(p, nil, conditions(down, down, down, Condition{}))
		if !open || got == 3 || got == -1 {
			t.Fatalf("all unhealthy: %d, %v", got, open)
		}
	}
}

func TestChoose_DoesNotAllocate(t *testing.T) {
	a := build(t, snapshot(1, app("shop", nil, "a", "b", "c")), nil).App("shop")
	conds := []Condition{{Health: lb.Unhealthy}, {Health: lb.Healthy}, {}}
	user := "user-4711"
	if n := testing.AllocsPerRun(100, func() {
		a.Choose(a.Point(user), nil, func(i int) Condition { return conds[i] })
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestByToken_DoesNotAllocate(t *testing.T) {
	tbl := build(t, snapshot(1, app("shop", []string{"t"}, "a")), nil)
	h := lb.Secret("t").Hash()
	if n := testing.AllocsPerRun(100, func() { tbl.ByToken(h) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestExplain_AgreesWithChoose(t *testing.T) {
	decl := app("shop", nil, "a", "b", "c", "z")
	decl.Instances[1].State = lb.Draining
	decl.Instances[3].Weight = 0
	tbl := build(t, snapshot(7, decl), nil)
	status := func(_, in string) string {
		return map[string]string{"a": "unhealthy", "b": "draining", "c": "healthy", "z": "healthy"}[in]
	}
	for u := range 100 {
		e, err := tbl.Explain("shop", fmt.Sprint(u), status)
		if err != nil {
			t.Fatal(err)
		}
		if e.Chosen != "c" || e.FailOpen || len(e.Order) != 4 || e.Order[0].Instance != e.Owner || e.Revision != 7 {
			t.Fatalf("%+v", e)
		}
		for _, s := range e.Order {
			if s.Usable != (s.Instance == "c") || s.Why == "" {
				t.Fatalf("step %+v", s)
			}
		}
		if e.Order[3].Instance != "z" {
			t.Fatalf("weight 0 is not last: %+v", e.Order)
		}
	}
	if _, err := tbl.Explain("none", "u", nil); err == nil {
		t.Error("no error for an unknown application")
	}
}

func TestMoved_AgreesWithSampling(t *testing.T) {
	rnd := rand.New(rand.NewPCG(3, 4))
	base := app("shop", nil, "a", "b", "c", "d")
	for name, edit := range map[string]func(*lb.Application){
		"drain":   func(a *lb.Application) { a.Instances[1].State = lb.Draining },
		"remove":  func(a *lb.Application) { a.Instances = a.Instances[:3] },
		"weight":  func(a *lb.Application) { a.Instances[0].Weight = 3 },
		"address": func(a *lb.Application) { a.Instances[0].Host = "h" },
	} {
		changed := base.Clone()
		edit(changed)
		from := build(t, snapshot(1, base), nil)
		to := build(t, snapshot(2, changed), from)
		a, b := from.App("shop"), to.App("shop")
		const n = 40000
		moved := 0
		for range n {
			p := a.Point(fmt.Sprint(rnd.Uint64()))
			if a.home(p) != b.home(p) {
				moved++
			}
		}
		want, got := float64(moved)/n, Moved(from, to)["shop"]
		if math.Abs(want-got) > 0.01 {
			t.Errorf("%s: moved %.4f, sampled %.4f", name, got, want)
		}
		if name == "address" && got != 0 {
			t.Errorf("an address moves %v", got)
		}
	}
}
