package e2e

import (
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"difylb/test/testbed"
)

// everyFault holds one of each kind of mistake; TOKEN takes the place of a user
// token that two applications claim.
const everyFault = `
applications:
  Bad Name:
    user_tokens: [OTHER]
    instances: [{name: x, host: 127.0.0.1, port: 1, token: app-1}]
  first:
    colour: red
    user_tokens: [TOKEN, TOKEN, ""]
    consistent_hash: {virtual_nodes: 0, hash_algorithm: crc16}
    missing_user: maybe
    timeouts: {connect: -1s, read: soon, send: 300s}
    retry: {attempts: 1000, timeout: 30s, non_idempotent: perhaps}
    max_body: lots
    rate_limit: {per_app: {rate: -5, burst: 200}, per_user: {rate: 50, burst: -1}}
    health_check: {type: ping, path: v1/info, interval: 0s, timeout: 3s, healthy_threshold: 0, expect_status: "abc"}
    queue: {size: -1, timeout: 30s}
    instances:
      - {name: twin, host: 127.0.0.1, port: 70000, token: app-1}
      - {name: twin, url: "ftp://127.0.0.1", token: app-2, weight: 70000}
      - {name: third, host: 127.0.0.1, url: "http://127.0.0.1:1", token: "", max_fails: -1, fail_timeout: x, state: sleeping, max_in_flight: -3}
      - {host: 169.254.169.254, port: 80, token: app-5, surprise: 1}
  second:
    user_tokens: [TOKEN]
    instances: []
settings:
  rate_limit: {per_ip: {rate: 0, burst: 1}}
  theme: dark
`

var everyPath = []string{
	"applications.Bad Name:", "applications.first.colour:", "applications.first.user_tokens[1]:", "applications.first.user_tokens[2]:",
	"applications.first.consistent_hash.virtual_nodes:", "applications.first.consistent_hash.hash_algorithm:", "applications.first.missing_user:",
	"applications.first.timeouts.connect:", "applications.first.timeouts.read:", "applications.first.retry.attempts:", "applications.first.retry.non_idempotent:",
	"applications.first.max_body:", "applications.first.rate_limit.per_app.rate:", "applications.first.rate_limit.per_user.burst:",
	"applications.first.health_check.type:", "applications.first.health_check.path:", "applications.first.health_check.interval:",
	"applications.first.health_check.healthy_threshold:", "applications.first.health_check.expect_status:", "applications.first.queue.size:",
	"applications.first.instances[0].port:", "applications.first.instances[1].name:", "applications.first.instances[1].url:", "applications.first.instances[1].weight:",
	"applications.first.instances[2].url:", "applications.first.instances[2].token:", "applications.first.instances[2].max_fails:",
	"applications.first.instances[2].fail_timeout:", "applications.first.instances[2].state:", "applications.first.instances[2].max_in_flight:",
	"applications.first.instances[3].name:", "applications.first.instances[3].host:", "applications.first.instances[3].surprise:",
	"applications.second.user_tokens[0]:", "settings.rate_limit.per_ip.rate:", "settings.theme:",
}

// A document with faults is refused whole, every fault with its path, by lbctl
// and by REST alike, and nothing of it is stored.
func TestRefusal_DocumentListsEveryFault(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	c.startAdmin()
	kept := application{name: "kept", token: c.userToken(), instances: []instance{{name: "one", addr: "127.0.0.1:9", token: c.instanceToken()}}}
	c.apply(document(t, kept))
	before := string(c.mustCall("GET", "/export", nil))

	doc := strings.NewReplacer("TOKEN", c.userToken(), "OTHER", c.userToken()).Replace(everyFault)
	for _, args := range [][]string{{"apply"}, {"apply", "--dry-run"}, {"apply", "--prune"}, {"validate"}} {
		r := c.lbctl(append(args, "-f", c.input("faults.yaml", []byte(doc)))...)
		if r.code != 1 {
			t.Errorf("lbctl %s: exit code %d, want 1", strings.Join(args, " "), r.code)
		}
		lists(t, "lbctl "+strings.Join(args, " "), r.stderr, everyPath)
	}
	status, answer, err := c.call("POST", "/apply", []byte(doc))
	if err != nil || status != http.StatusUnprocessableEntity {
		t.Errorf("REST: status %d, want 422, %v", status, err)
	}
	var bare []string
	for _, path := range everyPath {
		bare = append(bare, `"`+strings.TrimSuffix(path, ":")+`"`)
	}
	lists(t, "REST", string(answer), bare)

	// A token of an application that is stored already.
	thief := application{name: "thief", token: kept.token, instances: []instance{{name: "one", addr: "127.0.0.1:9", token: c.instanceToken()}}}
	r := c.lbctl("apply", "-f", c.input("thief.json", document(t, thief)))
	if r.code != 1 || !strings.Contains(r.stderr, "thief.user_tokens[0]") || !strings.Contains(r.stderr, `"kept"`) {
		t.Errorf("a token of another application: exit code %d: %s", r.code, r.stderr)
	}
	if now := string(c.mustCall("GET", "/export", nil)); now != before {
		t.Errorf("what was refused left traces:\n%s\nbefore:\n%s", now, before)
	}
}

func lists(t testing.TB, who, said string, want []string) {
	t.Helper()
	var missing []string
	for _, path := range want {
		if !strings.Contains(said, path) {
			missing = append(missing, path)
		}
	}
	if len(missing) > 0 {
		t.Errorf("%s does not name %d of %d faults: %s", who, len(missing), len(want), strings.Join(missing, " "))
	}
}

// Wrong flags, keys and values end a program with 2 and their name, before
// anything is started: no directory, no port.
func TestRefusal_WrongOptionsAreNamed(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	config := c.input("config.yaml", []byte("lissten: 127.0.0.1:0\n"))
	for _, tt := range []struct {
		program, env string
		args         []string
		names        string
	}{
		{testbed.Programs.Admin, "", []string{"--http-lissten", "x"}, "--http-lissten"},
		{testbed.Programs.Admin, "", []string{"--log-level", "loud"}, "--log-level"},
		{testbed.Programs.Admin, "", []string{"--etcd-endpoints", "foo"}, "--etcd-endpoints"},
		{testbed.Programs.Admin, "", []string{"--etcd-prefix", "difylb/"}, "--etcd-prefix"},
		{testbed.Programs.Admin, "", []string{"--node-id", "a b"}, "--node-id"},
		{testbed.Programs.Admin, "", []string{"--tls-cert", "nowhere.pem"}, "--tls-cert"},
		{testbed.Programs.Admin, "", []string{"surplus"}, "surplus"},
		{testbed.Programs.Admin, "LB_ADMIN_LOG_FORMAT=poem", nil, "poem"},
		{testbed.Programs.Proxy, "", []string{"--shutdown-grace", "soon"}, "--shutdown-grace"},
		{testbed.Programs.Proxy, "", []string{"--max-body", "huge"}, "--max-body"},
		{testbed.Programs.Proxy, "", []string{"--max-connections", "0"}, "--max-connections"},
		{testbed.Programs.Proxy, "", []string{"--trusted-proxies", "10.0.0.0/99"}, "--trusted-proxies"},
		{testbed.Programs.Proxy, "", []string{"--etcd-password-file", "x"}, "--etcd-password-file"},
		{testbed.Programs.Proxy, "", []string{"--config", config}, "lissten"},
		{testbed.Programs.Proxy, "LB_PROXY_MAX_CONNECTIONS=many", nil, "LB_PROXY_MAX_CONNECTIONS"},
		{testbed.Programs.Ctl, "", []string{"status", "--colour"}, "--colour"},
		{testbed.Programs.Ctl, "", []string{"statuss"}, "statuss"},
		{testbed.Programs.Ctl, "", []string{"status", "-o", "xml"}, "xml"},
		{testbed.Programs.Ctl, "", []string{"instance", "drain", "only-one"}, "NAME"},
		{testbed.Programs.Ctl, "", []string{"up", "--proxies", "0"}, "--proxies"},
		{testbed.Programs.Ctl, "", []string{"status", "--token-file", "nowhere"}, "nowhere"},
	} {
		name := filepath.Base(tt.program) + " " + strings.TrimSpace(tt.env+" "+strings.Join(tt.args, " "))
		dir := t.TempDir()
		cmd := exec.Command(tt.program, tt.args...)
		cmd.Dir, cmd.Env = dir, testbed.CleanEnvironment(dir)
		if tt.env != "" {
			cmd.Env = append(cmd.Env, tt.env)
		}
		out, _ := cmd.CombinedOutput()
		if code := cmd.ProcessState.ExitCode(); code != 2 {
			t.Errorf("%s: exit code %d, want 2: %s", name, code, out)
		}
		if !strings.Contains(string(out), tt.names) {
			t.Errorf("%s: %q is not named: %s", name, tt.names, out)
		}
		if left, err := os.ReadDir(dir); err != nil || len(left) > 0 {
			t.Errorf("%s: it left %v behind, %v", name, left, err)
		}
	}
}

// A port that is taken is told with its flag; nobody is there: 3.
func TestRefusal_TakenPortAndNoServer(t *testing.T) {
	t.Parallel()
	c := newCluster(t)
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	taken, free := ln.Addr().String(), "127.0.0.1:0"
	data := filepath.Join(c.dir, "data")
	for _, tt := range []struct {
		flag, program string
		args          []string
	}{
		{"--http-listen", testbed.Programs.Admin, []string{"--http-listen", taken, "--grpc-listen", free, "--etcd-listen-client", "http://" + testbed.FreeAddress(t), "--etcd-listen-peer", "http://" + testbed.FreeAddress(t), "--data-dir", data}},
		{"--grpc-listen", testbed.Programs.Admin, []string{"--http-listen", free, "--grpc-listen", taken, "--etcd-listen-client", "http://" + testbed.FreeAddress(t), "--etcd-listen-peer", "http://" + testbed.FreeAddress(t), "--data-dir", data}},
		{"--listen", testbed.Programs.Proxy, []string{"--listen", taken, "--ops-listen", free, "--data-dir", data}},
		{"--ops-listen", testbed.Programs.Proxy, []string{"--listen", free, "--ops-listen", taken, "--data-dir", data}},
	} {
		r := c.command(tt.program, tt.args...)
		if r.code != 1 || !strings.Contains(r.stderr, tt.flag+" "+taken) || !strings.Contains(r.stderr, "address already in use") || strings.Contains(r.stderr, "goroutine") {
			t.Errorf("%s taken: exit code %d: %s", tt.flag, r.code, r.stderr)
		}
	}
	if _, err := os.Stat(data); err == nil {
		t.Error("a program that could not start has made its data directory")
	}
	r := c.command(testbed.Programs.Ctl, "status", "--server", "http://127.0.0.1:1")
	if r.code != 3 || !strings.Contains(r.stderr, "127.0.0.1:1") {
		t.Errorf("lbctl without a server: exit code %d, want 3: %s", r.code, r.stderr)
	}
}

// An address that can't be one is wrong usage, not a failure of the machine.
func TestRefusal_MalformedAddressesAreWrongUsage(t *testing.T) {
	t.Parallel()
	namesFlag(t, newCluster(t), [][]string{
		{testbed.Programs.Admin, "--http-listen", "nonsense"},
		{testbed.Programs.Admin, "--grpc-listen", "127.0.0.1:70000"},
		{testbed.Programs.Proxy, "--listen", "127.0.0.1:70000"},
		{testbed.Programs.Proxy, "--ops-listen", "nonsense"},
		{testbed.Programs.Proxy, "--tls-listen", "127.0.0.1:0", "--listen", "127.0.0.1:0", "--ops-listen", "127.0.0.1:0"},
	})
}

func TestRefusal_MalformedEtcdAddressIsWrongUsage(t *testing.T) {
	t.Parallel()
	namesFlag(t, newCluster(t), [][]string{
		{testbed.Programs.Admin, "--etcd-listen-client", "nonsense"},
		{testbed.Programs.Admin, "--etcd-listen-peer", "http://127.0.0.1:70000"},
		{testbed.Programs.Ctl, "--etcd-listen-client", "nonsense", "up"},
		{testbed.Programs.Ctl, "--http-listen", "127.0.0.1:70000", "up"},
	})
}

// namesFlag expects each command to end with 2 and the name of its first flag.
func namesFlag(t *testing.T, c *cluster, commands [][]string) {
	t.Helper()
	for _, tt := range commands {
		r := c.command(tt[0], tt[1:]...)
		if r.code != 2 || !strings.Contains(r.stderr, tt[1]) || strings.Contains(r.stderr, "goroutine") {
			t.Errorf("%s %s: exit code %d, want 2: %s", filepath.Base(tt[0]), strings.Join(tt[1:], " "), r.code, r.stderr)
		}
	}
}
