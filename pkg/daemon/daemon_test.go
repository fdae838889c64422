package daemon

import (
	"bytes"
	"context"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/spf13/cobra"
)

type opts struct {
	listen []string
	grace  time.Duration
	body   SizeValue
	nets   Prefixes
	debug  bool
}

func command(o *opts, ran *bool) *cobra.Command {
	cmd := &cobra.Command{Use: "lb-test"}
	f := cmd.Flags()
	f.StringSliceVar(&o.listen, "listen", []string{":1"}, "")
	f.DurationVar(&o.grace, "shutdown-grace", time.Minute, "")
	o.body = 100 << 20
	f.Var(&o.body, "max-body", "")
	f.Var(&o.nets, "trusted-proxies", "")
	f.BoolVar(&o.debug, "debug-headers", false, "")
	return Command(cmd, "LB_TEST", func(*cobra.Command) error { *ran = true; return nil })
}

func TestCommand_FlagBeatsEnvironmentBeatsFileBeatsDefault(t *testing.T) {
	file := filepath.Join(t.TempDir(), "c.yaml")
	os.WriteFile(file, []byte("listen: [':2', ':3']\nmax-body: 1m\nshutdown_grace: 5s\ntrusted-proxies: 10.0.0.0/8\ndebug-headers: true\n"), 0o600)
	t.Setenv("LB_TEST_MAX_BODY", "2m")
	t.Setenv("LB_TEST_SHUTDOWN_GRACE", "6s")
	t.Setenv("LB_TEST_CONFIG", file)
	t.Setenv("LB_TEST_SERVICE_HOST", "kubernetes sets such variables")
	var o opts
	ran := false
	cmd := command(&o, &ran)
	cmd.SetArgs([]string{"--shutdown-grace", "7s"})
	if err := cmd.Execute(); err != nil || !ran {
		t.Fatal(err)
	}
	if strings.Join(o.listen, " ") != ":2 :3" || o.body != 2<<20 || o.grace != 7*time.Second || o.nets.String() != "10.0.0.0/8" || !o.debug {
		t.Errorf("%+v", o)
	}
}

func TestCommand_WrongUsageNamesItAndStartsNothing(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string) string {
		p := filepath.Join(dir, name)
		os.WriteFile(p, []byte(text), 0o600)
		return p
	}
	for name, c := range map[string]struct {
		args []string
		env  map[string]string
		want []string
	}{
		"unknown flag":     {[]string{"--lsten", ":1"}, nil, []string{"--lsten", `did you mean "--listen"`}},
		"bad value":        {[]string{"--shutdown-grace", "soon"}, nil, []string{"soon", "shutdown-grace"}},
		"bad size":         {[]string{"--max-body", "100t"}, nil, []string{"100t", "max-body"}},
		"argument":         {[]string{"serve"}, nil, []string{`"serve"`}},
		"bad env":          {nil, map[string]string{"LB_TEST_TRUSTED_PROXIES": "10.0.0.0/99"}, []string{"LB_TEST_TRUSTED_PROXIES", "10.0.0.0/99"}},
		"missing file":     {[]string{"--config", dir + "/none"}, nil, []string{"none"}},
		"unknown key":      {[]string{"--config", write("a", "listen: ':1'\nmax-bdy: 1m\n")}, nil, []string{"line 2", "max-bdy", `"max-body"`}},
		"key with mapping": {[]string{"--config", write("b", "listen: {a: b}\n")}, nil, []string{"line 1", "listen"}},
		"bad file value":   {[]string{"--config", write("c", "max-body: lots\n")}, nil, []string{"max-body", "lots"}},
		"not yaml":         {[]string{"--config", write("d", "a: [")}, nil, []string{"line 1"}},
	} {
		t.Run(name, func(t *testing.T) {
			for k, v := range c.env {
				t.Setenv(k, v)
			}
			var o opts
			ran := false
			cmd := command(&o, &ran)
			cmd.SetArgs(c.args)
			err := cmd.Execute()
			if ran || ExitCode(err) != 2 {
				t.Fatalf("ran %v, exit code %d, %v", ran, ExitCode(err), err)
			}
			for _, w := range c.want {
				if !strings.Contains(err.Error(), w) {
					t.Errorf("%q does not name %s", err, w)
				}
			}
		})
	}
}

func TestPrefixes_Contains(t *testing.T) {
	p := PrivatePrefixes()
	for addr, want := range map[string]bool{"127.0.0.1": true, "::1": true, "10.9.8.7": true, "::ffff:192.168.1.1": true, "8.8.8.8": false, "2001:db8::1": false} {
		if got := p.Contains(netip.MustParseAddr(addr)); got != want {
			t.Errorf("%s: %v", addr, got)
		}
	}
	var one Prefixes
	if err := one.Set("192.0.2.7, private"); err != nil || !one.Contains(netip.MustParseAddr("192.0.2.7")) || !one.Contains(netip.MustParseAddr("10.0.0.1")) {
		t.Error(err, one)
	}
}

func TestSignals_FirstIsOrderlySecondIsNow(t *testing.T) {
	orderly, now, stop := Signals(context.Background())
	defer stop()
	syscall.Kill(os.Getpid(), syscall.SIGTERM)
	<-orderly.Done()
	if now.Err() != nil {
		t.Fatal("one signal ends everything")
	}
	if c := context.Cause(orderly); c == nil || !strings.Contains(c.Error(), "terminated") {
		t.Error(c)
	}
	syscall.Kill(os.Getpid(), syscall.SIGTERM)
	<-now.Done()
}

func TestNewLogger_RefusesWhatItDoesNotKnow(t *testing.T) {
	for _, c := range [][2]string{{"loud", "json"}, {"info", "xml"}, {"", "json"}} {
		if _, err := NewLogger(&bytes.Buffer{}, c[0], c[1]); ExitCode(err) != 2 {
			t.Errorf("%v: %v", c, err)
		}
	}
	var b bytes.Buffer
	log, err := NewLogger(&b, "info", "console")
	if err != nil {
		t.Fatal(err)
	}
	log.Info().Msg("hello")
	if !strings.Contains(b.String(), "hello") {
		t.Error(b.String())
	}
}

func TestEtcdOptions_Validate(t *testing.T) {
	for name, o := range map[string]EtcdOptions{
		"endpoint": {Endpoints: []string{"10.0.0.5:2379"}, Prefix: "/difylb"},
		"prefix":   {Prefix: "difylb"},
		"slash":    {Prefix: "/difylb/"},
		"cert":     {Prefix: "/difylb", Cert: "x"},
		"password": {Prefix: "/difylb", PasswordFile: "x"},
	} {
		if err := o.Validate(); ExitCode(err) != 2 {
			t.Errorf("%s: %v", name, err)
		}
	}
	ok := EtcdOptions{Prefix: "/difylb", Endpoints: []string{"http://10.0.0.5:2379", "unix:///run/etcd.sock"}}
	if err := ok.Validate(); err != nil {
		t.Error(err)
	}
}

func TestCheckListenURL_RefusesWhatEtcdCannotBind(t *testing.T) {
	for _, ok := range []string{"http://127.0.0.1:2379", "http://127.0.0.1:0", "http://[::1]:80/", "http://localhost:2380", "http://0.0.0.0:2379", "127.0.0.1:2379", "unix:///run/etcd.sock"} {
		if err := CheckListenURL("etcd-listen-client", ok); err != nil {
			t.Errorf("%s: %v", ok, err)
		}
	}
	for _, bad := range []string{
		"", "nonsense", "http://nonsense", "http://127.0.0.1", "http://127.0.0.1:70000", "http://127.0.0.1:2379/x", "http://:2379",
		"http://example.org:2379", "https://127.0.0.1:2379", "ftp://127.0.0.1:1", "unix://run/x", "unix://", "unix:///", "http://1.2.3:80",
	} {
		err := CheckListenURL("etcd-listen-client", bad)
		if ExitCode(err) != 2 || !strings.Contains(err.Error(), "--etcd-listen-client") || !strings.Contains(err.Error(), strings.TrimPrefix(bad, "http://")) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestAdvertised_CanBeDialled(t *testing.T) {
	for _, tt := range []struct{ addr, want string }{{"127.0.0.1:80", "127.0.0.1:80"}, {"[::1]:80", "[::1]:80"}, {"10.1.2.3:4", "10.1.2.3:4"}} {
		if got := Advertised(net.TCPAddrFromAddrPort(netip.MustParseAddrPort(tt.addr))); got != tt.want {
			t.Errorf("%s is advertised as %s", tt.addr, got)
		}
	}
	if got := Advertised(&net.UnixAddr{Name: "/run/x", Net: "unix"}); got != "/run/x" {
		t.Errorf("a socket is advertised as %s", got)
	}
	for _, any := range []net.Addr{&net.TCPAddr{Port: 8082}, &net.TCPAddr{IP: net.IPv4zero, Port: 8082}, &net.TCPAddr{IP: net.IPv6unspecified, Port: 8082}} {
		at, err := netip.ParseAddrPort(Advertised(any))
		if err != nil || at.Addr().IsUnspecified() || at.Addr().IsLinkLocalUnicast() || at.Port() != 8082 {
			t.Errorf("%s is advertised as %s, %v", any, at, err)
		}
	}
}

func TestCheckAddress_RefusesWhatIsNone(t *testing.T) {
	for _, ok := range []string{":8082", "127.0.0.1:0", "[::1]:80", "localhost:65535", "[fe80::1%eth0]:80"} {
		if err := CheckAddress("listen", ok); err != nil {
			t.Errorf("%s: %v", ok, err)
		}
	}
	for _, bad := range []string{"", "8082", "127.0.0.1", ":http", ":65536", ":-1", "1.2.3:80", "127.0.0.1:80:90", ":080"} {
		if err := CheckAddress("listen", bad); ExitCode(err) != 2 || !strings.Contains(err.Error(), "--listen") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

func TestPercentFor_KeepsTheFloor(t *testing.T) {
	const mib = 1 << 20
	for live, want := range map[uint64]int{0: 800, mib: 800, 4 * mib: 800, 10 * mib: 300, 32 * mib: 100, 500 * mib: 100} {
		if got := percentFor(live, 32*mib); got != want {
			t.Errorf("live %d MiB: %d, want %d", live/mib, got, want)
		}
	}
}
