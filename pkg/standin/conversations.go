package standin

import (
	"net/url"
	"slices"
	"strings"
	"time"
)

// conversation belongs to one end user of one app; nobody else ever sees it.
type conversation struct {
	id      string
	user    *endUser
	inputs  map[string]any
	created time.Time

	// guarded by World.mu
	name            string
	updated         time.Time
	messages        []*message // oldest first
	variableID      string     // each conversation has one variable, "topic"
	variable        any
	variableUpdated time.Time
}

func autoName(query string) string {
	words := strings.Fields(query)
	if len(words) == 0 {
		return "New conversation"
	}
	return strings.Join(words[:min(len(words), 6)], " ")
}

// conversation finds a conversation as the API does: by id and end user, who is one of this app.
func (w *World) conversation(id string, c *call) (*conversation, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	cv, ok := w.conversations.get(id)
	if !ok || cv.user.id != c.user.id {
		return nil, errConversation
	}
	return cv, nil
}

// forgetLocked removes a conversation from its user and its messages from the World.
func (w *World) forgetLocked(cv *conversation) {
	w.conversations.remove(cv.id)
	cv.user.conversations = slices.DeleteFunc(cv.user.conversations, func(other *conversation) bool { return other == cv })
	for _, m := range cv.messages {
		w.messages.remove(m.id)
	}
}

func (cv *conversation) bodyLocked() object {
	return object{
		{"id", cv.id}, {"name", cv.name}, {"inputs", cv.inputs}, {"status", "normal"}, {"introduction", ""},
		{"created_at", cv.created.Unix()}, {"updated_at", cv.updated.Unix()},
	}
}

// chatCall is the check all endpoints of conversations and messages begin with.
func (c *call) chatCall() error {
	if !c.app.Mode.chatFamily() {
		return errNotChat
	}
	return nil
}

// paramConversation finds the conversation named by the path.
func (c *call) paramConversation() (*conversation, error) {
	if err := c.chatCall(); err != nil {
		return nil, err
	}
	return c.s.opts.World.conversation(c.param("conversation"), c)
}

func (s *Server) serveConversations(c *call) error {
	if err := c.chatCall(); err != nil {
		return err
	}
	q := c.r.URL.Query()
	limit, err := intParam(q.Get("limit"), 20, 1, 100, "limit")
	if err != nil {
		return err
	}
	less, err := conversationOrder(q)
	if err != nil {
		return err
	}
	return c.locked(200, func(w *World) (object, error) {
		list := slices.Clone(c.user.conversations)
		slices.Reverse(list) // the younger of equals first
		slices.SortStableFunc(list, less)
		if last := q.Get("last_id"); last != "" {
			i := slices.IndexFunc(list, func(cv *conversation) bool { return cv.id == last })
			if i < 0 {
				return nil, errLastConversation
			}
			list = list[i+1:]
		}
		page := list[:min(limit, len(list))]
		data := make([]any, len(page))
		for i, cv := range page {
			data[i] = cv.bodyLocked()
		}
		return object{{"limit", limit}, {"has_more", len(list) > len(page)}, {"data", data}}, nil
	})
}

func conversationOrder(q url.Values) (func(a, b *conversation) int, error) {
	created := func(a, b *conversation) int { return a.created.Compare(b.created) }
	updated := func(a, b *conversation) int { return a.updated.Compare(b.updated) }
	down := func(f func(a, b *conversation) int) func(a, b *conversation) int {
		return func(a, b *conversation) int { return f(b, a) }
	}
	switch q.Get("sort_by") {
	case "", "-updated_at":
		return down(updated), nil
	case "updated_at":
		return updated, nil
	case "created_at":
		return created, nil
	case "-created_at":
		return down(created), nil
	}
	return nil, paramError("sort_by", "Input should be 'created_at', '-created_at', 'updated_at' or '-updated_at'")
}

func (s *Server) deleteConversation(c *call) error {
	cv, err := c.paramConversation()
	if err != nil {
		return err
	}
	w := s.opts.World
	w.mu.Lock()
	w.forgetLocked(cv)
	w.mu.Unlock()
	return c.noContent()
}

func (s *Server) renameConversation(c *call) error {
	cv, err := c.paramConversation()
	if err != nil {
		return err
	}
	name, err := c.str("name")
	if err != nil {
		return err
	}
	auto, _ := c.body["auto_generate"].(bool)
	if !auto && strings.TrimSpace(name) == "" {
		return invalidParam("name is required when auto_generate is false")
	}
	return c.locked(200, func(w *World) (object, error) {
		if auto {
			name = cv.name
			if len(cv.messages) > 0 {
				name = autoName(cv.messages[0].run.query)
			}
		}
		cv.name, cv.updated = name, time.Now()
		return cv.bodyLocked(), nil
	})
}

func (cv *conversation) variableLocked() object {
	return object{
		{"id", cv.variableID}, {"name", "topic"}, {"value_type", "string"}, {"value", cv.variable}, {"description", "what is talked about"},
		{"created_at", cv.created.Unix()}, {"updated_at", cv.variableUpdated.Unix()},
	}
}

func (s *Server) serveVariables(c *call) error {
	cv, err := c.paramConversation()
	if err != nil {
		return err
	}
	q := c.r.URL.Query()
	limit, err := intParam(q.Get("limit"), 20, 1, 100, "limit")
	if err != nil {
		return err
	}
	return c.locked(200, func(w *World) (object, error) {
		data := []any{}
		last := q.Get("last_id")
		if last != "" && last != cv.variableID {
			return nil, errVariable
		}
		if last == "" && c.app.Mode == AdvancedChat {
			data = append(data, cv.variableLocked())
		}
		return object{{"limit", limit}, {"has_more", false}, {"data", data}}, nil
	})
}

func (s *Server) setVariable(c *call) error {
	cv, err := c.paramConversation()
	if err != nil {
		return err
	}
	value, given := c.body["value"]
	if !given {
		return paramError("value", "Field required")
	}
	return c.locked(200, func(w *World) (object, error) {
		if c.param("variable") != cv.variableID {
			return nil, errVariable
		}
		if _, ok := value.(string); !ok {
			return nil, badRequest("Type mismatch: variable 'topic' (string) expects string type")
		}
		cv.variable, cv.variableUpdated = value, time.Now()
		return cv.variableLocked(), nil
	})
}
