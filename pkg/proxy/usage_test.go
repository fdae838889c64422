package proxy

import (
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"net/http"
	"reflect"
	"strings"
	"testing"
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/standin"
	"difylb/pkg/stats"
)

// usageOfSeries returns what a series has counted.
func (r *rig) usageOfSeries(key stats.Key) stats.Usage {
	r.t.Helper()
	t, _ := r.p.opts.Registry.Totals(key)
	return t.Usage
}

// wantUsage compares the three series that one answer counts in.
func (r *rig) wantUsage(what, instance, label string, want stats.Usage) {
	r.t.Helper()
	for _, key := range []stats.Key{{App: "shop"}, {App: "shop", Instance: instance}, stats.LabelKey("shop", label)} {
		var got stats.Usage
		for end := time.Now().Add(2 * time.Second); ; time.Sleep(time.Millisecond) { // counted at the end of the answer
			if got = r.usageOfSeries(key); reflect.DeepEqual(got, want) || time.Now().After(end) {
				break
			}
		}
		if !reflect.DeepEqual(got, want) {
			r.t.Errorf("%s: %+v has %+v, want %+v", what, key, got, want)
		}
	}
}

// chatUsage is 7 + 5 tokens for 0.000123 USD.
const chatUsage = `"metadata":{"usage":{"prompt_tokens":7,"prompt_unit_price":"0.001","prompt_price":"0.00007","completion_tokens":5,"completion_price":"0.000053","total_tokens":12,"total_price":"0.000123","currency":"USD","latency":0.5}}`

func answered(n uint64) stats.Usage {
	return stats.Usage{Prompt: 7 * n, Completion: 5 * n, Total: 12 * n, Answers: n, Costs: []stats.Cost{{Currency: "USD", Nano: 123000 * n}}}
}

func answer(contentType, body string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		w.Header().Set("Content-Type", contentType)
		// In two pieces, split where it hurts.
		half := len(body) / 2
		io.WriteString(w, body[:half])
		http.NewResponseController(w).Flush()
		io.WriteString(w, body[half:])
	})
}

func TestUsage_OfEveryAnswerThatTellsIt(t *testing.T) {
	const sse, js = "text/event-stream; charset=utf-8", "application/json"
	workflow := stats.Usage{Total: 42, Answers: 1}
	for _, c := range []struct {
		name, path, contentType, body string
		want                          stats.Usage
	}{
		{"blocking chat", "/v1/chat-messages", js, `{"event":"message","conversation_id":"c","answer":"x",` + chatUsage + `}`, answered(1)},
		{"blocking completion", "/v1/completion-messages", js, `{"event":"message","answer":"x",` + chatUsage + `}`, answered(1)},
		{"blocking workflow", "/v1/workflows/run", js, `{"task_id":"t","workflow_run_id":"r","data":{"status":"succeeded","total_tokens":42}}`, workflow},
		{"failed workflow", "/v1/workflows/run", js, `{"data":{"status":"failed","total_tokens":42}}`, workflow},
		{"streaming chat", "/v1/chat-messages", sse, "data: {\"event\":\"message\",\"answer\":\"total_tokens\"}\n\nevent: ping\n\ndata: {\"event\":\"message_end\"," + chatUsage + "}\n\n", answered(1)},
		{"streaming completion", "/v1/completion-messages", sse, "data: {\"event\": \"message_end\", " + chatUsage + "}\n\n", answered(1)},
		{"streaming workflow", "/v1/workflows/run", sse, "data: {\"event\":\"workflow_started\",\"data\":{}}\n\ndata: {\"event\":\"workflow_finished\",\"data\":{\"total_tokens\":42}}\n\n", workflow},
		{"chatflow tells it twice", "/v1/chat-messages", sse, "data: {\"event\":\"message_end\"," + chatUsage + "}\n\ndata: {\"event\":\"workflow_finished\",\"data\":{\"total_tokens\":12}}\n\n", answered(1)},
		{"the other way round", "/v1/chat-messages", sse, "data: {\"event\":\"workflow_finished\",\"data\":{\"total_tokens\":12}}\n\ndata: {\"event\":\"message_end\"," + chatUsage + "}\n\n", answered(1)},
		{"a node's is part of the whole", "/v1/workflows/run", sse, "data: {\"event\":\"node_finished\",\"data\":{\"execution_metadata\":{\"total_tokens\":40}}}\n\ndata: {\"event\":\"workflow_finished\",\"data\":{\"total_tokens\":42}}\n\n", workflow},
		{"tells none", "/v1/chat-messages", js, `{"answer":"x"}`, stats.Usage{}},
		{"ends before it tells", "/v1/chat-messages", sse, "data: {\"event\":\"message\",\"answer\":\"x\"}\n\n", stats.Usage{}},
		{"another call", "/v1/parameters", js, `{` + chatUsage + `}`, stats.Usage{}},
		{"not JSON", "/v1/chat-messages", "text/html", `{` + chatUsage + `}`, stats.Usage{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, nil, answer(c.contentType, c.body))
			method := "POST"
			if c.path == "/v1/parameters" {
				method = "GET"
			}
			resp, body := r.do(method, c.path, "u", map[string]string{"POST": "{}"}[method])
			if resp.StatusCode != 200 || body != c.body {
				t.Fatalf("%d %q", resp.StatusCode, body)
			}
			eventually(t, "the call is over", func() bool { return r.ended() == 1 })
			r.wantUsage(c.name, "a", "web", c.want)
		})
	}
}

// ended returns how many client requests the application has ended.
func (r *rig) ended() uint64 {
	t, _ := r.p.opts.Registry.Totals(stats.Key{App: "shop"})
	return t.Ended()
}

func TestUsage_NotOfErrorsNorOfWhatCannotBeRead(t *testing.T) {
	body := `{"code":"x","status":500,` + chatUsage + `}`
	for _, status := range []int{400, 404, 429, 500, 503} {
		r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(status)
			io.WriteString(w, body)
		}))
		if resp, _ := r.do("POST", "/v1/chat-messages", "u", "{}"); resp.StatusCode != status {
			t.Error(resp.StatusCode)
		}
		eventually(t, "the call is over", func() bool { return r.ended() == 1 })
		r.wantUsage(fmt.Sprint(status), "a", "web", stats.Usage{})
	}
	r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.Header().Set("Content-Encoding", "gzip")
		z := gzip.NewWriter(w)
		io.WriteString(z, `{`+chatUsage+`}`)
		z.Close()
	}))
	if resp, body := r.do("POST", "/v1/chat-messages", "u", "{}", "Accept-Encoding", "gzip"); resp.StatusCode != 200 || body[:2] != "\x1f\x8b" {
		t.Errorf("%d %q", resp.StatusCode, body)
	}
	eventually(t, "the call is over", func() bool { return r.ended() == 1 })
	r.wantUsage("gzip", "a", "web", stats.Usage{})
}

// A retry, a search and a client that leaves after the last word change nothing:
// an answer counts once, where it was given.
func TestUsage_CountsOnce(t *testing.T) {
	r := newRig(t, nil, answer("application/json", `{`+chatUsage+`}`), http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(429)
		io.WriteString(w, `{"code":"too_many_requests",`+chatUsage+`}`)
	}))
	const n = 20
	for i := range n {
		if resp, body := r.do("POST", "/v1/chat-messages", fmt.Sprint("u", i), "{}"); resp.StatusCode != 200 {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
	}
	eventually(t, "the calls are over", func() bool { return r.ended() == n })
	r.wantUsage("all", "a", "web", answered(n))
	if u := r.usageOfSeries(stats.Key{App: "shop", Instance: "b"}); !u.IsZero() {
		t.Errorf("b has %+v", u)
	}

	var begun = make(chan struct{})
	r = newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", "text/event-stream")
		io.WriteString(w, "data: {\"event\":\"message_end\","+chatUsage+"}\n\n")
		http.NewResponseController(w).Flush()
		close(begun)
		<-r.Context().Done()
	}))
	ctx, cancel := context.WithCancel(context.Background())
	req, _ := http.NewRequestWithContext(ctx, "POST", r.url+"/v1/chat-messages", strings.NewReader("{}"))
	req.Header.Set("Authorization", "Bearer user-token-shop")
	req.Header.Set("X-User-ID", "u")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	io.ReadFull(resp.Body, make([]byte, 20))
	<-begun
	cancel()
	resp.Body.Close()
	eventually(t, "the call is over", func() bool { return r.ended() == 1 })
	r.wantUsage("the client left", "a", "web", answered(1))
}

func TestUsage_ByTokenLabel(t *testing.T) {
	r := newRig(t, func(_ *Options, app *lb.Application) {
		app.UserTokens = append(app.UserTokens, lb.NewUserToken("user-token-mobile", "mobile", false), lb.NewUserToken("user-token-plain", "", false))
	}, answer("application/json", `{`+chatUsage+`}`))
	for token, n := range map[string]int{"user-token-shop": 1, "user-token-mobile": 2, "user-token-plain": 3} {
		for range n {
			if resp, body := r.do("POST", "/v1/chat-messages", "u", "{}", "Authorization", "Bearer "+token); resp.StatusCode != 200 {
				t.Fatalf("%d %s", resp.StatusCode, body)
			}
		}
	}
	eventually(t, "the calls are over", func() bool { return r.ended() == 6 })
	for label, n := range map[string]uint64{"web": 1, "mobile": 2} {
		got, ok := r.p.opts.Registry.Totals(stats.LabelKey("shop", label))
		if !ok || got.Requests != n || !reflect.DeepEqual(got.Usage, answered(n)) {
			t.Errorf("%s: %v %+v", label, ok, got)
		}
	}
	if got := r.usageOfSeries(stats.Key{App: "shop"}); !reflect.DeepEqual(got, answered(6)) {
		t.Errorf("application: %+v", got)
	}
	told, _ := r.p.opts.Registry.CollectLabels(0)
	sum := uint64(0)
	for _, s := range told {
		sum += s.Usage.Answers
	}
	if names := r.p.opts.Registry.Labels("shop"); len(names) != len(told) || sum != 3 {
		t.Errorf("labels %q, told %+v", names, told)
	}
}

// What real answers of Dify's shape add up to, whichever way they are asked for.
func TestUsage_OfStandins(t *testing.T) {
	for _, c := range []struct {
		mode standin.Mode
		path string
	}{{standin.Chat, "/v1/chat-messages"}, {standin.AdvancedChat, "/v1/chat-messages"}, {standin.Completion, "/v1/completion-messages"}, {standin.Workflow, "/v1/workflows/run"}} {
		t.Run(string(c.mode), func(t *testing.T) {
			_, in := startStandin(t, standin.Options{Name: "a", Apps: []standin.App{{Mode: c.mode}}})
			r := newRig(t, func(_ *Options, app *lb.Application) { app.Instances = []lb.Instance{in} })
			var before stats.Usage
			for i, mode := range []string{"blocking", "streaming"} {
				resp, body := r.do("POST", c.path, "", `{"inputs":{},"query":"hi","user":"u","response_mode":"`+mode+`"}`)
				if resp.StatusCode != 200 {
					t.Fatalf("%d %s", resp.StatusCode, body)
				}
				eventually(t, "the call is over", func() bool { return r.ended() == uint64(i+1) })
				total := r.usageOfSeries(stats.Key{App: "shop", Instance: "a"})
				got := total.Less(&before)
				before = total.Clone()
				if got.Answers != 1 || got.Total == 0 || !strings.Contains(body, fmt.Sprintf(`"total_tokens":%d,`, got.Total)) {
					t.Errorf("%s: %+v of %s", mode, got, body)
				}
				if c.mode != standin.Workflow && (got.Prompt+got.Completion != got.Total || len(got.Costs) != 1 || got.Costs[0].Nano == 0) {
					t.Errorf("%s: %+v", mode, got)
				}
			}
		})
	}
}
