package docs

import (
	"encoding/json"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"

	"difylb/pkg/admin"
	"difylb/pkg/store"
)

// apiSchema is what the description uses of JSON Schema.
type apiSchema struct {
	Ref                  string                `json:"$ref"`
	Type                 any                   `json:"type"` // a name, or a list of names
	Description          string                `json:"description"`
	Format               string                `json:"format"`
	Pattern              string                `json:"pattern"`
	Enum                 []string              `json:"enum"`
	Minimum              *int                  `json:"minimum"`
	MaxLength            int                   `json:"maxLength"`
	ReadOnly             bool                  `json:"readOnly"`
	Items                *apiSchema            `json:"items"`
	AnyOf                []*apiSchema          `json:"anyOf"`
	Required             []string              `json:"required"`
	Properties           map[string]*apiSchema `json:"properties"`
	AdditionalProperties json.RawMessage       `json:"additionalProperties"`
}

type apiContent map[string]struct{ Schema *apiSchema }

type apiCall struct {
	Summary    string
	Parameters []struct {
		Name, In, Description string
		Required              bool
		Schema                *apiSchema
	}
	RequestBody *struct {
		Required bool
		Content  apiContent
	}
	Responses map[string]struct {
		Description string
		Content     apiContent
	}
	Role   string  `json:"x-role"`
	OpenTo *string `json:"x-open-to"`
}

type apiDescription struct {
	Paths      map[string]map[string]apiCall
	Components struct{ Schemas map[string]*apiSchema }
}

// openAPI returns what every lb-admin answers to GET /openapi.json.
func openAPI(t *testing.T) apiDescription {
	t.Helper()
	st, err := store.Open(store.Options{Endpoints: []string{"http://127.0.0.1:1"}}) // never asked
	if err != nil {
		t.Fatal(err)
	}
	defer st.Close()
	w := httptest.NewRecorder()
	admin.New(admin.Options{Store: st}).Handler().ServeHTTP(w, httptest.NewRequest(http.MethodGet, "/openapi.json", nil))
	var api apiDescription
	if err := json.Unmarshal(w.Body.Bytes(), &api); w.Code != http.StatusOK || err != nil {
		t.Fatalf("GET /openapi.json: %d, %v", w.Code, err)
	}
	return api
}

// kind tells the type in a few words, with a link where it has a section.
func (s *apiSchema) kind() string {
	var words []string
	switch {
	case s.Ref != "":
		return linkTo(s.Ref[strings.LastIndexByte(s.Ref, '/')+1:])
	case s.AnyOf != nil:
		for _, a := range s.AnyOf {
			words = append(words, a.kind())
		}
	case s.Enum != nil:
		for _, e := range s.Enum {
			words = append(words, "`"+e+"`")
		}
	case s.Items != nil:
		return "list of " + s.Items.kind()
	case s.Format != "":
		return s.Format
	default:
		switch named := s.Type.(type) {
		case nil:
			return "anything"
		case string:
			words = []string{named}
		case []any:
			for _, n := range named {
				words = append(words, fmt.Sprint(n))
			}
		}
	}
	kind := strings.Join(words, " or ")
	var values apiSchema
	if json.Unmarshal(s.AdditionalProperties, &values) == nil && kind == "object" {
		kind = "object of " + values.kind()
	}
	return kind
}

// about tells what holds besides the type.
func (s *apiSchema) about() string {
	var parts []string
	if s.Description != "" && !(s.ReadOnly && s.Description == "passed over") {
		parts = append(parts, prose(s.Description))
	}
	if s.Minimum != nil {
		parts = append(parts, fmt.Sprintf("from %d", *s.Minimum))
	}
	if s.MaxLength > 0 {
		parts = append(parts, fmt.Sprintf("at most %d bytes", s.MaxLength))
	}
	if s.Pattern != "" {
		parts = append(parts, "`"+s.Pattern+"`")
	}
	if s.ReadOnly {
		parts = append(parts, "only in answers; in a declaration it is passed over")
	}
	return strings.Join(parts, "; ")
}

func (c apiContent) String() string {
	byKind := make(map[string][]string)
	for _, media := range slices.Sorted(maps.Keys(c)) {
		kind := c[media].Schema.kind()
		byKind[kind] = append(byKind[kind], "`"+media+"`")
	}
	var parts []string
	for _, kind := range slices.Sorted(maps.Keys(byKind)) {
		parts = append(parts, kind+" as "+strings.Join(byKind[kind], " or "))
	}
	return strings.Join(parts, "; ")
}

func (c *apiCall) who() string {
	switch {
	case c.Role == "":
		return "Open to all, without a token."
	case c.OpenTo != nil:
		return "Role: `" + c.Role + "`; without a token from " + *c.OpenTo + "."
	default:
		return "Role: `" + c.Role + "`."
	}
}

func (c *apiCall) write(out *strings.Builder) {
	out.WriteString(prose(c.Summary) + ".\n\n" + c.who() + "\n\n")
	var rows [][]string
	for _, p := range c.Parameters {
		required := ""
		if p.Required {
			required = "yes"
		}
		rows = append(rows, []string{"`" + p.Name + "`", p.In, p.Schema.kind(), required, strings.Trim(prose(p.Description)+"; "+p.Schema.about(), "; ")})
	}
	table(out, []string{"parameter", "in", "type", "required", "meaning"}, rows)
	if b := c.RequestBody; b != nil {
		out.WriteString("Body")
		if !b.Required {
			out.WriteString(", may be left away")
		}
		out.WriteString(": " + b.Content.String() + "\n\n")
	}
	rows = nil
	for _, status := range slices.Sorted(maps.Keys(c.Responses)) {
		r := c.Responses[status]
		if status == "default" {
			status = "any other"
		}
		body := r.Content.String()
		if body == "" {
			body = "empty"
		}
		rows = append(rows, []string{status, prose(r.Description), body})
	}
	table(out, []string{"status", "means", "body"}, rows)
}

func (s *apiSchema) write(out *strings.Builder) {
	if s.Properties == nil {
		if about := s.about(); about != "" {
			out.WriteString(strings.ToUpper(about[:1]) + about[1:] + ". ")
		}
		if s.AnyOf == nil {
			out.WriteString("Type: " + s.kind() + ".\n\n")
			return
		}
		for _, a := range s.AnyOf {
			about := a.about()
			if about != "" {
				about = ", " + about
			}
			end := ".\n\n"
			if a.Properties != nil {
				end = ":\n\n"
			}
			out.WriteString("Either " + a.kind() + about + end)
			if a.Properties != nil {
				a.write(out)
			}
		}
		return
	}
	var rows [][]string
	for _, name := range slices.Sorted(maps.Keys(s.Properties)) {
		p, required := s.Properties[name], ""
		if slices.Contains(s.Required, name) {
			required = "yes"
		}
		rows = append(rows, []string{"`" + name + "`", p.kind(), required, p.about()})
	}
	table(out, []string{"field", "type", "always", "meaning"}, rows)
}

func TestReferences_API(t *testing.T) {
	api := openAPI(t)
	var out strings.Builder
	out.WriteString(`# Reference: REST API

Every call of lb-admin and every type, as the OpenAPI 3.1 document at ` + "`/openapi.json`" + ` tells them. Explained, with an example of
each: [api.md](../api.md). A role includes those before it: ` + "`viewer`, `operator`, `admin`" + `. A field that is "always" there stands in
every answer, and in every body that is sent.

`)
	n := 0
	var rows [][]string
	var calls strings.Builder
	for _, path := range slices.Sorted(maps.Keys(api.Paths)) {
		for _, method := range []string{"get", "post", "put", "patch", "delete"} {
			call, ok := api.Paths[path][method]
			if !ok {
				continue
			}
			n++
			name := strings.ToUpper(method) + " " + path
			role := quoted(call.Role)
			rows = append(rows, []string{"[`" + name + "`](#" + slug(name) + ")", role, prose(call.Summary)})
			calls.WriteString("### `" + name + "`\n\n")
			call.write(&calls)
		}
	}
	described := 0
	for _, methods := range api.Paths {
		described += len(methods)
	}
	if n != described || n < 30 {
		t.Fatalf("%d calls written, the description has %d", n, described)
	}
	out.WriteString("## Calls\n\n")
	table(&out, []string{"call", "role", "does"}, rows)
	out.WriteString(calls.String() + "## Types\n\nWhat the fields of declarations mean, with their defaults and ranges: [configuration.md](configuration.md).\n\n")
	for _, name := range slices.Sorted(maps.Keys(api.Components.Schemas)) {
		out.WriteString("### " + name + "\n\n")
		api.Components.Schemas[name].write(&out)
	}
	checkReference(t, "api.md", out.String())
}
