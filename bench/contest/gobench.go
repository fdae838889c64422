//go:build linux

package contest

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"time"
)

// Benchmark is one Go benchmark of the product's own packages.
type Benchmark struct {
	Package string        `json:"package"`
	Name    string        `json:"name"`
	Title   string        `json:"title"`
	Limit   time.Duration `json:"limit_ns"`
	// Nanoseconds of one operation, one value for each repetition.
	Nanoseconds []float64 `json:"ns_per_op"`
}

// benchmarked are the benchmarks that have a target.
var benchmarked = []Benchmark{
	{Package: "difylb/pkg/ring", Name: "BenchmarkLookup/crc32/members=100", Title: "ring lookup with the hash, 100 instances × 150 points", Limit: 60 * time.Nanosecond},
	{Package: "difylb/pkg/route", Name: "BenchmarkBuild_Application", Title: "build one application of 100 instances", Limit: 2 * time.Millisecond},
	{Package: "difylb/pkg/route", Name: "BenchmarkBuild_Whole", Title: "build 10,000 applications, 100,000 tokens, 50,000 instances", Limit: 1500 * time.Millisecond},
	{Package: "difylb/pkg/route", Name: "BenchmarkBuild_OneInstance", Title: "build after one instance of those changed", Limit: 2 * time.Millisecond},
}

const benchmarkPattern = "^(BenchmarkLookup|BenchmarkBuild_Application|BenchmarkBuild_Whole|BenchmarkBuild_OneInstance)$"

// benchmarks runs them, each a few times, on all CPUs: building is parallel.
func (a *arena) benchmarks(ctx context.Context) ([]Benchmark, error) {
	fmt.Fprintln(a.progress, "Go benchmarks of pkg/ring and pkg/route")
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "xxx", "-bench", benchmarkPattern,
		"-benchtime", "500ms", "-count", strconv.Itoa(a.pace.benchmarkRepeats), "difylb/pkg/ring", "difylb/pkg/route")
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("go test -bench: %w: %s", err, out)
	}
	return parseBenchmarks(out), nil
}

// parseBenchmarks reads the output of go test -bench.
func parseBenchmarks(out []byte) []Benchmark {
	list := append([]Benchmark(nil), benchmarked...)
	pkg := ""
	for lines := bufio.NewScanner(bytes.NewReader(out)); lines.Scan(); {
		f := strings.Fields(lines.Text())
		if len(f) == 2 && f[0] == "pkg:" {
			pkg = f[1]
		}
		if len(f) < 4 || f[3] != "ns/op" {
			continue
		}
		name := f[0]
		if i := strings.LastIndexByte(name, '-'); i >= 0 { // the number of CPUs
			name = name[:i]
		}
		ns, err := strconv.ParseFloat(f[2], 64)
		if err != nil {
			continue
		}
		for i := range list {
			if list[i].Package == pkg && list[i].Name == name {
				list[i].Nanoseconds = append(list[i].Nanoseconds, ns)
			}
		}
	}
	return list
}
