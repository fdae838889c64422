package proxy

import (
	"bufio"
	"context"
	"encoding/json"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/standin"
)

// newStandin runs a stand-in for Dify that knows the rig's token for name.
func newStandin(t *testing.T, name string) (*standin.Server, lb.Instance) {
	t.Helper()
	s := standin.New(standin.Options{Name: name, Apps: []standin.App{{Key: "app-" + name + "-secret-token"}}, TokenGap: 2 * time.Millisecond, FirstToken: time.Millisecond})
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
	return s, instanceAt(name, "http://"+ln.Addr().String())
}

func TestStandin_ConversationAndStop(t *testing.T) {
	sa, a := newStandin(t, "a")
	sb, b := newStandin(t, "b")
	r := newRig(t, func(_ *Options, app *lb.Application) { app.Instances = []lb.Instance{a, b} })
	user := r.userOf("a")
	resp, body := r.do("POST", "/v1/chat-messages", "", `{"inputs":{},"query":"hi","response_mode":"blocking","user":"`+user+`"}`)
	var answer struct {
		ConversationID string `json:"conversation_id"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || resp.StatusCode != 200 || answer.ConversationID == "" {
		t.Fatalf("%d %s", resp.StatusCode, body)
	}
	for range 3 { // Dify's own GET calls carry the user in the query
		if resp, body := r.do("GET", "/v1/messages?conversation_id="+answer.ConversationID+"&user="+user, "", ""); resp.StatusCode != 200 || !strings.Contains(body, answer.ConversationID) {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	}
	body = `{"inputs":{"_standin":{"tokens":4000,"gap_ms":5}},"query":"long","response_mode":"streaming","user":"` + user + `"}`
	req, err := http.NewRequest("POST", r.url+"/v1/chat-messages", strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer user-token-shop")
	req.Header.Set("Content-Type", "application/json")
	stream, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Body.Close()
	// The task becomes known with the first event that passes.
	lines := bufio.NewReader(stream.Body)
	var task string
	for task == "" {
		line, err := lines.ReadString('\n')
		if err != nil {
			t.Fatal(err)
		}
		_, after, _ := strings.Cut(line, `"task_id":"`)
		if !strings.Contains(after, `"`) {
			_, after, _ = strings.Cut(line, `"task_id": "`)
		}
		task, _, _ = strings.Cut(after, `"`)
	}
	streamed := make(chan string, 1)
	go func() {
		body, _ := io.ReadAll(lines)
		streamed <- string(body)
	}()
	if resp, _ := r.do("POST", "/v1/chat-messages/"+task+"/stop", "", `{"user":"`+user+`"}`); resp.StatusCode != 200 {
		t.Error(resp.StatusCode)
	}
	select {
	case body := <-streamed:
		if !strings.Contains(body, "message_end") {
			t.Errorf("the stream ended with %.200q", body[max(0, len(body)-200):])
		}
	case <-time.After(10 * time.Second):
		t.Fatal("the stop stopped nothing")
	}
	if sa.Counts().StopsEffective != 1 || sb.Counts().StopsReceived != 0 || sa.Counts().UnknownTokens != 0 {
		t.Errorf("%+v\n%+v", sa.Counts(), sb.Counts())
	}
}
