package standin

import "slices"

// nameBody reads a body whose name is required.
func (c *call) nameBody() (string, error) {
	if err := c.readJSON(); err != nil {
		return "", err
	}
	name, err := c.str("name")
	if err == nil && name == "" {
		err = paramError("name", "Field required")
	}
	return name, err
}

func (m *metadataField) body() object {
	return object{{"id", m.id}, {"type", m.kind}, {"name", m.name}}
}

func (s *Server) addMetadata(c *call) error {
	name, err := c.nameBody()
	if err != nil {
		return err
	}
	kind, err := c.str("type")
	if err != nil {
		return err
	}
	if !slices.Contains([]string{"string", "number", "time"}, kind) {
		return paramError("type", "Invalid metadata type")
	}
	return c.inBase(201, func(_ *World, b *base) (object, error) {
		m := &metadataField{id: newID(), name: name, kind: kind}
		b.metadata = append(b.metadata, m)
		return m.body(), nil
	})
}

func (s *Server) serveMetadata(c *call) error {
	return c.inBase(200, func(_ *World, b *base) (object, error) {
		data := []any{}
		for _, m := range b.metadata {
			data = append(data, m.body().with(field{"count", 0}))
		}
		return object{{"doc_metadata", data}, {"built_in_field_enabled", false}}, nil
	})
}

func (s *Server) deleteMetadata(c *call) error {
	return c.emptyBase(func(_ *World, b *base) error {
		n := len(b.metadata)
		b.metadata = slices.DeleteFunc(b.metadata, func(m *metadataField) bool { return m.id == c.param("field") })
		if len(b.metadata) == n {
			return notFound("Metadata not found.")
		}
		return nil
	})
}

func (t *tag) body(w *World) object {
	count := 0
	w.knowledge.bases.newestFirst(func(b *base) bool {
		if slices.Contains(b.tags, t.id) {
			count++
		}
		return true
	})
	return object{{"id", t.id}, {"name", t.name}, {"type", "knowledge"}, {"binding_count", count}}
}

func (s *Server) addTag(c *call) error {
	name, err := c.nameBody()
	if err != nil {
		return err
	}
	return c.locked(200, func(w *World) (object, error) {
		t := &tag{id: newID(), name: name}
		w.knowledge.tags.put(t.id, t)
		return t.body(w), nil
	})
}

// serveTags answers with a bare list, the only one of the API.
func (s *Server) serveTags(c *call) error {
	w := s.opts.World
	list := []any{}
	w.mu.Lock()
	w.knowledge.tags.newestFirst(func(t *tag) bool { list = append(list, t.body(w)); return true })
	w.mu.Unlock()
	return c.json(200, list)
}

func (c *call) tagLocked(w *World) (*tag, error) {
	id, _ := c.body["tag_id"].(string)
	t, ok := w.knowledge.tags.get(id)
	if !ok {
		return nil, errTag
	}
	return t, nil
}

func (s *Server) setTag(c *call) error {
	name, err := c.nameBody()
	if err != nil {
		return err
	}
	return c.locked(200, func(w *World) (object, error) {
		t, err := c.tagLocked(w)
		if err != nil {
			return nil, err
		}
		t.name = name
		return t.body(w), nil
	})
}

func (s *Server) deleteTag(c *call) error {
	if err := c.readJSON(); err != nil {
		return err
	}
	w := s.opts.World
	w.mu.Lock()
	t, err := c.tagLocked(w)
	if err == nil {
		w.knowledge.tags.remove(t.id)
		w.knowledge.bases.newestFirst(func(b *base) bool {
			b.tags = slices.DeleteFunc(b.tags, func(id string) bool { return id == t.id })
			return true
		})
	}
	w.mu.Unlock()
	if err != nil {
		return err
	}
	return c.noContent()
}

// targetLocked is the knowledge base that a binding names in its body.
func (c *call) targetLocked(w *World) (*base, error) {
	id, _ := c.body["target_id"].(string)
	b, ok := w.knowledge.bases.get(id)
	if !ok {
		return nil, errDataset
	}
	return b, nil
}

func (s *Server) bindTags(c *call) error {
	return c.changeTags(func(w *World, b *base) error {
		ids, _ := c.body["tag_ids"].([]any)
		for _, v := range ids {
			id, _ := v.(string)
			if _, ok := w.knowledge.tags.get(id); !ok {
				return errTag
			}
			if !slices.Contains(b.tags, id) {
				b.tags = append(b.tags, id)
			}
		}
		return nil
	})
}

func (s *Server) unbindTag(c *call) error {
	return c.changeTags(func(w *World, b *base) error {
		t, err := c.tagLocked(w)
		if err == nil {
			b.tags = slices.DeleteFunc(b.tags, func(id string) bool { return id == t.id })
		}
		return err
	})
}

func (c *call) changeTags(f func(w *World, b *base) error) error {
	if err := c.readJSON(); err != nil {
		return err
	}
	w := c.s.opts.World
	w.mu.Lock()
	b, err := c.targetLocked(w)
	if err == nil {
		err = f(w, b)
	}
	w.mu.Unlock()
	if err != nil {
		return err
	}
	return c.noContent()
}

func (s *Server) serveBaseTags(c *call) error {
	return c.inBase(200, func(w *World, b *base) (object, error) {
		data := []any{}
		for _, id := range b.tags {
			if t, ok := w.knowledge.tags.get(id); ok {
				data = append(data, object{{"id", t.id}, {"name", t.name}})
			}
		}
		return object{{"data", data}, {"total", len(data)}}, nil
	})
}
