package admin

import (
	"context"
	"encoding/json"
	"errors"
	"strings"
	"testing"
	"time"

	"difylb/pkg/cluster"
	"difylb/pkg/lb"
)

// TestActs_AreEventsOfEveryAdmin: what an operator does at one lb-admin without
// changing a declaration is heard by who watches another, and stands in the log
// of the first.
func TestActs_AreEventsOfEveryAdmin(t *testing.T) {
	there := newFixture(t)
	here := newFixture(t, func(o *Options) {
		o.Announce = func(_ context.Context, kind string, data []byte) {
			if err := there.server.Announced(kind, data); err != nil {
				t.Error(err)
			}
		}
	})
	holding := proxy("p1", 4700)
	holding.HeldBack, holding.Refused, holding.RefusedRevision, holding.RefusedEpoch = true, "the store was replaced", 3, "new"
	here.hub.set(0, holding)

	listening, stop := context.WithCancel(ctx)
	defer stop()
	ended := make(chan error, 2)
	listen := func(f *fixture) chan Event {
		events := make(chan Event, 64)
		started := make(chan struct{})
		go func() {
			ended <- f.client(RoleViewer).Events(listening, func(e Event) error {
				switch e.Type {
				case EventReset:
					close(started)
				case EventAccept, EventSecretsExport:
					events <- e
				}
				return nil
			})
		}()
		<-started
		return events
	}
	heardHere, heardThere := listen(here), listen(there)
	next := func(events chan Event) (e Event, act ActEvent) {
		t.Helper()
		select {
		case e = <-events:
		case <-time.After(10 * time.Second):
			t.Fatal("nothing is heard")
		}
		if err := json.Unmarshal(e.Data, &act); err != nil {
			t.Fatal(err)
		}
		return e, act
	}

	before := time.Now().Add(-time.Second)
	here.want(409, RoleAdmin, "POST", Base+"/nodes/p1/accept", `{"refused_revision":4,"refused_epoch":"new"}`, "Content-Type", "application/json")
	here.want(200, RoleAdmin, "POST", Base+"/nodes/p1/accept", "")
	for _, events := range []chan Event{heardHere, heardThere} {
		e, act := next(events)
		if act.Time.Before(before) {
			t.Errorf("at %v", act.Time)
		}
		act.Time = time.Time{}
		if e.Type != EventAccept || act != (ActEvent{Who: "admin", From: "127.0.0.1", Admin: "n1", Node: "p1", Revision: 3, Epoch: "new"}) {
			t.Errorf("%s %+v", e.Type, act)
		}
	}
	here.want(200, RoleAdmin, "GET", Base+"/export?secrets=true", "")
	here.want(200, RoleAdmin, "GET", Base+"/export", "")
	for _, events := range []chan Event{heardHere, heardThere} {
		if e, act := next(events); e.Type != EventSecretsExport || act.Who != "admin" || act.From != "127.0.0.1" {
			t.Errorf("%s %+v", e.Type, act)
		}
	}
	if log := here.log.String(); strings.Count(log, `"action":"export.secrets"`) != 1 || !strings.Contains(log, `"who":"admin","from":"127.0.0.1"`) {
		t.Errorf("the log: %s", log)
	}
	if entries, err := here.admin.History(ctx, 10, 0); err != nil || len(entries) != 0 {
		t.Errorf("history %+v, %v", entries, err)
	}
	stop()
	for range 2 {
		<-ended
	}
	if len(heardHere)+len(heardThere) > 0 {
		t.Error("more was heard")
	}
}

func TestActs_WhatIsAnnouncedIsKnownAndJSON(t *testing.T) {
	f := newFixture(t)
	for _, c := range []struct{ kind, data string }{{"configuration", "{}"}, {"", "{}"}, {EventAccept, "{"}, {EventAccept, ""}, {EventAccept + "\n", "{}"}} {
		if err := f.server.Announced(c.kind, []byte(c.data)); !errors.Is(err, lb.ErrInvalid) {
			t.Errorf("%q %q: %v", c.kind, c.data, err)
		}
	}
}

func TestActs_WhoDoesNotReadIsToldThatHeMissedSomething(t *testing.T) {
	var a acts
	l, other := a.listen(), a.listen()
	a.leave(other)
	for range maxUntold {
		a.tell(EventAccept, json.RawMessage("{}"))
	}
	if l.missed.Load() || len(other.told) > 0 {
		t.Errorf("missed %v, and one who left was told %d", l.missed.Load(), len(other.told))
	}
	if a.tell(EventAccept, json.RawMessage("{}")); !l.missed.Load() {
		t.Error("it was not noticed")
	}
}

// TestProblems_NameWhatIsWrongAndWhatWouldBeRight goes through wrong bodies,
// ids and paths, each of which is told in one message in the words of JSON.
func TestProblems_NameWhatIsWrongAndWhatWouldBeRight(t *testing.T) {
	f := newFixture(t)
	f.applyShop()
	f.hub.set(0, proxy("proxy-1", 1), cluster.NodeStatus{ID: "admin-1", Role: lb.RoleAdmin})
	for _, c := range []struct {
		status                     int
		method, path, body, detail string
	}{
		{422, "POST", "/access", `{"nam":"x"}`, `nam: there is no such key; did you mean "name"?`},
		{422, "POST", "/access", `{"name":5,"role":"viewer"}`, `name: a number stands where text belongs`},
		{422, "POST", "/access", `{"name":["a"]}`, `name: a list stands where text belongs`},
		{422, "POST", "/access", `{"name":"x","role":"vewer"}`, `did you mean "viewer"?`},
		{422, "POST", "/access", `"x"`, `text stands where a mapping belongs`},
		{422, "POST", "/apps/shop/tokens", `{"disabled":"no"}`, `disabled: text stands where true or false belongs`},
		{422, "POST", "/apps/shop/tokens", `{"label":{}}`, `label: a mapping stands where text belongs`},
		{422, "POST", "/nodes/proxy-1/accept", `{"refused_revision":"7"}`, `refused_revision: text stands where a whole number belongs`},
		{422, "POST", "/nodes/proxy-1/accept", `{"refused_revision":1.5}`, `refused_revision: a number stands where a whole number belongs`},
		{422, "POST", "/nodes/proxy-1/accept", `{"refused_revison":7}`, `did you mean "refused_revision"?`},
		{404, "POST", "/nodes/proxy-2/accept", "", `there is no live proxy "proxy-2"; did you mean "proxy-1"?`},
		{404, "POST", "/nodes/admin-1/accept", "", `"admin-1" is an lb-admin, which holds nothing back`},
		{404, "GET", "/apps/nothing-like-it", "", `there is no application "nothing-like-it"; there are desk, shop`},
		{404, "GET", "/aps", "", `did you mean "apps"?`},
		{404, "GET", "/histroy/5", "", `did you mean "history"?`},
		{400, "GET", "/history/x", "", `"x" is not a revision; GET /api/v1/history lists them`},
	} {
		r := f.want(c.status, RoleAdmin, c.method, Base+c.path, c.body)
		if p := r.problem(t); !strings.Contains(p.Detail, c.detail) {
			t.Errorf("%s %s %s: %q, want %q", c.method, c.path, c.body, p.Detail, c.detail)
		}
	}
	r := f.want(409, RoleAdmin, "POST", Base+"/nodes/proxy-1/accept", "")
	if p := r.problem(t); strings.Contains(p.Detail, "try again") || !strings.Contains(p.Detail, "nothing was done") {
		t.Errorf("to accept where nothing is held back: %q", p.Detail)
	}
}
