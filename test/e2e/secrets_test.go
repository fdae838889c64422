package e2e

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"difylb/test/testbed"
)

// No token, no key and no user id of a client stands in anything that the
// cluster writes or says, whatever it is asked and however it is refused. All
// that is captured here is searched when the test ends; so it is for every
// other test.
func TestSecrets_AppearNowhere(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.logLevel = "trace"
	c.startAdmin()
	app, recorders := c.recordedApplication("discreet", 2, probed())
	honest, nodes := c.chatApplication("honest", 1, probed())
	c.apply(document(t, app, honest))
	p := c.startProxy("--debug-headers")
	c.startProxy()
	c.awaitNodes(2)
	c.clusterKey()

	events := c.followEvents()
	c.provokeClients(app, honest, p)
	nodes[0].fault(faultOf("bad_token"))
	c.keepAnswer(p.url, honest.token, "/v1/parameters?user=x")
	nodes[0].fault()
	c.provokeAdmin(app)
	for _, base := range []string{c.admins[0].url, p.ops, c.proxies[1].ops} {
		for _, path := range []string{"/metrics", "/readyz", "/health", "/status", "/openapi.json", "/debug/pprof/cmdline", "/debug/pprof/goroutine?debug=2"} {
			_, body, err := testbed.Get(base + path)
			if err != nil {
				t.Error(err)
			}
			c.keep(base+path, body)
		}
	}
	events()

	for i, r := range recorders {
		for _, a := range r.arrivals() {
			if got := a.header.Get("Authorization"); got != "Bearer "+app.instances[i].token {
				t.Errorf("an instance got another authorization than its own token")
			}
			for _, own := range []string{"Authorization", "X-User-Id-Used", "X-Hash-Key"} { // the last two are what --debug-headers is for
				a.header.Del(own)
			}
			c.keep("what an instance received", fmt.Appendf(nil, "%s %v", a.method, a.header))
		}
	}
	for _, s := range c.proxies {
		s.Stop()
	}
	c.admins[0].Stop()

	files, size := c.secrets.search(t, c.dir)
	t.Logf("%d files, %d KiB searched for %d canaries", files, size>>10, len(c.secrets.parts))
	if files < 10 || size < 100<<10 {
		t.Error("that is too little to mean anything")
	}
}

// A search that finds nothing proves nothing unless it finds what is there.
func TestSecrets_SearchFindsACanary(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	var c canaries
	token := c.secret("a planted token", "app-")
	for _, name := range []string{"proxy-1.stderr", "deep/er/log", "etcd/data", inputDir + "/doc", "proxy-1/last-good.json.1"} {
		testbed.WriteFile(t, filepath.Join(dir, name), []byte("xx "+token+" yy"))
	}
	testbed.WriteFile(t, filepath.Join(dir, "hint"), []byte("…"+token[len(token)-4:]))
	fake := &countingTB{TB: t}
	c.search(fake, dir)
	if fake.errors != 2*2 { // in two of the files, two parts of the token each
		t.Errorf("%d finds, want 4", fake.errors)
	}
}

// countingTB counts what would be reported.
type countingTB struct {
	testing.TB
	errors int
}

func (c *countingTB) Errorf(string, ...any) { c.errors++ }

// clusterKey makes a canary of the key between proxies and lb-admins.
func (c *cluster) clusterKey() {
	c.t.Helper()
	got, err := c.store("", "").Get(limited(c.t), "/difylb/meta/cluster_key")
	if err != nil || len(got.Kvs) != 1 || len(got.Kvs[0].Value) < 24 {
		c.t.Fatalf("the cluster key: %v, %v", got, err)
	}
	v := strings.Trim(string(got.Kvs[0].Value), "\"{} \n")
	c.secrets.add("the cluster key", v[len(v)/2-6:len(v)/2+6])
}

// keepAnswer asks a proxy and keeps head and body of its answer.
func (c *cluster) keepAnswer(base, token, path string) {
	c.t.Helper()
	req, err := http.NewRequest("GET", base+path, nil)
	if err != nil {
		c.t.Fatal(err)
	}
	req.Header.Set("Authorization", "Bearer "+token)
	resp, err := clients.Do(req)
	if err != nil {
		c.t.Error(err)
		return
	}
	defer resp.Body.Close()
	var b bytes.Buffer
	_ = resp.Header.Write(&b)
	_, _ = io.Copy(&b, resp.Body)
	c.keep("an answer to a client", b.Bytes())
}

// provokeClients does through the proxy what clients do, right and wrong.
func (c *cluster) provokeClients(app, honest application, p *proxyNode) {
	c.t.Helper()
	user := c.secrets.secret("a user id", "person-")
	for _, q := range []question{
		{token: app.token, user: user}, {token: app.token, user: user, stream: true, tokens: 2},
		{token: honest.token, user: user}, {token: honest.token, user: user, stream: true, tokens: 2},
	} {
		if r := q.ask(c.t.Context(), p.url); r.failure != "" {
			c.t.Error(r)
		}
	}
	for _, path := range []string{"/v1/parameters?user=" + user, "/v1/nowhere", "/v1/conversations/x?user_id=" + user, "/v1/../x", "/status", "/nowhere"} {
		c.keepAnswer(p.url, app.token, path)
		c.keepAnswer(p.url, honest.token, path)
		c.keepAnswer(p.url, c.secrets.secret("an unknown token", "usertoken--"), path)
		c.keepAnswer(p.url, "two words "+c.userToken(), path)
	}
	addr := p.url[len("http://"):]
	for _, request := range []string{
		"GET /v1/info HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + app.token + "\r\nBroken\r\n\r\n",
		"GET /v1/info HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + app.token + "\r\nAuthorization: Bearer " + app.token + "\r\n\r\n",
		"GET /v1/info HTTP/1.1\r\nHost: x\r\nAuthorization: Basic " + base64.StdEncoding.EncodeToString([]byte("x:"+app.token)) + "\r\n\r\n",
		jsonRequest("Authorization: Bearer "+app.token+"\r\n", `{"user":"`+user+`","query":`),
		jsonRequest("Authorization: Bearer "+app.token+"\r\n", `{"query":"x"}`),
	} {
		_, body := raw(c.t, addr, request)
		c.keep("an answer to bad bytes", body)
	}
}

// provokeAdmin asks lb-admin everything, right and wrong, by REST and lbctl.
func (c *cluster) provokeAdmin(app application) {
	c.t.Helper()
	base := "/apps/" + app.name
	for _, path := range []string{
		"/apps", base, base + "/tokens", base + "/instances", base + "/instances/" + app.instances[0].name, "/export", "/export?format=yaml", "/nodes", "/history", "/access", "/status", "/openapi.json",
		"/explain?user=u&app=" + app.name, "/explain?user=u&token=" + app.token, "/explain?user=u&token=" + c.userToken(), "/explain?tokn=" + app.token,
	} {
		if _, _, err := c.call("GET", path, nil); err != nil {
			c.t.Error(err)
		}
	}
	bad := strings.NewReplacer("TOKEN", c.userToken(), "OTHER", c.userToken(), "app-1", c.instanceToken(), "app-2", c.instanceToken(), "app-5", c.instanceToken()).Replace(everyFault)
	thief := application{name: "thief", token: app.token, instances: []instance{{name: "one", addr: "127.0.0.1:9", token: c.instanceToken()}}}
	files := []string{c.input("bad.yaml", []byte(bad)), c.input("thief.json", document(c.t, thief)), c.input("cut.yaml", []byte(bad[:len(bad)/2]+"\n  - [")), c.input("good.json", document(c.t, app))}
	for _, file := range files {
		for _, verb := range [][]string{{"apply"}, {"apply", "--dry-run"}, {"diff"}, {"validate"}} {
			c.lbctl(append(verb, "-f", file)...)
		}
		data, err := os.ReadFile(file)
		if err != nil {
			c.t.Fatal(err)
		}
		for _, body := range [][]byte{data, data[:len(data)*2/3], append([]byte("x"), data...)} {
			_, _, _ = c.call("POST", "/apply", body)
			_, _, _ = c.call("PUT", base, body)
			_, _, _ = c.call("PATCH", base, body)
		}
	}
	long := c.secrets.secret("a token that is too long", "app-") + strings.Repeat("x", 600)
	spaced := "app with spaces " + c.instanceToken()
	for _, token := range []any{long, spaced, []any{c.instanceToken()}, map[string]any{"tokn": c.instanceToken()}, "Bearer " + c.instanceToken()} {
		_, _, _ = c.call("POST", base+"/instances", map[string]any{"name": "new", "host": "127.0.0.1", "port": 9, "token": token})
		_, _, _ = c.call("POST", base+"/tokens", map[string]any{"token": token})
		_, _, _ = c.call("PATCH", base+"/instances/"+app.instances[0].name, map[string]any{"token": token})
	}
	_, _, _ = c.call("POST", base+"/tokens", map[string]any{"token": app.token})
	_, _, _ = c.call("POST", base+"/instances", map[string]any{"name": "userinfo", "url": "http://user:" + c.secrets.secret("a password in a URL", "") + "@127.0.0.1:9", "token": c.instanceToken()})
	// One more token and instance that are taken, changed and removed.
	c.mustCall("POST", base+"/instances", map[string]any{"name": "passing", "host": "127.0.0.1", "port": 9, "token": c.instanceToken(), "weight": 0})
	c.mustCall("PATCH", base+"/instances/passing", map[string]any{"token": c.instanceToken()})
	c.mustCall("DELETE", base+"/instances/passing", nil)
	c.mustCall("POST", base+"/tokens", map[string]any{"token": c.userToken(), "label": "passing"})

	for _, args := range [][]string{
		{"app", "list"}, {"app", "get", app.name}, {"token", "list", app.name}, {"instance", "list", app.name}, {"instance", "get", app.name, app.instances[0].name},
		{"status"}, {"node", "list"}, {"history"}, {"export"}, {"explain", app.name, "u"}, {"explain", "--user-token", app.token, "u"}, {"explain", "--user-token", c.userToken(), "u"},
		{"instance", "set", app.name, app.instances[0].name, "token=" + spaced}, {"instance", "set", app.name, app.instances[0].name, "tokn=" + c.instanceToken()},
		{"app", "add", "x", "--token", app.token, "--instance", "name=a,url=http://127.0.0.1:9,token=" + c.instanceToken()},
		{"app", "add", "x", "--tokn", c.userToken()}, {"instance", "add", app.name, "--instance", "name=a,token=" + c.instanceToken()},
		{"token", "add", app.name, "--token", app.token}, {"instance", "drain", app.name, app.instances[0].name}, {"instance", "activate", app.name, app.instances[0].name},
	} {
		for _, format := range []string{"table", "json", "yaml"} {
			c.lbctl(append(args, "-o", format)...)
		}
	}
	// Wrong access tokens, by header and by command line.
	for _, token := range []string{c.secrets.secret("a wrong access token", ""), "two " + c.secrets.secret("a wrong access token", "")} {
		req, err := http.NewRequest("GET", c.admins[0].url+"/api/v1/apps", nil)
		if err != nil {
			c.t.Fatal(err)
		}
		req.Header.Set("Authorization", "Bearer "+token)
		resp, err := restClient.Do(req)
		if err != nil {
			c.t.Fatal(err)
		}
		body, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		c.keep("a refused access", body)
		c.command(testbed.Programs.Ctl, "--server", c.admins[0].url, "--token", token, "status")
	}
}

// followEvents keeps the event stream until the returned function is called.
func (c *cluster) followEvents() func() {
	c.t.Helper()
	p := testbed.Start(c.t, c.dir, "lbctl-events", testbed.Programs.Ctl, "--server", c.admins[0].url, "--token-file", c.tokenFile(), "events", "-o", "json")
	return func() {
		c.t.Helper()
		testbed.Eventually(c.t, 5*time.Second, "events are told", func() error {
			if out := p.Output(); !strings.Contains(out, "configuration") || !json.Valid([]byte(strings.SplitN(out, "\n", 2)[0])) {
				return fmt.Errorf("lbctl events says %.300q %.300q", out, p.Log())
			}
			return nil
		})
		p.Kill()
	}
}
