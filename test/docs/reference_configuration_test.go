package docs

import (
	"encoding/json"
	"errors"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"difylb/pkg/document"
	"difylb/pkg/lb"
)

// fieldComments returns what the source of pkg/lb says of the fields of its
// structs, by type and field. A field without a comment has that of the one
// above it, if that names it.
func fieldComments(t *testing.T) map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(root, "pkg/lb/*.go"))
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]string)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		commentsOf(file, out)
	}
	return out
}

// commentsOf adds the comments of one file.
func commentsOf(file *ast.File, out map[string]string) {
	ast.Inspect(file, func(n ast.Node) bool {
		typ, ok := n.(*ast.TypeSpec)
		if !ok {
			return true
		}
		structure, ok := typ.Type.(*ast.StructType)
		if !ok {
			return false
		}
		above := ""
		keys := make(map[string]string) // of the fields, by their names in Go
		for _, f := range structure.Fields.List {
			if f.Tag != nil && len(f.Names) == 1 {
				tag := reflect.StructTag(strings.Trim(f.Tag.Value, "`")).Get("json")
				keys[f.Names[0].Name], _, _ = strings.Cut(tag, ",")
			}
		}
		for _, f := range structure.Fields.List {
			if len(f.Names) != 1 {
				continue
			}
			name := f.Names[0].Name
			text := f.Doc.Text()
			if text == "" && regexp.MustCompile(`\b`+name+`\b`).MatchString(above) {
				text = above
			} else if text != "" {
				above = text
			}
			if f.Doc.Text() == "" && f.Comment.Text() != "" && !strings.HasPrefix(f.Comment.Text(), "default ") {
				text = f.Comment.Text()
			}
			out[typ.Name.Name+"."+name] = inKeys(strings.Join(strings.Fields(text), " "), keys)
		}
		return false
	})
}

var (
	goName = regexp.MustCompile(`\b[A-Z][A-Za-z]+\b`)
	goNil  = regexp.MustCompile(`\bnil\b`)
)

// inKeys writes the names of fields as documents have them, where nothing is
// nil but left away.
func inKeys(comment string, keys map[string]string) string {
	comment = goNil.ReplaceAllString(comment, "left away")
	return goName.ReplaceAllStringFunc(comment, func(name string) string {
		if key := keys[name]; key != "" && key != "-" {
			return "`" + key + "`"
		}
		return name
	})
}

// declared is one key of the document.
type declared struct {
	path  string
	typ   reflect.Type
	about string
	// inherits: left away it is not the zero of its type.
	inherits bool
}

// declaredFields lists what can be declared in a type of pkg/lb, in the order
// of its fields. User tokens are read by a rule of their own.
func declaredFields(t *testing.T, typ reflect.Type, prefix string, comments map[string]string) []declared {
	t.Helper()
	var out []declared
	for i := range typ.NumField() {
		f := typ.Field(i)
		name, _, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		d := declared{path: prefix + name, typ: f.Type, about: comments[typ.Name()+"."+f.Name]}
		if d.typ.Kind() == reflect.Pointer {
			d.typ, d.inherits = d.typ.Elem(), true
		}
		if d.typ.Kind() == reflect.Struct {
			out = append(out, declaredFields(t, d.typ, d.path+".", comments)...)
			continue
		}
		if d.about == "" {
			t.Errorf("pkg/lb: %s.%s has no comment, from which its meaning could be told", typ.Name(), f.Name)
		}
		out = append(out, d)
	}
	return out
}

// kindOf tells the type in words, and a value that no field of it may have.
func (d *declared) kindOf() (words string, wrong any) {
	switch d.typ {
	case reflect.TypeFor[lb.Duration]():
		return "duration", "-1s"
	case reflect.TypeFor[lb.Size]():
		return "size", "-1"
	case reflect.TypeFor[lb.Secret]():
		return "text", strings.Repeat("x", 1<<16)
	}
	switch d.typ.Kind() {
	case reflect.Bool:
		return "boolean", nil
	case reflect.Int:
		return "whole number", -1
	case reflect.Float64:
		return "number", -1
	case reflect.Slice:
		return "list", nil
	default:
		return "text", "!"
	}
}

// faultsOf reads a document as lb-admin does.
func faultsOf(t *testing.T, doc any) lb.Faults {
	t.Helper()
	data, err := json.Marshal(doc)
	if err != nil {
		t.Fatal(err)
	}
	parsed, err := document.Parse(data)
	var faults lb.Faults
	if err != nil {
		if !errors.As(err, &faults) {
			t.Fatalf("%s: %s", data, err)
		}
		return faults
	}
	for name, app := range parsed.Applications {
		faults = append(faults, app.Resolve(nil, "applications."+name)...)
	}
	return append(faults, parsed.Validate()...)
}

// with returns a document that is valid but for the value at the path, and
// the path as faults name it.
func with(path string, value any) (doc map[string]any, at string) {
	instance := map[string]any{"name": "dify1", "host": "dify1", "token": "0123456789"}
	app := map[string]any{"instances": []any{instance}}
	doc = map[string]any{"applications": map[string]any{"x": app}}
	into, at := app, "applications.x."+path
	rest, ok := strings.CutPrefix(path, "settings.")
	if ok {
		settings := make(map[string]any)
		doc["settings"], into, at, path = settings, settings, path, rest
	}
	if rest, ok := strings.CutPrefix(path, "instances[]."); ok {
		into, at, path = instance, "applications.x.instances[0]."+rest, rest
		if path == "url" || strings.HasPrefix(path, "tls.") {
			delete(instance, "host")
			instance["url"] = "https://dify1"
		}
	}
	keys := strings.Split(path, ".")
	for _, key := range keys[:len(keys)-1] {
		next := make(map[string]any)
		into[key], into = next, next
	}
	into[keys[len(keys)-1]] = value
	return doc, at
}

var (
	wrongValue = regexp.MustCompile(`^("[^"]*"|\S+) is not (?:a |an )?`)
	quotedX    = regexp.MustCompile(` "x"`)
)

// rangeOf is what the reader of documents answers to a wrong value: that is
// what holds, whatever anybody writes of it.
func rangeOf(t *testing.T, d *declared) string {
	t.Helper()
	_, wrong := d.kindOf()
	if wrong == nil {
		return ""
	}
	doc, at := with(d.path, wrong)
	for _, f := range faultsOf(t, doc) {
		if f.Path != at {
			continue
		}
		says, _, _ := strings.Cut(f.Message, "; did you mean")
		if _, bounds, ok := strings.Cut(says, "out of range; "); ok {
			return bounds
		}
		if strings.HasSuffix(says, "negative") {
			return "from 0"
		}
		if _, bound, ok := strings.Cut(says, " bytes; "); ok {
			return bound + " bytes"
		}
		if _, right, ok := strings.Cut(says, "; give "); ok {
			return right
		}
		return quotedX.ReplaceAllString(wrongValue.ReplaceAllString(says, ""), "")
	}
	return ""
}

// required tells what is missing from an instance, or a rate, that says nothing.
func required(t *testing.T) map[string]bool {
	t.Helper()
	out := make(map[string]bool)
	for _, path := range []string{"instances[]", "rate_limit.per_app", "rate_limit.per_user", "settings.rate_limit.per_ip"} {
		doc, at := with(path, map[string]any{})
		if path == "instances[]" {
			doc, at = map[string]any{"applications": map[string]any{"x": map[string]any{"instances": []any{map[string]any{}}}}}, "applications.x.instances[0]"
		}
		for _, f := range faultsOf(t, doc) {
			if field, ok := strings.CutPrefix(f.Path, at+"."); ok {
				out[path+"."+field] = true
			}
		}
	}
	return out
}

func TestReferences_Configuration(t *testing.T) {
	comments := fieldComments(t)
	app := declaredFields(t, reflect.TypeFor[lb.Application](), "", comments)
	instance := declaredFields(t, reflect.TypeFor[lb.Instance](), "instances[].", comments)
	settings := declaredFields(t, reflect.TypeFor[lb.Settings](), "settings.", comments)
	if n := len(app) + len(instance) + len(settings); n < 40 {
		t.Fatalf("only %d fields found in pkg/lb", n)
	}
	def, must := defaults(t), required(t)
	if !must["instances[].token"] || !must["rate_limit.per_app.burst"] || must["instances[].weight"] {
		t.Fatalf("required: %v", slices.Sorted(maps.Keys(must)))
	}
	ranges := 0
	write := func(out *strings.Builder, fields []declared) {
		var rows [][]string
		for i := range fields {
			f := &fields[i]
			kind, wrong := f.kindOf()
			bounds := rangeOf(t, f)
			if bounds != "" {
				ranges++
			} else if wrong == -1 {
				t.Errorf("%s: the reader of documents has nothing against %v", f.path, wrong)
			}
			value, has := def[f.path]
			value = quoted(value)
			switch {
			case must[f.path] && strings.Contains(f.path, "rate_limit"):
				value = "no limit; required with the other"
			case f.path == "instances[].host" || f.path == "instances[].url":
				value = "one of the two is required"
			case must[f.path]:
				value = "required"
			case !has && f.typ.Kind() == reflect.Bool && !f.inherits:
				value = "`false`"
			case !has:
				value = "none"
			}
			rows = append(rows, []string{"`" + f.path + "`", kind, value, prose(bounds), prose(f.about)})
		}
		table(out, []string{"key", "type", "default", "range", "meaning"}, rows)
	}
	var out strings.Builder
	out.WriteString(`# Reference: the document

Every key that a document may have, with what the programs themselves say of it: types and meanings from the source of
` + "`pkg/lb`" + `, defaults from a declaration that says nothing, ranges from the answer to a value that is wrong. Explained:
[configuration.md](../configuration.md#the-document). Flags: [cli.md](cli.md).

A duration is text such as ` + "`500ms`, `30s` or `1h30m`" + `, or a number of seconds; a size is a number of bytes, or text with ` + "`k`, `m` or `g`" + `,
powers of 1024. ` + "`[]`" + ` stands for each item of a list.

## Applications

Below ` + "`applications.<name>`. The name: ")
	for _, f := range faultsOf(t, map[string]any{"applications": map[string]any{"!": map[string]any{}}}) {
		if _, rule, ok := strings.Cut(f.Message, "is not a name for an application: "); ok {
			out.WriteString(rule + ".\n\n")
			break
		}
	}
	write(&out, app)

	out.WriteString("## User tokens\n\nEach item of `user_tokens` is the token itself, as text, or an object:\n\n")
	declaration := openAPI(t).Components.Schemas["UserTokenDeclaration"]
	var rows [][]string
	for _, path := range tokenFields(t) {
		name := strings.TrimPrefix(path, "user_tokens[].")
		s := declaration.AnyOf[1].Properties[name]
		if s == nil || s.Description == "" {
			t.Errorf("the OpenAPI document does not tell what %s means", path)
			continue
		}
		rows = append(rows, []string{"`" + path + "`", strings.ReplaceAll(s.kind(), "string", "text"), s.about()})
	}
	slices.SortFunc(rows, func(a, b []string) int { return strings.Compare(a[0], b[0]) })
	if len(rows) != len(declaration.AnyOf[1].Properties) {
		t.Errorf("the reader of documents knows %d keys of a user token, the OpenAPI document %d", len(rows), len(declaration.AnyOf[1].Properties))
	}
	table(&out, []string{"key", "type", "meaning"}, rows)

	out.WriteString("## Instances\n\n")
	write(&out, instance)
	out.WriteString("## Settings\n\nThey hold for the whole cluster.\n\n")
	write(&out, settings)
	if ranges < 35 {
		t.Errorf("the reader of documents told only %d ranges", ranges)
	}
	checkReference(t, "configuration.md", out.String())
}
