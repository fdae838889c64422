package standin

import (
	"slices"
	"strings"
	"time"
)

// inDocument answers with what f makes of the document of the path.
func (c *call) inDocument(status int, f func(b *base, d *document) (object, error)) error {
	return c.inBase(status, func(_ *World, b *base) (object, error) {
		d, err := c.documentOf(b)
		if err != nil {
			return nil, err
		}
		return f(b, d)
	})
}

func (c *call) documentOf(b *base) (*document, error) {
	i := slices.IndexFunc(b.documents, func(d *document) bool { return d.id == c.param("document") })
	if i < 0 {
		return nil, errDocument
	}
	return b.documents[i], nil
}

func (d *document) body() object {
	words := 0
	for _, g := range d.segments {
		words += len(strings.Fields(g.content))
	}
	status := "available"
	if !d.enabled {
		status = "disabled"
	}
	return object{
		{"id", d.id}, {"position", 1}, {"data_source_type", "upload_file"}, {"name", d.name}, {"created_from", "api"}, {"created_by", derivedID("account")}, {"created_at", d.created.Unix()},
		{"tokens", words}, {"indexing_status", "completed"}, {"error", nil}, {"enabled", d.enabled}, {"archived", false}, {"display_status", status}, {"word_count", words}, {"hit_count", 0}, {"doc_form", "text_model"},
	}
}

// fill cuts text into segments at empty lines.
func (d *document) fill(text string) {
	d.segments = nil
	for _, p := range strings.Split(strings.ReplaceAll(text, "\r\n", "\n"), "\n\n") {
		if p = strings.TrimSpace(p); p != "" {
			d.add(p, "")
		}
	}
}

func (d *document) add(content, answer string) *segment {
	g := &segment{id: newID(), content: content, answer: answer, position: len(d.segments) + 1}
	d.segments = append(d.segments, g)
	return g
}

// textBody reads the JSON of documents given as text.
func (c *call) textBody() (name, text string, err error) {
	if err = c.readJSON(); err != nil {
		return "", "", err
	}
	if name, err = c.str("name"); err != nil {
		return "", "", err
	}
	text, err = c.str("text")
	return name, text, err
}

func (s *Server) addDocument(c *call) error {
	name, text, err := c.textBody()
	if err != nil {
		return err
	}
	if name == "" || text == "" {
		return invalidParam("name and text are required")
	}
	return c.putDocument(name, text)
}

func (s *Server) addDocumentFile(c *call) error {
	if err := c.readForm(); err != nil {
		return err
	}
	if err := c.upload.check("file"); err != nil {
		return err
	}
	return c.putDocument(c.upload.name, strings.ToValidUTF8(string(c.upload.content), "\uFFFD"))
}

func (c *call) putDocument(name, text string) error {
	return c.inBase(200, func(_ *World, b *base) (object, error) {
		d := &document{id: newID(), name: name, batch: time.Now().UTC().Format("20060102150405") + newID()[:6], created: time.Now(), enabled: true}
		d.fill(text)
		b.documents = append(b.documents, d)
		return object{{"document", d.body()}, {"batch", d.batch}}, nil
	})
}

func (s *Server) setDocument(c *call) error {
	name, text, err := c.textBody()
	if err != nil {
		return err
	}
	return c.inDocument(200, func(_ *base, d *document) (object, error) {
		if name != "" {
			d.name = name
		}
		if text != "" {
			d.fill(text)
		}
		return object{{"document", d.body()}, {"batch", d.batch}}, nil
	})
}

func (s *Server) serveDocuments(c *call) error {
	if err := c.checkBase(); err != nil {
		return err
	}
	return c.paged(func(w *World) (data []any) {
		if b, err := c.baseLocked(w); err == nil {
			for _, d := range slices.Backward(b.documents) {
				data = append(data, d.body())
			}
		}
		return data
	})
}

// checkBase reports a knowledge base that is not there.
func (c *call) checkBase() error {
	w := c.s.opts.World
	w.mu.Lock()
	defer w.mu.Unlock()
	_, err := c.baseLocked(w)
	return err
}

func (s *Server) serveDocument(c *call) error {
	return c.inDocument(200, func(_ *base, d *document) (object, error) { return d.body(), nil })
}

func (s *Server) deleteDocument(c *call) error {
	return c.emptyBase(func(_ *World, b *base) error {
		d, err := c.documentOf(b)
		if err == nil {
			b.documents = slices.DeleteFunc(b.documents, func(other *document) bool { return other == d })
		}
		return err
	})
}

func (s *Server) serveIndexing(c *call) error {
	return c.inBase(200, func(_ *World, b *base) (object, error) {
		data := []any{}
		for _, d := range b.documents {
			if d.batch == c.param("batch") {
				at := d.created.Unix()
				data = append(data, object{
					{"id", d.id}, {"indexing_status", "completed"}, {"processing_started_at", at}, {"parsing_completed_at", at}, {"cleaning_completed_at", at}, {"splitting_completed_at", at},
					{"completed_at", at}, {"paused_at", nil}, {"error", nil}, {"stopped_at", nil}, {"completed_segments", len(d.segments)}, {"total_segments", len(d.segments)},
				})
			}
		}
		if len(data) == 0 {
			return nil, notFound("Documents not found.")
		}
		return object{{"data", data}}, nil
	})
}

func (s *Server) setDocumentStatus(c *call) error {
	if err := c.readJSON(); err != nil {
		return err
	}
	enable := c.param("action") == "enable"
	if !enable && c.param("action") != "disable" {
		return invalidParam("Invalid action: %s", c.param("action"))
	}
	ids, _ := c.body["document_ids"].([]any)
	return c.inBase(200, func(_ *World, b *base) (object, error) {
		for _, id := range ids {
			i := slices.IndexFunc(b.documents, func(d *document) bool { return d.id == id })
			if i < 0 {
				return nil, errDocument
			}
			b.documents[i].enabled = enable
		}
		return object{{"result", "success"}}, nil
	})
}

// setDocumentMetadata reports an unknown document as a parameter error, as the API does here alone.
func (s *Server) setDocumentMetadata(c *call) error {
	if err := c.readJSON(); err != nil {
		return err
	}
	list, _ := c.body["operation_data"].([]any)
	return c.inBase(200, func(_ *World, b *base) (object, error) {
		for _, v := range list {
			op, _ := v.(map[string]any)
			if !slices.ContainsFunc(b.documents, func(d *document) bool { return d.id == op["document_id"] }) {
				return nil, invalidParam("Document not found.")
			}
		}
		return object{{"result", "success"}}, nil
	})
}
