package standin

import "slices"

// inSegment answers with what f makes of the segment of the path.
func (c *call) inSegment(status int, f func(d *document, g *segment) (object, error)) error {
	return c.inDocument(status, func(_ *base, d *document) (object, error) {
		g, err := c.segmentOf(d)
		if err != nil {
			return nil, err
		}
		return f(d, g)
	})
}

func (c *call) segmentOf(d *document) (*segment, error) {
	i := slices.IndexFunc(d.segments, func(g *segment) bool { return g.id == c.param("segment") })
	if i < 0 {
		return nil, errSegment
	}
	return d.segments[i], nil
}

func (c *call) childOf(g *segment) (*segment, error) {
	i := slices.IndexFunc(g.children, func(child *segment) bool { return child.id == c.param("child") })
	if i < 0 {
		return nil, errChild
	}
	return g.children[i], nil
}

func (g *segment) body(d *document) object {
	var answer any
	if g.answer != "" {
		answer = g.answer
	}
	return object{
		{"id", g.id}, {"position", g.position}, {"document_id", d.id}, {"content", g.content}, {"answer", answer}, {"keywords", []string{}}, {"hit_count", 0},
		{"enabled", true}, {"status", "completed"}, {"created_at", d.created.Unix()}, {"error", nil},
	}
}

func (g *segment) childBody(parent *segment) object {
	return object{{"id", g.id}, {"segment_id", parent.id}, {"content", g.content}, {"position", g.position}, {"type", "customized"}}
}

func segmentText(v any) (content, answer string) {
	m, _ := v.(map[string]any)
	content, _ = m["content"].(string)
	answer, _ = m["answer"].(string)
	return content, answer
}

func (s *Server) addSegments(c *call) error {
	if err := c.readJSON(); err != nil {
		return err
	}
	list, _ := c.body["segments"].([]any)
	if len(list) == 0 {
		return badRequest("Segments is required")
	}
	return c.inDocument(200, func(_ *base, d *document) (object, error) {
		for _, v := range list {
			if content, _ := segmentText(v); content == "" {
				return nil, invalidParam("Content is empty")
			}
		}
		data := []any{}
		for _, v := range list {
			data = append(data, d.add(segmentText(v)).body(d))
		}
		return object{{"data", data}, {"doc_form", "text_model"}}, nil
	})
}

func (s *Server) serveSegments(c *call) error {
	return c.inDocument(200, func(_ *base, d *document) (object, error) {
		data := []any{}
		for _, g := range d.segments {
			data = append(data, g.body(d))
		}
		return object{{"data", data}, {"doc_form", "text_model"}, {"total", len(data)}, {"has_more", false}, {"limit", max(20, len(data))}, {"page", 1}}, nil
	})
}

func (s *Server) serveSegment(c *call) error {
	return c.inSegment(200, func(d *document, g *segment) (object, error) {
		return object{{"data", g.body(d)}, {"doc_form", "text_model"}}, nil
	})
}

func (s *Server) setSegment(c *call) error {
	if err := c.readJSON(); err != nil {
		return err
	}
	content, answer := segmentText(c.body["segment"])
	if content == "" {
		return invalidParam("Content is empty")
	}
	return c.inSegment(200, func(d *document, g *segment) (object, error) {
		g.content, g.answer = content, answer
		return object{{"data", g.body(d)}, {"doc_form", "text_model"}}, nil
	})
}

func (s *Server) deleteSegment(c *call) error {
	return c.emptyBase(func(_ *World, b *base) error {
		d, err := c.documentOf(b)
		if err != nil {
			return err
		}
		g, err := c.segmentOf(d)
		if err == nil {
			d.segments = slices.DeleteFunc(d.segments, func(other *segment) bool { return other == g })
		}
		return err
	})
}

func (s *Server) addChild(c *call) error {
	content, err := c.contentBody()
	if err != nil {
		return err
	}
	return c.inSegment(200, func(_ *document, g *segment) (object, error) {
		child := &segment{id: newID(), content: content, position: len(g.children) + 1}
		g.children = append(g.children, child)
		return object{{"data", child.childBody(g)}}, nil
	})
}

// contentBody reads a body that is content alone.
func (c *call) contentBody() (string, error) {
	if err := c.readJSON(); err != nil {
		return "", err
	}
	content, err := c.str("content")
	if err == nil && content == "" {
		err = paramError("content", "Field required")
	}
	return content, err
}

func (s *Server) serveChildren(c *call) error {
	return c.inSegment(200, func(_ *document, g *segment) (object, error) {
		data := []any{}
		for _, child := range g.children {
			data = append(data, child.childBody(g))
		}
		return object{{"data", data}, {"total", len(data)}, {"total_pages", 1}, {"page", 1}, {"limit", max(20, len(data))}}, nil
	})
}

func (s *Server) setChild(c *call) error {
	content, err := c.contentBody()
	if err != nil {
		return err
	}
	return c.inSegment(200, func(_ *document, g *segment) (object, error) {
		child, err := c.childOf(g)
		if err != nil {
			return nil, err
		}
		child.content = content
		return object{{"data", child.childBody(g)}}, nil
	})
}

func (s *Server) deleteChild(c *call) error {
	return c.emptyBase(func(_ *World, b *base) error {
		d, err := c.documentOf(b)
		if err != nil {
			return err
		}
		g, err := c.segmentOf(d)
		if err != nil {
			return err
		}
		child, err := c.childOf(g)
		if err == nil {
			g.children = slices.DeleteFunc(g.children, func(other *segment) bool { return other == child })
		}
		return err
	})
}
