package ops

import (
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"difylb/test/testbed"
)

// unit is the part [Service] of a unit file: values by key, in their order.
type unit map[string][]string

func readUnit(t *testing.T, name string) unit {
	t.Helper()
	u := make(unit)
	section := ""
	for line := range strings.Lines(testbed.ReadFile(t, deployed("systemd/"+name+".service"))) {
		line = strings.TrimSpace(line)
		switch {
		case line == "", strings.HasPrefix(line, "#"):
		case strings.HasPrefix(line, "["):
			section = line
		case section == "[Service]":
			key, value, _ := strings.Cut(line, "=")
			u[key] = append(u[key], value)
		}
	}
	return u
}

// one returns the value of a key that stands there once.
func (u unit) one(t *testing.T, key string) string {
	t.Helper()
	if len(u[key]) != 1 {
		t.Fatalf("%s is given %d times", key, len(u[key]))
	}
	return u[key][0]
}

var unitNames = []string{"lb-admin", "lb-proxy"}

func TestUnits_AreHardened(t *testing.T) {
	for _, name := range unitNames {
		u := readUnit(t, name)
		for key, want := range map[string]string{
			"ProtectSystem": "strict", "NoNewPrivileges": "yes", "DynamicUser": "yes", "StateDirectory": name, "LimitCORE": "0", "KillSignal": "SIGTERM",
			"PrivateDevices": "yes", "PrivateTmp": "yes", "ProtectHome": "yes", "MemoryDenyWriteExecute": "yes", "SystemCallArchitectures": "native",
			"EnvironmentFile": "-/etc/difylb/" + name + ".env", "RestartPreventExitStatus": "2",
		} {
			if got := u.one(t, key); got != want {
				t.Errorf("%s: %s=%s, want %s", name, key, got, want)
			}
		}
		if n, err := strconv.Atoi(u.one(t, "LimitNOFILE")); err != nil || n < 65536 {
			t.Errorf("%s: LimitNOFILE=%d, %v", name, n, err)
		}
		if !slices.Contains(u["SystemCallFilter"], "@system-service") {
			t.Errorf("%s: SystemCallFilter=%q", name, u["SystemCallFilter"])
		}
	}
	proxy := readUnit(t, "lb-proxy")
	stop, err := strconv.Atoi(proxy.one(t, "TimeoutStopSec"))
	if err != nil {
		t.Fatal(err)
	}
	if own := shutdownTime(t, strings.Fields(proxy.one(t, "ExecStart"))); time.Duration(stop)*time.Second < own+5*time.Second {
		t.Errorf("lb-proxy is killed after %d s and may need %s", stop, own)
	}
	if proxy.one(t, "ExecReload") != "/bin/kill -HUP $MAINPID" || proxy.one(t, "CapabilityBoundingSet") != "CAP_NET_BIND_SERVICE" {
		t.Error("lb-proxy can't be reloaded, or can't take port 82")
	}
}

func TestUnits_SystemdIsContent(t *testing.T) {
	analyze := tool(t, "systemd-analyze", "systemd")
	dir := t.TempDir()
	var files []string
	for _, name := range unitNames {
		text := testbed.ReadFile(t, deployed("systemd/"+name+".service"))
		text = strings.ReplaceAll(text, "=/usr/local/bin/", "="+filepath.Dir(testbed.Programs.Ctl)+"/")
		file := filepath.Join(dir, name+".service")
		testbed.WriteFile(t, file, []byte(text))
		files = append(files, file)
	}
	for line := range strings.Lines(run(t, dir, analyze, append([]string{"verify", "--man=no"}, files...)...)) {
		if strings.Contains(line, dir) { // it may have something to say of this machine's own units
			t.Errorf("systemd-analyze verify: %s", line)
		}
	}
	for _, file := range files {
		run(t, dir, analyze, "security", "--offline=yes", "--threshold=20", file) // 2.0 of 10 is the most
	}
}

// launch is a unit's command on this machine.
type launch struct {
	*testbed.Process
	name string
	home string
	env  map[string]string
}

var reference = regexp.MustCompile(`\$\{([A-Z_]+)\}`)

// startUnit starts what the unit says, with the settings of the file that goes with
// it, in directories of the test.
func startUnit(t *testing.T, at *loopback, dir, name string) *launch {
	t.Helper()
	l := &launch{name: name, home: filepath.Join(dir, name), env: map[string]string{
		"STATE_DIRECTORY": filepath.Join(dir, name, "state"), "LOGS_DIRECTORY": filepath.Join(dir, name, "logs"),
	}}
	for _, d := range []string{"STATE_DIRECTORY", "LOGS_DIRECTORY"} {
		if err := os.MkdirAll(l.env[d], 0o700); err != nil {
			t.Fatal(err)
		}
	}
	for line := range strings.Lines(testbed.ReadFile(t, deployed("systemd/"+name+".env"))) {
		if key, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok && !strings.HasPrefix(key, "#") {
			l.env[key] = at.rewrite("host", value)
		}
	}
	words := strings.Fields(readUnit(t, name).one(t, "ExecStart"))
	program, ok := strings.CutPrefix(words[0], "/usr/local/bin/")
	if !ok || program != name {
		t.Fatalf("%s starts %s", name, words[0])
	}
	args := []string{}
	for key, value := range l.env {
		args = append(args, key+"="+value)
	}
	args = append(args, filepath.Join(filepath.Dir(testbed.Programs.Ctl), program))
	for _, w := range words[1:] {
		args = append(args, reference.ReplaceAllStringFunc(w, func(ref string) string {
			value, ok := l.env[strings.Trim(ref, "${}")]
			if !ok {
				t.Fatalf("%s: nobody sets %s", name, ref)
			}
			return value
		}))
	}
	l.Process = testbed.Start(t, dir, name, "/usr/bin/env", args...)
	return l
}

func TestUnits_StartReloadAndStop(t *testing.T) {
	dir, err := os.MkdirTemp(testbed.Scratch, "systemd-")
	if err != nil {
		t.Fatal(err)
	}
	at := newLoopback(t)
	admin := startUnit(t, at, dir, "lb-admin")
	adminURL := "http://" + at.port("host", "9180")
	testbed.Eventually(t, 20*time.Second, "lb-admin is ready", func() error { return admin.Alive(testbed.Probe(adminURL + "/readyz")) })
	if info, err := os.Stat(filepath.Join(admin.env["STATE_DIRECTORY"], "admin.token")); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("admin.token: %v, %v", info, err)
	}
	proxy := startUnit(t, at, dir, "lb-proxy")
	proxyURL, ops := "http://"+at.port("host", "82"), "http://"+at.port("host", "9182")
	testbed.Eventually(t, 20*time.Second, "lb-proxy is ready", func() error { return proxy.Alive(testbed.Probe(ops + "/readyz")) })

	log := filepath.Join(proxy.env["LOGS_DIRECTORY"], "access.log")
	seen := func(path string) {
		t.Helper()
		testbed.Eventually(t, 10*time.Second, "a request is in "+path, func() error {
			if code, _, err := testbed.Get(proxyURL + "/v1/info"); err != nil || code != http.StatusUnauthorized {
				t.Fatalf("%d, %v", code, err)
			}
			if info, err := os.Stat(path); err != nil {
				return err
			} else if info.Size() == 0 {
				return os.ErrNotExist
			}
			return nil
		})
	}
	seen(log)
	// What logrotate does: rename, then ExecReload.
	if err := os.Rename(log, log+".1"); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(proxy.Pid(), syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	seen(log)

	proxy.Signal(syscall.SIGTERM)
	testbed.Eventually(t, 5*time.Second, "a proxy that ends says so while it goes on accepting", func() error {
		code, _, err := testbed.Get(proxyURL + "/health")
		if err == nil && code != http.StatusServiceUnavailable {
			err = os.ErrInvalid
		}
		return err
	})
	if code := proxy.Wait(20 * time.Second); code != 0 {
		t.Errorf("lb-proxy ended with %d", code)
	}
	admin.Stop()
}

// The settings that are commented out are settings, too.
func TestUnits_SettingsExist(t *testing.T) {
	for _, name := range unitNames {
		help := run(t, t.TempDir(), filepath.Join(filepath.Dir(testbed.Programs.Ctl), name), "--help")
		prefix := strings.ToUpper(strings.ReplaceAll(name, "-", "_")) + "_"
		for _, m := range regexp.MustCompile(`(?m)^#?([A-Z_]+)=`).FindAllStringSubmatch(testbed.ReadFile(t, deployed("systemd/"+name+".env")), -1) {
			flag := "--" + strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(m[1], prefix), "_", "-"))
			if !strings.HasPrefix(m[1], prefix) || !strings.Contains(help, flag+" ") {
				t.Errorf("%s.env sets %s, and %s has no flag %s", name, m[1], name, flag)
			}
		}
	}
}
