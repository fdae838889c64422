//go:build linux

package contest

import (
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"
	"time"
)

// spread is what is shown of several values.
type spread struct {
	median, low, high float64
	n                 int
}

func spreadOf(values []float64) spread {
	if len(values) == 0 {
		return spread{}
	}
	v := slices.Sorted(slices.Values(values))
	mid := v[len(v)/2]
	if len(v)%2 == 0 {
		mid = (v[len(v)/2-1] + mid) / 2
	}
	return spread{median: mid, low: v[0], high: v[len(v)-1], n: len(v)}
}

func (s spread) text(digits int) string {
	switch s.n {
	case 0:
		return "–"
	case 1:
		return number(s.median, digits)
	}
	return fmt.Sprintf("%s (%s–%s)", number(s.median, digits), number(s.low, digits), number(s.high, digits))
}

// number writes thousands apart: 12,345.
func number(v float64, digits int) string {
	s := strconv.FormatFloat(math.Abs(v), 'f', digits, 64)
	whole, rest, _ := strings.Cut(s, ".")
	for i := len(whole) - 3; i > 0; i -= 3 {
		whole = whole[:i] + "," + whole[i:]
	}
	if rest != "" {
		whole += "." + rest
	}
	if v < 0 && strings.Trim(s, "0.") != "" {
		whole = "-" + whole
	}
	return whole
}

func (f figures) text(metrics []Metric) string {
	var parts []string
	for _, m := range metrics {
		if v, ok := f[m.Key]; ok {
			parts = append(parts, m.Title+" "+number(v, m.Digits))
		}
	}
	if n := f[mFailed]; n > 0 {
		parts = append(parts, fmt.Sprintf("%.0f failures", n))
	}
	return strings.Join(parts, ", ")
}

// of returns a figure of one contestant over the rounds.
func (s *Scenario) of(name, metric string) spread {
	var values []float64
	for _, round := range s.Rounds {
		if v, ok := round[name][metric]; ok {
			values = append(values, v)
		}
	}
	return spreadOf(values)
}

// sum adds a figure of one contestant over the rounds.
func (s *Scenario) sum(name, metric string) (sum float64) {
	for _, round := range s.Rounds {
		sum += round[name][metric]
	}
	return sum
}

// ratio returns a figure of one contestant divided by that of another in the
// same round, over the rounds that have both.
func (s *Scenario) ratio(name, to, metric string) spread {
	var values []float64
	for _, round := range s.Rounds {
		v, ok := round[name][metric]
		w, also := round[to][metric]
		if ok && also && w > 0 {
			values = append(values, v/w)
		}
	}
	return spreadOf(values)
}

func (r *Result) scenario(key string) *Scenario {
	for i := range r.Scenarios {
		if r.Scenarios[i].Key == key {
			return &r.Scenarios[i]
		}
	}
	return &Scenario{}
}

func (r *Result) has(name string) bool {
	return slices.ContainsFunc(r.Contestants, func(c Contestant) bool { return c.Name == name })
}

// Markdown returns the result as tables, for people.
func (r *Result) Markdown() string {
	var b strings.Builder
	r.writeConditions(&b)
	r.writeTargets(&b)
	r.writeTable(&b, "Figures", "median (lowest–highest) over the rounds", func(s *Scenario, m Metric, name string) string {
		return s.of(name, m.Key).text(m.Digits)
	}, func(Metric) bool { return true }, true)
	if r.has(Nginx) {
		r.writeTable(&b, "Divided by nginx in the same round", "median (lowest–highest); CPU, latency and memory: less is better", func(s *Scenario, m Metric, name string) string {
			return s.ratio(name, Nginx, m.Key).text(2)
		}, func(m Metric) bool { return m.Ratio }, false)
	}
	return b.String()
}

func (r *Result) writeConditions(b *strings.Builder) {
	mode := "full"
	if r.Quick {
		mode = "quick"
	}
	m := r.Machine
	fmt.Fprintf(b, "%s, %s run of %s. %d CPUs (%s), kernel %s, %s, %s, %d descriptors per process. %s. Load average before: %s.\n\n",
		r.Started.UTC().Format("2006-01-02 15:04 UTC"), mode, r.Took, m.CPUs, m.CPU, m.Kernel, m.System, m.Go, m.Descriptors, m.Plan, m.LoadBefore)
	for _, c := range r.Contestants {
		fmt.Fprintf(b, "* %s %s: %s\n", c.Name, c.Version, c.About)
	}
	for _, n := range r.Notes {
		fmt.Fprintf(b, "* Note: %s\n", n)
	}
	b.WriteString("\n")
}

func (r *Result) writeTable(b *strings.Builder, title, about string, cell func(*Scenario, Metric, string) string, want func(Metric) bool, direct bool) {
	names := make([]string, 0, len(r.Contestants)+1)
	for _, c := range r.Contestants {
		names = append(names, c.Name)
	}
	if direct && len(r.scenario("rate").Rounds) > 0 {
		names = append(names, Direct)
	}
	fmt.Fprintf(b, "### %s\n\n%s\n\n| load | figure | %s |\n|---|---|%s\n", title, upper(about), strings.Join(names, " | "), strings.Repeat("---|", len(names)))
	for i := range r.Scenarios {
		s := &r.Scenarios[i]
		label := s.Title
		for _, m := range s.Metrics {
			if !want(m) {
				continue
			}
			fmt.Fprintf(b, "| %s | %s |", label, m.Title)
			for _, name := range names {
				fmt.Fprintf(b, " %s |", cell(s, m, name))
			}
			b.WriteString("\n")
			label = ""
		}
	}
	b.WriteString("\n")
}

func upper(s string) string { return strings.ToUpper(s[:1]) + s[1:] + "." }

// target is what lb-proxy is to reach. The decision is by the median.
type target struct {
	title, scenario, metric string
	limit                   float64
	least                   bool // at least limit, not at most
	digits                  int
	measured                func(r *Result, t target) spread
}

func toNginx(r *Result, t target) spread {
	return r.scenario(t.scenario).ratio(LBProxy, Nginx, t.metric)
}

func itself(r *Result, t target) spread { return r.scenario(t.scenario).of(LBProxy, t.metric) }

var targets = []target{
	{"CPU per blocking request ÷ nginx", "blocking", mCPU, 0.90, false, 2, toNginx},
	{"the same at 512 connections", "many", mCPU, 0.90, false, 2, toNginx},
	{"CPU per event ÷ nginx", "events", mCPU, 1.0, false, 2, toNginx},
	{"resident KiB per open stream", "held", mStream, 6, false, 1, itself},
	{"added p50 at the offered rate ÷ nginx", "rate", mAdded50, 1.0, false, 2, toNginx},
	{"added p99 at the offered rate ÷ nginx", "rate", mAdded99, 1.0, false, 2, toNginx},
	{"CPU at the offered rate ÷ nginx", "rate", mCPU, 1.0, false, 2, toNginx},
	{"CPU per GiB uploaded ÷ nginx", "upload", mUpload, 0.7, false, 2, toNginx},
	{"resident MiB with 9,000 open streams", "held-many", mResident, 70, false, 0, itself},
	{"KiB per stream at 9,000 streams ÷ at 2,000 (linear)", "held-many", mStream, 1.1, false, 2, linear},
	{"two cores ÷ one", "two-cores", mScaling, 1.8, true, 2, itself},
	{"CPU per blocking request, ReverseProxy ÷ lb-proxy", "blocking", mCPU, 4, true, 2, func(r *Result, t target) spread {
		return r.scenario(t.scenario).ratio(ReverseProxy, LBProxy, t.metric)
	}},
}

// linear compares medians: the two are not measured in the same round.
func linear(r *Result, t target) spread {
	few, many := r.scenario("held").of(LBProxy, t.metric), itself(r, t)
	if few.n == 0 || many.n == 0 || few.median <= 0 {
		return spread{}
	}
	return spreadOf([]float64{many.median / few.median})
}

func (t target) verdict(s spread) string {
	switch {
	case s.n == 0:
		return "not measured"
	case t.least && s.median >= t.limit, !t.least && s.median <= t.limit:
		return "met"
	}
	return "**missed**"
}

func (t target) bound() string {
	if t.least {
		return "≥ " + number(t.limit, t.digits)
	}
	return "≤ " + number(t.limit, t.digits)
}

func (r *Result) writeTargets(b *strings.Builder) {
	b.WriteString("### Targets of lb-proxy\n\n| target | bound | measured | |\n|---|---|---|---|\n")
	for _, t := range targets {
		s := t.measured(r, t)
		fmt.Fprintf(b, "| %s | %s | %s | %s |\n", t.title, t.bound(), s.text(t.digits), t.verdict(s))
	}
	b.WriteString("\n")
}

// BenchmarksMarkdown returns the Go benchmarks as a table.
func (r *Result) BenchmarksMarkdown() string {
	var b strings.Builder
	fmt.Fprintf(&b, "%s, %d CPUs (%s), %s; median (lowest–highest).\n\n| what | target | measured | |\n|---|---|---|---|\n",
		r.Started.UTC().Format("2006-01-02 15:04 UTC"), r.Machine.CPUs, r.Machine.CPU, r.Machine.Go)
	for _, m := range r.Benchmarks {
		s := spreadOf(m.Nanoseconds)
		verdict := "not measured"
		if s.n > 0 {
			if verdict = "**missed**"; s.median <= float64(m.Limit) {
				verdict = "met"
			}
		}
		unit, name := unitOf(m.Limit)
		fmt.Fprintf(&b, "| %s | ≤ %s %s | %s %s | %s |\n", m.Title, strconv.FormatFloat(float64(m.Limit)/unit, 'f', -1, 64), name,
			spread{s.median / unit, s.low / unit, s.high / unit, s.n}.text(2), name, verdict)
	}
	return b.String()
}

func unitOf(d time.Duration) (float64, string) {
	switch {
	case d >= time.Second:
		return float64(time.Second), "s"
	case d >= time.Millisecond:
		return float64(time.Millisecond), "ms"
	}
	return 1, "ns"
}

// Fill puts the tables between their markers in the text of a README. What the
// result has not, stays as it is.
func (r *Result) Fill(readme string) (string, error) {
	var err error
	if len(r.Scenarios) > 0 {
		if readme, err = between(readme, "figures", r.Markdown()); err != nil {
			return "", err
		}
	}
	if len(r.Benchmarks) > 0 {
		if readme, err = between(readme, "go-benchmarks", r.BenchmarksMarkdown()); err != nil {
			return "", err
		}
	}
	return readme, nil
}

func between(text, name, fill string) (string, error) {
	begin, end := "<!-- begin "+name+" -->\n", "<!-- end "+name+" -->"
	before, rest, found := strings.Cut(text, begin)
	_, after, closed := strings.Cut(rest, end)
	if !found || !closed {
		return "", fmt.Errorf("no %q followed by %q in the text", strings.TrimSpace(begin), end)
	}
	return before + begin + "\n" + strings.TrimSpace(fill) + "\n\n" + end + after, nil
}
