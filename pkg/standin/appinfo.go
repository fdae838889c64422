package standin

import "time"

func (s *Server) serveIndex(c *call) error {
	return c.json(200, object{{"welcome", "Dify OpenAPI"}, {"api_version", "v1"}, {"server_version", s.opts.Version}})
}

func (s *Server) serveInfo(c *call) error {
	return c.json(200, object{
		{"name", c.app.Name}, {"description", "stand-in app of " + s.opts.Name}, {"tags", []string{"stand-in"}}, {"mode", string(c.app.Mode)}, {"author_name", "stand-in"},
	})
}

func (s *Server) serveParameters(c *call) error {
	if c.app.Unpublished {
		return errUnavailable
	}
	off := object{{"enabled", false}}
	on := object{{"enabled", true}}
	return c.json(200, object{
		{"opening_statement", "This is " + s.opts.Name + ", a stand-in."}, {"suggested_questions", []string{}},
		{"suggested_questions_after_answer", on}, {"speech_to_text", on}, {"text_to_speech", on.with(field{"voice", nil}, field{"language", nil})},
		{"retriever_resource", on}, {"annotation_reply", off}, {"more_like_this", off}, {"sensitive_word_avoidance", off}, {"user_input_form", []string{}},
		{"file_upload", object{{"enabled", true}, {"allowed_file_types", []string{"image", "document", "audio", "video"}}, {"allowed_file_upload_methods", []string{"remote_url", "local_file"}}, {"number_limits", 3}}},
		{"system_parameters", object{{"file_size_limit", 15}, {"image_file_size_limit", 10}, {"audio_file_size_limit", 50}, {"video_file_size_limit", 100}, {"workflow_file_upload_limit", 10}}},
	})
}

func (s *Server) serveMeta(c *call) error { return c.json(200, object{{"tool_icons", object{}}}) }

func (s *Server) serveSite(c *call) error {
	return c.json(200, object{
		{"title", c.app.Name}, {"chat_color_theme", nil}, {"chat_color_theme_inverted", false}, {"icon_type", "emoji"}, {"icon", "robot"}, {"icon_background", "#FFEAD5"},
		{"icon_url", s.opts.FilesURL + s.opts.World.signedFilePath(derivedID("icon", c.app.ID), time.Now())}, {"description", nil}, {"copyright", nil}, {"privacy_policy", nil},
		{"custom_disclaimer", ""}, {"default_language", "en-US"}, {"show_workflow_steps", true}, {"use_icon_as_answer_icon", false},
	})
}
