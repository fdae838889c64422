package route

import (
	"fmt"
	"math"
	"testing"

	"difylb/pkg/lb"
)

func TestFlows_SayWhereUsersGo(t *testing.T) {
	base := app("shop", nil, "a", "b", "c", "d")
	for name, edit := range map[string]func(*lb.Application){
		"drain":           func(a *lb.Application) { a.Instances[1].State = lb.Draining },
		"remove":          func(a *lb.Application) { a.Instances = a.Instances[:3] },
		"weight":          func(a *lb.Application) { a.Instances[0].Weight = 3 },
		"drain and weigh": func(a *lb.Application) { a.Instances[1].State, a.Instances[0].Weight = lb.Disabled, 2 },
		"address":         func(a *lb.Application) { a.Instances[0].Host = "h" },
		"nobody left":     func(a *lb.Application) { a.Instances = nil },
	} {
		changed := base.Clone()
		edit(changed)
		from := build(t, snapshot(1, base), nil)
		to := build(t, snapshot(2, changed), from)
		flows := Flows(from, to, "shop")
		sum := 0.0
		for i, f := range flows {
			sum += f.Share
			if i > 0 && f.Share > flows[i-1].Share {
				t.Errorf("%s: not in order: %v", name, flows)
			}
		}
		if want := Moved(from, to)["shop"]; math.Abs(sum-want) > 1e-9 {
			t.Errorf("%s: the flows add up to %v, moved is %v", name, sum, want)
		}
		moves := Moves(from, to, "shop")
		const users = 5000
		seen := make(map[[2]string]float64)
		for i := range users {
			user := fmt.Sprintf("user-%d", i*7919)
			p := from.App("shop").Point(user)
			x, y := from.App("shop").home(p), to.App("shop").home(p)
			if moves(uint64(p)) != (x != y) {
				t.Errorf("%s: Moves says %v of one who goes from %q to %q", name, x == y, x, y)
			}
			seen[[2]string{x, y}] += 1.0 / users
		}
		for _, f := range flows {
			if got := seen[[2]string{f.From, f.To}]; math.Abs(got-f.Share) > 0.03 {
				t.Errorf("%s: %+v, of %d users %v", name, f, users, got)
			}
		}
	}
	other := base.Clone()
	other.ConsistentHash.HashAlgorithm = lb.XXHash
	from := build(t, snapshot(1, base), nil)
	to := build(t, snapshot(2, other, app("zoo", nil, "a")), from)
	if Moves(from, to, "shop") != nil || Moves(from, to, "zoo") != nil || Flows(from, to, "zoo") != nil || Flows(from, to, "nobody") != nil {
		t.Error("it claims to know what can't be known")
	}
	if len(Flows(from, to, "shop")) != 12 {
		t.Errorf("between algorithms %v", Flows(from, to, "shop"))
	}
}
