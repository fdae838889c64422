package ops

import (
	"encoding/json"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"

	"go.yaml.in/yaml/v3"

	"difylb/test/testbed"
)

// rule is one alert.
type rule struct {
	Alert       string            `yaml:"alert"`
	Expr        string            `yaml:"expr"`
	Labels      map[string]string `yaml:"labels"`
	Annotations map[string]string `yaml:"annotations"`
}

func readRules(t *testing.T) (out []rule) {
	t.Helper()
	var file struct {
		Groups []struct {
			Rules []rule `yaml:"rules"`
		} `yaml:"groups"`
	}
	if err := yaml.Unmarshal([]byte(testbed.ReadFile(t, deployed("prometheus/difylb.rules.yml"))), &file); err != nil {
		t.Fatal(err)
	}
	for _, g := range file.Groups {
		out = append(out, g.Rules...)
	}
	if len(out) < 15 {
		t.Fatalf("only %d rules read", len(out))
	}
	return out
}

// anchors returns those of a page's headings.
func anchors(t *testing.T, page string) (out []string) {
	t.Helper()
	for _, m := range regexp.MustCompile(`(?m)^#{1,6} +(.*)$`).FindAllStringSubmatch(testbed.ReadFile(t, filepath.Join(testbed.Repository(), page)), -1) {
		out = append(out, strings.Map(func(r rune) rune {
			switch {
			case r == ' ':
				return '-'
			case unicode.IsLetter(r), unicode.IsDigit(r), r == '-', r == '_':
				return unicode.ToLower(r)
			}
			return -1
		}, m[1]))
	}
	return out
}

func TestRules_SayWhatToDo(t *testing.T) {
	tested := testbed.ReadFile(t, deployed("prometheus/difylb.rules.test.yml"))
	covered := make(map[string]bool)
	for _, r := range readRules(t) {
		if s := r.Labels["severity"]; s != "critical" && s != "warning" {
			t.Errorf("%s has the severity %q", r.Alert, s)
		}
		if len(r.Annotations["summary"]) < 10 || len(r.Annotations["description"]) < 20 {
			t.Errorf("%s does not say what is the matter", r.Alert)
		}
		if !strings.Contains(tested, "alertname: "+r.Alert+"\n        exp_alerts:\n          - exp_labels:") {
			t.Errorf("%s has no unit test in which it fires", r.Alert)
		}
		page, anchor, _ := strings.Cut(r.Annotations["runbook_url"], "#")
		if !strings.HasPrefix(page, "docs/") {
			t.Errorf("%s has the run book %q", r.Alert, page)
			continue
		}
		if !slices.Contains(anchors(t, page), anchor) {
			t.Errorf("%s: %s has no heading for #%s", r.Alert, page, anchor)
		}
		covered[anchor] = true
	}
	for _, a := range anchors(t, "docs/runbook.md") {
		if strings.HasPrefix(a, "difylb") && !covered[a] {
			t.Errorf("docs/runbook.md has the section %s, to which no alert leads", a)
		}
	}
}

// panel is one of the dashboard; rows hold further ones when they are folded.
type panel struct {
	ID         int
	Type       string
	Title      string
	Datasource struct{ UID string }
	Targets    []struct {
		Expr       string
		Datasource struct{ UID string }
	}
	GridPos struct{ X, Y, W, H int }
	Panels  []panel
}

type dashboard struct {
	UID        string
	Title      string
	Panels     []panel
	Templating struct {
		List []struct {
			Name       string
			Type       string
			Definition string
		}
	}
	Annotations struct {
		List []struct{ Expr string }
	}
}

func readDashboard(t *testing.T) dashboard {
	t.Helper()
	var d dashboard
	if err := json.Unmarshal([]byte(testbed.ReadFile(t, deployed("grafana/dashboards/difylb.json"))), &d); err != nil {
		t.Fatal(err)
	}
	return d
}

// query is one of the dashboard's.
type query struct{ panel, expr string }

var variables = strings.NewReplacer("$__rate_interval", "10s", "$__interval", "10s", "$proxy", ".*", "$app", ".*")

// queries returns all that the dashboard asks, its variables filled in.
func (d dashboard) queries(t *testing.T) (out []query) {
	t.Helper()
	var walk func(ps []panel)
	walk = func(ps []panel) {
		for _, p := range ps {
			for _, target := range p.Targets {
				out = append(out, query{p.Title, variables.Replace(target.Expr)})
			}
			walk(p.Panels)
		}
	}
	walk(d.Panels)
	for _, a := range d.Annotations.List {
		if a.Expr != "" {
			out = append(out, query{"annotation", variables.Replace(a.Expr)})
		}
	}
	for _, v := range d.Templating.List {
		if m := regexp.MustCompile(`^label_values\((.*), [a-z]+\)$`).FindStringSubmatch(v.Definition); m != nil {
			out = append(out, query{"variable " + v.Name, m[1]})
		} else if v.Type == "query" {
			t.Errorf("the variable %s is not understood: %s", v.Name, v.Definition)
		}
	}
	for _, q := range out {
		if strings.Contains(q.expr, "$") {
			t.Errorf("%s: a variable is left in %s", q.panel, q.expr)
		}
	}
	return out
}

func TestDashboard_IsInOrder(t *testing.T) {
	d := readDashboard(t)
	if d.UID != "difylb" || d.Title == "" || len(d.Panels) < 30 {
		t.Fatalf("uid %q, title %q, %d panels", d.UID, d.Title, len(d.Panels))
	}
	ids := make(map[int]bool)
	cells := make(map[[2]int]string)
	for _, p := range d.Panels {
		if ids[p.ID] {
			t.Errorf("%s has the id of another panel", p.Title)
		}
		ids[p.ID] = true
		if p.Type != "row" && (p.Datasource.UID != "${datasource}" || len(p.Targets) == 0) {
			t.Errorf("%s asks %q %d things", p.Title, p.Datasource.UID, len(p.Targets))
		}
		for _, target := range p.Targets {
			if target.Datasource.UID != "${datasource}" {
				t.Errorf("%s: a query goes to %q", p.Title, target.Datasource.UID)
			}
		}
		for x := p.GridPos.X; x < p.GridPos.X+p.GridPos.W; x++ {
			for y := p.GridPos.Y; y < p.GridPos.Y+p.GridPos.H; y++ {
				if other := cells[[2]int{x, y}]; other != "" || x >= 24 {
					t.Fatalf("%s and %q are in one place", p.Title, other)
				}
				cells[[2]int{x, y}] = p.Title
			}
		}
	}
}

// What is shown and what alarms is documented, and what is documented is shown.
func TestDashboard_ShowsEveryMetric(t *testing.T) {
	documented := make(map[string]bool)
	for _, m := range regexp.MustCompile("(?m)^\\| `(difylb_[a-z_]+)` \\|").FindAllStringSubmatch(testbed.ReadFile(t, filepath.Join(testbed.Repository(), "docs/metrics.md")), -1) {
		documented[m[1]] = true
	}
	if len(documented) < 40 {
		t.Fatalf("only %d metrics are documented", len(documented))
	}
	used := make(map[string]bool)
	look := func(where, expr string) {
		for _, name := range regexp.MustCompile(`difylb_[a-z_]+`).FindAllString(expr, -1) {
			name = strings.TrimSuffix(name, "_bucket")
			if used[name] = true; !documented[name] {
				t.Errorf("%s: there is no metric %s", where, name)
			}
		}
	}
	for _, q := range readDashboard(t).queries(t) {
		look("the panel "+q.panel, q.expr)
	}
	for _, r := range readRules(t) {
		look("the alert "+r.Alert, r.Expr)
	}
	// Not worth a picture.
	for _, name := range []string{"difylb_config_applied_timestamp_seconds", "difylb_draining", "difylb_usage_unpriced_total", "difylb_nodes_admins", "difylb_probe_targets", "difylb_probes_running"} {
		used[name] = true
	}
	for name := range documented {
		if !used[name] {
			t.Errorf("neither a panel nor an alert uses %s", name)
		}
	}
}

func TestGrafana_ProvisionsTheDashboard(t *testing.T) {
	var sources struct {
		Datasources []struct {
			UID, Type, URL string
		}
	}
	if err := yaml.Unmarshal([]byte(testbed.ReadFile(t, deployed("grafana/provisioning/datasources/prometheus.yml"))), &sources); err != nil {
		t.Fatal(err)
	}
	if len(sources.Datasources) != 1 || sources.Datasources[0].Type != "prometheus" || sources.Datasources[0].URL != "http://prometheus:9090" {
		t.Errorf("data sources: %+v", sources)
	}
	var provided struct {
		Providers []struct {
			Options struct{ Path string }
		}
	}
	if err := yaml.Unmarshal([]byte(testbed.ReadFile(t, deployed("grafana/provisioning/dashboards/difylb.yml"))), &provided); err != nil {
		t.Fatal(err)
	}
	mounted := ""
	for _, v := range readCompose(t).Services["grafana"].Volumes {
		if from, to, _ := strings.Cut(v, ":"); from == "../grafana/dashboards" {
			mounted, _, _ = strings.Cut(to, ":")
		}
	}
	if len(provided.Providers) != 1 || provided.Providers[0].Options.Path != mounted {
		t.Errorf("dashboards are mounted at %q and looked for in %+v", mounted, provided)
	}
	if _, err := os.Stat(deployed("grafana/dashboards/difylb.json")); err != nil {
		t.Error(err)
	}
}
