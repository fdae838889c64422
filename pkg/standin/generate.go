package standin

import (
	"fmt"
	"time"

	"github.com/google/uuid"
)

// generation is what the three generating endpoints have in common once their
// parameters are checked.
type generation struct {
	run       *run
	streaming bool
	sel       selectors
	endAfter  int // of a fault: events before a well-formed end, or -1
}

// readGeneration reads the parameters that all generating endpoints have.
func (c *call) readGeneration(queryRequired bool) (streaming bool, err error) {
	if c.inputs, err = c.dict("inputs"); err != nil {
		return false, err
	}
	if c.query, err = c.str("query"); err != nil {
		return false, err
	}
	if _, given := c.body["query"]; queryRequired && !given {
		return false, paramError("query", "Field required")
	}
	mode, err := c.str("response_mode")
	if err != nil {
		return false, err
	}
	switch mode {
	case "streaming":
		streaming = true
	case "", "blocking": // absent or null: blocking
		if v, ok := c.body["response_mode"].(string); ok && v == "" {
			return false, paramError("response_mode", "Input should be 'blocking' or 'streaming'")
		}
	default:
		return false, paramError("response_mode", "Input should be 'blocking' or 'streaming'")
	}
	if c.app.Unpublished {
		if c.app.Mode == Workflow {
			return false, badRequest("Workflow not published")
		}
		return false, errUnavailable
	}
	c.sel.read(c.inputs, c.query)
	return streaming, nil
}

// admit applies the app's cap. The caller calls the returned function when the request has ended.
func (c *call) admit() (leave func(), err error) {
	w := c.s.opts.World
	if !w.enter(c.app.ID, c.app.MaxActive) {
		return nil, &apiError{status: 429, code: "too_many_requests",
			message: fmt.Sprintf("Too many requests. Please try again later. The current maximum concurrent requests allowed for %s is %d.", c.app.ID, c.app.MaxActive)}
	}
	return func() { w.leave(c.app.ID) }, nil
}

// refuse applies what a client asked for to happen before a run starts.
func (c *call) refuse() error {
	if c.sel.DelayMS > 0 && !sleep(c.r.Context(), milliseconds(c.sel.DelayMS)) {
		return errorOfCode("internal_server_error") // nobody reads it
	}
	if c.sel.Reject != "" {
		return errorOfCode(c.sel.Reject)
	}
	return nil
}

// files checks the file objects of a request. For a streaming graph run the fault is not told
// here but by the stream, as in Dify.
func (c *call) files() ([]*file, error) {
	list, ok := c.body["files"].([]any)
	if !ok && c.body["files"] != nil {
		return nil, paramError("files", "Input should be a valid list")
	}
	for _, v := range c.inputs {
		list = append(list, fileObjects(v)...)
	}
	var found []*file
	for _, v := range list {
		f, err := c.file(v)
		if err != nil {
			return nil, err
		}
		if f != nil {
			found = append(found, f)
		}
	}
	return found, nil
}

// fileObjects picks what looks like a file, or a list of files, out of an input.
func fileObjects(v any) (found []any) {
	switch v := v.(type) {
	case map[string]any:
		if v["transfer_method"] != nil {
			found = append(found, v)
		}
	case []any:
		for _, e := range v {
			if m, ok := e.(map[string]any); ok && m["transfer_method"] != nil {
				found = append(found, m)
			}
		}
	}
	return found
}

// file finds an uploaded file by its object; nil for a remote one.
func (c *call) file(v any) (*file, error) {
	m, _ := v.(map[string]any)
	switch m["transfer_method"] {
	case "remote_url":
		if u, _ := m["url"].(string); u == "" {
			return nil, invalidParam("Invalid file url")
		}
		return nil, nil
	case "local_file":
	default:
		return nil, invalidParam("Invalid transfer method in file object")
	}
	text, _ := m["upload_file_id"].(string)
	id, ok := parseUUID(text)
	if !ok {
		return nil, invalidParam("Invalid upload file id format")
	}
	w := c.s.opts.World
	w.mu.Lock()
	defer w.mu.Unlock()
	f, ok := w.files.get(id)
	if !ok || f.user.id != c.user.id {
		return nil, errUploadFile
	}
	return f, nil
}

// checkWorkflowID accepts the id of the app's published workflow only.
func (c *call) checkWorkflowID(given string) error {
	if given == "" {
		return nil
	}
	id, ok := parseUUID(given)
	if !ok {
		return badRequest("Invalid workflow_id format: " + given)
	}
	if id != c.app.workflowID() {
		return notFound("Workflow not found with id: " + given)
	}
	return nil
}

// begin starts a run, with the stream faults in force if it streams.
func (c *call) begin(streaming bool, conversationID string, turn int, fileFault error) *generation {
	g := &generation{run: newRun(c.s, c), streaming: streaming, sel: c.sel, endAfter: -1}
	if streaming {
		g.endAfter = c.s.faults.stream(c.r.URL.Path, &g.sel)
	}
	g.run.conversationID = conversationID
	if e, ok := fileFault.(*apiError); ok {
		g.run.failure = e
		g.run.append(0, g.run.errorEvent(e))
		g.run.steps[0].last = true
	} else {
		g.run.plan(g.sel, turn)
	}
	w := c.s.opts.World
	w.addRun(g.run)
	if f := g.run.form; f != nil {
		w.mu.Lock()
		w.forms.put(f.token, f)
		w.mu.Unlock()
	}
	c.s.counts.add(func(c *Counts) { c.Runs++ })
	return g
}

// answer streams the run, or waits for its end and writes body.
func (c *call) answer(g *generation, body func(*run) (object, error)) error {
	x := c.w.(*exchange)
	if g.streaming {
		c.s.stream(x, g.run, 0, g.sel, g.endAfter)
		c.s.opts.World.abandon(g.run, time.Now())
		return nil
	}
	// The API does not notice that a client of a blocking call has gone: it works on,
	// and the slot stays taken.
	if !c.s.opts.World.waitEnd(g.run, running(c.r.Context())) {
		return errorOfCode("internal_server_error")
	}
	if c.r.Context().Err() != nil {
		c.s.counts.add(func(c *Counts) { c.BlockingAbandoned++ })
	}
	o, err := body(g.run)
	if err != nil {
		return err
	}
	return c.json(200, o)
}

// waitEnd blocks until the run has ended or paused. It reports false if quit came first.
func (w *World) waitEnd(r *run, quit <-chan struct{}) bool {
	for {
		w.mu.Lock()
		end, changed := r.endLocked(), r.changed
		w.mu.Unlock()
		left := time.Until(end)
		if left <= 0 {
			return true
		}
		t := time.NewTimer(left)
		select {
		case <-t.C:
		case <-changed:
		case <-quit:
			t.Stop()
			return false
		}
		t.Stop()
	}
}

// abandon marks a run that dies with its stream: those of chat, agent and completion apps, which
// run inside the API process. The rest goes on elsewhere.
func (w *World) abandon(r *run, now time.Time) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !r.app.Mode.graph() && r.endLocked().After(now) {
		r.abandoned = true
		r.steps = r.steps[:max(1, r.positionLocked(now))]
	}
}

// generated is the answer of a run that is over, and its usage.
func (w *World) generated(r *run) (answer string, deltas int, took time.Duration, status string) {
	now := time.Now()
	w.mu.Lock()
	defer w.mu.Unlock()
	answer, deltas = r.answerLocked(now)
	return answer, deltas, r.endLocked().Sub(r.start), r.statusLocked(now)
}

func (s *Server) serveCompletion(c *call) error {
	if c.app.Mode != Completion {
		return errUnavailable
	}
	streaming, err := c.readGeneration(false)
	if err != nil {
		return err
	}
	files, err := c.files()
	if err != nil {
		return err
	}
	leave, err := c.admit()
	if err != nil {
		return err
	}
	defer leave()
	if err := c.refuse(); err != nil {
		return err
	}
	g := c.begin(streaming, "", 1, nil)
	s.opts.World.addMessage(&message{id: g.run.messageID, run: g.run, files: files, created: g.run.start})
	return c.answer(g, s.messageBody)
}

// messageBody is the blocking answer of chat and completion apps.
func (s *Server) messageBody(r *run) (object, error) {
	answer, deltas, took, status := s.opts.World.generated(r)
	if status == "paused" {
		return r.pausedBody(took), nil
	}
	if status == "failed" {
		return nil, eventError(r.failure.code)
	}
	o := object{{"event", "message"}, {"task_id", r.taskID}, {"id", r.messageID}, {"message_id", r.messageID}}
	if r.app.Mode.chatFamily() {
		o = o.with(field{"conversation_id", r.conversationID})
	}
	return o.with(field{"mode", string(r.app.Mode)}, field{"answer", answer}, field{"metadata", r.metadata(took, deltas)}, field{"created_at", r.start.Unix()}), nil
}

func (r *run) pausedBody(took time.Duration) object {
	return object{
		{"event", "workflow_paused"}, {"task_id", r.taskID}, {"id", r.messageID}, {"message_id", r.messageID}, {"conversation_id", r.conversationID},
		{"mode", string(r.app.Mode)}, {"workflow_run_id", r.runID}, {"data", r.pausedData(took)}, {"created_at", r.start.Unix()},
	}
}

func (s *Server) stopCompletion(c *call) error {
	if c.app.Mode != Completion {
		return errUnavailable
	}
	return c.stop(c.user)
}

// stop answers success whether or not there was anything to stop. A nil user stops anybody's run.
func (c *call) stop(user *endUser) error {
	effective := c.s.opts.World.stop(c.param("task"), c.app.ID, user, time.Now())
	c.s.counts.add(func(c *Counts) {
		c.StopsReceived++
		if effective {
			c.StopsEffective++
		}
	})
	return c.success()
}

func newID() string { return uuid.NewString() }
