package standin

import (
	"fmt"
	"strings"
	"testing"
	"time"
)

const unknownID = "3f0c1a52-9f43-4f0e-8d52-6a1b7c9d0e11"

// TestUnknownIDs_AnswerAsDifyDoes is the table of what an instance answers for ids it does not know.
func TestUnknownIDs_AnswerAsDifyDoes(t *testing.T) {
	in := start(t, allApps("a"))
	own := in.want(200, "", "POST", "/v1/chat-messages", flowKey, chatBody("bob", ""))
	conversation := own.text(t, "conversation_id")
	u := `{"user":"bob"}`
	stream := `,"response_mode":"streaming"`
	withFile := func(id string) string {
		return chatBody("bob", fmt.Sprintf(`,"files":[{"type":"document","transfer_method":"local_file","upload_file_id":%q}]`, id))
	}
	const ds = "/v1/datasets/" + unknownID
	dataset := in.want(200, "", "POST", "/v1/datasets", knowledgeKey, `{"name":"known"}`).text(t, "id")
	known := "/v1/datasets/" + dataset
	document := in.want(200, "", "POST", known+"/document/create-by-text", knowledgeKey, `{"name":"d","text":"one\n\ntwo"}`).text(t, "document", "id")
	segment := in.want(200, "", "POST", known+"/documents/"+document+"/segments", knowledgeKey, `{"segments":[{"content":"three"}]}`).json(t)["data"].([]any)[0].(map[string]any)["id"].(string)

	tests := []struct {
		what         string
		status       int
		code         string
		message      string
		method, path string
		key, body    string
	}{
		{"unknown key", 401, "unauthorized", "Access token is invalid", "POST", "/v1/chat-messages", "app-of-another-instance", chatBody("bob", "")},
		{"conversation not a UUID", 400, "invalid_param", "", "POST", "/v1/chat-messages", chatKey, chatBody("bob", `,"conversation_id":"17"`)},
		{"unknown conversation, blocking", 404, "not_found", "Conversation Not Exists.", "POST", "/v1/chat-messages", chatKey, chatBody("bob", `,"conversation_id":"`+unknownID+`"`)},
		{"unknown conversation, streaming", 404, "not_found", "Conversation Not Exists.", "POST", "/v1/chat-messages", chatKey, chatBody("bob", `,"conversation_id":"`+unknownID+`"`+stream)},
		{"unknown conversation, chatflow streaming", 404, "not_found", "Conversation Not Exists.", "POST", "/v1/chat-messages", flowKey, chatBody("bob", `,"conversation_id":"`+unknownID+`"`+stream)},
		{"conversation of another user", 404, "not_found", "Conversation Not Exists.", "POST", "/v1/chat-messages", flowKey, chatBody("eve", `,"conversation_id":"`+conversation+`"`)},
		{"conversation of another app", 404, "not_found", "Conversation Not Exists.", "POST", "/v1/chat-messages", chatKey, chatBody("bob", `,"conversation_id":"`+conversation+`"`)},
		{"unknown last_id", 404, "not_found", "Last Conversation Not Exists.", "GET", "/v1/conversations?user=bob&last_id=" + unknownID, flowKey, ""},
		{"messages of unknown conversation", 404, "not_found", "Conversation Not Exists.", "GET", "/v1/messages?user=bob&conversation_id=" + unknownID, flowKey, ""},
		{"messages with unknown first_id", 404, "not_found", "First Message Not Exists.", "GET", "/v1/messages?user=bob&conversation_id=" + conversation + "&first_id=" + unknownID, flowKey, ""},
		{"delete", 404, "not_found", "Conversation Not Exists.", "DELETE", "/v1/conversations/" + unknownID, flowKey, u},
		{"rename", 404, "not_found", "Conversation Not Exists.", "POST", "/v1/conversations/" + unknownID + "/name", flowKey, `{"user":"bob","name":"x"}`},
		{"variables", 404, "not_found", "Conversation Not Exists.", "GET", "/v1/conversations/" + unknownID + "/variables?user=bob", flowKey, ""},
		{"set variable, conversation", 404, "not_found", "Conversation Not Exists.", "PUT", "/v1/conversations/" + unknownID + "/variables/" + unknownID, flowKey, `{"user":"bob","value":"x"}`},
		{"set variable, variable", 404, "not_found", "Conversation Variable Not Exists.", "PUT", "/v1/conversations/" + conversation + "/variables/" + unknownID, flowKey, `{"user":"bob","value":"x"}`},
		{"feedback", 404, "not_found", "Message Not Exists.", "POST", "/v1/messages/" + unknownID + "/feedbacks", chatKey, `{"user":"bob","rating":"like"}`},
		{"suggested", 404, "not_found", "Message Not Exists.", "GET", "/v1/messages/" + unknownID + "/suggested?user=bob", chatKey, ""},
		{"stop chat", 200, "", "", "POST", "/v1/chat-messages/" + unknownID + "/stop", chatKey, u},
		{"stop completion", 200, "", "", "POST", "/v1/completion-messages/" + unknownID + "/stop", completionKey, u},
		{"stop workflow", 200, "", "", "POST", "/v1/workflows/tasks/" + unknownID + "/stop", workflowKey, u},
		{"unknown file", 400, "invalid_param", "Invalid upload file", "POST", "/v1/chat-messages", chatKey, withFile(unknownID)},
		{"file id not a UUID", 400, "invalid_param", "Invalid upload file id format", "POST", "/v1/chat-messages", chatKey, withFile("17")},
		{"preview", 404, "file_not_found", "", "GET", "/v1/files/" + unknownID + "/preview?user=bob", chatKey, ""},
		{"workflow run", 404, "not_found", "Workflow run not found.", "GET", "/v1/workflows/run/" + unknownID, workflowKey, ""},
		{"workflow events", 404, "not_found", "Workflow run not found", "GET", "/v1/workflow/" + unknownID + "/events?user=bob", workflowKey, ""},
		{"workflow by id", 404, "not_found", "Workflow not found with id: " + unknownID, "POST", "/v1/workflows/" + unknownID + "/run", workflowKey, `{"inputs":{},"user":"bob"}`},
		{"workflow by id, not a UUID", 400, "bad_request", "", "POST", "/v1/workflows/17/run", workflowKey, `{"inputs":{},"user":"bob"}`},
		{"workflow_id in chat", 404, "not_found", "Workflow not found with id: " + unknownID, "POST", "/v1/chat-messages", flowKey, chatBody("bob", `,"workflow_id":"`+unknownID+`"`)},
		{"workflow_id in chat, not a UUID", 400, "bad_request", "", "POST", "/v1/chat-messages", flowKey, chatBody("bob", `,"workflow_id":"17"`)},
		{"form", 404, "not_found", "Form not found", "GET", "/v1/form/human_input/nope", flowKey, ""},
		{"end user", 404, "end_user_not_found", "", "GET", "/v1/end-users/" + unknownID, chatKey, ""},
		{"annotation", 404, "not_found", "Annotation not found", "DELETE", "/v1/apps/annotations/" + unknownID, chatKey, ""},
		{"annotation job", 400, "invalid_param", "The job does not exist.", "GET", "/v1/apps/annotation-reply/enable/status/" + unknownID, chatKey, ""},
		{"dataset", 404, "not_found", "Dataset not found.", "GET", ds, knowledgeKey, ""},
		{"documents of unknown dataset", 404, "not_found", "Dataset not found.", "GET", ds + "/documents", knowledgeKey, ""},
		{"document", 404, "not_found", "Document not found.", "GET", known + "/documents/" + unknownID, knowledgeKey, ""},
		{"segment", 404, "not_found", "Segment not found.", "GET", known + "/documents/" + document + "/segments/" + unknownID, knowledgeKey, ""},
		{"child chunk", 404, "not_found", "Child chunk not found.", "DELETE", known + "/documents/" + document + "/segments/" + segment + "/child_chunks/" + unknownID, knowledgeKey, ""},
		{"tag", 404, "not_found", "Tag not found", "PATCH", "/v1/datasets/tags", knowledgeKey, `{"tag_id":"` + unknownID + `","name":"n"}`},
		{"metadata of unknown document", 400, "invalid_param", "Document not found.", "POST", known + "/documents/metadata", knowledgeKey, `{"operation_data":[{"document_id":"` + unknownID + `"}]}`},
	}
	for _, tt := range tests {
		t.Run(tt.what, func(t *testing.T) {
			a := in.call(tt.method, tt.path, tt.key, tt.body)
			if a.status != tt.status {
				t.Fatalf("status %d, want %d: %s", a.status, tt.status, a.body)
			}
			if tt.code == "" {
				if string(a.body) != `{"result":"success"}`+"\n" {
					t.Errorf("body %s", a.body)
				}
				return
			}
			m := a.json(t)
			if m["code"] != tt.code || m["status"] != float64(tt.status) || tt.message != "" && m["message"] != tt.message {
				t.Errorf("%s, want %s %q", a.body, tt.code, tt.message)
			}
		})
	}
	t.Run("list of conversations is empty", func(t *testing.T) {
		m := in.want(200, "", "GET", "/v1/conversations?user=stranger", chatKey, "").json(t)
		if data, ok := m["data"].([]any); !ok || len(data) != 0 || m["has_more"] != false {
			t.Errorf("%v", m)
		}
	})
	t.Run("unknown file in a workflow stream", func(t *testing.T) {
		events := in.open("POST", "/v1/workflows/run", workflowKey,
			`{"inputs":{"f":{"type":"document","transfer_method":"local_file","upload_file_id":"`+unknownID+`"}},"user":"bob","response_mode":"streaming"}`).all()
		if len(events) != 1 || events[0]["event"] != "error" || events[0]["code"] != "invalid_param" || events[0]["status"] != 400.0 {
			t.Errorf("%v", events)
		}
	})
	if got := in.Counts(); got.StopsReceived != 3 || got.StopsEffective != 0 {
		t.Errorf("stops: %d received, %d effective", got.StopsReceived, got.StopsEffective)
	}
}

func TestWorld_SharedByReplicasOnly(t *testing.T) {
	world := NewWorld()
	o := allApps("one")
	o.World = world
	one := start(t, o)
	o = allApps("two")
	o.World = world
	// A replica may know the same app by another key.
	o.Apps = []App{{Key: "app-second-key-of-chat", Mode: Chat, ID: derivedID("app", chatKey)}}
	two := start(t, o)
	alone := start(t, allApps("alone"))

	first := one.want(200, "", "POST", "/v1/chat-messages", chatKey, chatBody("bob", ""))
	id := first.text(t, "conversation_id")
	next := chatBody("bob", `,"conversation_id":"`+id+`"`)
	if got := two.want(200, "", "POST", "/v1/chat-messages", "app-second-key-of-chat", next).text(t, "answer"); !strings.HasPrefix(got, "[two] turn 2, ") {
		t.Errorf("answer %q", got)
	}
	alone.want(404, "not_found", "POST", "/v1/chat-messages", chatKey, next)
	m := one.want(200, "", "GET", "/v1/messages?user=bob&conversation_id="+id, chatKey, "").json(t)
	if data := m["data"].([]any); len(data) != 2 || data[0].(map[string]any)["id"] != first.text(t, "id") {
		t.Errorf("messages %v", m)
	}
	// A restart keeps the World.
	one.stop()
	again := start(t, Options{World: world, Apps: []App{{Key: chatKey, Mode: Chat}}})
	again.want(200, "", "POST", "/v1/chat-messages", chatKey, next)
}

func TestStop_NeedsTaskAndUser(t *testing.T) {
	world := NewWorld()
	o := allApps("a")
	o.World, o.TokenGap, o.Tokens = world, 50*time.Millisecond, 1000
	in := start(t, o)
	replica := start(t, func() Options { o := allApps("b"); o.World = world; return o }())

	begin := func(path, key, body string) (*stream, string) {
		s := in.open("POST", path, key, body)
		for {
			e, err := s.next()
			if err != nil {
				t.Fatal(err)
			}
			if name := e["event"]; name == "message" || name == "text_chunk" {
				return s, e["task_id"].(string)
			}
		}
	}
	tests := []struct {
		name, path, stop, key, ends string
		foreign                     bool // another user's stop works
	}{
		{"chat", "/v1/chat-messages", "/v1/chat-messages/%s/stop", chatKey, "message_end", false},
		{"chatflow", "/v1/chat-messages", "/v1/chat-messages/%s/stop", flowKey, "workflow_finished", false},
		{"completion", "/v1/completion-messages", "/v1/completion-messages/%s/stop", completionKey, "message_end", false},
		{"workflow", "/v1/workflows/run", "/v1/workflows/tasks/%s/stop", workflowKey, "workflow_finished", true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, task := begin(tt.path, tt.key, chatBody("bob", `,"response_mode":"streaming"`))
			path := fmt.Sprintf(tt.stop, task)
			before := in.Counts()
			in.want(200, "", "POST", path, tt.key, `{"user":"eve"}`)
			effective := in.Counts().StopsEffective - before.StopsEffective
			if tt.foreign != (effective == 1) {
				t.Fatalf("stop of another user: %d effective", effective)
			}
			if !tt.foreign {
				if e, err := s.next(); err != nil || e["event"] != "message" {
					t.Fatalf("after a foreign stop: %v %v", e, err)
				}
				// Redis is shared: any replica can stop.
				replica.want(200, "", "POST", path, tt.key, `{"user":"bob"}`)
				if n := replica.Counts().StopsEffective; n == 0 {
					t.Fatal("stop by a replica had no effect")
				}
			}
			events := s.all()
			last := events[len(events)-1]
			if last["event"] != tt.ends || len(events) > 20 {
				t.Errorf("%d events, the last is %v", len(events), last)
			}
			if tt.ends == "workflow_finished" && last["data"].(map[string]any)["status"] != "stopped" {
				t.Errorf("ended with %v", last)
			}
			in.want(200, "", "POST", path, tt.key, `{"user":"bob"}`) // once more: still 200
		})
	}
}
