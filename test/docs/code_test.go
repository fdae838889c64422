package docs

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"difylb/pkg/cluster"
	"difylb/pkg/document"
	"difylb/pkg/lb"
)

// fields lists the paths of what can be declared in a type of pkg/lb.
func fields(typ reflect.Type, prefix string) []string {
	var out []string
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		if name == "" || name == "-" {
			continue
		}
		ft, path := typ.Field(i).Type, prefix+name
		if ft.Kind() == reflect.Pointer {
			ft = ft.Elem()
		}
		switch {
		case ft.Kind() == reflect.Struct:
			out = append(out, fields(ft, path+".")...)
		case ft.Kind() == reflect.Slice:
			out = append(out, path)
			if ft.Elem().Kind() == reflect.Struct && ft.Elem() != reflect.TypeFor[lb.UserToken]() {
				out = append(out, fields(ft.Elem(), path+"[].")...)
			}
		default:
			out = append(out, path)
		}
	}
	return out
}

// tokenFields asks the reader of documents which keys a user token has.
func tokenFields(t *testing.T) []string {
	t.Helper()
	_, faults := document.ParseUserToken([]byte(`{"token": "x", "qqqqqqqqqqqq": 1}`), "")
	_, list, ok := strings.Cut(fmt.Sprint(faults), "; there are ")
	if !ok {
		t.Fatalf("the fault of an unknown key does not list the known ones: %s", faults)
	}
	out := []string{"user_tokens[].created"}
	for name := range strings.SplitSeq(list, ", ") {
		out = append(out, "user_tokens[]."+name)
	}
	return out
}

// defaults returns what a declaration that says nothing comes to, by path.
func defaults(t *testing.T) map[string]string {
	t.Helper()
	app := lb.NewApplication("x")
	in := lb.Instance{Host: "h"}
	in.SetDefaults()
	in.Normalize()
	out := make(map[string]string)
	var flatten func(prefix string, v any)
	flatten = func(prefix string, v any) {
		switch v := v.(type) {
		case map[string]any:
			for k, e := range v {
				flatten(strings.TrimPrefix(prefix+"."+k, "."), e)
			}
		case string:
			out[prefix] = v
			if v == "" {
				out[prefix] = `""`
			}
		case float64, bool:
			out[prefix] = fmt.Sprint(v)
		}
	}
	for prefix, v := range map[string]any{"": app, "instances[]": in} {
		data, err := json.Marshal(v)
		if err != nil {
			t.Fatal(err)
		}
		var m map[string]any
		if err := json.Unmarshal(data, &m); err != nil {
			t.Fatal(err)
		}
		flatten(prefix, m)
	}
	delete(out, "name")
	delete(out, "instances[].name")
	delete(out, "instances[].host")
	return out
}

func TestConfiguration_HasEveryFieldWithItsDefault(t *testing.T) {
	p := readPage(t, "docs/configuration.md")
	documented := make(map[string]string)
	for _, row := range p.rows("The document") {
		if c := codes(row[0]); len(c) == 1 && len(row) > 1 {
			documented[c[0]] = row[1]
		}
	}
	want := append(fields(reflect.TypeFor[lb.Application](), ""), tokenFields(t)...)
	want = append(want, fields(reflect.TypeFor[lb.Settings](), "settings.")...)
	if len(want) < 45 {
		t.Fatalf("only %d fields found in pkg/lb: %q", len(want), want)
	}
	def := defaults(t)
	for _, path := range want {
		cell, ok := documented[path]
		if !ok {
			t.Errorf("configuration.md has no row for the field %s", path)
			continue
		}
		d, has := def[path]
		stated := codes(cell)
		switch {
		case has && !slices.Equal(stated, []string{d}):
			t.Errorf("%s: the default is %s, configuration.md says %s", path, d, cell)
		case !has && len(stated) > 0 && !strings.HasPrefix(cell, "required") && path != "user_tokens[].disabled":
			t.Errorf("%s: there is no default, configuration.md says %s", path, cell)
		}
	}
	for path := range documented {
		if !slices.Contains(want, path) {
			t.Errorf("configuration.md documents a field that is not there: %s", path)
		}
	}
}

func TestPages_DocumentsAreValid(t *testing.T) {
	n := 0
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.lang != "yaml" || !strings.HasPrefix(b.text, "applications:") {
				continue
			}
			n++
			doc, err := document.Parse([]byte(strings.ReplaceAll(b.text, "…", "0123456789")))
			if err != nil {
				t.Errorf("%s:%d: %s", p.name, b.line, err)
				continue
			}
			for name, app := range doc.Applications {
				if fs := app.Resolve(nil, name); len(fs) > 0 {
					t.Errorf("%s:%d: %s", p.name, b.line, fs)
				}
			}
			if fs := doc.Validate(); len(fs) > 0 {
				t.Errorf("%s:%d: %s", p.name, b.line, fs)
			}
		}
	}
	if n == 0 {
		t.Error("no page shows a document")
	}
}

func TestLogging_HasEveryReason(t *testing.T) {
	p := readPage(t, "docs/logging.md")
	documented := make(map[string][]string)
	for _, row := range p.rows("Reasons") {
		if c := codes(row[0]); len(c) == 1 && len(row) == 5 {
			documented[c[0]] = row
		}
	}
	for r := range lb.NumReasons {
		row, ok := documented[r.String()]
		if !ok {
			t.Errorf("logging.md has no row for the reason %s", r)
			continue
		}
		if r != lb.ReasonOK && (row[1] != strconv.Itoa(r.Status()) || !slices.Equal(codes(row[2]), []string{r.Code()})) {
			t.Errorf("%s is answered with %d %s, logging.md says %s %s", r, r.Status(), r.Code(), row[1], row[2])
		}
		want := "no"
		switch {
		case r.IsInstanceError():
			want = "the instance's"
		case r.IsError():
			want = "yes"
		}
		if row[4] != want {
			t.Errorf("%s counts as error: %s, logging.md says %s", r, want, row[4])
		}
	}
	if len(documented) != int(lb.NumReasons) {
		t.Errorf("logging.md has %d reasons, there are %d", len(documented), lb.NumReasons)
	}
}

// inSource returns the first group of every match in a file of the project.
func inSource(t *testing.T, file, pattern string) []string {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, file))
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(string(data), -1) {
		out = append(out, m[1])
	}
	if len(out) < 5 {
		t.Fatalf("%s: only %q match %s", file, out, pattern)
	}
	return out
}

// firstCells returns what stands in backticks in the first cells below a heading.
func firstCells(p page, heading string) []string {
	var out []string
	for _, row := range p.rows(heading) {
		out = append(out, codes(row[0])...)
	}
	return out
}

// sameNames reports names that only one side has.
func sameNames(t *testing.T, what string, code, documented []string) {
	t.Helper()
	for _, n := range code {
		if !slices.Contains(documented, n) {
			t.Errorf("%s: %s is not documented", what, n)
		}
	}
	for _, n := range documented {
		if !slices.Contains(code, n) {
			t.Errorf("%s: %s is documented and not there", what, n)
		}
	}
}

func TestLogging_HasEveryFieldOfTheAccessLog(t *testing.T) {
	written := inSource(t, "pkg/proxy/accesslog.go", `(?:(?:str|num|ms)\("|["{,]")([a-z_]+)(?:", |":)`)
	p := readPage(t, "docs/logging.md")
	p.text, _, _ = strings.Cut(p.text, "### Sampling")
	sameNames(t, "access log", written, firstCells(p, "Access log"))
	seed := inSource(t, "pkg/proxy/accesslog_seed.go", `["{,]"([a-z_]+)":`)
	sameNames(t, "access log in the format seed", seed, firstCells(readPage(t, "docs/logging.md"), "The format seed"))
}

func TestStandin_HasEverySelectorAndFault(t *testing.T) {
	p := readPage(t, "docs/stand-in.md")
	sameNames(t, "selectors", inSource(t, "pkg/standin/selectors.go", "`json:\"([a-z_]+)\"`"), firstCells(p, "Selectors"))
	sameNames(t, "faults", inSource(t, "pkg/standin/faults.go", `FaultKind = "([a-z_0-9]+)"`), firstCells(p, "Control and faults"))
}

func TestArchitecture_NamesEveryPackage(t *testing.T) {
	cmd := exec.Command("go", "list", "-f", "{{if .GoFiles}}{{.ImportPath}}{{end}}", "difylb/...")
	cmd.Dir = root
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for p := range strings.FieldsSeq(string(out)) {
		// The parts of the benchmark are bench/README.md's to explain.
		if p = strings.TrimPrefix(p, "difylb/"); p != "pkg/lb" && !strings.HasPrefix(p, "bench/") {
			have = append(have, p)
		}
	}
	sameNames(t, "packages", have, firstCells(readPage(t, "docs/design/architecture.md"), "Packages"))
}

func TestStore_NamesEveryKey(t *testing.T) {
	page := readPage(t, "docs/design/store.md")
	text := strings.Join(firstCells(page, "Keys"), "\n")
	for _, key := range inSource(t, "pkg/store/keys.go", `= "([a-z_/]+)"`) {
		if !strings.Contains(text, key) {
			t.Errorf("store.md does not name the key %s", key)
		}
	}
}

func TestChangelog_KeepsItsForm(t *testing.T) {
	p := readPage(t, "CHANGELOG.md")
	if !strings.Contains(p.text, "\n## [Unreleased]\n") {
		t.Error("there is no section [Unreleased]")
	}
	for _, m := range heading.FindAllStringSubmatch(p.text, -1) {
		if !regexp.MustCompile(`^(Changelog|\[Unreleased\]|\[\d+\.\d+\.\d+\] - \d{4}-\d\d-\d\d|Added|Changed|Deprecated|Removed|Fixed|Security)$`).MatchString(m[1]) {
			t.Errorf("heading %q is none of Keep a Changelog", m[1])
		}
	}
}

// keyNames stand for the keys of the Status document's maps.
var keyNames = map[string]string{"applications": "<app>", "instances": "<instance>", "token_labels": "<label>", "cost": "<currency>"}

// statusPaths lists the values of the Status document.
func statusPaths(typ reflect.Type, path, last string) []string {
	switch {
	case typ.Kind() == reflect.Pointer:
		return statusPaths(typ.Elem(), path, last)
	case typ.Kind() == reflect.Map:
		return statusPaths(typ.Elem(), path+"."+keyNames[last], "")
	case typ.Kind() != reflect.Struct || typ == reflect.TypeFor[time.Time]():
		return []string{path}
	}
	var out []string
	if typ.Name() == "UsageStatus" { // stands in several places and is described once
		out, path = append(out, path), "usage"
	}
	for i := range typ.NumField() {
		name, _, _ := strings.Cut(typ.Field(i).Tag.Get("json"), ",")
		out = append(out, statusPaths(typ.Field(i).Type, strings.TrimPrefix(path+"."+name, "."), name)...)
	}
	return out
}

func TestAPI_HasEveryFieldOfTheStatusDocument(t *testing.T) {
	page := readPage(t, "docs/api.md")
	var documented []string
	for _, row := range page.rows("`GET /status`") {
		first := ""
		for _, c := range codes(row[0]) {
			if rest, ok := strings.CutPrefix(c, "."); ok { // another value of the same object
				c = first[:strings.LastIndexByte(first, '.')+1] + rest
			}
			first = c
			documented = append(documented, c)
		}
	}
	sameNames(t, "/status", statusPaths(reflect.TypeFor[cluster.Status](), "", ""), documented)
}
