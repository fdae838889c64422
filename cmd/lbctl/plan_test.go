package main

import (
	"strings"
	"testing"
)

func TestPlan_SaysWhoWouldMove(t *testing.T) {
	r := newRig(t)
	shop := r.file("shop.yaml", shopYAML)
	if out := r.ok("plan", "-f", shop); !strings.Contains(out, "created  application  shop") || !strings.Contains(out, "nobody would move") {
		t.Errorf("of a new application it says %s", out)
	}
	r.ok("apply", "-f", shop)
	r.hub.set(3, played("p1", 0))
	drained := r.file("drained.yaml", strings.Replace(shopYAML, "host: 10.0.0.2", "host: 10.0.0.2, state: draining", 1))
	out := r.ok("plan", "-f", drained)
	for _, want := range []string{"% of the users of shop would move to another instance\n", "% from b to a\n", "shop/b, which becomes draining, has 3 open requests, 0 of them streams\n", "dry run: nothing was changed"} {
		if !strings.Contains(out, want) {
			t.Errorf("says nothing of %q:\n%s", want, out)
		}
	}
	code, shown, errs := r.run("plan", "-f", drained, "--max-moved", "5%")
	if code != 1 || shown != out || !strings.Contains(errs, "of the users of shop would move; at most 5% may (--max-moved)") {
		t.Errorf("exit code %d: %s%s", code, shown, errs)
	}
	r.fails(1, "applications.shop|of the users move; at most 5% may", "apply", "-f", drained, "--max-moved", "5%")
	if out := r.ok("diff", "-f", shop); out != "" {
		t.Errorf("it was applied: %s", out)
	}
	r.ok("apply", "-f", drained, "--max-moved", "100%")
	r.fails(2, `--max-moved|5% is a share`, "apply", "-f", drained, "--max-moved", "5")
	empty := r.file("empty.yaml", "applications: {}\n")
	if out := r.ok("plan", "-f", empty, "--prune"); !strings.Contains(out, "shop is deleted: none of its users is served any more") || !strings.Contains(out, "shop/a, which is removed, has 3 open requests") {
		t.Errorf("of a deletion it says %s", out)
	}
}
