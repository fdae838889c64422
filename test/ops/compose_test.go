package ops

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"go.yaml.in/yaml/v3"

	"difylb/test/testbed"
)

// composeFile is what these tests read of it.
type composeFile struct {
	Services map[string]composeService `yaml:"services"`
	Secrets  map[string]struct {
		File string `yaml:"file"`
	} `yaml:"secrets"`
	Volumes map[string]any `yaml:"volumes"`
}

type composeService struct {
	Image       string            `yaml:"image"`
	Command     []string          `yaml:"command"`
	Ports       []string          `yaml:"ports"`
	Volumes     []string          `yaml:"volumes"`
	Environment map[string]string `yaml:"environment"`
	Secrets     []string          `yaml:"secrets"`
	Profiles    []string          `yaml:"profiles"`
	Restart     string            `yaml:"restart"`
	StopGrace   string            `yaml:"stop_grace_period"`
	ReadOnly    bool              `yaml:"read_only"`
	CapDrop     []string          `yaml:"cap_drop"`
	SecurityOpt []string          `yaml:"security_opt"`
	Ulimits     map[string]int    `yaml:"ulimits"`
	Healthcheck struct {
		Test []string `yaml:"test"`
	} `yaml:"healthcheck"`
	Deploy struct {
		Resources struct {
			Limits struct {
				Memory string `yaml:"memory"`
			} `yaml:"limits"`
		} `yaml:"resources"`
	} `yaml:"deploy"`
}

// ours reports whether the service runs a program of this repository.
func (s composeService) ours() bool { return strings.HasPrefix(s.Image, "difylb:") }

func readCompose(t *testing.T) composeFile {
	t.Helper()
	var f composeFile
	if err := yaml.Unmarshal([]byte(testbed.ReadFile(t, deployed("compose/docker-compose.yaml"))), &f); err != nil {
		t.Fatal(err)
	}
	return f
}

// named returns the services whose names begin so, in order.
func (f composeFile) named(prefix string) (out []string) {
	for name := range f.Services {
		if strings.HasPrefix(name, prefix) {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

func TestCompose_IsWhatIsPromised(t *testing.T) {
	f := readCompose(t)
	if e, a, p := len(f.named("etcd")), len(f.named("lb-admin")), len(f.named("lb-proxy")); e != 3 || a != 2 || p != 2 {
		t.Errorf("%d etcd, %d lb-admin, %d lb-proxy, want 3, 2, 2", e, a, p)
	}
	published := 0
	for name, s := range f.Services {
		if s.Restart != "unless-stopped" || len(s.Healthcheck.Test) < 2 || s.Deploy.Resources.Limits.Memory == "" {
			t.Errorf("%s has no restart policy, no health check or no limit of memory", name)
		}
		for _, p := range s.Ports {
			if p == "82:8082" {
				published++
			} else if !strings.HasPrefix(p, "127.0.0.1:") && p != "83:8082" {
				t.Errorf("%s publishes %s beyond this machine", name, p)
			}
		}
		if s.ours() && (!s.ReadOnly || !slices.Equal(s.CapDrop, []string{"ALL"}) || !slices.Contains(s.SecurityOpt, "no-new-privileges:true")) {
			t.Errorf("%s is not hardened", name)
		}
		if s.Image == "" || strings.HasSuffix(s.Image, ":latest") && !s.ours() {
			t.Errorf("%s: the image %q names no version", name, s.Image)
		}
		monitoring := name == "prometheus" || name == "grafana"
		if monitoring != slices.Equal(s.Profiles, []string{"monitoring"}) {
			t.Errorf("%s is in the profiles %q", name, s.Profiles)
		}
		for key, value := range s.Environment {
			if regexp.MustCompile(`(?i)password|secret|token`).MatchString(key) && !strings.HasPrefix(value, "/run/secrets/") {
				t.Errorf("%s has a secret in its environment: %s", name, key)
			}
			if secret, ok := strings.CutPrefix(value, "/run/secrets/"); ok && !slices.Contains(s.Secrets, secret) {
				t.Errorf("%s: %s is not given the secret %s", name, key, secret)
			}
		}
		for _, secret := range s.Secrets {
			if !strings.HasPrefix(f.Secrets[secret].File, "./secrets/") {
				t.Errorf("%s wants the secret %s, which is no file below secrets/", name, secret)
			}
		}
		for _, v := range s.Volumes {
			from, _, _ := strings.Cut(v, ":")
			if _, named := f.Volumes[from]; named {
				continue
			}
			if _, err := os.Stat(filepath.Join(deployed("compose"), from)); err != nil {
				t.Errorf("%s mounts what is not there: %s", name, err)
			}
		}
	}
	if published != 1 {
		t.Error("port 82 is not published once")
	}
	if ignored := testbed.ReadFile(t, deployed("compose/secrets/.gitignore")); !strings.Contains(ignored, "\n*\n") {
		t.Error("secrets may get into the repository")
	}
}

// A container is killed when its grace is over: that must be later than the
// proxy's own.
func TestCompose_StopsNoLaterThanItKills(t *testing.T) {
	f := readCompose(t)
	for _, name := range f.named("lb-proxy") {
		grace, err := time.ParseDuration(f.Services[name].StopGrace)
		if err != nil {
			t.Fatal(err)
		}
		if own := shutdownTime(t, f.Services[name].Command); grace < own+5*time.Second {
			t.Errorf("%s is killed after %s and may need %s", name, grace, own)
		}
	}
}

// shutdownTime is how long a proxy with these flags may take to end.
func shutdownTime(t *testing.T, args []string) time.Duration {
	t.Helper()
	own := time.Minute // --shutdown-grace when it is not given
	delay := time.Duration(0)
	for _, arg := range args {
		name, value, _ := strings.Cut(arg, "=")
		d, err := time.ParseDuration(value)
		switch {
		case name == "--shutdown-grace" && err == nil:
			own = d
		case name == "--shutdown-delay" && err == nil:
			delay = d
		}
	}
	return own + delay
}

func TestDockerfile_IsSmallAndWithoutRights(t *testing.T) {
	text := testbed.ReadFile(t, deployed("compose/Dockerfile"))
	_, final, ok := strings.Cut(text, "\nFROM scratch\n")
	if !ok {
		t.Fatal("the image does not stand on an empty base")
	}
	for _, want := range []string{`(?m)^USER [1-9]\d*:[1-9]\d*$`, `(?m)^HEALTHCHECK .*CMD \["/lbctl", "healthcheck", "http://127.0.0.1:9182/readyz"\]$`, `(?m)^COPY .*/out/lb-admin /out/lb-proxy /out/lbctl /$`} {
		if !regexp.MustCompile(want).MatchString(final) {
			t.Errorf("the Dockerfile lacks %s", want)
		}
	}
	if !strings.Contains(text, "CGO_ENABLED=0 go build") {
		t.Error("the binaries are not static")
	}
	if v := regexp.MustCompile(`FROM golang:(\d+\.\d+)`).FindStringSubmatch(text); v == nil ||
		!strings.Contains(testbed.ReadFile(t, filepath.Join(testbed.Repository(), "go.mod")), "\ngo "+v[1]) {
		t.Errorf("the image is built with another Go than go.mod wants: %q", v)
	}
	if !strings.Contains(testbed.ReadFile(t, filepath.Join(testbed.Repository(), ".dockerignore")), "deploy/compose/secrets") {
		t.Error("secrets are sent to the builder")
	}
}

func TestCompose_ReadsWithDockerCompose(t *testing.T) {
	compose := tool(t, "docker-compose", "docker-compose")
	dir := deployed("compose")
	for _, args := range [][]string{
		{"-f", "docker-compose.yaml", "config"},
		{"-f", "docker-compose.yaml", "--profile", "monitoring", "config"},
		{"-f", "docker-compose.yaml", "-f", "tls.yaml", "config"},
	} {
		out := run(t, dir, compose, args...)
		if !strings.Contains(out, "lb-proxy2:") || strings.Contains(out, "LB_PROXY_TLS_KEY: /run/secrets/tls_key") != slices.Contains(args, "tls.yaml") {
			t.Errorf("%q: %.3000s", args, out)
		}
	}
}

// What the files set in the environment of our programs are their flags.
func TestCompose_SettingsExist(t *testing.T) {
	var tls composeFile
	if err := yaml.Unmarshal([]byte(testbed.ReadFile(t, deployed("compose/tls.yaml"))), &tls); err != nil {
		t.Fatal(err)
	}
	help := run(t, t.TempDir(), testbed.Programs.Proxy, "--help")
	given := readCompose(t).named("lb-proxy")
	if got := tls.named("lb-proxy"); !slices.Equal(got, given) {
		t.Errorf("tls.yaml is for %q, there are %q", got, given)
	}
	for name, s := range tls.Services {
		for key, value := range s.Environment {
			flag := "--" + strings.ToLower(strings.ReplaceAll(strings.TrimPrefix(key, "LB_PROXY_"), "_", "-"))
			if !strings.Contains(help, flag+" ") {
				t.Errorf("%s sets %s, and lb-proxy has no flag %s", name, key, flag)
			}
			if secret, ok := strings.CutPrefix(value, "/run/secrets/"); ok && (!slices.Contains(s.Secrets, secret) || tls.Secrets[secret].File == "") {
				t.Errorf("%s is not given the secret %s", name, secret)
			}
		}
		if len(s.Environment) != 3 || len(s.Ports) != 1 {
			t.Errorf("%s: %+v", name, s)
		}
	}
}

// stack is the cluster of the compose file as processes of this machine.
type stack struct {
	t     *testing.T
	dir   string
	file  composeFile
	at    *loopback
	image map[string]string // the environment that the image sets
}

func newStack(t *testing.T) *stack {
	t.Helper()
	s := &stack{t: t, file: readCompose(t), at: newLoopback(t), image: make(map[string]string)}
	var err error
	if s.dir, err = os.MkdirTemp(testbed.Scratch, "compose-"); err != nil {
		t.Fatal(err)
	}
	for name := range s.file.Services {
		s.at.hosts[name] = true
	}
	for _, m := range regexp.MustCompile(`(?m)^ENV (.*)$`).FindAllStringSubmatch(testbed.ReadFile(t, deployed("compose/Dockerfile")), -1) {
		for kv := range strings.FieldsSeq(m[1]) {
			key, value, _ := strings.Cut(kv, "=")
			s.image[key] = value
		}
	}
	return s
}

// home is where the paths of a container are.
func (s *stack) home(name string) string { return filepath.Join(s.dir, name) }

// command returns what a container would run, with this machine's paths and ports.
func (s *stack) command(name string, words []string) []string {
	s.t.Helper()
	out := slices.Clone(words)
	for i, w := range out {
		w = s.at.rewrite(name, w)
		w = regexp.MustCompile(`=(/[a-z-]+)`).ReplaceAllString(w, "="+s.home(name)+"$1")
		if i == 0 && strings.HasPrefix(w, "/lb") {
			w = filepath.Join(filepath.Dir(testbed.Programs.Ctl), w)
		}
		out[i] = w
	}
	return out
}

// environment is what the image and the file set, as arguments of env.
func (s *stack) environment(name string) (out []string) {
	for key, value := range s.image {
		if strings.HasPrefix(value, "/") {
			value = s.home(name) + value
		}
		out = append(out, key+"="+value)
	}
	return out
}

func (s *stack) start(name string) *testbed.Process {
	s.t.Helper()
	words := s.command(name, s.file.Services[name].Command)
	switch {
	case words[0] == "etcd":
		etcd, err := testbed.EtcdProgram()
		if err != nil {
			s.t.Fatal(err)
		}
		words[0] = etcd
	case strings.HasPrefix(words[0], "-"): // the image's own entry point
		words = append([]string{tool(s.t, name, name)}, words...)
	}
	if err := os.MkdirAll(s.home(name), 0o700); err != nil {
		s.t.Fatal(err)
	}
	return testbed.Start(s.t, s.dir, name, "/usr/bin/env", append(s.environment(name), words...)...)
}

// healthy runs the health check of one of our containers.
func (s *stack) healthy(name string) error {
	check := s.file.Services[name].Healthcheck.Test
	words := s.command(name, check[1:])
	out, err := command(s.dir, words[0], words[1:]...)
	if err != nil {
		return fmt.Errorf("%q: %w: %s", words, err, out)
	}
	return nil
}

// begin starts the three kinds in the order of depends_on, and waits until
// the health checks are content.
func (s *stack) begin() {
	s.t.Helper()
	for _, name := range s.file.named("etcd") {
		s.start(name)
	}
	for _, kind := range []string{"lb-admin", "lb-proxy"} {
		for _, name := range s.file.named(kind) {
			p := s.start(name)
			testbed.Eventually(s.t, 30*time.Second, name+" is healthy", func() error { return p.Alive(s.healthy(name)) })
		}
	}
}

// url is where a port of a service is here.
func (s *stack) url(name, port string) string { return "http://" + s.at.port(name, port) }

// lbctl runs the command line with the token that the first start made.
func (s *stack) lbctl(args ...string) string {
	s.t.Helper()
	var token string
	testbed.Eventually(s.t, 10*time.Second, "there is an admin token", func() error {
		for _, name := range s.file.named("lb-admin") {
			token = filepath.Join(s.home(name), "data", "admin.token")
			if _, err := os.Stat(token); err == nil {
				return nil
			}
		}
		return os.ErrNotExist
	})
	return run(s.t, s.dir, testbed.Programs.Ctl, append([]string{"--server", s.url("lb-admin1", "9180"), "--token-file", token}, args...)...)
}
