package dify

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"unicode/utf16"
	"unicode/utf8"
	"unsafe"
)

const (
	eventStream = "text/event-stream; charset=utf-8"
	jsonType    = "application/json"
)

// spaced rewrites JSON text as Dify's older releases write it, which use Python's json.dumps as it is: a space behind
// every colon and comma, nothing beyond ASCII. What is no JSON, as the line event: ping, stays.
func spaced(stream string) string {
	var out strings.Builder
	for line := range strings.SplitAfterSeq(stream, "\n") {
		quoted, escaped := false, false
		payload, isData := strings.CutPrefix(line, "data: ")
		if isData {
			out.WriteString("data: ")
		}
		for _, r := range payload {
			switch {
			case r >= utf8.RuneSelf:
				for _, u := range utf16.AppendRune(nil, r) {
					fmt.Fprintf(&out, `\u%04x`, u)
				}
				continue
			case escaped:
				escaped = false
			case quoted && r == '\\':
				escaped = true
			case r == '"':
				quoted = !quoted
			}
			out.WriteRune(r)
			if isData && !quoted && (r == ':' || r == ',') {
				out.WriteByte(' ')
			}
		}
	}
	return out.String()
}

func transcript(t testing.TB, name string) string {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name+".sse"))
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// watch shows body to w in pieces of at most size bytes; 0 is random sizes.
func watch(w *Watcher, contentType string, status int, call Call, body string, size int) finding {
	w.Reset(contentType, status, call)
	var seen Seen
	rng := rand.New(rand.NewPCG(uint64(len(body)), 1))
	for rest := []byte(body); len(rest) > 0; {
		n := size
		if n == 0 {
			n = 1 + rng.IntN(40)
		}
		n = min(n, len(rest))
		// A copy that is spoilt afterwards: nothing of a piece may be kept.
		piece := bytes.Clone(rest[:n])
		got := w.Write(piece)
		if again := seen & got &^ SawIDs; again != 0 {
			panic(fmt.Sprintf("told %b twice", again))
		}
		seen |= got
		clear(piece)
		rest = rest[n:]
	}
	seen |= w.Close()
	return findingOf(w, seen)
}

func usageOf(prompt, completion, total int64, costs ...Cost) Usage {
	u := Usage{Prompt: prompt, Completion: completion, Total: total}
	for _, c := range costs {
		u.AddCost(c)
	}
	return u
}

func TestWatcher_Transcripts(t *testing.T) {
	const all = SawFirst | SawIDs | SawEnd
	for name, want := range map[string]finding{
		"completion": {
			Seen: all, Events: 6, Pings: 1, Ended: true, Counted: true,
			IDs:   foundIDs{Task: "900bbd43-dc0b-4383-a372-aa6e6c414227"},
			Usage: usageOf(1033, 135, 1168, Cost{"USD", 1303000}),
		},
		"chat": {
			Seen: all, Events: 4, Pings: 2, Ended: true, Counted: true,
			IDs: foundIDs{
				Task:         "c3800678-a077-43df-a102-53f23ed20b88",
				Conversation: "45701982-8118-4bc5-8e9b-64562b4555f2",
			},
			Usage: usageOf(20, 4, 24, Cost{"RMB", 100}),
		},
		"agent-chat": {
			Seen: all, Events: 4, Pings: 1, Ended: true, Counted: true,
			IDs: foundIDs{
				Task:         "71c8a4ed-3ab1-4c4b-8c3c-3dd5cfcfd96b",
				Conversation: "957c068b-f258-4f89-ba10-6e8a0361c457",
			},
			Usage: usageOf(305, 97, 402, Cost{"USD", 1099000}),
		},
		"agent": {
			Seen: all, Events: 4, Pings: 1, Ended: true, Counted: true,
			IDs: foundIDs{
				Task:         "5e0f6a2c-3ab1-4c4b-8c3c-3dd5cfcfd96b",
				Conversation: "0c5d7a10-f258-4f89-ba10-6e8a0361c457",
			},
			Usage: usageOf(2200, 611, 2811, Cost{"USD", 42100000}),
		},
		"workflow": {
			Seen: all, Events: 7, Pings: 1, Ended: true, Counted: true,
			IDs: foundIDs{
				Task: "5ad4cb98-f0c7-4085-b384-88c403be6290",
			},
			Usage: usageOf(0, 0, 63127864),
		},
		"advanced-chat": {
			Seen: all, Events: 7, Pings: 1, Ended: true, Counted: true,
			IDs: foundIDs{
				Task:         "2b4c0d5e-8d4b-4a59-9c39-c1e0a7b1aa33",
				Conversation: "d6d3f9f1-7a5d-4f2c-9f7e-0f7f2f4c1111",
			},
			Usage: usageOf(100, 20, 120, Cost{"USD", 27000}),
		},
	} {
		t.Run(name, func(t *testing.T) {
			compact := transcript(t, name)
			var w Watcher
			for style, text := range map[string]string{
				"compact":    compact,
				"spaced":     spaced(compact),
				"CRLF":       strings.ReplaceAll(compact, "\n", "\r\n"),
				"no space":   strings.ReplaceAll(compact, "data: ", "data:"),
				"mark":       "\ufeff" + compact,
				"comments":   ": hello\n\n" + strings.ReplaceAll(compact, "data: ", ":\nid: 7\nretry: 3\ndata: "),
				"two lines":  strings.ReplaceAll(compact, `,"task_id"`, ",\ndata: \"task_id\""),
				"unfinished": strings.TrimSuffix(compact, "\n"),
			} {
				for _, size := range []int{len(text), 1, 2, 3, 7, 64, 0} {
					if got := watch(&w, eventStream, 200, Call{}, text, size); got != want {
						t.Fatalf("%s in pieces of %d:\n got %+v\nwant %+v", style, size, got, want)
					}
				}
				if got, ok := expectStream([]byte(text)); !ok || got != want {
					t.Fatalf("%s: the oracle says %v %+v", style, ok, got)
				}
			}
		})
	}
}

func TestWatcher_Streams(t *testing.T) {
	long := strings.Repeat("x", 100_000)
	for _, c := range []struct {
		name, body string
		want       finding
	}{
		{"nothing", "", finding{}},
		{"pings only", "event: ping\n\nevent: ping\r\n\r\nevent:ping\n\n", finding{Pings: 3}},
		{"pings with data", "event: ping\ndata:\n\ndata: {\"event\":\"ping\"}\n\nevent: ping\ndata: {}\n\n", finding{Pings: 3}},
		{"a ping that is not over", "event: ping\n", finding{}},
		{"name of the event in its field", "event: message_end\ndata: {\"metadata\":{\"usage\":{\"total_tokens\":5}}}\n\n",
			finding{Seen: SawFirst | SawEnd, Events: 1, Ended: true, Counted: true, Usage: usageOf(0, 0, 5)}},
		{"the field counts for its event only", "event: ping\n\ndata: {\"answer\":1}\n\n", finding{Seen: SawFirst, Events: 1, Pings: 1}},
		{"error", "data: {\"event\":\"error\",\"conversation_id\":\"m\",\"status\":400,\"code\":\"provider_quota_exceeded\",\"message\":\"x\"}\n\n" +
			"data: {\"event\":\"error\",\"code\":\"second\"}\n\n",
			finding{Seen: SawFirst | SawIDs | SawError | SawEnd, Events: 2, Ended: true, Failed: true,
				StreamCode: "provider_quota_exceeded", IDs: foundIDs{Conversation: "m"}}},
		{"error with its name last", "data: {\"code\":\"a\",\"event\":\"message\"}\n\ndata: {\"status\":500,\"code\":\"b\",\"message\":\"c\",\"event\":\"error\"}\n\n",
			finding{Seen: SawFirst | SawError | SawEnd, Events: 2, Ended: true, Failed: true, StreamCode: "b"}},
		{"error without code", "data: {\"code\":\"a\",\"event\":\"message\"}\n\ndata: {\"event\":\"error\",\"status\":500}\n\n",
			finding{Seen: SawFirst | SawError | SawEnd, Events: 2, Ended: true, Failed: true}},
		{"chatflow that fails", "data: {\"event\":\"workflow_finished\",\"task_id\":\"t\",\"data\":{\"status\":\"failed\",\"total_tokens\":12}}\n\n" +
			"data: {\"event\":\"error\",\"code\":\"completion_request_error\"}\n\n",
			finding{Seen: SawFirst | SawIDs | SawError | SawEnd, Events: 2, Ended: true, Failed: true,
				StreamCode: "completion_request_error", IDs: foundIDs{Task: "t"}, Counted: true, Usage: usageOf(0, 0, 12)}},
		{"name behind a long answer", "data: {\"answer\":\"" + long + "\\\\\\\"\",\"metadata\":{\"usage\":{\"prompt_tokens\":1,\"completion_tokens\":2}},\"event\":\"message_end\"}\n\n",
			finding{Seen: SawFirst | SawEnd, Events: 1, Ended: true, Counted: true, Usage: usageOf(1, 2, 3)}},
		{"usage that is none of message_end", "data: {\"metadata\":{\"usage\":{\"prompt_tokens\":1}},\"data\":{\"total_tokens\":4},\"event\":\"message\"}\n\n",
			finding{Seen: SawFirst, Events: 1}},
		{"total of a run that pauses", "data: {\"event\":\"workflow_paused\",\"data\":{\"total_tokens\":4}}\n\n",
			finding{Seen: SawFirst | SawEnd, Events: 1, Ended: true}},
		{"total stands in for a usage of zero", "data: {\"event\":\"message_end\",\"metadata\":{\"usage\":{\"total_tokens\":0}}}\n\n" +
			"data: {\"event\":\"workflow_finished\",\"data\":{\"total_tokens\":9}}\n\n",
			finding{Seen: SawFirst | SawEnd, Events: 2, Ended: true, Counted: true, Usage: usageOf(0, 0, 9)}},
		{"usage cut off", "data: {\"event\":\"message_end\",\"metadata\":{\"usage\":{\"total_tokens\":5", finding{}},
		{"event cut off behind its line", "data: {\"event\":\"message_end\"}\n", finding{Seen: SawFirst | SawEnd, Events: 1, Ended: true}},
		{"event cut off inside its line", "data: {\"event\":\"message_end\"}", finding{}},
		{"ids of an event cut off", "data: {\"event\":\"message\",\"task_id\":\"t\",\"conversation_id\":\"m", finding{Seen: SawIDs, IDs: foundIDs{Task: "t"}}},
		{"not JSON", "data: [DONE]\n\ndata: hello\n\ndata: \"x\"\n\ndata: {]\n\n", finding{Seen: SawFirst, Events: 4}},
		{"no data", "data\n\ndata:\n\ndata: \n\ndata\r\n\r\nid: 1\n\n: c\n\nevent: message\n\n\n\n\n", finding{}},
		{"fields of other names", "datax: {}\n\ndat: {}\n\n data: {}\n\nData: {}\n\n" + long + "\n\n" + long + ": {}\n\n", finding{}},
		{"ids of strange form", "data: {\"task_id\":\"a b\",\"conversation_id\":\"é\",\"conversation_id\":null,\"conversation_id\":{\"task_id\":\"x\"}}\n\n" +
			"data: {\"task_id\":\"" + strings.Repeat("x", 65) + "\",\"conversation_id\":\"\",\"conversation_id\":[\"conversation_id\",\"x\"]}\n\n",
			finding{Seen: SawFirst, Events: 2}},
		{"escapes", `data: {"\u0065vent":"m\u0065ssage","task\u005fid":"\u0061\/\\b\u0022\"","conversation_id":"\ud83d\ude42"}` + "\n\n",
			finding{Seen: SawFirst | SawIDs, Events: 1, IDs: foundIDs{Task: `a/\b""`}}},
		{"first id counts", "data: {\"task_id\":\"a\",\"task_id\":\"b\"}\n\ndata: {\"task_id\":\"c\"}\n\n",
			finding{Seen: SawFirst | SawIDs, Events: 2, IDs: foundIDs{Task: "a"}}},
		{"tokens of strange form", "data: {\"event\":\"message_end\",\"metadata\":{\"usage\":{\"prompt_tokens\":-1,\"completion_tokens\":1.5,\"total_tokens\":99999999999999999999,\"total_price\":0.25,\"currency\":\"USD\"}}}\n\n",
			finding{Seen: SawFirst | SawEnd, Events: 1, Ended: true, Counted: true, Usage: usageOf(0, 0, 0, Cost{"USD", 25e7})}},
		{"price as long as may be", "data: {\"event\":\"message_end\",\"metadata\":{\"usage\":{\"total_price\":\"" + strings.Repeat("0", 63) + "1\",\"currency\":\"USD\"}}}\n\n",
			finding{Seen: SawFirst | SawEnd, Events: 1, Ended: true, Counted: true, Usage: usageOf(0, 0, 0, Cost{"USD", 1e9})}},
		{"price too long", "data: {\"event\":\"message_end\",\"metadata\":{\"usage\":{\"total_price\":\"" + strings.Repeat("0", 64) + "1\",\"currency\":\"USD\"}}}\n\n",
			finding{Seen: SawFirst | SawEnd, Events: 1, Ended: true, Counted: true}},
		{"nested a million deep", "data: " + strings.Repeat("{\"data\":[", 1_000_000) + "\n\ndata: {\"event\":\"message\"}\n\n", finding{Seen: SawFirst, Events: 2}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var w Watcher
			for _, size := range []int{max(len(c.body), 1), 1, 5, 0} {
				if got := watch(&w, eventStream, 200, Call{}, c.body, size); got != c.want {
					t.Fatalf("in pieces of %d:\n got %+v\nwant %+v", size, got, c.want)
				}
			}
		})
	}
}

func TestWatcher_TellsWhenTheAnswerBegins(t *testing.T) {
	var w Watcher
	w.Reset(eventStream, 200, Call{})
	for i, step := range []struct {
		piece string
		want  Seen
	}{
		{"event: ping\n\n", 0},
		{"data: {\"event\":\"message\",", 0},
		{"\"task_id\":\"t\"}\n", 0},
		{"\n", SawFirst | SawIDs},
		{"data: {\"event\":\"message\",\"task_id\":\"t\"}\n\n", 0},
		{"event: ping\n\n", 0},
		{"data: {\"event\":\"error\",\"conversation_id\":\"m\"}\n\n", SawIDs | SawError | SawEnd},
		{"data: {\"event\":\"error\"}\n\n", 0},
		{"data: {\"event\":\"message_end\"}\n\n", 0},
	} {
		if got := w.Write([]byte(step.piece)); got != step.want {
			t.Errorf("step %d: got %b, want %b", i, got, step.want)
		}
	}
	if got := w.Close(); got != 0 {
		t.Errorf("close: got %b", got)
	}
}

func TestWatcher_LooksForIDsInTheFirstEventOfAKindOnly(t *testing.T) {
	var w Watcher
	got := watch(&w, eventStream, 200, Call{}, "data: {\"event\":\"message\",\"task_id\":\"t\"}\n\n"+
		"data: {\"event\":\"message\",\"conversation_id\":\"late\"}\n\n"+
		"data: {\"event\":\"new\"}\n\ndata: {\"event\":\"new\",\"conversation_id\":\"m\"}\n\n", 0)
	if want := (foundIDs{Task: "t", Conversation: "m"}); got.IDs != want {
		t.Errorf("got %+v, want %+v", got.IDs, want)
	}
}

var (
	run    = Classify("POST", "/v1/chat-messages")
	upload = Classify("POST", "/v1/files/upload")
)

func TestWatcher_Documents(t *testing.T) {
	chat := `{"event":"message","task_id":"c3800678-a077-43df-a102-53f23ed20b88","id":"9da23599-e713-473b-982c-4328d4f5c78a","message_id":"9da23599-e713-473b-982c-4328d4f5c78a","conversation_id":"45701982-8118-4bc5-8e9b-64562b4555f2","mode":"chat","answer":"Hi \"you\"","metadata":{"usage":{"prompt_tokens":1033,"completion_tokens":128,"total_tokens":1161,"total_price":"0.0012890","currency":"USD","latency":0.76},"retriever_resources":[]},"created_at":1705407629}`
	chatFound := finding{
		Seen: SawIDs, Counted: true, Usage: usageOf(1033, 128, 1161, Cost{"USD", 1289000}),
		IDs: foundIDs{
			Task:         "c3800678-a077-43df-a102-53f23ed20b88",
			Conversation: "45701982-8118-4bc5-8e9b-64562b4555f2",
		},
	}
	workflow := `{"task_id":"c3800678-a077-43df-a102-53f23ed20b88","workflow_run_id":"fb47b2e6-5e43-4f90-be01-d5c5a088d156","data":{"id":"fb47b2e6-5e43-4f90-be01-d5c5a088d156","workflow_id":"w","status":"failed","outputs":{"total_tokens":7},"error":"x","elapsed_time":0.5,"total_tokens":3562,"total_steps":8}}`
	workflowFound := finding{
		Seen: SawIDs, Counted: true, Usage: usageOf(0, 0, 3562),
		IDs: foundIDs{Task: "c3800678-a077-43df-a102-53f23ed20b88"},
	}
	stored := `{"id":"72fa9618-8f89-4a37-9b33-7e1178a24a67","name":"a.png","size":1024,"extension":"png","user_id":"u","conversation_id":null}`
	storedFound := finding{Seen: SawIDs, IDs: foundIDs{File: "72fa9618-8f89-4a37-9b33-7e1178a24a67"}}
	refused := `{"code":"too_many_requests","message":"Too many requests.","status":429}`
	for _, c := range []struct {
		name, contentType string
		status            int
		call              Call
		body              string
		want              finding
	}{
		{"chat", jsonType, 200, run, chat, chatFound},
		{"chat, older", "Application/JSON; charset=utf-8", 200, run, strings.TrimPrefix(spaced("data: "+chat), "data: ") + "\n", chatFound},
		{"workflow", jsonType, 200, Classify("POST", "/v1/workflows/run"), workflow, workflowFound},
		{"workflow by id", jsonType, 200, Classify("POST", "/v1/workflows/w/run"), workflow, workflowFound},
		{"run that is looked up costs nothing", jsonType, 200, Classify("GET", "/v1/workflows/run/r"), workflow, finding{}},
		{"upload", jsonType, 201, upload, stored, storedFound},
		{"upload of the knowledge API", jsonType, 201, Classify("POST", "/v1/datasets/pipeline/file-upload"), stored, storedFound},
		{"error of a run", jsonType, 429, run, refused, finding{ErrorCode: "too_many_requests"}},
		{"error of an unknown call", jsonType, 404, Call{}, `{"message":"code","code":"not_found"}`, finding{ErrorCode: "not_found"}},
		{"page", "text/html", 502, run, refused, finding{}},
		{"redirect", jsonType, 308, run, chat, finding{}},
		{"unknown call", jsonType, 200, Call{}, chat, finding{}},
		{"no type", "", 200, run, chat, finding{}},
		{"cut off", jsonType, 200, run, chat[:len(chat)-100], finding{Seen: SawIDs, IDs: chatFound.IDs}},
		{"array", jsonType, 200, run, "[" + chat + "]", finding{}},
	} {
		t.Run(c.name, func(t *testing.T) {
			var w Watcher
			for _, size := range []int{len(c.body), 1, 2, 9, 0} {
				if got := watch(&w, c.contentType, c.status, c.call, c.body, size); got != c.want {
					t.Fatalf("in pieces of %d:\n got %+v\nwant %+v", size, got, c.want)
				}
			}
		})
	}
}

func TestWatcher_ResetForgetsAndCloseEnds(t *testing.T) {
	var w Watcher
	if got := watch(&w, eventStream, 200, Call{}, transcript(t, "chat"), 0); got.Events == 0 {
		t.Fatal("found nothing")
	}
	if seen := w.Write([]byte("data: {\"event\":\"message\"}\n\n")) | w.Close(); seen != 0 || w.Events() != 4 {
		t.Errorf("goes on after Close: %b, %d events", seen, w.Events())
	}
	w.Reset(jsonType, 500, Call{})
	if got := findingOf(&w, 0); got != (finding{}) {
		t.Errorf("remembers %+v", got)
	}
	var zero Watcher
	if seen := zero.Write([]byte("data: {}\n\n")) | zero.Close(); seen != 0 || zero.Events() != 0 {
		t.Error("the zero value watches")
	}
}

func TestWatcher_IsSmallAndDoesNotAllocate(t *testing.T) {
	if size := unsafe.Sizeof(Watcher{}); size > 1024 {
		t.Errorf("%d bytes", size)
	}
	stream := []byte(transcript(t, "advanced-chat"))
	answer := []byte(`{"task_id":"t","metadata":{"usage":{"total_tokens":5,"total_price":"1E-7","currency":"USD"}}}`)
	var w Watcher
	if n := testing.AllocsPerRun(100, func() {
		w.Reset(eventStream, 200, run)
		w.Write(stream)
		w.Close()
		w.Usage()
		w.StreamError()
		w.Reset(jsonType, 200, run)
		w.Write(answer)
		w.Close()
		w.Usage()
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	if n := testing.AllocsPerRun(100, func() { w.IDs() }); n > 0 {
		t.Errorf("IDs: %v allocations", n)
	}
}

// FuzzWatcher shows that the split of the bytes does not matter and that, wherever encoding/json understands them, the
// findings are its.
func FuzzWatcher(f *testing.F) {
	for _, name := range []string{"completion", "chat", "agent-chat", "agent", "workflow", "advanced-chat"} {
		text := transcript(f, name)
		f.Add([]byte(text), uint8(0), uint64(1))
		f.Add([]byte(spaced(text)), uint8(0), uint64(2))
	}
	for i, text := range []string{
		"\ufeffevent: ping\r\n\r\ndata: {\"event\":\"error\",\r\ndata:\"code\":\"x\"}\r\n\r\n",
		"data: {\"answer\":\"\\\\\\\"\",\"event\":\"message_end\",\"metadata\":{\"usage\":{\"prompt_tokens\":1,\"total_price\":1e-7,\"currency\":\"USD\"}}}\n\n",
		"data: {\"\\u0065vent\":\"workflow_finished\",\"data\":{\"a\":[{}],\"total_tokens\":3},\"task_id\":\"\\ud83d\"}\n\n",
		`{"code":"not_found","message":"","status":404}`,
		`{"id":"x","task_id":"t","metadata":{"usage":{"total_tokens":7}},"data":{"total_tokens":8}}`,
	} {
		for m := range uint8(4) {
			f.Add([]byte(text), m, uint64(i))
		}
	}
	f.Fuzz(func(t *testing.T, body []byte, how uint8, seed uint64) {
		contentType, status, call, m := eventStream, 200, Call{}, onStream
		switch how % 4 {
		case 1:
			contentType, call, m = jsonType, run, onRun
		case 2:
			contentType, status, call, m = jsonType, 201, upload, onUpload
		case 3:
			contentType, status, m = jsonType, 400, onError
		}
		var w Watcher
		whole := watch(&w, contentType, status, call, string(body), max(len(body), 1))
		rng := rand.New(rand.NewPCG(seed, 0))
		for _, size := range []int{1, 1 + rng.IntN(8), 0} {
			if got := watch(&w, contentType, status, call, string(body), size); got != whole {
				t.Fatalf("in pieces of %d:\n  got %+v\nwhole %+v", size, got, whole)
			}
		}
		want, ok := finding{}, false
		if m == onStream {
			want, ok = expectStream(body)
		} else {
			want, ok = expectDocument(m, body)
		}
		if ok && whole != want {
			t.Fatalf("\n got %+v\nwant %+v", whole, want)
		}
	})
}

func TestWatcher_IsSmall(t *testing.T) {
	// A proxy holds one for each open stream, in a size class of 512 bytes.
	if size := unsafe.Sizeof(Watcher{}); size > 512 {
		t.Errorf("a Watcher takes %d bytes", size)
	}
}
