package standin

import (
	"net/http"
	"strconv"
	"time"
)

func (s *Server) serveWorkflow(c *call) error {
	if c.app.Mode != Workflow {
		return errNotWorkflow
	}
	streaming, err := c.readGeneration(false)
	if err != nil {
		return err
	}
	if err := c.checkWorkflowID(c.param("workflow")); err != nil {
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
	_, fileFault := c.files()
	if fileFault != nil && !streaming {
		return fileFault
	}
	return c.answer(c.begin(streaming, "", 1, fileFault), s.workflowBody)
}

// workflowBody is the blocking answer: 200 even if the run failed.
func (s *Server) workflowBody(r *run) (object, error) {
	answer, deltas, took, status := s.opts.World.generated(r)
	data := r.result(took, status, answer, deltas)
	if status == "paused" {
		data = r.pausedData(took)
	}
	return object{{"task_id", r.taskID}, {"workflow_run_id", r.runID}, {"data", data}}, nil
}

// stopWorkflow does not ask whose run it is.
func (s *Server) stopWorkflow(c *call) error {
	if c.app.Mode != Workflow {
		return errNotWorkflow
	}
	return c.stop(nil)
}

// graphRun finds a run of the app by its id.
func (c *call) graphRun(missing error) (*run, error) {
	if !c.app.Mode.graph() {
		return nil, errNotWorkflow
	}
	id, ok := parseUUID(c.param("run"))
	if !ok {
		return nil, missing
	}
	w := c.s.opts.World
	w.mu.Lock()
	defer w.mu.Unlock()
	r, ok := w.runs.get(id)
	if !ok || r.app.ID != c.app.ID {
		return nil, missing
	}
	return r, nil
}

func (s *Server) serveRun(c *call) error {
	r, err := c.graphRun(errRun)
	if err != nil {
		return err
	}
	return c.json(200, s.runDetail(r))
}

func (s *Server) runDetail(r *run) object {
	answer, deltas, took, status := s.opts.World.generated(r)
	o := r.result(min(took, time.Since(r.start)), status, answer, deltas)
	for i, f := range o {
		if f.name == "finished_at" && (status == "running" || status == "paused") {
			o[i].value = nil
		}
	}
	return o.with(field{"inputs", withoutSelectors(r.inputs)})
}

// serveRunEvents opens the stream of a run again, for the one who started it: what is still to
// come or, with include_state_snapshot=true, all of it. A finished run tells its end.
func (s *Server) serveRunEvents(c *call) error {
	r, err := c.graphRun(errRunEvents)
	if err != nil {
		return err
	}
	if r.user.id != c.user.id {
		return errRunEvents
	}
	w := s.opts.World
	w.mu.Lock()
	now := time.Now()
	from := r.positionLocked(now)
	last := len(r.steps) - 1
	for last > 0 && !isEvent(r.steps[last], "workflow_finished") {
		last--
	}
	switch {
	case c.r.URL.Query().Get("include_state_snapshot") == "true":
		from = 0
	case from == len(r.steps) && !r.pausedLocked(now):
		from = last
	}
	w.mu.Unlock()
	c.w.Header().Set("Cache-Control", "no-cache")
	c.w.Header().Set("Connection", "keep-alive")
	endAfter := s.faults.stream(c.r.URL.Path, &c.sel)
	s.stream(c.w.(*exchange), r, from, c.sel, endAfter)
	return nil
}

func isEvent(st step, name string) bool {
	return len(st.event) > 0 && st.event[0].value == name
}

func (s *Server) serveLogs(c *call) error {
	if !c.app.Mode.graph() {
		return errNotWorkflow
	}
	q := c.r.URL.Query()
	page, err := intParam(q.Get("page"), 1, 1, 99999, "page")
	if err != nil {
		return err
	}
	limit, err := intParam(q.Get("limit"), 20, 1, 100, "limit")
	if err != nil {
		return err
	}
	w := s.opts.World
	var runs []*run
	now := time.Now()
	w.mu.Lock()
	w.runs.newestFirst(func(r *run) bool {
		if r.app.ID == c.app.ID && (q.Get("status") == "" || q.Get("status") == r.statusLocked(now)) &&
			(q.Get("created_by_end_user_session_id") == "" || q.Get("created_by_end_user_session_id") == r.user.name) {
			runs = append(runs, r)
		}
		return true
	})
	w.mu.Unlock()
	data := []any{}
	for i := (page - 1) * limit; i < len(runs) && i < page*limit; i++ {
		r := runs[i]
		data = append(data, object{
			{"id", derivedID("log", r.runID)}, {"workflow_run", s.runDetail(r)}, {"created_from", "service-api"}, {"created_by_role", "end_user"}, {"created_by_account", nil},
			{"created_by_end_user", object{{"id", r.user.id}, {"type", "service_api"}, {"is_anonymous", false}, {"session_id", r.user.name}}}, {"created_at", r.start.Unix()},
		})
	}
	return c.json(http.StatusOK, object{{"page", page}, {"limit", limit}, {"total", len(runs)}, {"has_more", page*limit < len(runs)}, {"data", data}})
}

// intParam reads a number of the query within bounds.
func intParam(text string, absent, low, high int, name string) (int, error) {
	if text == "" {
		return absent, nil
	}
	n, err := strconv.Atoi(text)
	if err != nil {
		return 0, paramError(name, "Input should be a valid integer")
	}
	if n < low || n > high {
		return 0, paramError(name, "Input should be between "+strconv.Itoa(low)+" and "+strconv.Itoa(high))
	}
	return n, nil
}
