//go:build linux

package contest

import (
	"encoding/json"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"
)

func TestSpread_IsTheMedianAndTheEnds(t *testing.T) {
	tests := []struct {
		in   []float64
		want string
	}{
		{nil, "–"},
		{[]float64{1234.56}, "1,234.6"},
		{[]float64{3, 1, 2}, "2.0 (1.0–3.0)"},
		{[]float64{4, 1, 2, 3}, "2.5 (1.0–4.0)"},
		{[]float64{-1, -1234567.04}, "-617,284.0 (-1,234,567.0–-1.0)"},
	}
	for _, tt := range tests {
		if got := spreadOf(tt.in).text(1); got != tt.want {
			t.Errorf("%v: %q, want %q", tt.in, got, tt.want)
		}
	}
	if got := number(-0.001, 1); got != "0.0" {
		t.Errorf("minus nothing is %q", got)
	}
}

// sample is a result in which lb-proxy costs half of nginx, but one round was
// slow for both.
func sample() *Result {
	r := &Result{
		Started: time.Date(2024, 1, 1, 12, 0, 0, 0, time.UTC), Shared: true,
		Contestants: []Contestant{{Name: LBProxy}, {Name: Nginx}, {Name: ReverseProxy}},
		Scenarios: []Scenario{
			{Key: "blocking", Title: "blocking", Metrics: []Metric{{mCPU, "CPU", 1, true}}},
			{Key: "rate", Title: "rate", Metrics: []Metric{{mAdded50, "added p50", 0, true}}},
			{Key: "two-cores", Title: "two cores", Metrics: []Metric{{mScaling, "times", 2, false}}},
		},
	}
	for _, slow := range []float64{1, 3, 1} {
		r.Scenarios[0].Rounds = append(r.Scenarios[0].Rounds, map[string]figures{
			LBProxy: {mCPU: 10 * slow, mRate: 1000}, Nginx: {mCPU: 20 * slow}, ReverseProxy: {mCPU: 39 * slow}})
		r.Scenarios[1].Rounds = append(r.Scenarios[1].Rounds, map[string]figures{
			LBProxy: {mP50: 150, mP99: 500}, Nginx: {mP50: 200, mP99: 300}, Direct: {mP50: 100 * slow, mP99: 200}})
		r.Scenarios[2].Rounds = append(r.Scenarios[2].Rounds, map[string]figures{LBProxy: {mCPU: 11 * slow, mRate: 1100}})
	}
	r.derive()
	return r
}

func TestResult_TakesRatiosWithinARound(t *testing.T) {
	r := sample()
	if s := r.scenario("blocking").ratio(LBProxy, Nginx, mCPU); s.low != 0.5 || s.high != 0.5 || s.n != 3 {
		t.Errorf("ratio %+v", s)
	}
	if s := r.scenario("rate").of(LBProxy, mAdded50); s.median != 50 || s.low != -150 {
		t.Errorf("added p50 %+v", s)
	}
	// No ratio where nginx adds nothing.
	if s := r.scenario("rate").ratio(LBProxy, Nginx, mAdded50); s.n != 2 || s.median != 0.5 {
		t.Errorf("ratio of added p50 %+v", s)
	}
	if s := r.scenario("two-cores").of(LBProxy, mScaling); s.median < 1.81 || s.median > 1.82 {
		t.Errorf("speedup by cost %+v", s)
	}
	r.Shared = false
	r.derive()
	if s := r.scenario("two-cores").of(LBProxy, mScaling); s.median != 1.1 {
		t.Errorf("speedup by rate %+v", s)
	}
}

func TestMarkdown_SaysWhatIsMetAndWhatIsMissed(t *testing.T) {
	text := sample().Markdown()
	for _, want := range []string{
		"| CPU per blocking request ÷ nginx | ≤ 0.90 | 0.50 (0.50–0.50) | met |",
		"| the same at 512 connections | ≤ 0.90 | – | not measured |",
		"| added p99 at the offered rate ÷ nginx | ≤ 1.00 | 3.00 (3.00–3.00) | **missed** |",
		"| two cores ÷ one | ≥ 1.80 | 1.82 (1.82–1.82) | met |",
		"| CPU per blocking request, ReverseProxy ÷ lb-proxy | ≥ 4.00 | 3.90 (3.90–3.90) | **missed** |",
		"| blocking | CPU | 10.0 (10.0–30.0) | 20.0 (20.0–60.0) | 39.0 (39.0–117.0) | – |",
		"| blocking | CPU | 0.50 (0.50–0.50) | 1.00 (1.00–1.00) | 1.95 (1.95–1.95) |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no line %s in\n%s", want, text)
		}
	}
}

func TestResult_SurvivesItsFile(t *testing.T) {
	r := sample()
	text, err := json.Marshal(r)
	if err != nil {
		t.Fatal(err)
	}
	var back Result
	if err := json.Unmarshal(text, &back); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(r, &back) {
		t.Errorf("%+v\n%+v", r, back)
	}
}

func TestFill_PutsTablesBetweenTheMarkersOfTheReadme(t *testing.T) {
	text, err := os.ReadFile("../README.md")
	if err != nil {
		t.Fatal(err)
	}
	r := sample()
	r.Benchmarks = parseBenchmarks([]byte(benchmarkOutput))
	once, err := r.Fill(string(text))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(once, "CPU per blocking request") || !strings.Contains(once, "ring lookup") {
		t.Errorf("filled:\n%s", once)
	}
	if twice, err := r.Fill(once); err != nil || twice != once {
		t.Errorf("filling again changes it (%v)", err)
	}
	if _, err := r.Fill("no markers"); err == nil {
		t.Error("a text without markers was filled")
	}
}

const benchmarkOutput = `goos: linux
pkg: difylb/pkg/ring
BenchmarkLookup/crc32/members=3-2     	 1000	        20.00 ns/op	       0 B/op	       0 allocs/op
BenchmarkLookup/crc32/members=100-2   	 1000	        61.00 ns/op	       0 B/op	       0 allocs/op
BenchmarkLookup/crc32/members=100-2   	 1000	        59.00 ns/op	       0 B/op	       0 allocs/op
PASS
pkg: difylb/pkg/route
BenchmarkBuild_Whole-2        	       1	1600000000 ns/op	    1024 B/op	      10 allocs/op
BenchmarkBuild_Application 	     500	   1900000 ns/op
BenchmarkLookup-2             	     500	   1 ns/op
`

func TestBenchmarks_AreReadFromTheOutputOfGo(t *testing.T) {
	r := &Result{Benchmarks: parseBenchmarks([]byte(benchmarkOutput))}
	text := r.BenchmarksMarkdown()
	for _, want := range []string{
		"| ≤ 60 ns | 60.00 (59.00–61.00) ns | met |",
		"| ≤ 2 ms | 1.90 ms | met |",
		"| ≤ 1.5 s | 1.60 s | **missed** |",
		"| ≤ 2 ms | – ms | not measured |",
	} {
		if !strings.Contains(text, want) {
			t.Errorf("no %s in\n%s", want, text)
		}
	}
}
