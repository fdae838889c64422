package standin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net"
	"net/http"
	"net/textproto"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"
)

// TestMain checks that nothing the tests started is left over.
func TestMain(m *testing.M) {
	code := m.Run()
	http.DefaultClient.CloseIdleConnections()
	deadline := time.Now().Add(5 * time.Second)
	for code == 0 && runtime.NumGoroutine() > 2 {
		if time.Now().After(deadline) {
			buf := make([]byte, 1<<20)
			fmt.Fprintf(os.Stderr, "goroutines left over:\n%s\n", buf[:runtime.Stack(buf, true)])
			code = 1
			break
		}
		time.Sleep(5 * time.Millisecond)
	}
	os.Exit(code)
}

const (
	chatKey       = "app-chat-0123456789"
	agentKey      = "app-agent-0123456789"
	newAgentKey   = "app-newagent-0123456789"
	flowKey       = "app-chatflow-0123456789"
	workflowKey   = "app-workflow-0123456789"
	completionKey = "app-completion-0123456789"
	knowledgeKey  = "dataset-0123456789"
)

// allApps is one app of each mode, quick enough for tests.
func allApps(name string) Options {
	return Options{
		Name: name,
		Apps: []App{
			{Key: chatKey, Mode: Chat}, {Key: agentKey, Mode: AgentChat}, {Key: newAgentKey, Mode: Agent},
			{Key: flowKey, Mode: AdvancedChat}, {Key: workflowKey, Mode: Workflow}, {Key: completionKey, Mode: Completion},
		},
		DatasetKeys: []string{knowledgeKey},
		FirstToken:  -1, TokenGap: -1, Tokens: 5, Slots: -1,
	}
}

// instance is a Server that runs, and a client of it.
type instance struct {
	*Server
	t      *testing.T
	addr   string
	client *http.Client
	stop   func() // ends Run and waits for it
}

func start(t *testing.T, o Options) *instance {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	in := &instance{Server: New(o), t: t, addr: ln.Addr().String(), client: &http.Client{Transport: &http.Transport{MaxIdleConnsPerHost: 100}}}
	ended := make(chan error, 1)
	go func() { ended <- in.Run(ctx, ln) }()
	stopped := false
	in.stop = func() {
		if stopped {
			return
		}
		stopped = true
		cancel()
		if err := <-ended; err != nil {
			t.Errorf("run: %v", err)
		}
		in.client.CloseIdleConnections()
	}
	t.Cleanup(in.stop)
	return in
}

// answer is a response read to its end.
type answer struct {
	status int
	header http.Header
	body   []byte
	err    error // of reading the body
}

func (a answer) json(t *testing.T) map[string]any {
	t.Helper()
	var m map[string]any
	if err := json.Unmarshal(a.body, &m); err != nil {
		t.Fatalf("body %q: %v", a.body, err)
	}
	return m
}

func (a answer) text(t *testing.T, path ...string) string {
	t.Helper()
	var v any = a.json(t)
	for _, p := range path {
		m, _ := v.(map[string]any)
		v = m[p]
	}
	s, ok := v.(string)
	if !ok {
		t.Fatalf("no string at %v in %s", path, a.body)
	}
	return s
}

func (in *instance) request(method, path, key, body string) *http.Request {
	in.t.Helper()
	r, err := http.NewRequest(method, "http://"+in.addr+path, strings.NewReader(body))
	if err != nil {
		in.t.Fatal(err)
	}
	if key != "" {
		r.Header.Set("Authorization", "Bearer "+key)
	}
	if body != "" {
		r.Header.Set("Content-Type", "application/json")
	}
	return r
}

func (in *instance) do(r *http.Request) (answer, error) {
	resp, err := in.client.Do(r)
	if err != nil {
		return answer{}, err
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	return answer{resp.StatusCode, resp.Header, b, err}, nil
}

func (in *instance) call(method, path, key, body string) answer {
	in.t.Helper()
	a, err := in.do(in.request(method, path, key, body))
	if err != nil {
		in.t.Fatalf("%s %s: %v", method, path, err)
	}
	return a
}

// want calls and checks status and, unless it is "", code.
func (in *instance) want(status int, code, method, path, key, body string) answer {
	in.t.Helper()
	a := in.call(method, path, key, body)
	if a.status != status {
		in.t.Fatalf("%s %s: status %d, want %d: %s", method, path, a.status, status, a.body)
	}
	if code != "" {
		m := a.json(in.t)
		if m["code"] != code || m["status"] != float64(status) || m["message"] == "" {
			in.t.Fatalf("%s %s: %s, want code %s and status %d", method, path, a.body, code, status)
		}
	}
	return a
}

// chatBody is a chat request; more is appended to its fields.
func chatBody(user, more string) string {
	return fmt.Sprintf(`{"inputs":{},"query":"hello there","user":%q%s}`, user, more)
}

// stream is an open stream.
type stream struct {
	t    *testing.T
	resp *http.Response
	r    *bufio.Reader
}

func (in *instance) open(method, path, key, body string) *stream {
	in.t.Helper()
	resp, err := in.client.Do(in.request(method, path, key, body))
	if err != nil {
		in.t.Fatalf("%s %s: %v", method, path, err)
	}
	in.t.Cleanup(func() { resp.Body.Close() })
	if ct := resp.Header.Get("Content-Type"); resp.StatusCode != 200 || ct != "text/event-stream; charset=utf-8" {
		b, _ := io.ReadAll(resp.Body)
		in.t.Fatalf("%s %s: status %d, type %s: %s", method, path, resp.StatusCode, ct, b)
	}
	return &stream{in.t, resp, bufio.NewReader(resp.Body)}
}

// frame reads one frame, without the empty line.
func (s *stream) frame() (string, error) {
	line, err := s.r.ReadString('\n')
	if err != nil {
		return line, err
	}
	empty, err := s.r.ReadString('\n')
	if err != nil || empty != "\n" {
		return line, fmt.Errorf("after %q comes %q: %w", line, empty, err)
	}
	return strings.TrimSuffix(line, "\n"), nil
}

// next reads the next event, leaving out pings.
func (s *stream) next() (map[string]any, error) {
	for {
		f, err := s.frame()
		if err != nil {
			return nil, err
		}
		if f == "event: ping" {
			continue
		}
		data, ok := strings.CutPrefix(f, "data: ")
		if !ok {
			return nil, fmt.Errorf("not an event: %q", f)
		}
		var m map[string]any
		return m, json.Unmarshal([]byte(data), &m)
	}
}

// rest reads all events to the end of the stream.
func (s *stream) rest() (events []map[string]any, err error) {
	for {
		e, err := s.next()
		if err == io.EOF {
			return events, nil
		}
		if err != nil {
			return events, err
		}
		events = append(events, e)
	}
}

func (s *stream) all() []map[string]any {
	s.t.Helper()
	events, err := s.rest()
	if err != nil {
		s.t.Fatalf("stream broke after %d events: %v", len(events), err)
	}
	return events
}

func names(events []map[string]any) string {
	var b strings.Builder
	last := ""
	for _, e := range events {
		name := e["event"].(string)
		if name == last {
			continue // runs of deltas count once
		}
		last = name
		b.WriteString(name + " ")
	}
	return strings.TrimSpace(b.String())
}

// upload sends a file; the user part comes first or last.
func (in *instance) upload(key, user string, userFirst bool, name, mediaType string, content []byte) answer {
	in.t.Helper()
	var b bytes.Buffer
	w := multipart.NewWriter(&b)
	if userFirst && user != "" {
		w.WriteField("user", user)
	}
	if name != "" {
		part, _ := w.CreatePart(textproto.MIMEHeader{
			"Content-Disposition": {fmt.Sprintf(`form-data; name="file"; filename=%q`, name)}, "Content-Type": {mediaType}})
		part.Write(content)
	}
	if !userFirst && user != "" {
		w.WriteField("user", user)
	}
	w.Close()
	r := in.request("POST", "/v1/files/upload", key, b.String())
	r.Header.Set("Content-Type", w.FormDataContentType())
	a, err := in.do(r)
	if err != nil {
		in.t.Fatal(err)
	}
	return a
}

// eventually waits for a condition that another goroutine brings about.
func eventually(t *testing.T, what string, f func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !f(); {
		if time.Now().After(deadline) {
			t.Fatalf("never: %s", what)
		}
		time.Sleep(time.Millisecond)
	}
}
