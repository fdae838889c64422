package standin

import "time"

func (s *Server) serveChat(c *call) error {
	if !c.app.Mode.chatFamily() {
		return errNotChat
	}
	streaming, err := c.readGeneration(true)
	if err != nil {
		return err
	}
	conversationID, err := c.conversationParam()
	if err != nil {
		return err
	}
	workflowID, err := c.str("workflow_id")
	if err != nil {
		return err
	}
	if c.app.Mode == AdvancedChat {
		if err := c.checkWorkflowID(workflowID); err != nil {
			return err
		}
	}
	switch {
	case c.app.Mode == AgentChat && !streaming:
		return invalidParam("Agent Chat App does not support blocking mode")
	case c.app.Mode == Agent && !streaming:
		return badRequest("Agent App only supports streaming response mode.")
	}
	leave, err := c.admit()
	if err != nil {
		return err
	}
	defer leave()
	if err := c.refuse(); err != nil {
		return err
	}
	files, fileFault := c.files()
	if fileFault != nil && !(streaming && c.app.Mode.graph()) {
		return fileFault
	}
	cv, err := s.opts.World.openConversation(conversationID, c)
	if err != nil {
		if s.opts.SilentUnknownConversation && streaming && c.app.Mode == AdvancedChat {
			c.sel.PingOnly = true
			return c.answer(c.begin(true, conversationID, 1, nil), nil)
		}
		return err
	}
	g := c.begin(streaming, cv.id, s.opts.World.nextTurn(cv), fileFault)
	s.opts.World.addMessage(&message{id: g.run.messageID, conversation: cv, run: g.run, files: files, created: g.run.start})
	return c.answer(g, s.messageBody)
}

// conversationParam returns "" for a new conversation.
func (c *call) conversationParam() (string, error) {
	given, err := c.str("conversation_id")
	if err != nil || given == "" {
		return "", err
	}
	id, ok := parseUUID(given)
	if !ok {
		return "", paramError("conversation_id", "Value error, conversation_id must be a valid UUID")
	}
	return id, nil
}

// openConversation finds the conversation of that id, app and user, or begins one if id is "".
func (w *World) openConversation(id string, c *call) (*conversation, error) {
	if id != "" {
		return w.conversation(id, c)
	}
	now := time.Now()
	name := "New conversation"
	if auto, ok := c.body["auto_generate_name"].(bool); !ok || auto {
		name = autoName(c.query)
	}
	cv := &conversation{id: newID(), user: c.user, name: name, inputs: withoutSelectors(c.inputs), created: now, updated: now, variableID: newID(), variable: "none yet", variableUpdated: now}
	w.mu.Lock()
	defer w.mu.Unlock()
	if old, full := w.conversations.put(cv.id, cv); full {
		w.forgetLocked(old)
	}
	c.user.conversations = append(c.user.conversations, cv)
	return cv, nil
}

func (w *World) nextTurn(cv *conversation) int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return len(cv.messages) + 1
}

func (s *Server) stopChat(c *call) error {
	if !c.app.Mode.chatFamily() {
		return errNotChat
	}
	return c.stop(c.user)
}
