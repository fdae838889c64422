package ops

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"math"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"difylb/test/testbed"
)

func TestPromtool_IsContentWithTheFiles(t *testing.T) {
	promtool := tool(t, "promtool", "prometheus")
	dir := deployed("prometheus")
	run(t, dir, promtool, "check", "config", "--lint=all", "--lint-fatal", "prometheus.yml")
	run(t, dir, promtool, "check", "rules", "--lint=all", "--lint-fatal", "difylb.rules.yml")
	run(t, dir, promtool, "test", "rules", "difylb.rules.test.yml")
}

// The cluster of the compose file, as processes, with a little traffic, watched
// by a real Prometheus with the configuration that is shipped: everything that
// the dashboard asks has an answer, and exactly those alerts stir that should.
func TestStack_IsSeenByPrometheus(t *testing.T) {
	promtool := tool(t, "promtool", "prometheus")
	tool(t, "prometheus", "prometheus")
	s := newStack(t)
	s.begin()
	s.declare()
	stop := s.traffic()
	defer stop()
	s.configurePrometheus()
	server := s.start("prometheus")
	prometheus := s.url("prometheus", "9090")
	testbed.Eventually(t, 20*time.Second, "prometheus is ready", func() error { return server.Alive(testbed.Probe(prometheus + "/-/ready")) })

	pending := readDashboard(t).queries(t)
	if len(pending) < 60 {
		t.Fatalf("only %d queries read from the dashboard", len(pending))
	}
	testbed.Eventually(t, 45*time.Second, "every query of the dashboard has data", func() error {
		var left []query
		for _, q := range pending {
			found, err := ask(prometheus, q.expr)
			if err != nil {
				t.Fatalf("%s: %s: %s", q.panel, q.expr, err)
			}
			// Changes of the configuration are over when Prometheus comes.
			if found == 0 && q.panel != "annotation" {
				left = append(left, q)
			}
		}
		if pending = left; len(left) > 0 {
			time.Sleep(200 * time.Millisecond) // between two scrapes there is nothing new
			return fmt.Errorf("%d have none: %q", len(left), left)
		}
		return nil
	})
	if clash, err := ask(prometheus, `{__name__=~"difylb_.+", exported_instance!=""} or {__name__=~"difylb_.+", exported_job!=""}`); err != nil || clash > 0 {
		t.Errorf("%d series had a label that Prometheus uses itself, %v", clash, err)
	}
	s.checkTargets(prometheus)
	s.checkAlerts(prometheus)
	for _, at := range []string{s.url("lb-admin1", "9180"), s.url("lb-admin2", "9180"), s.url("lb-proxy1", "9182"), s.url("lb-proxy2", "9182")} {
		code, text, err := testbed.Get(at + "/metrics")
		if err != nil || code != http.StatusOK {
			t.Fatalf("%s: %d, %v", at, code, err)
		}
		check := exec.Command(promtool, "check", "metrics")
		check.Stdin = bytes.NewReader(text)
		if out, err := check.CombinedOutput(); err != nil {
			t.Errorf("promtool check metrics: %s\n%s", err, out)
		}
		for _, secret := range []string{"usertoken--", "app-ops-", "some-user"} {
			if bytes.Contains(text, []byte(secret)) {
				t.Errorf("%s shows %q", at, secret)
			}
		}
	}
}

// declare applies an application that works and one whose only instance is
// not there.
func (s *stack) declare() {
	s.t.Helper()
	var instances []string
	for _, name := range []string{"one", "two"} {
		addr := testbed.FreeAddress(s.t)
		p := testbed.Start(s.t, s.dir, name, testbed.Programs.Ctl, "standin", "--listen", addr, "--name", name, "--slots", "-1", "--control", "--app", "chat=app-ops-"+name)
		testbed.Eventually(s.t, 10*time.Second, name+" is ready", func() error { return p.Alive(testbed.Probe("http://" + addr + "/_standin/counts")) })
		instances = append(instances, fmt.Sprintf("{name: %s, url: 'http://%s', token: app-ops-%s}", name, addr, name))
	}
	document := fmt.Sprintf(`applications:
  works:
    user_tokens: [usertoken--works-v1]
    health_check: {interval: 1s}
    instances: [%s]
  broken:
    user_tokens: [usertoken--broken-v1]
    health_check: {interval: 1s, timeout: 1s}
    instances: [{name: gone, url: 'http://%s', token: app-ops-gone, max_fails: 1, fail_timeout: 2s}]
`, strings.Join(instances, ", "), testbed.FreeAddress(s.t))
	file := filepath.Join(s.dir, "document.yaml")
	testbed.WriteFile(s.t, file, []byte(document))
	if out := s.lbctl("apply", "-f", file, "--wait", "20s"); !strings.Contains(out, "in force on 2") {
		s.t.Fatalf("lbctl apply: %s", out)
	}
}

// traffic asks both proxies for blocking and streaming answers until the
// function that it returns is called.
func (s *stack) traffic() (stop func()) {
	ctx, cancel := context.WithCancel(context.Background())
	var all sync.WaitGroup
	for _, name := range s.file.named("lb-proxy") {
		base := s.url(name, "8082")
		all.Go(func() {
			tick := time.NewTicker(40 * time.Millisecond)
			defer tick.Stop()
			for n := 0; ; n++ {
				select {
				case <-ctx.Done():
					return
				case <-tick.C:
				}
				token, mode := "usertoken--works-v1", "blocking"
				switch n % 8 {
				case 0:
					token = "usertoken--broken-v1"
				case 1:
					token = "usertoken--unknown"
				case 2, 3:
					mode = "streaming"
				}
				body := fmt.Sprintf(`{"query":"hi","inputs":{"_standin":{"tokens":3,"first_ms":1,"gap_ms":1}},"user":"some-user-%d","response_mode":%q}`, n%50, mode)
				req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/v1/chat-messages", strings.NewReader(body))
				if err != nil {
					s.t.Error(err)
					return
				}
				req.Header.Set("Authorization", "Bearer "+token)
				req.Header.Set("Content-Type", "application/json")
				resp, err := http.DefaultClient.Do(req)
				if err != nil {
					continue // its figures tell
				}
				_, _ = io.Copy(io.Discard, resp.Body)
				resp.Body.Close()
			}
		})
	}
	return func() { cancel(); all.Wait() }
}

// configurePrometheus writes what is shipped to where the container has it,
// with the addresses of this machine and a shorter interval.
func (s *stack) configurePrometheus() {
	s.t.Helper()
	to := filepath.Join(s.home("prometheus"), "etc", "prometheus")
	text := testbed.ReadFile(s.t, deployed("prometheus/prometheus.yml"))
	text = regexp.MustCompile(`\[([^\]]*)\]`).ReplaceAllStringFunc(text, func(targets string) string {
		var out []string
		for target := range strings.SplitSeq(strings.Trim(targets, "[]"), ",") {
			out = append(out, s.at.rewrite("prometheus", strings.TrimSpace(target)))
		}
		return "[" + strings.Join(out, ", ") + "]"
	})
	text = strings.ReplaceAll(text, "_interval: 15s", "_interval: 1s")
	testbed.WriteFile(s.t, filepath.Join(to, "prometheus.yml"), []byte(text))
	testbed.WriteFile(s.t, filepath.Join(to, "difylb.rules.yml"), []byte(testbed.ReadFile(s.t, deployed("prometheus/difylb.rules.yml"))))
}

// api asks Prometheus.
func api(base, path string, into any) error {
	resp, err := testbed.Looker.Get(base + "/api/v1/" + path)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var answer struct {
		Status, Error string
		Data          json.RawMessage
	}
	if err := json.NewDecoder(resp.Body).Decode(&answer); err != nil {
		return err
	}
	if answer.Status != "success" {
		return fmt.Errorf("%s: %s", answer.Status, answer.Error)
	}
	return json.Unmarshal(answer.Data, into)
}

// ask returns how many series a query has a number for.
func ask(base, expr string) (found int, err error) {
	var data struct {
		Result []struct {
			Value [2]any
		}
	}
	if err := api(base, "query?query="+url.QueryEscape(expr), &data); err != nil {
		return 0, err
	}
	for _, r := range data.Result {
		text, _ := r.Value[1].(string)
		if v, err := strconv.ParseFloat(text, 64); err == nil && !math.IsNaN(v) {
			found++
		}
	}
	return found, nil
}

func (s *stack) checkTargets(prometheus string) {
	s.t.Helper()
	var data struct {
		ActiveTargets []struct{ ScrapeURL, Health, LastError string }
	}
	if err := api(prometheus, "targets", &data); err != nil {
		s.t.Fatal(err)
	}
	if len(data.ActiveTargets) != 7 {
		s.t.Errorf("%d targets, want 3 etcd, 2 lb-admin and 2 lb-proxy", len(data.ActiveTargets))
	}
	for _, target := range data.ActiveTargets {
		if target.Health != "up" {
			s.t.Errorf("%s is %s: %s", target.ScrapeURL, target.Health, target.LastError)
		}
	}
}

// mayStir are the alerts that an application without a working instance, and
// nothing else, is allowed to begin.
var mayStir = []string{"DifylbApplicationDown", "DifylbErrors", "DifylbFailOpen", "DifylbInstanceUnhealthy", "DifylbInstanceEjected"}

func (s *stack) checkAlerts(prometheus string) {
	s.t.Helper()
	rules := readRules(s.t)
	for _, r := range rules {
		if _, err := ask(prometheus, r.Expr); err != nil {
			s.t.Errorf("%s: %s", r.Alert, err)
		}
	}
	// A machine that is held up for seconds may let others stir for a moment.
	testbed.Eventually(s.t, 20*time.Second, "the alert of the broken application stirs, and no other", func() error {
		var data struct {
			Groups []struct {
				Rules []struct{ Name, State, Health, LastError string }
			}
		}
		if err := api(prometheus, "rules", &data); err != nil {
			return err
		}
		n, down := 0, false
		var others []string
		for _, g := range data.Groups {
			for _, r := range g.Rules {
				n++
				switch {
				case r.Health != "ok":
					return fmt.Errorf("%s is %s: %s", r.Name, r.Health, r.LastError)
				case r.State == "inactive":
				case slices.Contains(mayStir, r.Name):
					down = down || r.Name == "DifylbApplicationDown"
				default:
					others = append(others, r.Name+" is "+r.State)
				}
			}
		}
		if n != len(rules) || !down || len(others) > 0 {
			return fmt.Errorf("%d rules of %d; DifylbApplicationDown: %v; others: %q", n, len(rules), down, others)
		}
		return nil
	})
}

func TestStack_StartsAndMakesOneToken(t *testing.T) {
	s := newStack(t)
	s.begin()
	if out := s.lbctl("node", "list"); !strings.Contains(out, "lb-proxy1") || !strings.Contains(out, "lb-admin2") {
		t.Errorf("lbctl node list: %s", out)
	}
	found := 0
	for _, name := range s.file.named("lb-admin") {
		info, err := os.Stat(filepath.Join(s.home(name), "data", "admin.token"))
		if os.IsNotExist(err) {
			continue
		}
		if found++; err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", info, err)
		}
	}
	if found != 1 {
		t.Errorf("%d admin tokens in two volumes, want one", found)
	}
}
