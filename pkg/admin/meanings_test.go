package admin

import (
	"encoding/json"
	"flag"
	"go/ast"
	"go/parser"
	"go/token"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"

	"difylb/pkg/lb"
)

var update = flag.Bool("update", false, "write meanings.json anew from the comments of the sources; review the diff")

// described are the structs of the description, by the key of their meanings.
func described(t *testing.T) map[string]reflect.Type {
	t.Helper()
	out := make(map[string]reflect.Type)
	var visit func(reflect.Type)
	visit = func(typ reflect.Type) {
		switch typ.Kind() {
		case reflect.Pointer, reflect.Slice, reflect.Map:
			visit(typ.Elem())
		case reflect.Struct:
			if !strings.HasPrefix(typ.PkgPath(), "difylb/") || typ == reflect.TypeFor[lb.UserToken]() {
				return
			}
			key := meaningOf(typ, "")
			if out[key] != nil {
				return
			}
			out[key] = typ
			for i := range typ.NumField() {
				visit(typ.Field(i).Type)
			}
		}
	}
	for i := range endpoints {
		for _, v := range []any{endpoints[i].answer, endpoints[i].body} {
			if v != nil {
				visit(reflect.TypeOf(v))
			}
		}
	}
	visit(reflect.TypeFor[Problem]())
	return out
}

// comments reads what the sources of a package say of the fields of its
// structs, by type and Go name. A field without a comment has that of the one
// above it, if that names it.
func comments(t *testing.T, dir string) map[string]map[string]string {
	t.Helper()
	files, err := filepath.Glob(filepath.Join(dir, "*.go"))
	if err != nil || len(files) == 0 {
		t.Fatalf("%s: %v", dir, err)
	}
	out := make(map[string]map[string]string)
	for _, name := range files {
		if strings.HasSuffix(name, "_test.go") {
			continue
		}
		file, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ParseComments)
		if err != nil {
			t.Fatal(err)
		}
		ast.Inspect(file, func(n ast.Node) bool {
			typ, ok := n.(*ast.TypeSpec)
			if !ok {
				return true
			}
			if s, ok := typ.Type.(*ast.StructType); ok {
				out[typ.Name.Name] = fieldComments(s)
			}
			return false
		})
	}
	return out
}

func fieldComments(s *ast.StructType) map[string]string {
	out := make(map[string]string)
	above := ""
	for _, f := range s.Fields.List {
		for _, ident := range f.Names {
			name, text := ident.Name, f.Doc.Text()
			if text == "" && regexp.MustCompile(`\b`+name+`\b`).MatchString(above) {
				text = above
			} else if text != "" {
				above = text
			}
			if f.Doc.Text() == "" && f.Comment.Text() != "" && !strings.HasPrefix(f.Comment.Text(), "default ") {
				text = f.Comment.Text()
			}
			out[name] = strings.Join(strings.Fields(text), " ")
		}
	}
	return out
}

var (
	goName = regexp.MustCompile(`\b[A-Z][A-Za-z0-9]+\b`)
	goNil  = regexp.MustCompile(`\bnil\b`)
)

// inKeys says a comment in the words of JSON: fields by their keys, and what
// is nil is left out, or null.
func inKeys(comment string, typ reflect.Type, optional bool) string {
	absent := "null"
	if optional {
		absent = "left out"
	}
	comment = goNil.ReplaceAllString(comment, absent)
	if optional {
		comment = strings.ReplaceAll(comment, "; empty: ", "; left out: ")
	}
	comment = goName.ReplaceAllStringFunc(comment, func(name string) string {
		if f, ok := typ.FieldByName(name); ok {
			if key, _, _ := strings.Cut(f.Tag.Get("json"), ","); key != "" && key != "-" {
				return key
			}
		}
		return name
	})
	return strings.TrimSuffix(comment, ".")
}

// TestMeanings_AreThoseOfTheSources: each field that the API answers or takes
// has a comment where it is declared, and the description tells that.
func TestMeanings_AreThoseOfTheSources(t *testing.T) {
	sources := make(map[string]map[string]map[string]string)
	want := make(map[string]string)
	for key, typ := range described(t) {
		real := typ
		switch typ {
		case reflect.TypeFor[appBody]():
			real = reflect.TypeFor[lb.Application]()
		case reflect.TypeFor[instanceBody]():
			real = reflect.TypeFor[lb.Instance]()
		case reflect.TypeFor[documentBody]():
			real = reflect.TypeFor[lb.Document]()
		}
		pkg := filepath.Base(real.PkgPath())
		if sources[pkg] == nil {
			sources[pkg] = comments(t, filepath.Join("..", pkg))
		}
		name, _, _ := strings.Cut(real.Name(), "[")
		for i := range real.NumField() {
			f := real.Field(i)
			json, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
			if json == "" || json == "-" || !f.IsExported() {
				continue
			}
			comment := sources[pkg][name][f.Name]
			if comment == "" {
				t.Errorf("%s.%s (%s of %s) has no comment that says what it means", pkg, name, json, f.Name)
				continue
			}
			about := inKeys(comment, real, strings.Contains(opts, "omitempty"))
			for _, begin := range []string{" is ", " are ", ": "} { // the key stands beside it already
				about = strings.TrimPrefix(about, json+begin)
			}
			want[key+json] = about
		}
	}
	data, err := json.MarshalIndent(want, "", " ") // sorts the keys
	if err != nil {
		t.Fatal(err)
	}
	if data = append(data, '\n'); *update {
		if err := os.WriteFile("meanings.json", data, 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if !maps.Equal(want, meanings) {
		t.Errorf("meanings.json is not what the comments say; make generate writes it anew")
	}
}

// TestOpenAPI_SaysWhatEachFieldMeans looks at the result.
func TestOpenAPI_SaysWhatEachFieldMeans(t *testing.T) {
	var d struct {
		Components struct {
			Schemas map[string]struct {
				Properties map[string]struct{ Description string }
			}
		}
	}
	if err := json.Unmarshal(describe("1"), &d); err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, name := range slices.Sorted(maps.Keys(d.Components.Schemas)) {
		for field, p := range d.Components.Schemas[name].Properties {
			if n++; p.Description == "" {
				t.Errorf("%s.%s has no meaning", name, field)
			}
		}
	}
	if n < 200 {
		t.Errorf("only %d fields", n)
	}
}
