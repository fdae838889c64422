//go:build linux

package contest

import (
	"bytes"
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"difylb/bench/load"
)

// The tokens of the benchmark; they open nothing.
const (
	userToken     = "usertoken--bench-v1"
	instanceToken = "app-bench-instance-token"
)

// Names of the contestants.
const (
	LBProxy      = "lb-proxy"
	LBProxyOld   = "lb-proxy, old" // of Options.Old
	Nginx        = "nginx"
	HAProxy      = "HAProxy"
	ReverseProxy = "ReverseProxy"
	// Relay only moves bytes. It is the floor, not a peer, and plays in the loads that
	// look at a request's or an event's cost.
	Relay = "relay"
	// Direct is no proxy: the generator asks an instance. What others add to
	// latency is counted from there.
	Direct = "direct"
)

// contestant is one proxy that can be measured.
type contestant struct {
	name string
	// command returns what runs the proxy, on so many cores and listening at
	// addr, after having written what it needs.
	command func(ctx context.Context, a *arena, cores int, addr netip.AddrPort) ([]string, error)
	// readsBody says that it finds the user in the body and needs no header.
	readsBody bool
	// about says in which configuration it is measured.
	about string
	// version returns the version, "" where the program is not installed.
	version func(a *arena) string
}

var contestants = []contestant{
	{
		name: LBProxy, command: func(ctx context.Context, a *arena, _ int, addr netip.AddrPort) ([]string, error) {
			return lbProxyCommand(ctx, a, a.bins, addr)
		}, readsBody: true,
		about: "user id from the JSON body, application by token; statistics, passive health, one JSON line per request in a file",
		version: func(a *arena) string {
			return strings.TrimPrefix(firstLine(a.bin("lb-proxy"), "--version"), "lb-proxy ")
		},
	},
	{
		name: Nginx, command: nginxCommand,
		about:   "`hash $http_x_user_id consistent`, upstream keepalive, JSON access log with a buffer of 64 KiB; no buffering of streams and uploads",
		version: func(*arena) string { return strings.TrimPrefix(firstLine("nginx", "-v"), "nginx version: nginx/") },
	},
	{
		name: HAProxy, command: haproxyCommand,
		about: "`balance hdr(X-User-ID)`, `hash-type consistent`, `http-reuse always`, `option http-no-delay`, `option splice-request`; no log",
		version: func(*arena) string {
			v, _, _ := strings.Cut(strings.TrimPrefix(firstLine("haproxy", "-v"), "HAProxy version "), " ")
			return v
		},
	},
	{
		name: ReverseProxy, command: reverseProxyCommand,
		about:   "`httputil.ReverseProxy` of Go's standard library, tuned transport, user by header; no log, no statistics",
		version: func(a *arena) string { return a.machine.Go },
	},
	{
		name: Relay, command: relayCommand,
		about:   "moves bytes and looks at none: what the kernel takes from every proxy",
		version: func(a *arena) string { return a.machine.Go },
	},
}

// running is a contestant that runs.
type running struct {
	contestant
	*process // nil for Direct
	addr     netip.AddrPort
	cores    int
}

func (r *running) target() load.Target {
	return load.Target{Addr: r.addr, Token: userToken, UserHeader: !r.readsBody}
}

// launch starts a contestant on so many cores and waits until it routes.
func (a *arena) launch(ctx context.Context, c contestant, cores int) (*running, error) {
	addr, err := a.freeAddr()
	if err != nil {
		return nil, err
	}
	command, err := c.command(ctx, a, cores, addr)
	if err != nil {
		return nil, err
	}
	p, err := start(a.dir, c.name, a.plan.proxy(cores), command...)
	if err != nil {
		return nil, err
	}
	r := &running{contestant: c, process: p, addr: addr, cores: cores}
	if err := p.await(ctx, r.tryOut); err != nil {
		p.stop()
		return nil, err
	}
	return r, nil
}

// tryOut sends one request through the proxy.
func (r *running) tryOut(ctx context.Context) error {
	const body = `{"inputs":{},"query":"ready?","response_mode":"blocking","user":"user-0000"}`
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://"+r.addr.String()+"/v1/chat-messages", strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+userToken)
	req.Header.Set("Content-Type", "application/json")
	if !r.readsBody {
		req.Header.Set("X-User-ID", "user-0000")
	}
	return fetch(req)
}

// fetch does a request on a connection of its own and wants success.
func fetch(req *http.Request) error {
	req.Close = true
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err == nil && resp.StatusCode/100 != 2 {
		err = fmt.Errorf("%s %s: %s: %s", req.Method, req.URL, resp.Status, text)
	}
	return err
}

// freeAddr returns an address that nobody listens at, below the ports that the
// kernel gives to outgoing connections: thousands of those come and go here.
func (a *arena) freeAddr() (netip.AddrPort, error) {
	for range 1000 {
		port := uint16(20000 + rand.IntN(10000))
		addr := netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port)
		if a.used[port] {
			continue
		}
		l, err := net.Listen("tcp4", addr.String())
		if err != nil {
			continue
		}
		a.used[port] = true
		return addr, l.Close()
	}
	return netip.AddrPort{}, errors.New("no free port on 127.0.0.1")
}

//go:embed *.tmpl
var templateFiles embed.FS

var templates = template.Must(template.ParseFS(templateFiles, "*.tmpl"))

// settings fill the templates.
type settings struct {
	Dir                             string
	Listen                          netip.AddrPort
	Instances                       []netip.AddrPort
	UserToken, Token                string
	Cores, Descriptors, Connections int
	Root                            bool
}

func (a *arena) settings(cores int, addr netip.AddrPort) settings {
	return settings{
		Dir: a.dir, Listen: addr, Instances: a.instances, UserToken: userToken, Token: instanceToken, Cores: cores, Root: os.Geteuid() == 0,
		Descriptors: a.machine.Descriptors,
		// A stream takes two descriptors, the proxy some for itself.
		Connections: (a.machine.Descriptors - 600) / 2,
	}
}

// write fills a template into a file of the arena and returns its path.
func (a *arena) write(name string, s settings) (string, error) {
	var b bytes.Buffer
	if err := templates.ExecuteTemplate(&b, name+".tmpl", s); err != nil {
		return "", err
	}
	path := filepath.Join(a.dir, name)
	return path, os.WriteFile(path, b.Bytes(), 0o600)
}

func nginxCommand(_ context.Context, a *arena, cores int, addr netip.AddrPort) ([]string, error) {
	s := a.settings(cores, addr)
	s.Connections *= 2 // nginx counts both sides
	file, err := a.write("nginx.conf", s)
	return []string{"nginx", "-c", file, "-e", filepath.Join(a.dir, "nginx.error.log")}, err
}

func haproxyCommand(_ context.Context, a *arena, cores int, addr netip.AddrPort) ([]string, error) {
	file, err := a.write("haproxy.cfg", a.settings(cores, addr))
	return []string{"haproxy", "-db", "-f", file}, err
}

func reverseProxyCommand(_ context.Context, a *arena, _ int, addr netip.AddrPort) ([]string, error) {
	return a.selfAs(roleReverseProxy, addr), nil
}

func relayCommand(_ context.Context, a *arena, _ int, addr netip.AddrPort) ([]string, error) {
	return a.selfAs(roleRelay, addr), nil
}

// selfAs returns what runs this program as a proxy.
func (a *arena) selfAs(role string, addr netip.AddrPort) []string {
	command := []string{a.self, role, addr.String()}
	for _, in := range a.instances {
		command = append(command, in.String())
	}
	return command
}

// oldContestant is the lb-proxy of another build, to compare with.
func oldContestant(dir string) contestant {
	return contestant{
		name: LBProxyOld, command: func(ctx context.Context, a *arena, _ int, addr netip.AddrPort) ([]string, error) {
			return lbProxyCommand(ctx, a, dir, addr)
		},
		readsBody: true, about: "another build of lb-proxy",
		version: func(*arena) string {
			return strings.TrimPrefix(firstLine(filepath.Join(dir, "lb-proxy"), "--version"), "lb-proxy ")
		},
	}
}

func lbProxyCommand(ctx context.Context, a *arena, dir string, addr netip.AddrPort) ([]string, error) {
	if err := a.startAdmin(ctx); err != nil {
		return nil, err
	}
	ops, err := a.freeAddr()
	if err != nil {
		return nil, err
	}
	node := "bench-" + strconv.Itoa(int(addr.Port()))
	return []string{
		filepath.Join(dir, "lb-proxy"), "--listen", addr.String(), "--ops-listen", ops.String(), "--etcd-endpoints", a.etcd,
		"--node-id", node, "--data-dir", filepath.Join(a.dir, node),
		"--access-log", filepath.Join(a.dir, node+".access.log"), "--max-body", "1g",
		"--shutdown-grace", "1s", "--log-level", "warn",
	}, nil
}

// startAdmin starts an lb-admin with its own etcd, once, and applies the
// benchmark's configuration. Neither is measured.
func (a *arena) startAdmin(ctx context.Context) error {
	if a.etcd != "" {
		return nil
	}
	var addrs [4]netip.AddrPort // REST, gRPC, etcd's clients, etcd's peers
	for i := range addrs {
		var err error
		if addrs[i], err = a.freeAddr(); err != nil {
			return err
		}
	}
	etcd, data := "http://"+addrs[2].String(), filepath.Join(a.dir, "lb-admin.data")
	p, err := start(a.dir, "lb-admin", a.plan.Load, a.bin("lb-admin"),
		"--http-listen", addrs[0].String(), "--grpc-listen", addrs[1].String(),
		"--etcd-listen-client", etcd, "--etcd-listen-peer", "http://"+addrs[3].String(),
		"--data-dir", data, "--node-id", "bench-admin", "--log-level", "warn")
	if err != nil {
		return err
	}
	a.others = append(a.others, p)
	base := "http://" + addrs[0].String()
	// Applying is tried until it works: that is what being ready means here.
	if err := p.await(ctx, func(ctx context.Context) error { return a.apply(ctx, base, filepath.Join(data, "admin.token")) }); err != nil {
		return err
	}
	a.etcd = etcd
	return nil
}

func (a *arena) apply(ctx context.Context, base, tokenFile string) error {
	token, err := os.ReadFile(tokenFile)
	if err != nil {
		return err
	}
	file, err := a.write("difylb.yaml", a.settings(1, netip.AddrPort{}))
	if err != nil {
		return err
	}
	document, err := os.ReadFile(file)
	if err != nil {
		return err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/api/v1/apply", bytes.NewReader(document))
	if err != nil {
		return err
	}
	req.Header.Set("Authorization", "Bearer "+strings.TrimSpace(string(token)))
	req.Header.Set("Content-Type", "application/yaml")
	return fetch(req)
}

// build compiles lb-admin and lb-proxy into the arena, as make build does,
// unless their directory was given.
func (a *arena) build(ctx context.Context) error {
	if a.bins != "" {
		return nil
	}
	a.bins = a.dir
	flags := "-s -w"
	if revision := firstLine("git", "rev-parse", "--short=12", "HEAD"); revision != "" {
		flags += " -X difylb/pkg/daemon.Revision=" + revision
	}
	cmd := exec.CommandContext(ctx, "go", "build", "-trimpath", "-ldflags", flags, "-o", a.bins+"/", "difylb/cmd/lb-admin", "difylb/cmd/lb-proxy")
	cmd.Env = slices.Concat(os.Environ(), []string{"CGO_ENABLED=0"})
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("build lb-admin and lb-proxy: %w: %s", err, out)
	}
	return nil
}

func (a *arena) bin(name string) string { return filepath.Join(a.bins, name) }
