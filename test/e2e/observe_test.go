package e2e

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"difylb/test/testbed"
)

// ask sends one blocking chat message and returns the status and the answer.
func ask(t testing.TB, base, token, user string) (int, string) {
	t.Helper()
	req, err := http.NewRequestWithContext(t.Context(), "POST", base+"/v1/chat-messages", strings.NewReader(`{"query":"hi","response_mode":"blocking","inputs":{}}`))
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	req.Header.Set("Content-Type", "application/json")
	req.Header.Set("X-User-ID", user)
	client := &http.Client{Transport: &http.Transport{DisableKeepAlives: true}, Timeout: 20 * time.Second}
	resp, err := client.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		t.Fatal(err)
	}
	return resp.StatusCode, string(body)
}

// The log in the old balancer's names is one that verify-placement can judge,
// and the spans of both proxies come, the last ones at the end.
func TestAccessLog_SeedProvesPlacementAndTracesArrive(t *testing.T) {
	t.Parallel()
	collector := testbed.NewCollector(t)
	var app application
	c := newPair(t, func(c *cluster) []application {
		app, _ = c.recordedApplication("observed", 3, unprobed())
		return []application{app}
	}, "--access-log-format", "seed", "--access-log-users", "--otlp-endpoint", collector.URL, "--trace-sample", "1")
	names := users("ü \"quoted\" ", 40)
	for i, user := range names {
		if status, body := ask(t, c.proxies[i%2].url, app.token, user); status != 200 {
			t.Fatalf("%d %s", status, body)
		}
	}
	hashed := c.startProxy("--access-log-format", "seed")
	if status, body := ask(t, hashed.url, app.token, names[0]); status != 200 {
		t.Fatalf("%d %s", status, body)
	}
	for _, p := range c.proxies {
		p.Stop()
	}
	out := c.mustLbctl("verify-placement", "--log", c.proxies[0].accessLog, "--log", c.proxies[1].accessLog)
	if !strings.Contains(out, "every user of these applications stays where he is") || !strings.Contains(out, fmt.Sprintf("%d requests", len(names))) {
		t.Errorf("verify-placement says\n%s", out)
	}
	if r := c.lbctl("verify-placement", "--log", hashed.accessLog); r.code == 0 || !strings.Contains(r.stdout+r.stderr, "keyed hash") {
		t.Errorf("of a log with hashed users: %d %s%s", r.code, r.stdout, r.stderr)
	}
	if text := testbed.ReadFile(t, hashed.accessLog); strings.Contains(text, "quoted") || !strings.Contains(text, `"user_id_hashed":true`) {
		t.Errorf("a proxy that may not name users logs %s", text)
	}

	requests, attempts, tellers := 0, 0, make(map[string]bool)
	for _, s := range collector.Spans() {
		tellers[s.Resource["service.instance.id"]] = true
		if s.Attributes["difylb.app"] == "observed" {
			requests++
		} else if s.Attributes["difylb.instance"] != nil {
			attempts++
		}
		if strings.Contains(fmt.Sprint(s.Attributes), "quoted") {
			t.Errorf("a span names a user: %v", s.Attributes)
		}
	}
	if requests != len(names) || attempts != len(names) || len(tellers) != 2 {
		t.Errorf("spans of %d requests and %d attempts, from %v", requests, attempts, tellers)
	}
}

// An https instance with an authority of its own is believed by prober and
// proxies alike, and by neither when another authority is declared.
func TestInstance_HTTPSWithItsOwnAuthority(t *testing.T) {
	t.Parallel()
	ours, other := testbed.NewCA(t, "ours"), testbed.NewCA(t, "other")
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) { io.WriteString(w, `{"name":"secure"}`) }))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{ours.Issue("dify.internal")}}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)

	c := newCluster(t)
	c.startAdmin()
	token := c.userToken()
	c.mustCall("PUT", "/apps/secure", map[string]any{
		"user_tokens":  []any{map[string]any{"token": token}},
		"health_check": probed()["health_check"],
		"instances": []any{map[string]any{
			"name": "one", "url": srv.URL, "token": c.instanceToken(), "max_fails": 0,
			"tls": map[string]any{"ca": ours.PEM, "server_name": "dify.internal"},
		}},
	})
	c.startProxy()
	p := c.startProxy()
	c.awaitNodes(2)
	verdict := func(want string) {
		t.Helper()
		testbed.Eventually(t, 15*time.Second, "the prober says "+want, func() error {
			_, answer, err := c.call("GET", "/apps/secure/instances", nil)
			if err == nil && !bytes.Contains(answer, []byte(want)) {
				err = fmt.Errorf("%s", answer)
			}
			return err
		})
	}
	verdict(`"health":"healthy"`)
	if status, body := ask(t, p.url, token, "someone"); status != 200 {
		t.Errorf("%d %s", status, body)
	}
	c.mustCall("PATCH", "/apps/secure/instances/one", map[string]any{"tls": map[string]any{"ca": other.PEM}})
	verdict("unknown authority")
	testbed.Eventually(t, 10*time.Second, "the proxy does not believe it", func() error {
		if status, body := ask(t, p.url, token, "someone"); status != 502 || !strings.Contains(body, "bad_gateway") {
			return fmt.Errorf("%d %s", status, body)
		}
		return nil
	})
	status, answer, err := c.call("PATCH", "/apps/secure/instances/one", map[string]any{"tls": map[string]any{"ca": "not PEM"}})
	if err != nil || status != 422 && status != 400 || !bytes.Contains(answer, []byte("tls.ca")) {
		t.Errorf("%d %v %s", status, err, answer)
	}
	c.mustCall("PATCH", "/apps/secure/instances/one", map[string]any{"tls": map[string]any{"ca": nil, "insecure_skip_verify": true}})
	verdict(`"health":"healthy"`)
	if status, body := ask(t, p.url, token, "someone"); status != 200 {
		t.Errorf("%d %s", status, body)
	}
}
