package standin

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"regexp"
	"strings"
	"testing"
	"time"
)

// canonical replaces what differs from run to run.
func canonical(s string) string {
	s = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-4[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}`).ReplaceAllString(s, "ID")
	s = regexp.MustCompile(`1[0-9]{9}\b`).ReplaceAllString(s, "TIME")
	return regexp.MustCompile(`"latency": ?[0-9.]+`).ReplaceAllString(s, `"latency":0.0`)
}

const usageJSON = `{"prompt_tokens":14,"prompt_unit_price":"2","prompt_price_unit":"0.000001","prompt_price":"0.000028",` +
	`"completion_tokens":2,"completion_unit_price":"8","completion_price_unit":"0.000001","completion_price":"0.000016",` +
	`"total_tokens":16,"total_price":"0.000044","currency":"USD","latency":0.0}`

func TestStream_BytesAreThoseOfDify(t *testing.T) {
	o := allApps("grüß")
	o.Tokens = 2
	in := start(t, o)
	read := func(in *instance) string {
		a := in.want(200, "", "POST", "/v1/chat-messages", chatKey, chatBody("bob", `,"response_mode":"streaming"`))
		h := a.header
		if h.Get("Content-Type") != "text/event-stream; charset=utf-8" || h.Get("Content-Length") != "" || h.Get("Cache-Control") != "" || h.Get("X-Version") == "" || h.Get("X-Env") != "PRODUCTION" {
			t.Errorf("headers %v", h)
		}
		return canonical(string(a.body))
	}
	head := `"conversation_id":"ID","message_id":"ID","created_at":TIME,"task_id":"ID","id":"ID"`
	want := `data: {"event":"message",` + head + `,"answer":"[grüß] ","from_variable_selector":null}` + "\n\n" +
		`data: {"event":"message",` + head + `,"answer":"turn","from_variable_selector":null}` + "\n\n" +
		`data: {"event":"message_end",` + head + `,"metadata":{"annotation_reply":null,"retriever_resources":[],"usage":` + usageJSON + `},"files":[]}` + "\n\n"
	if got := read(in); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}

	o.SpacedJSON = true
	old := start(t, o)
	got := read(old)
	if !strings.HasPrefix(got, `data: {"event": "message", "conversation_id": "ID", `) || !strings.Contains(got, `"answer": "[gr\u00fc\u00df] "`) {
		t.Errorf("old dialect: %s", got)
	}
}

func TestSpaceJSON_KeepsTheValue(t *testing.T) {
	in := `{"a":"x:y,\"z\\","b":[1,2,{"c":"🙂é"}],"":""}`
	out := spaceJSON([]byte(in))
	if want := `{"a": "x:y,\"z\\", "b": [1, 2, {"c": "\ud83d\ude42\u00e9"}], "": ""}`; string(out) != want {
		t.Errorf("got  %s\nwant %s", out, want)
	}
	var a, b any
	if json.Unmarshal([]byte(in), &a) != nil || json.Unmarshal(out, &b) != nil {
		t.Error("not JSON")
	}
}

func TestStream_EventsOfEachMode(t *testing.T) {
	in := start(t, allApps("a"))
	tests := []struct {
		name, path, key, inputs, want string
		blocking                      int // status of the same request without streaming
	}{
		{"chat", "/v1/chat-messages", chatKey, ``, "message message_end", 200},
		{"agent-chat", "/v1/chat-messages", agentKey, ``, "agent_thought agent_message agent_thought message_end", 400},
		{"agent", "/v1/chat-messages", newAgentKey, ``, "agent_thought agent_message agent_thought message_end", 400},
		{"completion", "/v1/completion-messages", completionKey, ``, "message message_end", 200},
		{"workflow", "/v1/workflows/run", workflowKey, ``,
			"workflow_started node_started node_finished node_started text_chunk node_finished node_started node_finished workflow_finished", 200},
		{"chatflow", "/v1/chat-messages", flowKey, ``,
			"workflow_started node_started node_finished node_started message node_finished node_started node_finished message_end workflow_finished", 200},
		{"chat failing", "/v1/chat-messages", chatKey, `"_standin":{"error":"provider_quota_exceeded","error_after":2}`, "message error", 400},
		{"completion failing", "/v1/completion-messages", completionKey, `"_standin":{"error":"completion_request_error"}`, "error", 400},
		{"workflow failing", "/v1/workflows/run", workflowKey, `"_standin":{"fail":true}`,
			"workflow_started node_started node_finished node_started node_finished workflow_finished", 200},
		{"chatflow failing", "/v1/chat-messages", flowKey, `"_standin":{"error":"provider_not_initialize"}`,
			"workflow_started node_started node_finished node_started node_finished workflow_finished error", 400},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			body := func(mode string) string {
				return `{"inputs":{` + tt.inputs + `},"query":"hi","user":"bob","response_mode":` + mode + `}`
			}
			events := in.open("POST", tt.path, tt.key, body(`"streaming"`)).all()
			if got := names(events); got != tt.want {
				t.Errorf("got  %s\nwant %s", got, tt.want)
			}
			for _, e := range events {
				if e["event"] != "error" && e["task_id"] != events[0]["task_id"] {
					t.Errorf("no or another task_id: %v", e)
				}
			}
			last := events[len(events)-1]
			if strings.HasSuffix(tt.name, "failing") {
				if last["event"] == "error" && (last["status"] != 400.0 || last["code"] == nil || last["message"] == nil || last["task_id"] != nil) {
					t.Errorf("error event %v", last)
				}
				if last["event"] == "workflow_finished" && last["data"].(map[string]any)["status"] != "failed" {
					t.Errorf("failed run ends with %v", last)
				}
			}
			if a := in.call("POST", tt.path, tt.key, body("null")); a.status != tt.blocking {
				t.Errorf("blocking: status %d, want %d: %s", a.status, tt.blocking, a.body)
			}
		})
	}
	c := in.Counts()
	if c.StreamsStarted != uint64(len(tests)) || c.StreamsFinished != c.StreamsStarted || c.StreamsCancelled+c.StreamsBroken != 0 {
		t.Errorf("counts %+v", c)
	}
}

func TestBlocking_Bodies(t *testing.T) {
	in := start(t, allApps("a"))
	chat := in.want(200, "", "POST", "/v1/chat-messages", chatKey, chatBody("bob", "")).json(t)
	completion := in.want(200, "", "POST", "/v1/completion-messages", completionKey, `{"inputs":{"query":"x"},"user":7}`).json(t)
	for _, k := range []string{"event", "task_id", "id", "message_id", "mode", "answer", "metadata", "created_at"} {
		if chat[k] == nil || completion[k] == nil {
			t.Errorf("%s is missing", k)
		}
	}
	if chat["conversation_id"] == nil || completion["conversation_id"] != nil {
		t.Error("conversation_id belongs to chat alone")
	}
	workflow := in.want(200, "", "POST", "/v1/workflows/run", workflowKey, `{"inputs":{"a":"b"},"user":"bob"}`).json(t)
	run := workflow["workflow_run_id"].(string)
	data := workflow["data"].(map[string]any)
	if data["id"] != run || data["status"] != "succeeded" || data["total_tokens"].(float64) <= 0 || workflow["metadata"] != nil {
		t.Errorf("workflow %v", workflow)
	}
	detail := in.want(200, "", "GET", "/v1/workflows/run/"+run, workflowKey, "").json(t)
	if detail["status"] != "succeeded" || detail["id"] != run {
		t.Errorf("detail %v", detail)
	}
	logs := in.want(200, "", "GET", "/v1/workflows/logs?limit=1", workflowKey, "").json(t)
	if logs["total"] != 1.0 || logs["has_more"] != false {
		t.Errorf("logs %v", logs)
	}
	if got := in.Counts().Users["7"]; got != 1 {
		t.Errorf("a numeric user was counted %d times", got)
	}
}

func TestPing_AtOnceForGraphsThenBySilence(t *testing.T) {
	in := start(t, allApps("a"))
	ask := `{"inputs":{"_standin":{"ping_ms":15,"first_ms":200,"tokens":1}},"query":"hi","user":"bob","response_mode":"streaming"}`
	for _, tt := range []struct {
		name, key string
		first     bool
	}{{"chatflow", flowKey, true}, {"chat", chatKey, false}} {
		t.Run(tt.name, func(t *testing.T) {
			before := in.Counts().Pings
			s := in.open("POST", "/v1/chat-messages", tt.key, ask)
			raw, err := io.ReadAll(s.r)
			if err != nil {
				t.Fatal(err)
			}
			const ping = "event: ping\n\n"
			if got := strings.HasPrefix(string(raw), ping+"data: "); got != tt.first {
				t.Errorf("first ping before the first event: %v", got)
			}
			n := strings.Count(string(raw), ping)
			if n < 3 || uint64(n) != in.Counts().Pings-before {
				t.Errorf("%d pings, counted %d", n, in.Counts().Pings-before)
			}
		})
	}
}

func TestSilentUnknownConversation_PingsOnly(t *testing.T) {
	o := allApps("a")
	o.SilentUnknownConversation, o.PingInterval, o.StreamIdle = true, 10*time.Millisecond, 60*time.Millisecond
	in := start(t, o)
	body := chatBody("bob", `,"response_mode":"streaming","conversation_id":"`+unknownID+`"`)
	if events := in.open("POST", "/v1/chat-messages", flowKey, body).all(); len(events) != 0 {
		t.Errorf("events %v", events)
	}
	in.want(404, "not_found", "POST", "/v1/chat-messages", chatKey, body)
}

func TestStream_CancelledWhenTheClientGoes(t *testing.T) {
	o := allApps("a")
	o.TokenGap, o.Tokens = 10*time.Millisecond, 1000
	in := start(t, o)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	resp, err := in.client.Do(in.request("POST", "/v1/workflows/run", workflowKey, `{"inputs":{},"user":"bob","response_mode":"streaming"}`).WithContext(ctx))
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	s := &stream{t: t, resp: resp, r: bufio.NewReader(resp.Body)}
	first, err := s.next()
	if err != nil {
		t.Fatal(err)
	}
	cancel()
	eventually(t, "the stream counts as cancelled", func() bool { return in.Counts().StreamsCancelled == 1 })

	// The run goes on in its worker: its events can be read again, by its user.
	run := first["workflow_run_id"].(string)
	if got := in.want(200, "", "GET", "/v1/workflows/run/"+run, workflowKey, "").text(t, "status"); got != "running" {
		t.Errorf("status %s", got)
	}
	in.want(404, "not_found", "GET", "/v1/workflow/"+run+"/events?user=eve", workflowKey, "")
	in.want(400, "invalid_param", "GET", "/v1/workflow/"+run+"/events", workflowKey, "")
	again := in.open("GET", "/v1/workflow/"+run+"/events?user=bob", workflowKey, "")
	if e, err := again.next(); err != nil || e["event"] != "text_chunk" || again.resp.Header.Get("Cache-Control") != "no-cache" {
		t.Errorf("%v %v", e, err)
	}
	in.want(200, "", "POST", "/v1/workflows/tasks/"+first["task_id"].(string)+"/stop", workflowKey, `{"user":"bob"}`)
	if got := again.all(); got[len(got)-1]["event"] != "workflow_finished" {
		t.Errorf("ended with %v", got[len(got)-1])
	}
	// Of a finished run the end is told, or all of it.
	if got := names(in.open("GET", "/v1/workflow/"+run+"/events?user=bob", workflowKey, "").all()); got != "workflow_finished" {
		t.Errorf("finished run tells %s", got)
	}
	if got := names(in.open("GET", "/v1/workflow/"+run+"/events?user=bob&include_state_snapshot=true", workflowKey, "").all()); !strings.HasPrefix(got, "workflow_started node_started") {
		t.Errorf("snapshot tells %s", got)
	}
}

func TestHumanInput_PausesAndGoesOn(t *testing.T) {
	in := start(t, allApps("a"))
	s := in.open("POST", "/v1/chat-messages", flowKey, `{"inputs":{},"query":"hi #standin pause=true","user":"bob","response_mode":"streaming"}`)
	events := s.all()
	if got := names(events); !strings.HasSuffix(got, "human_input_required workflow_paused") {
		t.Fatalf("events %s", got)
	}
	asked := events[len(events)-2]["data"].(map[string]any)
	form, run := "/v1/form/human_input/"+asked["form_token"].(string), events[0]["workflow_run_id"].(string)
	in.want(200, "", "GET", form, flowKey, "")
	again := in.open("GET", "/v1/workflow/"+run+"/events?user=bob", flowKey, "")
	in.want(400, "invalid_param", "POST", form, flowKey, `{"user":"bob","inputs":{},"action":"no such"}`)
	if a := in.want(200, "", "POST", form, flowKey, `{"user":"bob","inputs":{},"action":"approve"}`); string(a.body) != "{}\n" {
		t.Errorf("body %s", a.body)
	}
	if got := names(again.all()); got != "human_input_form_filled message node_finished node_started node_finished message_end workflow_finished" {
		t.Errorf("went on with %s", got)
	}
	in.want(412, "human_input_form_submitted", "POST", form, flowKey, `{"user":"bob","inputs":{},"action":"approve"}`)
	paused := in.want(200, "", "POST", "/v1/workflows/run", workflowKey, `{"inputs":{"_standin":{"pause":true}},"user":"bob"}`)
	if got := paused.text(t, "data", "status"); got != "paused" {
		t.Errorf("blocking: %s", paused.body)
	}
}

func TestMaxActive_Refuses(t *testing.T) {
	world := NewWorld()
	o := Options{World: world, Apps: []App{{Key: chatKey, MaxActive: 1}}, TokenGap: 5 * time.Millisecond, Tokens: 10000, Slots: -1}
	in, replica := start(t, o), start(t, o)
	s := in.open("POST", "/v1/chat-messages", chatKey, chatBody("bob", `,"response_mode":"streaming"`))
	for _, other := range []*instance{in, replica} {
		a := other.want(429, "too_many_requests", "POST", "/v1/chat-messages", chatKey, chatBody("bob", `,"response_mode":"streaming"`))
		if a.header.Get("Retry-After") != "" || !strings.HasSuffix(a.text(t, "message"), " is 1.") {
			t.Errorf("%v %s", a.header, a.body)
		}
	}
	s.resp.Body.Close()
	eventually(t, "the place is free again", func() bool {
		return replica.call("POST", "/v1/chat-messages", chatKey, chatBody("bob", `,"inputs":{"_standin":{"tokens":1}}`)).status == 200
	})
}
