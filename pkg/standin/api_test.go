package standin

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io"
	"net/http"
	"strings"
	"testing"
)

func TestAuthorization_Envelope(t *testing.T) {
	in := start(t, allApps("a"))
	for _, tt := range []struct{ what, header, path, message string }{
		{"none", "", "/v1/info", "Authorization header must be provided and start with 'Bearer'"},
		{"other scheme", "Basic abc", "/v1/info", "Authorization scheme must be 'Bearer'"},
		{"unknown", "Bearer app-nope", "/v1/info", "Access token is invalid"},
		{"app key on a dataset route", "Bearer " + chatKey, "/v1/datasets", "Access token is invalid"},
		{"dataset key on an app route", "Bearer " + knowledgeKey, "/v1/info", "Access token is invalid"},
	} {
		t.Run(tt.what, func(t *testing.T) {
			r := in.request("GET", tt.path, "", "")
			if tt.header != "" {
				r.Header.Set("Authorization", tt.header)
			}
			a, err := in.do(r)
			if err != nil || a.status != 401 || a.text(t, "message") != tt.message || a.text(t, "code") != "unauthorized" || a.header.Get("WWW-Authenticate") != `Bearer realm="api"` {
				t.Errorf("%d %v %s %v", a.status, a.header, a.body, err)
			}
		})
	}
	r := in.request("GET", "/v1/info", "", "")
	r.Header.Set("Authorization", "bEaReR "+chatKey)
	if a, err := in.do(r); err != nil || a.status != 200 || a.text(t, "mode") != "chat" || a.header.Get("X-Version") == "" {
		t.Errorf("%d %s %v", a.status, a.body, err)
	}
}

func TestUser_OnePlacePerEndpoint(t *testing.T) {
	in := start(t, allApps("a"))
	noUser := `{"inputs":{},"query":"x"}`
	in.want(400, "invalid_param", "POST", "/v1/chat-messages?user=bob", chatKey, noUser)
	in.want(400, "invalid_param", "POST", "/v1/chat-messages", chatKey, `{"inputs":{},"query":"x","user":""}`)
	r := in.request("POST", "/v1/chat-messages", chatKey, chatBody("bob", ""))
	r.Header.Set("Content-Type", "text/plain")
	if a, err := in.do(r); err != nil || a.status != 415 || a.text(t, "code") != "unsupported_media_type" {
		t.Errorf("%d %s %v", a.status, a.body, err)
	}
	in.want(400, "bad_request", "POST", "/v1/chat-messages", chatKey, `{"inputs":`)
	in.want(400, "not_chat_app", "POST", "/v1/chat-messages", workflowKey, chatBody("bob", ""))
	in.want(400, "app_unavailable", "POST", "/v1/completion-messages", chatKey, chatBody("bob", ""))
	in.want(400, "not_workflow_app", "POST", "/v1/workflows/run", chatKey, chatBody("bob", ""))

	// The user of a DELETE is in its body: the query is not looked at.
	id := in.want(200, "", "POST", "/v1/chat-messages", chatKey, chatBody("bob", "")).text(t, "conversation_id")
	in.want(415, "unsupported_media_type", "DELETE", "/v1/conversations/"+id+"?user=bob", chatKey, "")
	in.want(404, "not_found", "DELETE", "/v1/conversations/"+id+"?user=bob", chatKey, `{}`)
	a := in.want(204, "", "DELETE", "/v1/conversations/"+id, chatKey, `{"user":"bob"}`)
	if len(a.body) > 0 {
		t.Errorf("204 with %q", a.body)
	}
	in.want(404, "not_found", "GET", "/v1/messages?user=bob&conversation_id="+id, chatKey, "")
	in.want(200, "", "GET", "/v1/conversations", chatKey, "") // anonymous
	if got := in.Counts().Users; got[anonymousUser] != 2 || got["bob"] != 6 {
		t.Errorf("users %v", got)
	}
	in.want(404, "not_found", "POST", "/v1/chat-message", chatKey, chatBody("bob", ""))
	if a := in.want(405, "method_not_allowed", "PATCH", "/v1/conversations/"+unknownID, chatKey, `{}`); a.header.Get("Allow") != "DELETE, OPTIONS" {
		t.Errorf("Allow %q", a.header.Get("Allow"))
	}
}

func TestUpload_RulesAndLife(t *testing.T) {
	in := start(t, allApps("a"))
	content := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	for _, first := range []bool{true, false} {
		a := in.upload(chatKey, "bob", first, "a.txt", "text/plain", content)
		if a.status != 201 || a.json(t)["size"] != float64(len(content)) || a.text(t, "extension") != "txt" {
			t.Fatalf("%d %s", a.status, a.body)
		}
		id := a.text(t, "id")
		// The signed link needs no key and is good here only.
		if link := in.want(200, "", "GET", a.text(t, "source_url"), "", ""); !bytes.Equal(link.body, content) {
			t.Error("the link serves something else")
		}
		in.want(404, "not_found", "GET", a.text(t, "source_url")+"x", "", "")
		start(t, allApps("b")).want(404, "not_found", "GET", a.text(t, "source_url"), "", "")

		preview := "/v1/files/" + id + "/preview?user=bob"
		in.want(404, "file_not_found", "GET", preview, chatKey, "")
		use := func(user string) string {
			return chatBody(user, `,"files":[{"type":"document","transfer_method":"local_file","upload_file_id":"`+id+`"}]`)
		}
		in.want(400, "invalid_param", "POST", "/v1/chat-messages", chatKey, use("eve"))
		in.want(200, "", "POST", "/v1/chat-messages", chatKey, use("bob"))
		in.want(403, "file_access_denied", "GET", preview, flowKey, "")
		if p := in.want(200, "", "GET", preview, chatKey, ""); !bytes.Equal(p.body, content) || p.header.Get("Cache-Control") != "public, max-age=3600" || p.header.Get("Content-Type") != "text/plain" {
			t.Errorf("preview %v", p.header)
		}
	}
	if a := in.upload(chatKey, "bob", true, "", "", nil); a.status != 400 || a.text(t, "code") != "no_file_uploaded" {
		t.Errorf("no file: %d %s", a.status, a.body)
	}
	if a := in.upload(chatKey, "bob", true, "big.png", "image/png", make([]byte, 10<<20+1)); a.status != 413 || a.text(t, "code") != "file_too_large" {
		t.Errorf("too large: %d %s", a.status, a.body)
	}
}

func TestFront_DirectAndNginx(t *testing.T) {
	direct := start(t, allApps("a"))
	if m := direct.want(200, "", "GET", "/health", "", "").json(t); m["status"] != "ok" || m["version"] == nil || m["pid"] == nil {
		t.Errorf("health %v", m)
	}
	if m := direct.want(200, "", "GET", "/v1", "", "").json(t); m["welcome"] != "Dify OpenAPI" { // by way of 308
		t.Errorf("index %v", m)
	}
	o := allApps("a")
	o.Front, o.BodyLimitBytes = Nginx, 1000
	nginx := start(t, o)
	html := func(a answer) {
		t.Helper()
		if !strings.HasPrefix(a.header.Get("Content-Type"), "text/html") || !strings.HasPrefix(string(a.body), "<html>") || a.header.Get("X-Version") != "" {
			t.Errorf("%v %s", a.header, a.body)
		}
	}
	html(nginx.want(404, "", "GET", "/health", "", ""))
	large := chatBody("bob", `,"pad":"`+strings.Repeat("x", 2000)+`"`)
	html(nginx.want(413, "", "POST", "/v1/chat-messages", chatKey, large))
	r := nginx.request("POST", "/v1/chat-messages", chatKey, large)
	r.Body, r.ContentLength = io.NopCloser(strings.NewReader(large)), -1 // chunked: known too large only when read
	if a, err := nginx.do(r); err != nil || a.status != 413 {
		t.Errorf("chunked: %d %v", a.status, err)
	}
	nginx.want(200, "", "POST", "/v1/chat-messages", chatKey, chatBody("bob", ""))
	nginx.fault(Fault{Kind: Status, Status: 504})
	html(nginx.want(504, "", "GET", "/v1/info", chatKey, ""))
}

func TestControl_TellsRequestsWithoutTheirTokens(t *testing.T) {
	o := allApps("a")
	o.Control = true
	in := start(t, o)
	body := chatBody("bob", `,"unused":"…"`)
	r := in.request("POST", "/v1/chat-messages?a=%20b", chatKey, body)
	r.Header.Set("X-Request-ID", "r1")
	r.Host = "instance.example"
	if a, err := in.do(r); err != nil || a.status != 200 {
		t.Fatalf("%d %v", a.status, err)
	}
	in.want(401, "unauthorized", "POST", "/v1/chat-messages", "app-unknown-token-9876", body) // its body was not read by the API
	raw := in.want(200, "", "GET", "/_standin/requests", "", "").body
	var list []Request
	if err := json.Unmarshal(raw, &list); err != nil || len(list) != 2 {
		t.Fatalf("%s %v", raw, err)
	}
	sum := sha256.Sum256([]byte(body))
	for i, q := range list {
		if q.BodySHA256 != hex.EncodeToString(sum[:]) || q.BodyBytes != int64(len(body)) || !q.BodyComplete || q.Sequence != uint64(i+1) || q.Connection != list[0].Connection {
			t.Errorf("%+v", q)
		}
	}
	q := list[0]
	if q.Host != "instance.example" || q.Path != "/v1/chat-messages" || q.Query != "a=%20b" || q.Header["X-Request-Id"][0] != "r1" || q.Header["Authorization"][0] != "Bearer app-…6789" || q.Status != 200 {
		t.Errorf("%+v", q)
	}
	raw = append(raw, in.want(200, "", "GET", "/_standin/counts", "", "").body...)
	if strings.Contains(string(raw), chatKey) || strings.Contains(string(raw), "unknown-token") {
		t.Error("a token is told")
	}
	if c := in.Counts(); c.Total != 2 || c.Tokens[TokenDigest(chatKey)] != 1 || c.UnknownTokens != 1 || c.BytesIn != 2*uint64(len(body)) || c.Of("POST /v1/chat-messages", 401) != 1 {
		t.Errorf("%+v", c)
	}
	in.want(400, "", "POST", "/_standin/faults", "", `{"add":[{"kind":"nope"}]}`)
	in.want(200, "", "POST", "/_standin/faults", "", `{"clear":true,"add":[{"kind":"status","status":503,"count":1}]}`)
	in.want(503, "service_unavailable", "GET", "/v1/", "", "")
	start(t, allApps("b")).want(404, "", "GET", "/_standin/counts", "", "") // without Control
}

func TestUpgrade_Echoes(t *testing.T) {
	o := allApps("a")
	o.Control = true
	in := start(t, o)
	c, r := in.dial("GET /v1/_standin/upgrade HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + chatKey + "\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\nearly ")
	resp, err := http.ReadResponse(r, nil)
	if err != nil || resp.StatusCode != 101 || resp.Header.Get("Upgrade") != "echo" {
		t.Fatalf("%v %v", resp, err)
	}
	io.WriteString(c, "and late")
	got := make([]byte, len("early and late"))
	if _, err := io.ReadFull(r, got); err != nil || string(got) != "early and late" {
		t.Errorf("%q %v", got, err)
	}
	c.Close()
	eventually(t, "the tunnel is counted", func() bool { return in.Counts().Of("GET /v1/_standin/upgrade", 101) == 1 })
	in.want(401, "unauthorized", "GET", "/v1/_standin/upgrade", "app-nope", "")
}

func TestEndpoints_TheRest(t *testing.T) {
	in := start(t, allApps("a"))
	chat := in.want(200, "", "POST", "/v1/chat-messages", flowKey, chatBody("bob", ""))
	id, message := chat.text(t, "conversation_id"), chat.text(t, "message_id")
	in.want(200, "", "POST", "/v1/messages/"+message+"/feedbacks", flowKey, `{"user":"bob","rating":"like","content":"good"}`)
	if m := in.want(200, "", "GET", "/v1/app/feedbacks", flowKey, "").json(t); len(m["data"].([]any)) != 1 {
		t.Errorf("feedbacks %v", m)
	}
	in.want(200, "", "GET", "/v1/messages/"+message+"/suggested?user=bob", flowKey, "")
	in.want(404, "not_found", "GET", "/v1/messages/"+message+"/suggested?user=eve", flowKey, "")
	if got := in.want(200, "", "POST", "/v1/conversations/"+id+"/name", flowKey, `{"user":"bob","auto_generate":true}`).text(t, "name"); got != "hello there" {
		t.Errorf("name %q", got)
	}
	variable := in.want(200, "", "GET", "/v1/conversations/"+id+"/variables?user=bob", flowKey, "").json(t)["data"].([]any)[0].(map[string]any)["id"].(string)
	if got := in.want(200, "", "PUT", "/v1/conversations/"+id+"/variables/"+variable, flowKey, `{"user":"bob","value":"ships"}`).text(t, "value"); got != "ships" {
		t.Errorf("value %q", got)
	}
	note := in.want(201, "", "POST", "/v1/apps/annotations", chatKey, `{"question":"q","answer":"a"}`).text(t, "id")
	in.want(200, "", "PUT", "/v1/apps/annotations/"+note, chatKey, `{"question":"q","answer":"b"}`)
	in.want(404, "not_found", "DELETE", "/v1/apps/annotations/"+note, flowKey, "")
	in.want(204, "", "DELETE", "/v1/apps/annotations/"+note, chatKey, "")
	job := in.want(200, "", "POST", "/v1/apps/annotation-reply/enable", chatKey, "").text(t, "job_id")
	in.want(200, "", "GET", "/v1/apps/annotation-reply/enable/status/"+job, chatKey, "")
	if a := in.want(200, "", "POST", "/v1/text-to-audio", chatKey, `{"text":"hi","user":"bob"}`); a.header.Get("Content-Type") != "audio/wav" || len(a.body) != 44+8000 || string(a.body[:4]) != "RIFF" {
		t.Errorf("audio %v, %d bytes", a.header, len(a.body))
	}
	for _, path := range []string{"/v1/parameters?user=x", "/v1/meta", "/v1/site", "/v1/apps/annotations", "/v1/conversations?limit=1&sort_by=created_at"} {
		in.want(200, "", "GET", path, chatKey, "")
	}
	in.want(400, "invalid_param", "GET", "/v1/conversations?limit=101", chatKey, "")

	ds := "/v1/datasets/" + in.want(200, "", "POST", "/v1/datasets", knowledgeKey, `{"name":"n"}`).text(t, "id")
	in.want(409, "dataset_name_duplicate", "POST", "/v1/datasets", knowledgeKey, `{"name":"n"}`)
	doc := in.want(200, "", "POST", ds+"/document/create_by_text", knowledgeKey, `{"name":"d","text":"red ships\n\nblue houses"}`)
	in.want(200, "", "GET", ds+"/documents/"+doc.text(t, "batch")+"/indexing-status", knowledgeKey, "")
	found := in.want(200, "", "POST", ds+"/retrieve", knowledgeKey, `{"query":"blue"}`)
	if records := found.json(t)["records"].([]any); len(records) != 1 || !strings.Contains(string(found.body), "blue houses") {
		t.Errorf("retrieved %s", found.body)
	}
	in.want(204, "", "DELETE", ds, knowledgeKey, "")
	in.want(404, "not_found", "GET", ds, knowledgeKey, "")
}

func TestWorld_IsBounded(t *testing.T) {
	var b bounded[int]
	for i := range keepThings + 10 {
		b.put(derivedID(string(rune(i))), i)
	}
	if len(b.entries) != keepThings || len(b.order) != keepThings {
		t.Errorf("%d entries, %d in order", len(b.entries), len(b.order))
	}
	w := NewWorld()
	for range 5 {
		w.addFile(&file{id: newID(), content: make([]byte, 100<<20), size: 100 << 20})
	}
	if w.contentBytes > keepContentBytes {
		t.Errorf("%d bytes kept", w.contentBytes)
	}
}
