package proxy

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"regexp"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/standin"
	"difylb/pkg/stats"
)

// estate is a rig whose instances are stand-ins for Dify.
type estate struct {
	*rig
	dify map[string]*standin.Server
}

const chatPattern = "POST /v1/chat-messages"

// startStandin runs a stand-in that knows the rig's token for its name.
func startStandin(t testing.TB, o standin.Options) (*standin.Server, lb.Instance) {
	t.Helper()
	if len(o.Apps) == 0 {
		o.Apps = []standin.App{{ID: "one", Mode: standin.AdvancedChat}}
	}
	o.Apps[0].Key = "app-" + o.Name + "-secret-token"
	o.Slots, o.FirstToken, o.TokenGap, o.Tokens = -1, -1, -1, 3
	s := standin.New(o)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Run(ctx, ln) }()
	t.Cleanup(func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return s, instanceAt(o.Name, "http://"+ln.Addr().String())
}

// newEstate serves stand-ins with those names, each by itself.
func newEstate(t testing.TB, edit func(*Options, *lb.Application), names ...string) *estate {
	t.Helper()
	e := &estate{dify: make(map[string]*standin.Server)}
	var instances []lb.Instance
	for _, name := range names {
		s, in := startStandin(t, standin.Options{Name: name})
		e.dify[name] = s
		instances = append(instances, in)
	}
	e.rig = newRig(t, func(o *Options, app *lb.Application) {
		app.Instances = instances
		if edit != nil {
			edit(o, app)
		}
	})
	return e
}

// stranger is another Proxy in front of the same instances, with no memory of
// what passed the first.
func (e *estate) stranger() *estate {
	e.t.Helper()
	r := newRig(e.t, func(_ *Options, app *lb.Application) {
		clone := e.app.Clone()
		app.Instances, app.Retry = clone.Instances, clone.Retry
	})
	return &estate{rig: r, dify: e.dify}
}

// set changes the declaration of an instance.
func (e *estate) set(name string, change func(*lb.Instance)) {
	e.t.Helper()
	for i := range e.app.Instances {
		if e.app.Instances[i].Name == name {
			change(&e.app.Instances[i])
			e.apply()
			return
		}
	}
	e.t.Fatal("no instance ", name)
}

func draining(in *lb.Instance) { in.State = lb.Draining }

var spokenBy = regexp.MustCompile(`\[([a-z]+)\]`)

// chat sends a message and returns the status, who answered, and in which conversation.
func (e *estate) chat(user, conversation, mode string, fields ...string) (status int, by, id string) {
	e.t.Helper()
	resp, body := e.do("POST", "/v1/chat-messages", "", fmt.Sprintf(`{"inputs":{},"query":"hi","response_mode":%q,"user":%q,"conversation_id":%q}`, mode, user, conversation), fields...)
	if m := spokenBy.FindStringSubmatch(body); m != nil {
		by = m[1]
	}
	if m := regexp.MustCompile(`"conversation_id": ?"([^"]+)"`).FindStringSubmatch(body); m != nil {
		id = m[1]
	}
	return resp.StatusCode, by, id
}

// begin begins a conversation and returns its id.
func (e *estate) begin(user, want string) string {
	e.t.Helper()
	status, by, id := e.chat(user, "", "blocking")
	if status != 200 || by != want || id == "" {
		e.t.Fatalf("a new conversation of %s: %d by %q, want %q", user, status, by, want)
	}
	return id
}

// asked returns how many calls of the pattern each instance has ended, as "a=1 b=2".
func (e *estate) asked(pattern string) string {
	var out []string
	for _, in := range e.app.Instances {
		n := uint64(0)
		for _, c := range e.dify[in.Name].Counts().Requests[pattern] {
			n += c
		}
		out = append(out, fmt.Sprintf("%s=%d", in.Name, n))
	}
	return strings.Join(out, " ")
}

func (e *estate) wantAsked(what, pattern, want string) {
	e.t.Helper()
	var got string
	for end := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) { // an instance counts once it has ended
		if got = e.asked(pattern); got == want {
			return
		}
		if time.Now().After(end) {
			e.t.Errorf("%s: %s asked %s, want %s", what, pattern, got, want)
			return
		}
	}
}

func TestConversation_StaysWithTheInstanceThatDrains(t *testing.T) {
	for _, mode := range []string{"blocking", "streaming"} {
		t.Run(mode, func(t *testing.T) {
			e := newEstate(t, nil, "a", "b", "c")
			user := e.userOf("a")
			id := e.begin(user, "a")
			e.set("a", draining)
			for range 2 {
				if status, by, got := e.chat(user, id, mode); status != 200 || by != "a" || got != id {
					t.Errorf("the next message: %d by %q in %q", status, by, got)
				}
			}
			_, by, fresh := e.chat(user, "", mode)
			if by == "a" || by == "" || fresh == id {
				t.Errorf("a new conversation went to %q", by)
			}
			// The new one has its home, too: the ring's.
			if status, at, got := e.chat(user, fresh, mode); status != 200 || at != by || got != fresh {
				t.Errorf("the new one's next message: %d by %q in %q", status, at, got)
			}
			e.wantAsked("nobody was asked in vain", chatPattern, map[string]string{"b": "a=3 b=2 c=0", "c": "a=3 b=0 c=2"}[by])
		})
	}
}

func TestConversation_IsNamedInManyPlaces(t *testing.T) {
	e := newEstate(t, nil, "a", "b")
	user := e.userOf("a")
	id := e.begin(user, "a")
	e.set("a", draining)
	asUser := `{"user":"` + user + `"}`
	calls := func(e *estate) {
		t.Helper()
		resp, body := e.do("GET", "/v1/conversations/"+id+"/variables?user="+user, "", "")
		var list struct{ Data []struct{ ID string } }
		if err := json.Unmarshal([]byte(body), &list); err != nil || resp.StatusCode != 200 || len(list.Data) != 1 {
			t.Fatalf("variables: %d %s", resp.StatusCode, body)
		}
		for _, c := range []struct{ method, path, body, want string }{
			{"GET", "/v1/messages?user=" + user + "&conversation_id=" + id, "", id},
			{"GET", "/v1/messages?limit=1&conversation_id=" + id + "&user=" + user, "", id},
			{"POST", "/v1/conversations/" + id + "/name", `{"user":"` + user + `","name":"x"}`, `"x"`},
			{"PUT", "/v1/conversations/" + id + "/variables/" + list.Data[0].ID, `{"user":"` + user + `","value":"ships"}`, "ships"},
		} {
			if resp, body := e.do(c.method, c.path, "", c.body); resp.StatusCode != 200 || !strings.Contains(body, c.want) {
				t.Errorf("%s %s: %d %s", c.method, c.path, resp.StatusCode, body)
			}
		}
	}
	calls(e)
	calls(e.stranger())
	if n := e.dify["b"].Counts().Total; n != 0 {
		t.Errorf("b was asked %d times", n)
	}
	if resp, body := e.do("DELETE", "/v1/conversations/"+id, "", asUser); resp.StatusCode != 204 {
		t.Errorf("delete: %d %s", resp.StatusCode, body)
	}
	// What was deleted at home is gone, whoever else is asked.
	if resp, body := e.do("GET", "/v1/messages?user="+user+"&conversation_id="+id, "", ""); resp.StatusCode != 404 || !strings.Contains(body, `"not_found"`) {
		t.Errorf("after delete: %d %s", resp.StatusCode, body)
	}
}

// A proxy that has never seen the conversation asks the user's own instance
// first where that drains.
func TestConversation_StrangerAsksTheDrainingOwnerFirst(t *testing.T) {
	e := newEstate(t, nil, "a", "b", "c")
	user := e.userOf("c")
	id := e.begin(user, "c")
	e.set("c", draining)
	s := e.stranger()
	if status, by, _ := s.chat(user, id, "streaming"); status != 200 || by != "c" {
		t.Errorf("%d by %q", status, by)
	}
	s.wantAsked("c alone", chatPattern, "a=0 b=0 c=2")

	// What was begun meanwhile is on the next one: it costs one question more, once.
	_, next, fresh := s.chat(user, "", "blocking")
	s = e.stranger()
	for range 3 {
		if status, by, _ := s.chat(user, fresh, "blocking"); status != 200 || by != next {
			t.Errorf("%d by %q, want %q", status, by, next)
		}
	}
	want := map[string]string{"a": "a=4 b=0 c=3", "b": "a=0 b=4 c=3"}[next]
	s.wantAsked("the next, and c once", chatPattern, want)
}

// After a change of weights nothing says where a conversation is: the other
// worlds are asked, and the answer is remembered.
func TestConversation_IsLookedUpOnceAndRemembered(t *testing.T) {
	for _, mode := range []string{"blocking", "streaming"} {
		t.Run(mode, func(t *testing.T) {
			e := newEstate(t, nil, "a", "b", "c")
			user := e.userOf("b")
			id := e.begin(user, "b")
			e.set("b", func(in *lb.Instance) { in.Weight = 0 })
			s := e.stranger()
			status, by, got := s.chat(user, id, mode)
			if status != 200 || by != "b" || got != id {
				t.Fatalf("%d by %q", status, by)
			}
			first := e.asked(chatPattern)
			if want := "a=1 b=2 c=1"; first != want { // those on the ring come first
				t.Errorf("the search asked %s, want %s", first, want)
			}
			for range 2 {
				if status, by, _ := s.chat(user, id, mode); status != 200 || by != "b" {
					t.Errorf("%d by %q", status, by)
				}
			}
			s.wantAsked("afterwards b alone", chatPattern, "a=1 b=4 c=1")

			// So is what is found by a call whose answer names no conversation.
			s = e.stranger()
			for range 3 {
				if resp, body := s.do("GET", "/v1/messages?user="+user+"&conversation_id="+id, "", ""); resp.StatusCode != 200 || !strings.Contains(body, id) {
					t.Errorf("%d %s", resp.StatusCode, body)
				}
			}
			s.wantAsked("a, c, and then b alone", "GET /v1/messages", "a=1 b=3 c=1")
		})
	}
}

const nowhere = "11111111-2222-4333-8444-555555555555"

func TestConversation_UnknownEverywhere(t *testing.T) {
	for _, mode := range []string{"blocking", "streaming"} {
		e := newEstate(t, nil, "a", "b", "c")
		user := e.userOf("b")
		for i := 1; i <= 2; i++ {
			resp, body := e.do("POST", "/v1/chat-messages", "", `{"inputs":{},"query":"hi","response_mode":"`+mode+`","user":"`+user+`","conversation_id":"`+nowhere+`"}`)
			var envelope struct {
				Code, Message string
				Status        int
			}
			if err := json.Unmarshal([]byte(body), &envelope); err != nil || resp.StatusCode != 404 || envelope.Code != "not_found" || envelope.Status != 404 || !strings.Contains(envelope.Message, "Conversation Not Exists") || resp.Header.Get("X-Version") == "" {
				t.Errorf("%d %v %s", resp.StatusCode, resp.Header, body)
			}
			e.wantAsked("each once", chatPattern, fmt.Sprintf("a=%d b=%d c=%d", i, i, i))
		}
		// Each attempt is an instance's request; the client has made one.
		eventually(t, "all is counted", func() bool {
			app, _ := e.p.opts.Registry.Totals(stats.Key{App: "shop"})
			return app.Ended() == 2
		})
		app, _ := e.p.opts.Registry.Totals(stats.Key{App: "shop"})
		if app.Requests != 2 || app.Errors != 0 || app.Active != 0 || app.Reasons[lb.ReasonOK] != 2 {
			t.Errorf("application: %+v", app)
		}
		for name, s := range e.dify {
			in, _ := e.p.opts.Registry.Totals(stats.Key{App: "shop", Instance: name})
			if in.Requests != s.Counts().Total || in.Errors != 0 || in.Active != 0 || in.Reasons[lb.ReasonOK] != in.Requests {
				t.Errorf("%s: %+v, it has counted %d", name, in, s.Counts().Total)
			}
		}
		eventually(t, "one line each", func() bool { return len(e.lines("reason", "ok")) == 2 })
	}
}

// What shares its database is asked once.
func TestConversation_DomainsAreAskedOnce(t *testing.T) {
	world := standin.NewWorld()
	e := &estate{dify: make(map[string]*standin.Server)}
	var instances []lb.Instance
	for _, name := range []string{"a", "b", "c", "d"} {
		o := standin.Options{Name: name}
		if name != "d" {
			o.World = world
		}
		s, in := startStandin(t, o)
		if name != "d" {
			in.Domain = "north"
		}
		e.dify[name] = s
		instances = append(instances, in)
	}
	e.rig = newRig(t, func(_ *Options, app *lb.Application) { app.Instances = instances })
	user := e.userOf("d")
	if status, _, _ := e.chat(user, nowhere, "blocking"); status != 404 {
		t.Error(status)
	}
	if c := e.asked(chatPattern); strings.Count(c, "=1") != 2 || strings.Count(c, "=0") != 2 || !strings.Contains(c, "d=1") {
		t.Errorf("asked %s", c)
	}
	// A conversation begun on a goes on at b and c, and no drain is held up by it.
	user = e.userOf("a")
	id := e.begin(user, "a")
	before := e.dify["a"].Counts().Total
	e.set("a", draining)
	var other string
	for range 3 {
		status, by, _ := e.chat(user, id, "blocking")
		if status != 200 || by == "a" || by == "d" {
			t.Errorf("%d by %q", status, by)
		}
		other = by
	}
	s := e.stranger()
	if status, by, _ := s.chat(user, id, "blocking"); status != 200 || by != other {
		t.Errorf("through another proxy: %d by %q, want %q", status, by, other)
	}
	if n := e.dify["a"].Counts().Total; n != before {
		t.Errorf("the draining replica got %d requests", n-before)
	}
}

// Who can't answer is not asked; that the conversation is unknown is then not said.
func TestConversation_WhoIsDownIsNotAsked(t *testing.T) {
	for _, c := range []struct {
		what string
		do   func(*estate)
		want int
	}{
		{"disabled", func(e *estate) { e.set("b", func(in *lb.Instance) { in.State = lb.Disabled }) }, 404},
		{"unhealthy", func(e *estate) {
			e.p.SetHealth(map[string]map[string]lb.Verdict{"shop": {"b": {Health: lb.Unhealthy}}})
		}, 503},
		{"token rejected", func(e *estate) {
			e.p.SetHealth(map[string]map[string]lb.Verdict{"shop": {"b": {Health: lb.TokenRejected}}})
		}, 503},
		{"ejected", func(e *estate) {
			for range 3 {
				e.p.view.Load().apps[0].instances[1].passive.Fail(time.Now(), 3, time.Minute)
			}
		}, 503},
	} {
		t.Run(c.what, func(t *testing.T) {
			e := newEstate(t, nil, "a", "b", "c")
			c.do(e)
			resp, body := e.do("GET", "/v1/messages?user="+e.userOf("a")+"&conversation_id="+nowhere, "", "")
			if resp.StatusCode != c.want || c.want == 503 && (!strings.Contains(body, "no_instance_available") || resp.Header.Get("Retry-After") == "") {
				t.Errorf("%d %s", resp.StatusCode, body)
			}
			e.wantAsked("all but b", "GET /v1/messages", "a=1 b=0 c=1")
		})
	}
}

// A home that can't be reached is no reason to say that the conversation does
// not exist: clients would begin a new one.
func TestConversation_HomeIsUnreachable(t *testing.T) {
	e := newEstate(t, nil, "a", "b", "c")
	user := e.userOf("a")
	id := e.begin(user, "a")
	dead, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	port := dead.Addr().(*net.TCPAddr).Port
	dead.Close()
	e.set("a", func(in *lb.Instance) { in.Port, in.State = port, lb.Draining })
	path := "/v1/messages?user=" + user + "&conversation_id=" + id
	seen := make(map[int]int)
	for range 6 { // until it is ejected, and after that
		resp, body := e.do("GET", path, "", "")
		if seen[resp.StatusCode]++; resp.StatusCode != 502 && resp.StatusCode != 503 {
			t.Errorf("known home: %d %s", resp.StatusCode, body)
		}
		if status, _, _ := e.chat(user, id, "blocking"); status != 502 && status != 503 {
			t.Errorf("known home, message: %d", status)
		}
	}
	if seen[502] == 0 || seen[503] == 0 {
		t.Errorf("statuses %v: first it is tried, then ejected", seen)
	}
	// A proxy that does not know where it is asks the others and is not misled.
	s := e.stranger()
	for range 6 {
		if resp, body := s.do("GET", path, "", ""); resp.StatusCode != 502 && resp.StatusCode != 503 {
			t.Errorf("stranger: %d %s", resp.StatusCode, body)
		}
	}
	// Taken away for good, it is waited for by nobody.
	e.set("a", func(in *lb.Instance) { in.State = lb.Disabled })
	if resp, body := e.do("GET", path, "", ""); resp.StatusCode != 404 {
		t.Errorf("disabled home: %d %s", resp.StatusCode, body)
	}
	// Probes alone do not part a user from his conversation.
	id = e.begin(user, e.nextOf(user))
	home := e.nextOf(user)
	e.p.SetHealth(map[string]map[string]lb.Verdict{"shop": {home: {Health: lb.Unhealthy}}})
	if status, by, _ := e.chat(user, id, "blocking"); status != 200 || by != home {
		t.Errorf("home is unhealthy for the probes only: %d by %q", status, by)
	}
}

// The home that was known is believed when it says that there is no such
// conversation any more, whoever else is down.
func TestConversation_DeletedAtHomeIsGone(t *testing.T) {
	e := newEstate(t, nil, "a", "b", "c")
	user := e.userOf("a")
	id := e.begin(user, "a")
	e.p.SetHealth(map[string]map[string]lb.Verdict{"shop": {"c": {Health: lb.Unhealthy}}})
	if resp, body := e.do("DELETE", "/v1/conversations/"+id, "", `{"user":"`+user+`"}`); resp.StatusCode != 204 {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	if status, _, _ := e.chat(user, id, "blocking"); status != 404 {
		t.Errorf("deleted: %d", status)
	}
	if status, _, _ := e.chat(user, nowhere, "blocking"); status != 503 {
		t.Errorf("never seen: %d", status)
	}
}

// nextOf returns who serves a user's new conversations.
func (e *estate) nextOf(user string) string {
	app := e.p.Table().App("shop")
	i, _ := app.Choose(app.Point(user), nil, func(int) condition { return condition{} })
	return app.Instances[i].Decl.Name
}

// A user id in the head spares reading the body; the conversation in it is
// found when the first answer says that it is needed.
func TestConversation_BodyIsNotWaitedFor(t *testing.T) {
	e := newEstate(t, nil, "a", "b")
	user := e.userOf("a")
	id := e.begin(user, "a")
	e.set("a", func(in *lb.Instance) { in.Weight = 0 })
	for range 2 {
		if status, by, _ := e.chat(user, id, "blocking", "X-User-ID", user); status != 200 || by != "a" {
			t.Errorf("%d by %q", status, by)
		}
	}
	arrived := make(chan struct{})
	early := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		first := make([]byte, 5)
		io.ReadFull(r.Body, first)
		close(arrived)
		io.Copy(w, r.Body)
	}))
	defer early.Close()
	e.app.Instances = []lb.Instance{instanceAt("b", early.URL), e.app.Instances[0]}
	e.apply()
	c := e.dial()
	fmt.Fprintf(c, "POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer user-token-shop\r\nX-User-ID: %s\r\nContent-Type: application/json\r\nContent-Length: 60\r\n\r\n{\"con", user)
	<-arrived // before the body has come
	io.WriteString(c, `versation_id":"`+id+`"`+strings.Repeat(" ", 60-5-16-36)+`}`)
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v %v", resp, err)
	}
	resp.Body.Close()
}

func TestConversation_LargeBodies(t *testing.T) {
	e := newEstate(t, nil, "a", "b")
	user := e.userOf("a")
	id := e.begin(user, "a")
	e.set("a", func(in *lb.Instance) { in.Weight = 0 })
	pad := strings.Repeat("x", 200<<10)
	for _, body := range []string{
		`{"inputs":{},"pad":"` + pad + `","query":"hi","response_mode":"blocking","user":"` + user + `","conversation_id":"` + id + `"}`,
		`{"conversation_id":"` + id + `","inputs":{},"query":"hi","response_mode":"blocking","user":"` + user + `","pad":"` + pad + `"}`,
	} {
		for _, p := range []*estate{e.stranger(), e} {
			if resp, answer := p.do("POST", "/v1/chat-messages", "", body); resp.StatusCode != 200 || !strings.Contains(answer, "[a]") {
				t.Errorf("%d %.300s", resp.StatusCode, answer)
			}
		}
	}
}

// Only Dify's word that it does not know the conversation makes it be looked
// for, and whatever else is said is passed on.
func TestConversation_OtherAnswersPassAtOnce(t *testing.T) {
	const unknown = `{"code":"not_found","message":"Conversation Not Exists.","status":404}`
	withID := `{"conversation_id":"` + nowhere + `"}`
	for _, c := range []struct {
		name, method, path, body string
		first                    func(*atomic.Int64) http.Handler
		want                     int
		asked                    int64 // of the second
	}{
		{"unknown", "POST", "/v1/chat-messages", withID, func(n *atomic.Int64) http.Handler { return answering(n, 404, unknown) }, 200, 1},
		{"another code", "POST", "/v1/chat-messages", withID, func(n *atomic.Int64) http.Handler { return answering(n, 404, `{"code":"file_not_found","status":404}`) }, 404, 0},
		{"no code", "POST", "/v1/chat-messages", withID, func(n *atomic.Int64) http.Handler { return answering(n, 404, `<html>not_found`) }, 404, 0},
		{"no conversation", "POST", "/v1/chat-messages", `{"conversation_id":""}`, func(n *atomic.Int64) http.Handler { return answering(n, 404, unknown) }, 404, 0},
		{"names none", "GET", "/v1/messages/" + nowhere + "/suggested", "", func(n *atomic.Int64) http.Handler { return answering(n, 404, unknown) }, 404, 0},
		{"files", "GET", "/v1/files/" + nowhere + "/preview", "", func(n *atomic.Int64) http.Handler { return answering(n, 404, unknown) }, 404, 0},
		{"POST broke", "POST", "/v1/chat-messages", withID, breaking, 502, 0},
		{"POST 500", "POST", "/v1/chat-messages", withID, func(n *atomic.Int64) http.Handler { return answering(n, 500, `{}`) }, 500, 0},
		{"POST 503", "POST", "/v1/chat-messages", withID, func(n *atomic.Int64) http.Handler { return answering(n, 503, `{}`) }, 503, 0},
		{"POST 400", "POST", "/v1/chat-messages", withID, func(n *atomic.Int64) http.Handler { return answering(n, 400, `{"code":"invalid_param"}`) }, 400, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			var first, second atomic.Int64
			r := newRig(t, nil, c.first(&first), answering(&second, 200, "second"))
			resp, body := r.do(c.method, c.path, r.userOf("a"), c.body)
			if resp.StatusCode != c.want || first.Load() != 1 || second.Load() != c.asked {
				t.Errorf("%d %s, asked %d and %d", resp.StatusCode, body, first.Load(), second.Load())
			}
		})
	}
}

// A 404 on a call that names no conversation is not held up by a body that
// does not come.
func TestConversation_AnUnrelatedHeadIsNotHeldBack(t *testing.T) {
	release := make(chan struct{})
	r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.WriteHeader(404)
		http.NewResponseController(w).Flush()
		<-release
	}), echo("b"))
	req, _ := http.NewRequest("GET", r.url+"/v1/files/x/preview?user="+r.userOf("a"), nil)
	req.Header.Set("Authorization", "Bearer user-token-shop")
	resp, err := http.DefaultClient.Do(req) // returns with the head
	close(release)
	if err != nil || resp.StatusCode != 404 {
		t.Fatal(resp, err)
	}
	resp.Body.Close()
}

// After a search has begun a POST goes on only while nothing was started.
func TestConversation_SearchStopsWhereACallMayHaveBegun(t *testing.T) {
	const unknown = `{"code":"not_found","status":404}`
	for _, c := range []struct {
		name   string
		second func(*atomic.Int64) http.Handler
		method string
		want   int
		third  int64
	}{
		{"POST broke", breaking, "POST", 502, 0},
		{"POST 500", func(n *atomic.Int64) http.Handler { return answering(n, 500, `{}`) }, "POST", 500, 0},
		{"POST busy", func(n *atomic.Int64) http.Handler { return answering(n, 429, `{"code":"too_many_requests"}`) }, "POST", 503, 1},
		{"POST closed", func(n *atomic.Int64) http.Handler { return answering(n, 403, `{"code":"forbidden"}`) }, "POST", 503, 1},
		{"POST token", func(n *atomic.Int64) http.Handler { return answering(n, 401, `{"code":"unauthorized"}`) }, "POST", 503, 1},
		{"GET broke", breaking, "GET", 503, 1},
		{"GET 500", func(n *atomic.Int64) http.Handler { return answering(n, 500, `{}`) }, "GET", 503, 1},
		{"all unknown", func(n *atomic.Int64) http.Handler { return answering(n, 404, unknown) }, "POST", 404, 1},
	} {
		t.Run(c.name, func(t *testing.T) {
			var n [3]atomic.Int64
			r := newRig(t, nil, answering(&n[0], 404, unknown), c.second(&n[1]), answering(&n[2], 404, unknown))
			user := r.userBy("a", "b", "c")
			path, body := "/v1/chat-messages", `{"conversation_id":"`+nowhere+`","user":"`+user+`"}`
			if c.method == "GET" {
				path, body = "/v1/messages?conversation_id="+nowhere+"&user="+user, ""
			}
			resp, answer := r.do(c.method, path, "", body)
			if resp.StatusCode != c.want || n[0].Load() != 1 || n[1].Load() != 1 || n[2].Load() != c.third {
				t.Errorf("%d %s, asked %d %d %d", resp.StatusCode, answer, n[0].Load(), n[1].Load(), n[2].Load())
			}
		})
	}
}

// userBy returns a user whose failover order is that.
func (r *rig) userBy(order ...string) string {
	app := r.p.Table().App("shop")
next:
	for i := range 10000 {
		user := fmt.Sprint("user-", i)
		walk := app.Ring.Walk(app.Point(user))
		for _, want := range order {
			if i, ok := walk.Next(); !ok || app.Instances[i].Decl.Name != want {
				continue next
			}
		}
		return user
	}
	r.t.Fatal("no user by ", order)
	return ""
}

func TestMemory_IsBounded(t *testing.T) {
	m := newMemory(0)
	const n = 400_000
	for i := range n {
		m.learn("app", fmt.Sprint("id-", i), "a", time.Now())
	}
	kept := 0
	for i := range m.parts {
		p := &m.parts[i]
		if len(p.young) > memoryPartSize || len(p.old) > memoryPartSize {
			t.Fatalf("part %d holds %d and %d", i, len(p.young), len(p.old))
		}
		kept += len(p.young) + len(p.old)
	}
	if most := 2 * memoryPartSize * len(m.parts); kept > most || kept < most/2 {
		t.Errorf("%d of %d ids are kept, at most %d", kept, n, most)
	}
	for i := n - memoryPartSize*len(m.parts)/2; i < n; i++ { // the newest are
		if place, ok := m.find("app", fmt.Sprint("id-", i)); !ok || place != "a" {
			t.Fatalf("id %d of %d is forgotten", i, n)
		}
	}
}

// What is said again and again pushes nothing else out.
func TestMemory_RepetitionForgetsNothing(t *testing.T) {
	m := newMemory(0)
	ids := make(map[*memoryPart][]string)
	for i := 0; ; i++ {
		id := fmt.Sprint("id-", i)
		p, _ := m.part("app", id)
		if ids[p] = append(ids[p], id); len(ids[p]) <= 2*memoryPartSize {
			m.learn("app", id, "a", time.Now())
			continue
		}
		all := ids[p][:2*memoryPartSize]
		for range 5000 {
			m.learn("app", all[len(all)-1], "a", time.Now())
		}
		for _, id := range all {
			if _, ok := m.find("app", id); !ok {
				t.Fatalf("%s was pushed out", id)
			}
		}
		return
	}
}

func TestMemory_ApplicationsLifetimeAndMoves(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		m := newMemory(time.Hour)
		m.learn("one", "id", "a", time.Now())
		m.learn("one", "", "a", time.Now())
		if _, ok := m.find("two", "id"); ok {
			t.Error("known in another application")
		}
		if _, ok := m.find("one", ""); ok {
			t.Error("no id is known")
		}
		time.Sleep(50 * time.Minute)
		m.learn("one", "id", "b", time.Now())
		time.Sleep(time.Hour)
		if place, ok := m.find("one", "id"); !ok || place != "b" {
			t.Errorf("%q %v within its lifetime", place, ok)
		}
		time.Sleep(time.Nanosecond)
		if _, ok := m.find("one", "id"); ok {
			t.Error("known beyond its lifetime")
		}
		forever := newMemory(0)
		forever.learn("one", "id", "a", time.Now())
		time.Sleep(10000 * time.Hour)
		if _, ok := forever.find("one", "id"); !ok {
			t.Error("forgotten without a lifetime")
		}
	})
}
