package standin

import (
	"cmp"
	"net/http"
	"slices"
	"strings"
	"time"
)

// knowledge is the knowledge API's part of a World. Indexing is done at once and
// retrieval counts common words; everything else is as real as the rest.
type knowledge struct {
	bases bounded[*base]
	tags  bounded[*tag]
}

type base struct {
	id, name, description string
	created               time.Time
	documents             []*document
	metadata              []*metadataField
	tags                  []string // ids
}

type document struct {
	id, name, batch string
	created         time.Time
	enabled         bool
	segments        []*segment
}

type segment struct {
	id, content, answer string
	position            int
	children            []*segment
}

type metadataField struct{ id, name, kind string }

type tag struct{ id, name string }

func datasetEndpoints() []endpoint {
	const get, post, patch, del = http.MethodGet, http.MethodPost, http.MethodPatch, http.MethodDelete
	const ds = "/v1/datasets/{dataset:uuid}"
	const doc = ds + "/documents/{document:uuid}"
	const seg = doc + "/segments/{segment:uuid}"
	list := []endpoint{
		{method: post, pattern: "/v1/datasets", serve: (*Server).addBase},
		{method: get, pattern: "/v1/datasets", serve: (*Server).serveBases},
		{method: get, pattern: ds, serve: (*Server).serveBase},
		{method: patch, pattern: ds, serve: (*Server).setBase},
		{method: del, pattern: ds, serve: (*Server).deleteBase},
		{method: post, pattern: ds + "/retrieve", serve: (*Server).retrieve},
		{method: post, pattern: ds + "/hit-testing", serve: (*Server).retrieve},

		{method: post, pattern: ds + "/document/create-by-text", serve: (*Server).addDocument},
		{method: post, pattern: ds + "/document/create_by_text", serve: (*Server).addDocument},
		{method: post, pattern: ds + "/document/create-by-file", serve: (*Server).addDocumentFile},
		{method: post, pattern: ds + "/document/create_by_file", serve: (*Server).addDocumentFile},
		{method: get, pattern: ds + "/documents", serve: (*Server).serveDocuments},
		{method: get, pattern: doc, serve: (*Server).serveDocument},
		{method: del, pattern: doc, serve: (*Server).deleteDocument},
		{method: get, pattern: ds + "/documents/{batch}/indexing-status", serve: (*Server).serveIndexing},
		{method: post, pattern: doc + "/update-by-text", serve: (*Server).setDocument},
		{method: post, pattern: doc + "/update_by_text", serve: (*Server).setDocument},
		{method: patch, pattern: ds + "/documents/status/{action}", serve: (*Server).setDocumentStatus},
		{method: post, pattern: ds + "/documents/metadata", serve: (*Server).setDocumentMetadata},

		{method: post, pattern: doc + "/segments", serve: (*Server).addSegments},
		{method: get, pattern: doc + "/segments", serve: (*Server).serveSegments},
		{method: get, pattern: seg, serve: (*Server).serveSegment},
		{method: post, pattern: seg, serve: (*Server).setSegment},
		{method: del, pattern: seg, serve: (*Server).deleteSegment},
		{method: post, pattern: seg + "/child_chunks", serve: (*Server).addChild},
		{method: get, pattern: seg + "/child_chunks", serve: (*Server).serveChildren},
		{method: patch, pattern: seg + "/child_chunks/{child:uuid}", serve: (*Server).setChild},
		{method: del, pattern: seg + "/child_chunks/{child:uuid}", serve: (*Server).deleteChild},

		{method: post, pattern: ds + "/metadata", serve: (*Server).addMetadata},
		{method: get, pattern: ds + "/metadata", serve: (*Server).serveMetadata},
		{method: del, pattern: ds + "/metadata/{field:uuid}", serve: (*Server).deleteMetadata},

		{method: post, pattern: "/v1/datasets/tags", serve: (*Server).addTag},
		{method: get, pattern: "/v1/datasets/tags", serve: (*Server).serveTags},
		{method: patch, pattern: "/v1/datasets/tags", serve: (*Server).setTag},
		{method: del, pattern: "/v1/datasets/tags", serve: (*Server).deleteTag},
		{method: post, pattern: "/v1/datasets/tags/binding", serve: (*Server).bindTags},
		{method: post, pattern: "/v1/datasets/tags/unbinding", serve: (*Server).unbindTag},
		{method: get, pattern: ds + "/tags", serve: (*Server).serveBaseTags},

		{method: get, pattern: "/v1/workspaces/current/models/model-types/{type}", serve: (*Server).serveModels},
	}
	for i := range list {
		list[i].key = datasetKey
	}
	return list
}

var (
	errDataset  = notFound("Dataset not found.")
	errDocument = notFound("Document not found.")
	errSegment  = notFound("Segment not found.")
	errChild    = notFound("Child chunk not found.")
	errTag      = notFound("Tag not found")
)

func (c *call) baseLocked(w *World) (*base, error) {
	b, ok := w.knowledge.bases.get(c.param("dataset"))
	if !ok {
		return nil, errDataset
	}
	return b, nil
}

// inBase answers with what f makes of the knowledge base of the path.
func (c *call) inBase(status int, f func(w *World, b *base) (object, error)) error {
	return c.locked(status, func(w *World) (object, error) {
		b, err := c.baseLocked(w)
		if err != nil {
			return nil, err
		}
		return f(w, b)
	})
}

// emptyBase is inBase for calls that answer 204.
func (c *call) emptyBase(f func(w *World, b *base) error) error {
	w := c.s.opts.World
	w.mu.Lock()
	b, err := c.baseLocked(w)
	if err == nil {
		err = f(w, b)
	}
	w.mu.Unlock()
	if err != nil {
		return err
	}
	return c.noContent()
}

func (b *base) body() object {
	words := 0
	for _, d := range b.documents {
		for _, g := range d.segments {
			words += len(strings.Fields(g.content))
		}
	}
	return object{
		{"id", b.id}, {"name", b.name}, {"description", b.description}, {"provider", "vendor"}, {"permission", "only_me"}, {"data_source_type", "upload_file"},
		{"indexing_technique", "economy"}, {"app_count", 0}, {"document_count", len(b.documents)}, {"word_count", words}, {"created_by", derivedID("account")},
		{"created_at", b.created.Unix()}, {"updated_by", derivedID("account")}, {"updated_at", b.created.Unix()}, {"embedding_model", nil}, {"embedding_model_provider", nil}, {"embedding_available", nil},
	}
}

func (s *Server) addBase(c *call) error {
	if err := c.readJSON(); err != nil {
		return err
	}
	name, err := c.str("name")
	if err != nil {
		return err
	}
	description, err := c.str("description")
	if err != nil {
		return err
	}
	if n := len([]rune(name)); n < 1 || n > 40 {
		return paramError("name", "Name must be between 1 to 40 characters.")
	}
	return c.locked(200, func(w *World) (object, error) {
		taken := false
		w.knowledge.bases.newestFirst(func(b *base) bool { taken = b.name == name; return !taken })
		if taken {
			return nil, &apiError{status: 409, code: "dataset_name_duplicate", message: "The dataset name already exists. Please modify your dataset name."}
		}
		b := &base{id: newID(), name: name, description: description, created: time.Now()}
		w.knowledge.bases.put(b.id, b)
		return b.body(), nil
	})
}

func (s *Server) serveBases(c *call) error {
	return c.paged(func(w *World) (data []any) {
		keyword := c.r.URL.Query().Get("keyword")
		w.knowledge.bases.newestFirst(func(b *base) bool {
			if strings.Contains(b.name, keyword) {
				data = append(data, b.body())
			}
			return true
		})
		return data
	})
}

// paged answers with the page asked for of all that there is.
func (c *call) paged(all func(*World) []any) error {
	q := c.r.URL.Query()
	page, err := intParam(q.Get("page"), 1, 1, 99999, "page")
	if err != nil {
		return err
	}
	limit, err := intParam(q.Get("limit"), 20, 1, 100, "limit")
	if err != nil {
		return err
	}
	return c.locked(200, func(w *World) (object, error) {
		data := all(w)
		low, high := min((page-1)*limit, len(data)), min(page*limit, len(data))
		return object{{"data", append([]any{}, data[low:high]...)}, {"has_more", high < len(data)}, {"limit", limit}, {"total", len(data)}, {"page", page}}, nil
	})
}

func (s *Server) serveBase(c *call) error {
	return c.inBase(200, func(_ *World, b *base) (object, error) { return b.body(), nil })
}

func (s *Server) setBase(c *call) error {
	if err := c.readJSON(); err != nil {
		return err
	}
	name, err := c.str("name")
	if err != nil {
		return err
	}
	return c.inBase(200, func(_ *World, b *base) (object, error) {
		b.name = cmp.Or(name, b.name)
		return b.body(), nil
	})
}

func (s *Server) deleteBase(c *call) error {
	return c.emptyBase(func(w *World, b *base) error { w.knowledge.bases.remove(b.id); return nil })
}

func (s *Server) retrieve(c *call) error {
	if err := c.readJSON(); err != nil {
		return err
	}
	query, err := c.str("query")
	if err != nil {
		return err
	}
	if query == "" {
		return paramError("query", "Field required")
	}
	return c.inBase(200, func(_ *World, b *base) (object, error) {
		type hit struct {
			score int
			body  object
		}
		var hits []hit
		for _, d := range b.documents {
			for _, g := range d.segments {
				if n := commonWords(query, g.content); n > 0 && d.enabled {
					hits = append(hits, hit{n, object{{"segment", g.body(d)}, {"child_chunks", []string{}}, {"score", rawNumber("0." + strings.Repeat("9", min(n, 6)))}, {"tsne_position", nil}}})
				}
			}
		}
		slices.SortStableFunc(hits, func(a, b hit) int { return b.score - a.score })
		records := []any{}
		for _, h := range hits[:min(len(hits), 4)] {
			records = append(records, h.body)
		}
		return object{{"query", object{{"content", query}}}, {"records", records}}, nil
	})
}

func commonWords(a, b string) (n int) {
	words := strings.Fields(strings.ToLower(b))
	for _, w := range strings.Fields(strings.ToLower(a)) {
		if slices.Contains(words, w) {
			n++
		}
	}
	return n
}

func (s *Server) serveModels(c *call) error {
	if err := c.modelType(); err != nil {
		return err
	}
	return c.json(200, object{{"data", []any{}}})
}

func (c *call) modelType() error {
	switch c.param("type") {
	case "llm", "text-embedding", "rerank", "speech2text", "moderation", "tts":
		return nil
	}
	return invalidParam("invalid origin model type %s", c.param("type"))
}
