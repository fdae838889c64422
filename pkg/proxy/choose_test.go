package proxy

import (
	"fmt"
	"net/http"
	"strings"
	"testing"
	"time"

	"difylb/pkg/lb"
)

// load opens requests on an instance that never end.
func (r *rig) load(instance string, n int) {
	st := r.p.view.Load().apps[0]
	gate := st.instances[st.app.Index(instance)].gate
	for range n {
		gate.Force()
	}
	r.t.Cleanup(func() {
		for range n {
			gate.Release()
		}
	})
}

func TestLoadFactor_PassesAnInstanceOverItsBound(t *testing.T) {
	r := newRig(t, func(_ *Options, app *lb.Application) {
		app.ConsistentHash.LoadFactor = 1.5
		for i := range app.Instances {
			app.Instances[i].Domain = "one"
		}
	}, echo("a"), echo("b"), echo("c"))
	user := r.userOf("a")
	by := func(method, path, user, body string) string {
		resp, answer := r.do(method, path, user, body)
		if resp.StatusCode != 200 {
			t.Fatalf("%s %s: %d %s", method, path, resp.StatusCode, answer)
		}
		return answer[:1]
	}
	if got := by("GET", "/v1/info", user, ""); got != "a" {
		t.Fatalf("without load at %s", got)
	}
	r.load("a", 10)
	if got := by("GET", "/v1/info", user, ""); got == "a" {
		t.Error("a is over its bound, and has it")
	}
	if n := r.p.Counts().Failovers; n != 0 {
		t.Errorf("%d failovers, but the owner is usable", n)
	}
	r.load("b", 10)
	r.load("c", 10)
	if got := by("GET", "/v1/info", user, ""); got != "a" {
		t.Errorf("all have as much to do, and %s has it", got)
	}
	r.app.ConsistentHash.LoadFactor = 0
	r.apply()
	r.load("a", 50)
	if got := by("GET", "/v1/info", user, ""); got != "a" {
		t.Errorf("without a factor at %s", got)
	}
}

// Instances that share nothing: only what begins a conversation, and brings no
// file, can go anywhere.
func TestLoadFactor_LeavesWhatBelongsToAnInstance(t *testing.T) {
	r := newRig(t, func(_ *Options, app *lb.Application) { app.ConsistentHash.LoadFactor = 1.5 }, echo("a"), echo("b"))
	user := r.userOf("a")
	r.load("a", 10)
	body := func(rest string) string { return fmt.Sprintf(`{"query":"hi","user":%q%s}`, user, rest) }
	for _, c := range []struct {
		what, method, path, user, body, want string
	}{
		{"a new conversation", "POST", "/v1/chat-messages", "", body(""), "b"},
		{"a new conversation that says so", "POST", "/v1/chat-messages", "", body(`,"conversation_id":""`), "b"},
		{"a conversation", "POST", "/v1/chat-messages", "", body(`,"conversation_id":"7a1c1b1e-0000-4000-8000-000000000000"`), "a"},
		{"a new conversation about a file", "POST", "/v1/chat-messages", "", body(`,"files":[{"type":"image","transfer_method":"local_file","upload_file_id":"f"}]`), "a"},
		{"an upload", "POST", "/v1/files/upload", user, "x", "a"},
		{"a workflow", "POST", "/v1/workflows/run", "", body(""), "a"},
		{"messages", "GET", "/v1/messages?user=" + user + "&conversation_id=7a1c1b1e-0000-4000-8000-000000000000", "", "", "a"},
		{"a list", "GET", "/v1/conversations?user=" + user, "", "", "a"},
		{"info", "GET", "/v1/info", user, "", "a"},
		{"a stop", "POST", "/v1/chat-messages/t/stop", "", body(""), "a"},
	} {
		resp, answer := r.do(c.method, c.path, c.user, c.body)
		if resp.StatusCode != 200 || !strings.HasPrefix(answer, c.want) {
			t.Errorf("%s: %d %.40s, want %s", c.what, resp.StatusCode, answer, c.want)
		}
	}
}

// One trial at a time: the retry of a request, and requests of others that only
// look, leave the turn to who takes it.
func TestTrial_IsNotUsedUpByLooking(t *testing.T) {
	failing := http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(503) })
	r := newRig(t, func(_ *Options, app *lb.Application) {
		for i := range app.Instances {
			app.Instances[i].MaxFails, app.Instances[i].FailTimeout = 1, lb.Duration(time.Hour)
		}
		app.Retry.NonIdempotent = true
	}, echo("a"), failing)
	a := r.p.view.Load().apps[0].instances[0]
	// a's ejection of an hour ended a moment ago.
	a.passive.Fail(time.Now().Add(-time.Hour-time.Second), 1, time.Hour)
	if !a.passive.OnTrial(time.Now()) {
		t.Fatal("not on trial")
	}
	other := r.userOf("b")
	if resp, _ := r.do("GET", "/v1/info", other, ""); resp.StatusCode != 200 { // b fails, the retry takes a's turn and ends the trial
		t.Fatal(resp.StatusCode)
	}
	if a.passive.OnTrial(time.Now()) {
		t.Error("the trial goes on after a success")
	}
}
