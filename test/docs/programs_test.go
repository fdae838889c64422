package docs

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"difylb/pkg/daemon"
)

// flag is one line of a program's --help.
type flag struct {
	name string
	def  string // "" when the help states none
}

var (
	flagLine    = regexp.MustCompile(`(?m)^ +(?:-\w, +)?--([a-z0-9-]+)(.*)$`)
	flagDefault = regexp.MustCompile(`\(default (.*)\)$`)
)

// flagsOf reads the flags of a help text, those that all commands share aside.
func flagsOf(help string) []flag {
	_, section, _ := strings.Cut(help, "\nFlags:\n")
	section, _, _ = strings.Cut(section, "\nGlobal Flags:\n")
	var out []flag
	for _, m := range flagLine.FindAllStringSubmatch(section, -1) {
		if m[1] == "help" || m[1] == "version" {
			continue
		}
		f := flag{name: m[1]}
		if d := flagDefault.FindStringSubmatch(m[2]); d != nil {
			f.def = strings.Trim(d[1], `"[]`)
		}
		out = append(out, f)
	}
	return out
}

// sameValue compares a stated default with the one of a help text.
func sameValue(stated, actual string) bool {
	if stated == "private" {
		private := daemon.PrivatePrefixes()
		stated = private.String()
	}
	if a, err := time.ParseDuration(stated); err == nil {
		b, err := time.ParseDuration(actual)
		return err == nil && a == b
	}
	return stated == actual
}

func TestConfiguration_HasEveryFlagWithItsDefault(t *testing.T) {
	p := readPage(t, "docs/configuration.md")
	for name, prefix := range map[string]string{"lb-admin": "LB_ADMIN_", "lb-proxy": "LB_PROXY_", "lbctl": "LBCTL_"} {
		help := run(t, name, "--help")
		flags := flagsOf(help)
		if len(flags) < 10 {
			t.Fatalf("%s: only %v read from its help", name, flags)
		}
		documented := make(map[string][]string)
		for _, row := range p.rows(name) {
			if c := codes(row[0]); len(c) == 1 && len(row) == 4 {
				documented[c[0]] = row
			}
		}
		for _, f := range flags {
			row, ok := documented["--"+f.name]
			if !ok {
				t.Errorf("configuration.md has no row for %s --%s", name, f.name)
				continue
			}
			delete(documented, "--"+f.name)
			if env := prefix + strings.ToUpper(strings.ReplaceAll(f.name, "-", "_")); !slices.Equal(codes(row[1]), []string{env}) {
				t.Errorf("%s --%s is %s in the environment, configuration.md says %s", name, f.name, env, row[1])
			}
			checkDefault(t, name, help, f, row[2])
		}
		for flag := range documented {
			t.Errorf("configuration.md documents %s %s, which is not there", name, flag)
		}
	}
}

func checkDefault(t *testing.T, name, help string, f flag, cell string) {
	t.Helper()
	stated := codes(cell)
	switch {
	case f.name == "node-id":
		if cell != "host name" {
			t.Errorf("%s --node-id: configuration.md says %q, not host name", name, cell)
		}
	case f.def != "":
		if len(stated) != 1 || !sameValue(stated[0], f.def) {
			t.Errorf("%s --%s: the default is %s, configuration.md says %s", name, f.name, f.def, cell)
		}
	default:
		for _, s := range stated {
			if s != "0s" && s != "false" && !strings.Contains(help, s) {
				t.Errorf("%s --%s has no default, configuration.md says %s", name, f.name, cell)
			}
		}
	}
}

var commandLine = regexp.MustCompile(`(?m)^  ([a-z-]+) `)

// verbs walks the tree of lbctl's commands and calls f with each that does
// something: its words, its help.
func verbs(t *testing.T, path []string, f func(words []string, help string)) {
	t.Helper()
	help := run(t, "lbctl", append(slices.Clone(path), "--help")...)
	_, section, group := strings.Cut(help, "\nAvailable Commands:\n")
	if !group {
		f(path, help)
		return
	}
	section, _, _ = strings.Cut(section, "\n\n")
	for _, m := range commandLine.FindAllStringSubmatch(section+"\n", -1) {
		verbs(t, append(slices.Clone(path), m[1]), f)
	}
}

func TestCLI_HasEveryVerbWithAnExample(t *testing.T) {
	var examples strings.Builder
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			if b.lang == "sh" {
				examples.WriteString("\n" + b.text)
			}
		}
	}
	cli := readPage(t, "docs/cli.md").text + readPage(t, "docs/stand-in.md").text
	n := 0
	verbs(t, nil, func(words []string, help string) {
		n++
		verb := strings.Join(words, " ")
		used := regexp.MustCompile(`lbctl( --[a-z-]+ \S+)* ` + verb + `\b`)
		if !used.MatchString(examples.String()) {
			t.Errorf("no page shows an example of lbctl %s", verb)
		}
		if !strings.Contains(help, "\nExamples:\n") {
			t.Errorf("lbctl %s --help has no example", verb)
		}
		for _, f := range flagsOf(help) {
			if !strings.Contains(cli, "--"+f.name) {
				t.Errorf("neither cli.md nor stand-in.md names the flag --%s of lbctl %s", f.name, verb)
			}
		}
	})
	if n < 30 {
		t.Errorf("only %d verbs found", n)
	}
}

var (
	endpointHeading = regexp.MustCompile("(?m)^### `([A-Z]+) (/\\S*)`$")
	methodsOfPath   = []string{"get", "put", "post", "delete", "patch", "head", "options"}
)

func TestAPI_HasEveryCallWithAnExample(t *testing.T) {
	c := startedCluster(t)
	text, err := fetch("http://127.0.0.1:9180/openapi.json", "")
	if err != nil {
		t.Fatal(err)
	}
	var api struct {
		Paths map[string]map[string]struct {
			Parameters []struct{ Name, In string }
		}
	}
	if err := json.Unmarshal([]byte(text), &api); err != nil {
		t.Fatal(err)
	}
	p := readPage(t, "docs/api.md")
	sections := make(map[string]string)
	at := endpointHeading.FindAllStringSubmatchIndex(p.text, -1)
	for i, m := range at {
		end := len(p.text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		call := p.text[m[2]:m[3]] + " " + p.text[m[4]:m[5]]
		if _, twice := sections[call]; twice {
			t.Errorf("api.md has two sections for %s", call)
		}
		sections[call], _, _ = strings.Cut(p.text[m[1]:end], "\n## ")
	}
	n := 0
	for path, calls := range api.Paths {
		for method, call := range calls {
			if !slices.Contains(methodsOfPath, method) {
				continue
			}
			n++
			name := strings.ToUpper(method) + " " + path
			section, ok := sections[name]
			if !ok {
				t.Errorf("api.md has no section for %s", name)
				continue
			}
			delete(sections, name)
			if !strings.Contains(section, "```sh\n") || !strings.Contains(section, "curl ") {
				t.Errorf("api.md shows no curl for %s", name)
			}
			if method != "get" && !strings.Contains(section, "-X "+strings.ToUpper(method)) {
				t.Errorf("the curl of %s has another method", name)
			}
			for _, param := range call.Parameters {
				if param.In == "query" && !strings.Contains(section, "`"+param.Name+"`") {
					t.Errorf("the section of %s does not name its parameter %s", name, param.Name)
				}
			}
		}
	}
	for name := range sections {
		t.Errorf("api.md has a section for %s, which is not there", name)
	}
	if n < 30 {
		t.Errorf("only %d calls found in %s/openapi.json", n, c.dir)
	}
}

var problemKind = regexp.MustCompile(`(?:fail\([^,]+, |kind: )"([a-z-]+)"`)

func TestAPI_HasEveryKindOfProblem(t *testing.T) {
	files, err := filepath.Glob(filepath.Join(root, "pkg/admin/*.go"))
	if err != nil {
		t.Fatal(err)
	}
	var have []string
	for _, f := range files {
		if strings.HasSuffix(f, "_test.go") {
			continue
		}
		data, err := os.ReadFile(f)
		if err != nil {
			t.Fatal(err)
		}
		for _, m := range problemKind.FindAllStringSubmatch(string(data), -1) {
			have = append(have, m[1])
		}
	}
	if len(have) < 10 {
		t.Fatalf("only %q found", have)
	}
	var documented []string
	p := readPage(t, "docs/api.md")
	for _, row := range p.rows("Errors") {
		if c := codes(row[1]); len(c) == 1 && !strings.Contains(c[0], ":") {
			documented = append(documented, c[0])
		}
	}
	sameNames(t, "problems", have, documented)
}

var (
	metricType   = regexp.MustCompile(`(?m)^# TYPE (difylb_\S+) (\S+)$`)
	metricSeries = regexp.MustCompile(`(?m)^(difylb_[a-z_]+?)(?:_bucket|_sum|_count)?\{(.*)\} `)
	metricLabel  = regexp.MustCompile(`([a-z_]+)="`)
)

// exported is what a program says of a metric.
type exported struct {
	kind   string
	labels []string // in the order of the exposition
}

// metricsAt reads what a program exports, le of histograms left out.
func metricsAt(t *testing.T, url string) map[string]exported {
	t.Helper()
	text, err := fetch(url, "")
	if err != nil {
		t.Fatal(err)
	}
	out := make(map[string]exported)
	for _, m := range metricType.FindAllStringSubmatch(text, -1) {
		out[m[1]] = exported{kind: m[2]}
	}
	for _, m := range metricSeries.FindAllStringSubmatch(text, -1) {
		e, ok := out[m[1]]
		if !ok {
			continue
		}
		e.labels = nil
		for _, l := range metricLabel.FindAllStringSubmatch(m[2], -1) {
			if l[1] != "le" {
				e.labels = append(e.labels, l[1])
			}
		}
		slices.Sort(e.labels)
		out[m[1]] = e
	}
	if len(out) < 8 {
		t.Fatalf("%s: only %v", url, out)
	}
	return out
}

func TestMetrics_HasEveryMetricWithItsLabels(t *testing.T) {
	c := startedCluster(t)
	// Some series appear with their first event.
	if out, err := c.shell(`curl -s -o /dev/null http://127.0.0.1:8082/v1/info -H 'Authorization: Bearer usertoken--customer-service-v1'`, filepath.Join(t.TempDir(), "x")); err != nil {
		t.Fatal(err, out)
	}
	page := readPage(t, "docs/metrics.md")
	for program, at := range map[string]struct {
		url      string
		headings []string
	}{
		"lb-proxy": {"http://127.0.0.1:9182/metrics", []string{"lb-proxy: applications", "lb-proxy: instances", "lb-proxy: process"}},
		"lb-admin": {"http://127.0.0.1:9180/metrics", []string{"lb-admin"}},
	} {
		have := metricsAt(t, at.url)
		documented := make(map[string]bool)
		for _, heading := range at.headings {
			for _, row := range page.rows(heading) {
				names := codes(row[0])
				if len(names) != 1 {
					continue
				}
				documented[names[0]] = true
				e, there := have[names[0]]
				if !there {
					if !strings.Contains(row[4], "Only there once") {
						t.Errorf("metrics.md has the metric %s, which %s does not export", names[0], program)
					}
					continue
				}
				labels := strings.FieldsFunc(row[3], func(r rune) bool { return r == ',' || r == ' ' })
				slices.Sort(labels)
				if e.kind != row[1] || !slices.Equal(labels, e.labels) {
					t.Errorf("%s of %s is a %s with the labels %q, metrics.md says %s with %q", names[0], program, e.kind, e.labels, row[1], labels)
				}
			}
		}
		for name := range have {
			if !documented[name] {
				t.Errorf("metrics.md does not have the metric %s of %s", name, program)
			}
		}
	}
}

// What is not there yet is said, and no longer said once it is there.
func TestPages_SayWhatIsMissing(t *testing.T) {
	c := startedCluster(t)
	chat := `curl -sf -o /dev/null http://127.0.0.1:8082/v1/chat-messages -H 'Authorization: Bearer usertoken--customer-service-v1' \
  -H 'Content-Type: application/json' -d '{"query":"hi","inputs":{},"user":"alice","response_mode":"blocking"}'; sleep 2`
	if out, err := c.shell(chat, filepath.Join(t.TempDir(), "x")); err != nil {
		t.Fatal(err, out)
	}
	status, err := fetch("http://127.0.0.1:8083/status", "")
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(status, `"usage":{`) || !strings.Contains(status, `"cost":{"USD":`) {
		t.Errorf("docs/README.md says that tokens and money are counted, /status tells none: %.2000s", status)
	}
	page, err := fetch("http://127.0.0.1:9180/", "")
	if err != nil || !strings.Contains(page, "<!doctype html>") {
		t.Errorf("docs/dashboard.md says that lb-admin serves a page at /: %v, %.200s", err, page)
	}
}
