package main

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"difylb/pkg/admin"
)

const statusJSON = `{"status":"running","timestamp":"2024-01-01T12:00:00Z","revision":4711,"complete":false,
 "nodes":{"proxies":2,"admins":1,"reporting":1},
 "applications":{
  "customer_service":{"total_requests":1000,"errors":3,"active":12,"instances":{
   "dify10":{"requests":1234567,"errors":0,"active":0,"streams":0,"status":"healthy","state":"active","latency_ms":{"p50":0,"p90":0,"p99":0},"first_byte_ms":{"p50":0,"p99":0},"bytes_in":0,"bytes_out":0,"last_error":null,"since":"2024-01-01T11:00:00Z"},
   "dify2":{"requests":334,"errors":1,"active":4,"streams":3,"status":"ejected","state":"active","latency_ms":{"p50":41.2,"p90":80,"p99":1305},"first_byte_ms":{"p50":20.1,"p99":61},"bytes_in":123,"bytes_out":456,"last_error":{"reason":"connect_failed","time":"2024-01-01T11:59:00Z"},"since":"2024-01-01T11:00:00Z",
     "latency_recent":{"p50":700,"p90":800,"p99":900},"first_byte_recent":{"p50":30,"p99":40},"ejected_by":["proxy-1","proxy-2"],"ejected_since":"2024-01-01T11:59:48Z",
     "last_probe":{"time":"2024-01-01T11:59:56.5Z","duration_ms":2.25,"verdict":"unhealthy","found":"status 500","by":"admin-1"}}}},
  "shop":{"total_requests":0,"errors":0,"active":0,"instances":{
   "a":{"requests":0,"errors":0,"active":0,"streams":0,"status":"draining","state":"draining","latency_ms":{"p50":3.21,"p90":5,"p99":99000},"first_byte_ms":{"p50":0,"p99":0},"bytes_in":0,"bytes_out":0,"last_error":null,"since":"2024-01-01T11:00:00Z"}}}}}`

const appJSON = `{"name":"customer_service","user_tokens":[{"id":"3f2a91c0d4e5b678","token_hint":"e-v1","label":"web"},{"id":"00ff00ff00ff00ff","disabled":true}],
 "consistent_hash":{"virtual_nodes":150,"hash_algorithm":"crc32"},"missing_user":"auto","timeouts":{"connect":"5s","read":"5m","send":"5m"},
 "retry":{"attempts":2,"timeout":"30s","non_idempotent":false},"max_body":"100m","rate_limit":{"per_user":{"rate":0.5,"burst":1}},
 "health_check":{"type":"http","path":"/v1/info","send_token":true,"interval":"10s","timeout":"3s","healthy_threshold":2,"unhealthy_threshold":3,"expect_status":"200-299","expect_body":""},
 "queue":{"size":100,"timeout":"30s"},"preserve_host":false,
 "instances":[{"name":"dify1","host":"172.20.62.200","port":80,"weight":1,"max_fails":3,"fail_timeout":"30s","max_in_flight":0,"domain":"","state":"active","token_hint":"lGhe","revision":5},
  {"name":"dify2","url":"https://api.dify.ai","weight":2,"max_fails":3,"fail_timeout":"30s","max_in_flight":8,"domain":"eu","state":"draining","revision":6}],"revision":6}`

var canned = map[string]string{
	"GET /api/v1/status":                                       statusJSON,
	"GET /api/v1/apps":                                         `{"items":[` + appJSON + `]}`,
	"GET /api/v1/apps/customer_service":                        appJSON,
	"GET /api/v1/apps/customer_service/instances":              `{"items":[{"name":"dify1","host":"172.20.62.200","port":80,"weight":1,"state":"active","token_hint":"lGhe"},{"name":"dify2","url":"https://api.dify.ai","weight":2,"state":"draining","max_in_flight":8,"domain":"eu"}]}`,
	"GET /api/v1/apps/customer_service/instances/dify1":        `{"name":"dify1","host":"172.20.62.200","port":80,"weight":1,"max_fails":3,"fail_timeout":"30s","max_in_flight":8,"domain":"eu","state":"active","token_hint":"lGhe","preserve_host":true,"revision":5}`,
	"GET /api/v1/apps/customer_service/tokens":                 `{"items":[{"id":"3f2a91c0d4e5b678","token_hint":"e-v1","label":"web","created":"2024-01-01T12:00:00Z"},{"id":"00ff00ff00ff00ff","disabled":true}]}`,
	"GET /api/v1/nodes":                                        `{"items":[{"id":"admin-1","role":"admin","version":"1.2.3","address":"10.0.0.1:9180","boot_id":"x","started":"2024-01-01T00:00:00Z","uptime_seconds":432000,"connected":true,"config_revision":4711,"lag_seconds":0},{"id":"proxy-1","role":"proxy","version":"1.2.3","address":"10.0.0.2:8082","boot_id":"y","started":"2024-01-01T00:00:00Z","uptime_seconds":4000,"connected":true,"config_revision":4700,"lag_seconds":1.25,"refused":"no memory"},{"id":"proxy-2","role":"proxy","version":"1.2.3","address":"10.0.0.3:8082","boot_id":"z","started":"2024-01-01T00:00:00Z","uptime_seconds":59,"connected":false,"config_revision":0,"lag_seconds":0}]}`,
	"GET /api/v1/explain":                                      `{"app":"customer_service","user":"用户1","algorithm":"crc32","hash":"-123456","owner":"dify1","chosen":"dify2","fail_open":false,"order":[{"instance":"dify1","status":"draining","usable":false,"why":"is draining: it finishes what it has and takes nothing new"},{"instance":"dify2","status":"healthy","usable":true,"why":"takes the request"}],"revision":4711}`,
	"GET /api/v1/history":                                      `{"items":[{"revision":4711,"time":"2024-01-01T12:00:00Z","who":"admin","from":"10.0.0.9","action":"apply","count":9,"changes":[]},{"revision":4710,"time":"2024-01-01T11:00:00Z","who":"ci","from":"10.0.0.9","action":"instance.drain","count":1,"changes":[{"kind":"instance","app":"shop","name":"a","action":"changed"}]}]}`,
	"GET /api/v1/history/4710":                                 `{"revision":4710,"time":"2024-01-01T11:00:00Z","who":"ci","from":"10.0.0.9","action":"instance.drain","count":1,"changes":[{"kind":"instance","app":"shop","name":"a","action":"changed","before":{"name":"a","host":"h","port":80,"weight":1,"max_fails":3,"fail_timeout":"30s","state":"active","token_hint":"0001"},"after":{"name":"a","host":"h","port":80,"weight":1,"max_fails":3,"fail_timeout":"30s","state":"draining","token_hint":"0001"}}]}`,
	"GET /api/v1/access":                                       `{"items":[{"id":"aabbccdd00112233","name":"admin@n1","role":"admin","token_hint":"Zz09","created":"2024-01-01T12:00:00Z"}]}`,
	"POST /api/v1/apply":                                       `{"revision":4712,"dry_run":false,"unchanged":false,"created":["chat"],"changed":["shop"],"deleted":[],"changes":[{"kind":"application","app":"chat","action":"created"},{"kind":"instance","app":"shop","name":"a","action":"changed"}],"moved":{"shop":0.3333,"chat":0.0000001},"in_force":{"all":true,"nodes":["p1","p2"],"waiting":[],"refused":[]}}`,
	"POST /api/v1/apps/customer_service/instances/dify1/drain": `{"app":"customer_service","instance":"dify1","state":"draining","revision":9,"open":1,"drained":false}`,
}

func TestTables_AreAsReviewed(t *testing.T) {
	b := newBench(t)
	answers(t, b, canned)
	b.stdin = shopYAML
	for name, args := range map[string]string{
		"status":        "status",
		"app-list":      "app list",
		"app-get":       "app get customer_service",
		"instance-list": "instance list customer_service",
		"instance-get":  "instance get customer_service dify1",
		"token-list":    "token list customer_service",
		"node-list":     "node list",
		"explain":       "explain customer_service 用户1",
		"history":       "history",
		"history-one":   "history 4710",
		"access-list":   "access list",
		"apply":         "apply -f - --wait 1s",
		"drain":         "instance drain customer_service dify1",
		"status-yaml":   "status -o yaml",
		"app-list-json": "app list -o json",
	} {
		t.Run(name, func(t *testing.T) {
			code, out, errs := b.run(strings.Fields(args)...)
			if code != 0 || errs != "" {
				t.Fatalf("exit code %d: %s", code, errs)
			}
			golden(t, name, out)
			for _, line := range strings.Split(out, "\n") {
				if !strings.Contains(name, "-yaml") && !strings.Contains(name, "-json") && textWidth(line) > 81 {
					t.Errorf("%d columns: %s", textWidth(line), line)
				}
				if strings.Contains(line, "\x1b") {
					t.Errorf("colours without a terminal: %q", line)
				}
			}
		})
	}
}

// TestInstances_SayWhatIsSeenOfThem has a server that saw things seconds ago, so
// that what is shown does not depend on when the test runs.
func TestInstances_SayWhatIsSeenOfThem(t *testing.T) {
	ago := func(d time.Duration) string { return time.Now().Add(-d).UTC().Format(time.RFC3339) }
	instance := `{"name":"dify1","host":"172.20.62.200","port":80,"weight":1,"state":"active","ring_share":0.5,"probe":{"health":"unhealthy","since":"` + ago(2*time.Hour) +
		`","reason":"status 500","by":"admin-1"},"last_probe":{"time":"` + ago(3*time.Second) + `","duration_ms":2.25,"verdict":"unhealthy","found":"status 503","by":"admin-1"},` +
		`"ejected_by":["proxy-1"],"ejected_since":"` + ago(5*time.Hour) + `"}`
	b := newBench(t)
	answers(t, b, map[string]string{
		"GET /api/v1/apps/shop/instances":       `{"items":[` + instance + `,{"name":"dify2","host":"h","port":80,"weight":1,"state":"active"}]}`,
		"GET /api/v1/apps/shop/instances/dify1": instance,
		"GET /api/v1/explain": `{"app":"shop","user":"u","algorithm":"crc32","hash":"1","owner":"dify1","chosen":"dify2","order":[` +
			`{"instance":"dify1","status":"ejected","why":"is ejected: live requests to it failed","ejected_by":["proxy-1"],"ejected_since":"` + ago(5*time.Hour) + `"}]}`,
	})
	for args, want := range map[string][]string{
		"instance list shop":      {" 3s ago ", "dify1 is unhealthy since 2h: status 500", "dify1 is ejected by proxy-1 since 5h", " - "},
		"instance get shop dify1": {"unhealthy since 2h: status 500", "3s ago: unhealthy in 2.2ms, status 503, by admin-1", "by proxy-1 since 5h", "50%"},
		"explain shop u":          {"but is ejected by proxy-1 since 5h: dify2 takes", "is ejected by proxy-1 since 5h: live requests to it failed"},
	} {
		out := b.ok(strings.Fields(args)...)
		for _, w := range want {
			// The clock may move on to the next second meanwhile.
			if !strings.Contains(out, w) && !strings.Contains(out, strings.Replace(w, "3s ago", "4s ago", 1)) {
				t.Errorf("%s lacks %q:\n%s", args, w, out)
			}
		}
	}
}

func TestStatus_WatchShowsTheLastMinute(t *testing.T) {
	st := decodeInto[admin.Status](t, statusJSON)
	ever, recent := &table{}, &table{}
	statusTable(ever, &st, false)
	statusTable(recent, &st, true)
	if out := ever.render(0); !strings.Contains(out, "41ms  1.3s") || strings.Contains(out, "last minute") {
		t.Errorf("over all time:\n%s", out)
	}
	if out := recent.render(0); !strings.Contains(out, "700ms  900ms") || strings.Contains(out, "41ms") || !strings.Contains(out, "; latency of the last minute") {
		t.Errorf("with --watch:\n%s", out)
	}
}

// TestInstance_DryRunsTellAndChangeNothing: the four commands ask for a dry run,
// never for the real thing, and show what it says.
func TestInstance_DryRunsTellAndChangeNothing(t *testing.T) {
	const plan = `{"revision":7,"dry_run":true,"unchanged":false,"created":[],"changed":["shop"],"deleted":[],"changes":[{"kind":"instance","app":"shop","name":"a","action":"changed"}],
	 "moved":{"shop":0.25},"movements":{"shop":{"share":0.25,"flows":[{"from":"a","to":"b","share":0.25}],"recent_users":{"seen":8,"moving":2,"exact":true}}},
	 "touched":[{"app":"shop","instance":"a","how":"draining","open":3,"streams":2}]}`
	for args, call := range map[string]string{
		"instance drain shop a":    "POST /api/v1/apps/shop/instances/a/drain?dry_run=true",
		"instance disable shop a":  "POST /api/v1/apps/shop/instances/a/disable?dry_run=true",
		"instance activate shop a": "POST /api/v1/apps/shop/instances/a/activate?dry_run=true",
		"instance rm shop a":       "DELETE /api/v1/apps/shop/instances/a?dry_run=true",
	} {
		b := newBench(t)
		var mu sync.Mutex
		var calls []string
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			mu.Lock()
			calls = append(calls, r.Method+" "+r.URL.RequestURI())
			mu.Unlock()
			w.Header().Set("Content-Type", "application/json")
			fmt.Fprint(w, plan)
		}))
		t.Cleanup(s.Close)
		b.env["LBCTL_SERVER"], b.env["LBCTL_TOKEN"] = s.URL, "canned-token-0001"
		out := b.ok(append(strings.Fields(args), "--dry-run")...)
		for _, want := range []string{"25% of the users of shop would move", "25% from a to b", "of 8 users seen within the last day 2", "shop/a, which becomes draining, has 3 open requests, 2 of them streams", "dry run: nothing was changed"} {
			if !strings.Contains(out, want) {
				t.Errorf("%s lacks %q:\n%s", args, want, out)
			}
		}
		code, out, errs := b.run(append(strings.Fields(args), "--dry-run", "--max-moved", "5%")...)
		if code != 1 || !strings.Contains(out, "25% from a to b") || !strings.Contains(errs, "25% of the users of shop would move; at most 5% may") {
			t.Errorf("%s --max-moved 5%%: %d, %s, %s", args, code, out, errs)
		}
		_, _, _ = b.run(append(strings.Fields(args), "--max-moved", "0.05", "--yes")...) // --yes is of rm only
		if args != "instance rm shop a" {
			_, _, _ = b.run(append(strings.Fields(args), "--max-moved", "0.05")...)
		}
		mu.Lock()
		real := strings.Replace(call, "dry_run=true", "max_moved=0.05", 1)
		if !slices.Equal(calls, []string{call, call, real}) {
			t.Errorf("%s asks %q", args, calls)
		}
		mu.Unlock()
	}
}

func TestColor_OnlyOnTerminalsThatWantIt(t *testing.T) {
	b := newBench(t)
	answers(t, b, canned)
	b.tweak = func(c *cli) { c.color = true }
	if out := b.ok("status"); !strings.Contains(out, "\x1b[31mejected\x1b[0m") || !strings.Contains(out, "\x1b[32mhealthy\x1b[0m") {
		t.Errorf("no colours: %q", out)
	}
	if out := b.ok("status", "-o", "json"); strings.Contains(out, "\x1b") {
		t.Errorf("colours in JSON: %q", out)
	}
	b.tweak = nil
	plain := b.ok("status")
	if strings.Contains(plain, "\x1b") {
		t.Errorf("colours without a terminal: %q", plain)
	}
}

func TestTable_WidthAndControlCharacters(t *testing.T) {
	tb := &table{color: true}
	tb.header("NAME", ">N")
	tb.row(cell{"用户\x1b]0;x\a", green}, 5)
	tb.row("ab\u202ec", 1234)
	out := tb.render(0)
	want := "\x1b[1mNAME\x1b[0m           \x1b[1mN\x1b[0m\n\x1b[32m用户 ]0;x \x1b[0m     5\nab c        1234\n"
	if out != want {
		t.Errorf("got  %q\nwant %q", out, want)
	}
	narrow := &table{}
	narrow.header("APPLICATION", "INSTANCE", ">REQUESTS")
	narrow.row("customer_service", "dify1", 100)
	narrow.line("a line that is longer than that")
	for _, limit := range []int{1, 2, 5, 10, 17, 18, 20, 30, 80} {
		for _, line := range strings.Split(narrow.render(limit), "\n") {
			if textWidth(line) > limit {
				t.Errorf("limit %d: %d columns: %q", limit, textWidth(line), line)
			}
		}
	}
}

func TestNumbers_StayNarrow(t *testing.T) {
	for in, want := range map[float64]string{0: "0", 99999: "99999", 100000: "100k", 9999999: "10000k", 12345678: "12M", 1e10: "10G"} {
		if got := short(in); got != want {
			t.Errorf("%g is %q, want %q", in, got, want)
		}
	}
	for in, want := range map[float64]string{0: "-", 0.04: "0.0ms", 9.94: "9.9ms", 10: "10ms", 999: "999ms", 1500: "1.5s", 90000: "90s"} {
		if got := millis(in); got != want {
			t.Errorf("%g ms is %q, want %q", in, got, want)
		}
	}
	for in, want := range map[float64]string{0: "0%", 1: "100%", 0.3333: "33.3%", 0.0001: "less than 0.1%", 0.99999: "more than 99.9%", 0.5: "50%"} {
		if got := percent(in); got != want {
			t.Errorf("%g is %q, want %q", in, got, want)
		}
	}
	for in, want := range map[int64]string{0: "0s", 59: "59s", 4000: "1h6m40s", 3599: "59m59s", 432000: "5 days"} {
		if got := age(in); got != want && !(in == 4000 && got == "1h6m") {
			t.Errorf("%d s is %q, want %q", in, got, want)
		}
	}
}

// growing is a cluster whose counters grow by known steps a second.
func growing(t *testing.T, b *bench, fail func(n int64) bool) *atomic.Int64 {
	t.Helper()
	var looks atomic.Int64
	s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n := looks.Add(1)
		if fail != nil && fail(n) {
			w.Header().Set("Content-Type", "application/problem+json")
			w.WriteHeader(503)
			fmt.Fprint(w, `{"type":"x","title":"Unavailable","status":503,"detail":"etcd is away"}`)
			return
		}
		w.Header().Set("Content-Type", "application/json")
		at := time.Date(2024, 1, 1, 12, 0, int(n), 0, time.UTC).Format(time.RFC3339)
		in := func(requests, errors int64) string {
			return fmt.Sprintf(`{"requests":%d,"errors":%d,"active":1,"status":"healthy","state":"active","latency_ms":{"p50":70,"p90":70,"p99":80},"latency_recent":{"p50":1,"p90":1,"p99":2},"first_byte_ms":{},"bytes_in":0,"bytes_out":%d,"last_error":null}`, requests, errors, requests*1024)
		}
		extra := ""
		if n > 1 {
			extra = `,"new":` + in(1000000, 0)
		}
		fmt.Fprintf(w, `{"status":"running","timestamp":%q,"revision":1,"complete":true,"nodes":{"proxies":1,"admins":1,"reporting":1},"applications":{"shop":{"instances":{"a":%s,"b":%s%s}}}}`,
			at, in(n*10, 0), in(n*25, n*2), extra)
	}))
	t.Cleanup(s.Close)
	b.env["LBCTL_SERVER"], b.env["LBCTL_TOKEN"] = s.URL, "canned-token-0001"
	return &looks
}

func TestTop_ShowsRatesTheBusiestFirst(t *testing.T) {
	b := newBench(t)
	growing(t, b, nil)
	golden(t, "top", b.ok("top", "--looks", "1", "--interval", "100ms"))
	list := decodeInto[admin.List[rate]](t, b.ok("top", "--looks", "1", "--interval", "100ms", "-o", "json"))
	byName := make(map[string]rate)
	for _, r := range list.Items {
		byName[r.Instance] = r
	}
	if byName["a"].Requests != 10 || byName["b"].Requests != 25 || byName["b"].Errors != 2 || byName["b"].BytesOut != 25*1024 {
		t.Errorf("rates %+v", byName)
	}
}

func TestTop_NewInstancesAndRestartsHaveNoRate(t *testing.T) {
	b := newBench(t)
	growing(t, b, nil)
	out := b.ok("top", "--looks", "1", "--interval", "100ms", "--sort", "name")
	lines := strings.Split(out, "\n")
	if !strings.Contains(lines[4], "new") || !strings.Contains(lines[4], " 0 ") {
		t.Errorf("a new instance has a rate: %s", out)
	}
	before := decodeInto[admin.Status](t, statusJSON)
	now := decodeInto[admin.Status](t, statusJSON)
	now.Timestamp = now.Timestamp.Add(time.Second)
	now.Applications["customer_service"].Instances["dify2"].Requests = 1
	for _, r := range ratesOf(&before, &now) {
		if r.Requests != 0 {
			t.Errorf("counters that fell give a rate: %+v", r)
		}
	}
	if rates := ratesOf(&before, &before); len(rates) != 3 || rates[1].Requests != 0 {
		t.Errorf("no time gives %+v", rates)
	}
}

func TestTop_KeysChooseTheOrderAndQuit(t *testing.T) {
	var out syncBuffer
	c := newCLI(strings.NewReader(""), &out, &out)
	c.width = func() int { return 60 }
	st := decodeInto[admin.Status](t, statusJSON)
	s := &screen{order: 'r', raw: true, height: func() int { return 4 }}
	if err := s.show(c, &st, ratesOf(&st, &st)); err != nil {
		t.Fatal(err)
	}
	quit := false
	s.keys(c, strings.NewReader("enqr"), func() { quit = true })
	if !quit || s.order != 'n' {
		t.Errorf("quit %v, order %c", quit, s.order)
	}
	for _, frame := range strings.Split(out.String(), clearScreen)[1:] {
		lines := strings.Split(frame, "\r\n")
		if len(lines) > 4 || strings.Contains(strings.ReplaceAll(frame, "\r\n", ""), "\n") {
			t.Errorf("frame of %d lines: %q", len(lines), frame)
		}
		for _, l := range lines {
			if textWidth(l) > 60 {
				t.Errorf("%d columns: %q", textWidth(l), l)
			}
		}
	}
}

func TestStatus_WatchGoesOnThroughOutages(t *testing.T) {
	b := newBench(t)
	looks := growing(t, b, func(n int64) bool { return n == 2 })
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	var out, errs syncBuffer
	b.tweak = func(c *cli) { c.out, c.err = &out, &errs }
	done := make(chan int, 1)
	go func() {
		code, _, _ := b.runContext(ctx, "status", "--watch", "--interval", "100ms")
		done <- code
	}()
	for deadline := time.Now().Add(20 * time.Second); looks.Load() < 4; time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%d looks", looks.Load())
		}
	}
	cancel()
	if code := <-done; code != 0 {
		t.Errorf("exit code %d", code)
	}
	if !strings.Contains(errs.String(), "etcd is away; trying again") || strings.Count(out.String(), "running, revision 1") < 2 {
		t.Errorf("out %s\nerr %s", out.String(), errs.String())
	}
}

func TestDiff_OfLines(t *testing.T) {
	lines := func(s string) []string { return strings.Split(s, " ") }
	for _, c := range []struct{ before, after, want string }{
		{"a b c", "a b c", " a b c"},
		{"a b c", "a x c", " a -b +x c"},
		{"a b c d", "b c d e", "-a b c d +e"},
		{"a", "b", "-a +b"},
	} {
		var got []string
		for _, e := range editsOf(lines(c.before), lines(c.after)) {
			got = append(got, strings.TrimSpace(string(e.op)+e.text))
		}
		if s := strings.Join(got, " "); s != strings.TrimSpace(c.want) {
			t.Errorf("%s to %s: %s", c.before, c.after, s)
		}
	}
	if e := editsOf(nil, []string{"a"}); len(e) != 1 || e[0].op != '+' {
		t.Errorf("from nothing: %v", e)
	}
	big := make([]string, 5000)
	other := make([]string, 5000)
	for i := range big {
		big[i], other[i] = fmt.Sprint("a", i), fmt.Sprint("b", i)
	}
	if e := editsOf(big, other); len(e) != 10000 {
		t.Errorf("a large difference has %d edits", len(e))
	}
}

// What the edits say must lead from one text to the other.
func FuzzDiff(f *testing.F) {
	f.Add("a\nb\nc", "a\nx\nc")
	f.Fuzz(func(t *testing.T, before, after string) {
		if len(before)+len(after) > 4096 {
			return
		}
		var from, to []string
		for _, e := range editsOf(strings.Split(before, "\n"), strings.Split(after, "\n")) {
			if e.op != '+' {
				from = append(from, e.text)
			}
			if e.op != '-' {
				to = append(to, e.text)
			}
		}
		if strings.Join(from, "\n") != before || strings.Join(to, "\n") != after {
			t.Errorf("%q to %q: %q, %q", before, after, from, to)
		}
	})
}

func TestNaturalLess(t *testing.T) {
	for _, c := range []struct{ a, b string }{{"dify2", "dify10"}, {"a", "b"}, {"dify", "dify1"}, {"a1b2", "a1b10"}, {"x009", "x10"}} {
		if !naturalLess(c.a, c.b) || naturalLess(c.b, c.a) {
			t.Errorf("%s does not come before %s", c.a, c.b)
		}
	}
	if naturalLess("same", "same") {
		t.Error("same comes before same")
	}
}

func TestFit_NeverScrolls(t *testing.T) {
	for _, c := range []struct {
		text, want string
		height     int
	}{
		{"a\nb\n", "a\nb", 2},
		{"a\nb\nc\n", "a\n… and 2 more lines", 2},
		{"a\nb\nc\n", "a\nb\nc", 0},
		{"a\nb\nc\n", "a\nb\nc", 1},
	} {
		if got := fit(c.text, c.height); got != c.want {
			t.Errorf("%q in %d lines is %q, want %q", c.text, c.height, got, c.want)
		}
	}
}
