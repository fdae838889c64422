package standin

import (
	"slices"
	"time"
)

// message is one question and its answer, which is that of its run.
type message struct {
	id           string
	conversation *conversation // nil in completion apps
	run          *run
	created      time.Time

	// guarded by World.mu
	files    []*file
	rating   any // "like", "dislike" or nil
	feedback string
}

// feedback is an entry of the app's list of feedbacks.
type feedback struct {
	id, appID string
	message   *message
	rating    any
	content   string
	at        time.Time
}

// addMessage stores a message; the files it names are used from now on.
func (w *World) addMessage(m *message) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if old, full := w.messages.put(m.id, m); full && old.conversation != nil {
		old.conversation.messages = slices.DeleteFunc(old.conversation.messages, func(other *message) bool { return other == old })
	}
	if cv := m.conversation; cv != nil {
		cv.messages = append(cv.messages, m)
		cv.updated = m.created
	}
	for _, f := range m.files {
		f.used = true
	}
}

// message finds a message of the call's app and user.
func (w *World) message(id string, c *call) (*message, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	m, ok := w.messages.get(id)
	if !ok || m.run.user.id != c.user.id {
		return nil, errMessage
	}
	return m, nil
}

func (w *World) messageLocked(m *message, now time.Time) object {
	answer, _ := m.run.answerLocked(now)
	var parent, rating, cause any
	conversationID, status := "", "normal"
	if cv := m.conversation; cv != nil {
		conversationID = cv.id
		if i := slices.Index(cv.messages, m); i > 0 {
			parent = cv.messages[i-1].id
		}
	}
	if m.rating != nil {
		rating = object{{"rating", m.rating}}
	}
	if m.run.failure != nil && m.run.statusLocked(now) == "failed" {
		status, cause = "error", m.run.failure.message
	}
	files := make([]any, len(m.files))
	for i, f := range m.files {
		files[i] = object{
			{"id", f.id}, {"filename", f.name}, {"type", f.kind()}, {"url", w.signedFilePath(f.id, now)}, {"mime_type", f.mime}, {"size", f.size},
			{"transfer_method", "local_file"}, {"belongs_to", "user"}, {"upload_file_id", f.id},
		}
	}
	return object{
		{"id", m.id}, {"conversation_id", conversationID}, {"parent_message_id", parent}, {"inputs", withoutSelectors(m.run.inputs)}, {"query", m.run.query}, {"answer", answer},
		{"feedback", rating}, {"retriever_resources", []string{}}, {"created_at", m.created.Unix()}, {"agent_thoughts", []string{}}, {"message_files", files}, {"status", status}, {"error", cause},
	}
}

func (s *Server) serveMessages(c *call) error {
	if err := c.chatCall(); err != nil {
		return err
	}
	q := c.r.URL.Query()
	id, ok := parseUUID(q.Get("conversation_id"))
	if !ok {
		return paramError("conversation_id", "Input should be a valid UUID")
	}
	limit, err := intParam(q.Get("limit"), 20, 1, 100, "limit")
	if err != nil {
		return err
	}
	w := s.opts.World
	cv, err := w.conversation(id, c)
	if err != nil {
		return err
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	list := cv.messages
	if first := q.Get("first_id"); first != "" {
		i := slices.IndexFunc(list, func(m *message) bool { return m.id == first })
		if i < 0 {
			return errFirstMessage
		}
		list = list[:i]
	}
	page := list[max(0, len(list)-limit):]
	data := make([]any, len(page))
	now := time.Now()
	for i, m := range page {
		data[i] = w.messageLocked(m, now)
	}
	return c.json(200, object{{"limit", limit}, {"has_more", len(list) > len(page)}, {"data", data}})
}

const keepFeedbacks = 10_000

func (s *Server) serveFeedback(c *call) error {
	w := s.opts.World
	m, err := w.message(c.param("message"), c)
	if err != nil {
		return err
	}
	rating := c.body["rating"]
	if rating != nil && rating != "like" && rating != "dislike" {
		return paramError("rating", "Input should be 'like' or 'dislike'")
	}
	content, err := c.str("content")
	if err != nil {
		return err
	}
	w.mu.Lock()
	if rating == nil && m.rating == nil {
		w.mu.Unlock()
		return invalidParam("rating cannot be None when feedback not exists")
	}
	m.rating, m.feedback = rating, content
	w.feedbacks = slices.DeleteFunc(w.feedbacks, func(f feedback) bool { return f.message == m })
	if rating != nil {
		w.feedbacks = append(w.feedbacks, feedback{id: newID(), appID: c.app.ID, message: m, rating: rating, content: content, at: time.Now()})
		w.feedbacks = w.feedbacks[max(0, len(w.feedbacks)-keepFeedbacks):]
	}
	w.mu.Unlock()
	return c.success()
}

func (s *Server) serveFeedbacks(c *call) error {
	q := c.r.URL.Query()
	page, err := intParam(q.Get("page"), 1, 1, 99999, "page")
	if err != nil {
		return err
	}
	limit, err := intParam(q.Get("limit"), 20, 1, 101, "limit")
	if err != nil {
		return err
	}
	return c.locked(200, func(w *World) (object, error) {
		data := []any{}
		skip := (page - 1) * limit
		for i := len(w.feedbacks) - 1; i >= 0 && len(data) < limit; i-- {
			f := w.feedbacks[i]
			if f.appID != c.app.ID {
				continue
			}
			if skip--; skip >= 0 {
				continue
			}
			conversationID := ""
			if f.message.conversation != nil {
				conversationID = f.message.conversation.id
			}
			data = append(data, object{
				{"id", f.id}, {"app_id", f.appID}, {"conversation_id", conversationID}, {"message_id", f.message.id}, {"rating", f.rating}, {"content", f.content},
				{"from_source", "user"}, {"from_end_user_id", f.message.run.user.id}, {"from_account_id", nil}, {"created_at", f.at.UTC().Format(time.RFC3339)}, {"updated_at", f.at.UTC().Format(time.RFC3339)},
			})
		}
		return object{{"data", data}}, nil
	})
}

func (s *Server) serveSuggested(c *call) error {
	if err := c.chatCall(); err != nil {
		return err
	}
	m, err := s.opts.World.message(c.param("message"), c)
	if err != nil {
		return err
	}
	return c.json(200, object{{"result", "success"}, {"data", []string{
		"What else can " + m.run.server + " tell me?", "Can you say that again, shorter?", "Who else could answer this?"}}})
}

func (s *Server) serveEndUser(c *call) error {
	w := s.opts.World
	w.mu.Lock()
	u, ok := w.endUsers.get(c.param("user"))
	w.mu.Unlock()
	if !ok || u.appID != c.app.ID {
		return errEndUser
	}
	at := u.created.UTC().Format(time.RFC3339)
	return c.json(200, object{
		{"id", u.id}, {"tenant_id", derivedID("tenant", w.id)}, {"app_id", u.appID}, {"type", "service_api"}, {"external_user_id", nil}, {"name", nil},
		{"is_anonymous", u.name == anonymousUser}, {"session_id", u.name}, {"created_at", at}, {"updated_at", at},
	})
}
