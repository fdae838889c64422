package standin

import (
	"strings"
	"time"

	"github.com/google/uuid"
)

// run is the making of one answer: a schedule of events, fixed when it starts and
// changed only by a stop or a submitted form. Readers take what is due.
type run struct {
	app    App
	server string // name of the instance that took the request
	user   *endUser

	taskID, messageID, conversationID string
	runID, workflowID                 string // chatflow and workflow only
	inputs                            map[string]any
	query                             string
	start                             time.Time
	promptTokens                      int
	failure                           *apiError // the model's or a node's, nil if all goes well

	// guarded by World.mu
	steps     []step
	stopped   bool
	abandoned bool // died with its stream: it has no answer
	form      *form
	changed   chan struct{} // closed and replaced when steps change
}

// step is one event and when it is due, counted from the start of the run. Text
// deltas are encoded when they are sent.
type step struct {
	at    time.Duration
	delta string // if event is nil
	event object
	last  bool // a stream ends after it
}

func (r *run) append(at time.Duration, events ...object) {
	for _, e := range events {
		r.steps = append(r.steps, step{at: at, event: e})
	}
}

// endLocked is when the last event is due.
func (r *run) endLocked() time.Time {
	return r.start.Add(r.steps[len(r.steps)-1].at)
}

// answerLocked joins the deltas due by now.
func (r *run) answerLocked(now time.Time) (text string, deltas int) {
	if r.abandoned {
		return "", 0
	}
	var b strings.Builder
	for _, s := range r.steps {
		if s.event == nil && !r.start.Add(s.at).After(now) {
			b.WriteString(s.delta)
			deltas++
		}
	}
	return b.String(), deltas
}

// pausedLocked reports whether the run waits for a person at that time.
func (r *run) pausedLocked(now time.Time) bool {
	return r.form != nil && r.form.submitted.IsZero() && !r.endLocked().After(now)
}

// statusLocked is the status of a workflow run.
func (r *run) statusLocked(now time.Time) string {
	switch {
	case r.stopped:
		return "stopped"
	case r.pausedLocked(now):
		return "paused"
	case r.endLocked().After(now):
		return "running"
	case r.failure != nil:
		return "failed"
	}
	return "succeeded"
}

func (r *run) wakeLocked() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// due returns the step a reader should send next: step i if its time has come.
// Otherwise ok is false, and at says when to look again (zero: nothing is
// scheduled), changed when to look earlier.
func (w *World) due(r *run, i int, now time.Time) (s step, ok bool, at time.Time, changed <-chan struct{}) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if i >= len(r.steps) {
		return step{}, false, time.Time{}, r.changed
	}
	s = r.steps[i]
	at = r.start.Add(s.at)
	return s, !at.After(now), at, r.changed
}

// positionLocked is the number of steps due by now.
func (r *run) positionLocked(now time.Time) int {
	for i, s := range r.steps {
		if r.start.Add(s.at).After(now) {
			return i
		}
	}
	return len(r.steps)
}

// addRun makes the run known to stop calls and, if it has a run id, to readers of its events.
func (w *World) addRun(r *run) {
	w.mu.Lock()
	defer w.mu.Unlock()
	r.changed = make(chan struct{})
	w.tasks.put(r.taskID, r)
	if r.runID != "" {
		w.runs.put(r.runID, r)
	}
}

// stop ends the run of a task, if it is one of this app that still runs and, where
// user is not nil, that user's. It reports whether that had an effect; the API answers alike.
func (w *World) stop(taskID, appID string, user *endUser, now time.Time) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	r, ok := w.tasks.get(taskID)
	if !ok || r.app.ID != appID || user != nil && r.user.id != user.id {
		return false
	}
	if r.stopped || !r.endLocked().After(now) {
		return false
	}
	answer, deltas := r.answerLocked(now)
	r.steps = r.steps[:r.positionLocked(now)]
	r.stopped = true
	r.finish(now.Sub(r.start), answer, deltas)
	r.wakeLocked()
	return true
}

// newRun fills in what all runs have.
func newRun(s *Server, c *call) *run {
	r := &run{
		app: c.app, server: s.opts.Name, user: c.user,
		taskID: uuid.NewString(), messageID: uuid.NewString(),
		inputs: c.inputs, query: c.query, start: time.Now(),
	}
	if c.app.Mode.graph() {
		r.runID = uuid.NewString()
		r.workflowID = c.app.workflowID()
	}
	r.promptTokens = 12 + len(strings.Fields(c.query)) + 2*len(c.inputs)
	return r
}

// workflowID is the id of the app's published workflow.
func (a App) workflowID() string { return derivedID("workflow", a.ID) }
