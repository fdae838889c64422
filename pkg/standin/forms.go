package standin

import (
	"strings"
	"time"

	"github.com/google/uuid"
)

// form is what a paused run asks of a person.
type form struct {
	id, token string
	run       *run
	submitted time.Time // guarded by World.mu
}

const formLife = 24 * time.Hour

var formActions = []any{object{{"id", "approve"}, {"title", "Approve"}, {"button_style", "primary"}}, object{{"id", "reject"}, {"title", "Reject"}, {"button_style", "default"}}}

const formContent = "May this go on?"

// pause schedules the question to a person and the end of the stream.
func (r *run) pause(at time.Duration) {
	r.form = &form{id: uuid.NewString(), token: strings.ReplaceAll(uuid.NewString(), "-", ""), run: r}
	r.append(at,
		r.graphEvent("human_input_required", object{
			{"form_id", r.form.id}, {"form_token", r.form.token}, {"node_id", humanNode.id}, {"node_title", humanNode.title}, {"form_content", formContent},
			{"inputs", []any{}}, {"actions", formActions}, {"expiration_time", r.start.Add(formLife).Unix()}, {"resolved_default_values", object{}},
		}),
		r.graphEvent("workflow_paused", r.pausedData(at)))
	r.steps[len(r.steps)-1].last = true
}

func (r *run) pausedData(at time.Duration) object {
	return object{
		{"workflow_run_id", r.runID}, {"paused_nodes", []string{humanNode.id}}, {"outputs", object{}},
		{"reasons", []any{object{{"type", "human_input_required"}, {"form_id", r.form.id}, {"node_id", humanNode.id}}}},
		{"status", "paused"}, {"created_at", r.start.Unix()}, {"elapsed_time", seconds(at)}, {"total_tokens", r.promptTokens}, {"total_steps", 2},
	}
}

// submit answers a form; its run goes on. Only the first submission counts.
func (w *World) submit(f *form, action string, now time.Time) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !f.submitted.IsZero() {
		return errFormSubmitted
	}
	if now.Sub(f.run.start) > formLife {
		return &apiError{status: 412, code: "human_input_form_expired", message: "This form has expired."}
	}
	f.submitted = now
	r := f.run
	at := now.Sub(r.start)
	text := "[" + r.server + "] a person chose: " + action
	r.append(at, r.graphEvent("human_input_form_filled", object{
		{"node_id", humanNode.id}, {"node_title", humanNode.title}, {"rendered_content", formContent}, {"action_id", action}, {"action_text", action}, {"submitted_data", object{}},
	}))
	r.steps = append(r.steps, step{at: at, delta: text})
	r.finish(at, text, 1)
	r.wakeLocked()
	return nil
}

func (s *Server) findForm(c *call) (*form, error) {
	w := s.opts.World
	w.mu.Lock()
	defer w.mu.Unlock()
	f, ok := w.forms.get(c.param("token"))
	if !ok || f.run.app.ID != c.app.ID {
		return nil, errForm
	}
	if !f.submitted.IsZero() {
		return nil, errFormSubmitted
	}
	return f, nil
}

func (s *Server) serveForm(c *call) error {
	f, err := s.findForm(c)
	if err != nil {
		return err
	}
	return c.json(200, object{
		{"form_content", formContent}, {"inputs", []any{}}, {"resolved_default_values", object{}}, {"user_actions", formActions}, {"expiration_time", f.run.start.Add(formLife).Unix()},
	})
}

func (s *Server) submitForm(c *call) error {
	f, err := s.findForm(c)
	if err != nil {
		return err
	}
	action, _ := c.body["action"].(string)
	if action != "approve" && action != "reject" {
		return invalidParam("action: must be one of the form's actions")
	}
	if err := s.opts.World.submit(f, action, time.Now()); err != nil {
		return err
	}
	return c.json(200, object{})
}
