//go:build linux

// Command bench compares lb-proxy with nginx, HAProxy and Go's ReverseProxy on
// this machine; see bench/README.md.
package main

import (
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"

	"difylb/bench/contest"
)

func main() {
	played, err := contest.Role(os.Args[1:])
	if !played {
		err = run()
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

func run() error {
	o := contest.Options{Progress: os.Stderr}
	flag.BoolVar(&o.Quick, "quick", false, "take about two minutes instead of fifteen")
	flag.IntVar(&o.Rounds, "rounds", 0, "rounds of each load (0: 5 with -quick, else 25, fewer of what takes long)")
	flag.DurationVar(&o.Limit, "limit", 0, "end after this time with what there is (0: 5m with -quick, else 25m)")
	flag.StringVar(&o.Bins, "bin", "", "`directory` of lb-admin and lb-proxy (default: build them)")
	flag.StringVar(&o.Old, "old", "", "`directory` of another lb-proxy, to compare with")
	flag.BoolVar(&o.Benchmarks, "gobench", false, "run the Go benchmarks that have a target as well")
	only := flag.String("only", "", "contestants, separated by commas: lb-proxy,nginx,HAProxy,ReverseProxy,relay (default: all that are installed)")
	loads := flag.String("loads", "", "loads, separated by commas: blocking,many,most,rate,events,held,held-many,upload,upload-behind,two-cores (default: all)")
	out := flag.String("out", "bench/out", "`directory` for results.json and results.md")
	from := flag.String("from", "", "measure nothing, take this results.json `file`")
	update := flag.Bool("update-readme", false, "put the tables into -readme; implies -gobench")
	readme := flag.String("readme", "bench/README.md", "`file` that -update-readme fills")
	flag.Parse()
	if flag.NArg() > 0 {
		return fmt.Errorf("unexpected %q", flag.Arg(0))
	}
	o.Contestants, o.Scenarios = list(*only), list(*loads)
	o.Benchmarks = o.Benchmarks || *update
	r, err := result(o, *from)
	if err != nil {
		return err
	}
	if *from == "" {
		if err := save(r, *out); err != nil {
			return err
		}
	}
	fmt.Print(r.Markdown())
	if len(r.Benchmarks) > 0 {
		fmt.Print("### Go benchmarks\n\n", r.BenchmarksMarkdown())
	}
	if *update {
		return fill(r, *readme)
	}
	return nil
}

func list(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
}

func result(o contest.Options, from string) (*contest.Result, error) {
	if from == "" {
		ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
		defer stop()
		return contest.Run(ctx, o)
	}
	text, err := os.ReadFile(from)
	if err != nil {
		return nil, err
	}
	r := &contest.Result{}
	return r, json.Unmarshal(text, r)
}

func save(r *contest.Result, dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(filepath.Join(dir, "results.json"), append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "results.md"), []byte(r.Markdown()), 0o644)
}

func fill(r *contest.Result, file string) error {
	text, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	filled, err := r.Fill(string(text))
	if err != nil {
		return fmt.Errorf("%s: %w", file, err)
	}
	return os.WriteFile(file, []byte(filled), 0o644)
}
