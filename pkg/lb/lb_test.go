package lb

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"
	"time"
)

func TestSecret_NeverPrints(t *testing.T) {
	s := Secret("app-canary-secret-value-9876")
	in := Instance{Name: "a", Host: "h", Port: 80, Token: s}
	j, err := json.Marshal(in)
	if err != nil {
		t.Fatal(err)
	}
	for _, out := range []string{
		s.String(), fmt.Sprint(s), fmt.Sprintf("%s %q %v %+v %#v %x %d", s, s, s, s, s, s, s),
		fmt.Sprintf("%+v %#v", in, in), fmt.Sprintf("%v", &in), string(j),
	} {
		if strings.Contains(out, "canary") {
			t.Errorf("shows the secret: %s", out)
		}
	}
	if !strings.Contains(string(j), `"token_hint":"9876"`) || strings.Contains(string(j), `"token":`) {
		t.Errorf("want a hint and no token in %s", j)
	}
	j, _ = in.MarshalSecret()
	if !strings.Contains(string(j), `"token":"app-canary-secret-value-9876"`) {
		t.Errorf("MarshalSecret leaves the token out: %s", j)
	}
	if h := Secret("short").Hint(); h != "" {
		t.Errorf("hint %q gives a short token away", h)
	}
}

func TestDuration_ReadsAndWrites(t *testing.T) {
	for in, want := range map[string]string{
		"30s": "30s", "30": "30s", "300s": "5m", "1h": "1h", "3600": "1h", "90m": "1h30m", "0.5": "500ms", "0": "0s", "10s": "10s", "1h0m10s": "1h0m10s",
	} {
		d, err := ParseDuration(in)
		if err != nil || d.String() != want {
			t.Errorf("ParseDuration(%q) = %s, %v; want %s", in, d, err, want)
		}
	}
	for _, in := range []string{"", "fast", "1x", "1e300", "NaN"} {
		if d, err := ParseDuration(in); err == nil {
			t.Errorf("ParseDuration(%q) = %s, want an error", in, d)
		}
	}
	var d Duration
	if err := json.Unmarshal([]byte("2"), &d); err != nil || d.D() != 2*time.Second {
		t.Errorf("JSON 2 = %s, %v", d, err)
	}
}

func TestSize_ReadsAndWrites(t *testing.T) {
	for in, want := range map[string]Size{"100m": 100 << 20, "1g": 1 << 30, "64K": 64 << 10, "7": 7, "100MiB": 100 << 20, "0": 0, "1536k": 1536 << 10} {
		v, err := ParseSize(in)
		if err != nil || v != want {
			t.Errorf("ParseSize(%q) = %d, %v; want %d", in, v, err, want)
		}
		if back, err := ParseSize(v.String()); err != nil || back != v {
			t.Errorf("%d writes as %q, reads as %d, %v", v, v.String(), back, err)
		}
	}
	for _, in := range []string{"", "m", "-1", "1t", "9999999999g", "1.5m"} {
		if v, err := ParseSize(in); err == nil {
			t.Errorf("ParseSize(%q) = %d, want an error", in, v)
		}
	}
}

func validApp() *Application {
	a := NewApplication("shop")
	in := Instance{Name: "dify1", Host: "10.0.0.1", Port: 80, Token: "app-1"}
	in.SetDefaults()
	a.Instances = []Instance{in}
	a.UserTokens = []UserToken{NewUserToken("user-token-0001", "web", false)}
	return a
}

func TestValidate_DefaultsAreValid(t *testing.T) {
	d := Document{Applications: map[string]*Application{"shop": validApp()}, Settings: &Settings{}}
	if err := d.Validate().Err(); err != nil {
		t.Fatal(err)
	}
}

func TestValidate_ListsEveryFault(t *testing.T) {
	a := validApp()
	a.Name = "Shop!"
	a.UserTokens = append(a.UserTokens, a.UserTokens[0])
	a.ConsistentHash = ConsistentHash{VirtualNodes: 0, HashAlgorithm: "md4", LoadFactor: 1}
	a.MissingUser = "rejct"
	a.Timeouts = Timeouts{}
	a.Retry = Retry{Attempts: -1}
	a.MaxBody = -1
	a.RateLimit = RateLimit{PerApp: &Rate{}, PerUser: &Rate{PerSecond: -1, Burst: 1}}
	a.Check = HealthCheck{Type: "htp", Path: "info", ExpectStatus: "2xx"}
	a.Queue = Queue{Size: -1}
	base := a.Instances[0]
	mk := func(f func(*Instance)) Instance { in := base; f(&in); return in }
	a.Instances = []Instance{
		mk(func(in *Instance) { in.Name = "" }),
		mk(func(in *Instance) { in.Name = "a/b"; in.Port = 0 }),
		mk(func(in *Instance) { in.Name = "dup"; in.Token = "" }),
		mk(func(in *Instance) { in.Name = "dup"; in.Port = 70000; in.Weight = -1 }),
		mk(func(in *Instance) {
			in.Name = "u1"
			in.Host, in.Port, in.URL = "", 0, "ftp://x"
			in.State = "drainning"
			in.MaxFails = -1
		}),
		mk(func(in *Instance) {
			in.Name = "u2"
			in.Host, in.Port, in.URL = "", 0, "http://u:p@h/"
			in.FailTimeout = 0
		}),
		mk(func(in *Instance) {
			in.Name = "u3"
			in.Host, in.Port, in.URL = "", 0, "http://h/v1"
			in.MaxInFlight = -1
		}),
		mk(func(in *Instance) { in.Name = "u4"; in.Host = "169.254.169.254"; in.Domain = "a b"; in.Weight = 65536 }),
		mk(func(in *Instance) { in.Name = "u5"; in.Host = "300.1.1.1"; in.Token = "has space" }),
		mk(func(in *Instance) { in.Name = "u6"; in.URL = "http://h" }),
		mk(func(in *Instance) { in.Name = "u7"; in.Host, in.Port, in.URL = "", 0, "http://h:99999" }),
	}
	got := a.Validate("applications.Shop!")
	want := []string{
		"applications.Shop!", "user_tokens[1]", "consistent_hash.virtual_nodes", "consistent_hash.hash_algorithm", "consistent_hash.load_factor", "missing_user",
		"timeouts.connect", "timeouts.read", "timeouts.send", "retry.attempts", "retry.timeout", "max_body",
		"rate_limit.per_app.rate", "rate_limit.per_app.burst", "rate_limit.per_user.rate",
		"health_check.type", "health_check.path", "health_check.interval", "health_check.timeout", "health_check.healthy_threshold",
		"health_check.unhealthy_threshold", "health_check.expect_status", "queue.size", "queue.timeout",
		"instances[0].name", "instances[1].name", "instances[1].port", "instances[2].token", "instances[3].name", "instances[3].port", "instances[3].weight",
		"instances[4].url", "instances[4].max_fails", "instances[4].state", "instances[5].url", "instances[5].fail_timeout",
		"instances[6].url", "instances[6].max_in_flight", "instances[7].host", "instances[7].weight", "instances[7].domain",
		"instances[8].host", "instances[8].token", "instances[9].url", "instances[10].url",
	}
	paths := make(map[string]bool)
	for _, f := range got {
		paths[strings.TrimPrefix(f.Path, "applications.Shop!.")] = true
	}
	for _, w := range want {
		if !paths[w] {
			t.Errorf("no fault at %s", w)
		}
	}
	if len(got) != len(want) {
		t.Errorf("%d faults, want %d:\n%s", len(got), len(want), strings.ReplaceAll(got.Error(), "; ", "\n"))
	}
	if !errors.Is(got.Err(), ErrInvalid) {
		t.Error("faults are not ErrInvalid")
	}
}

func TestValidate_TokenInTwoApplications(t *testing.T) {
	a, b := validApp(), validApp()
	b.Name = "web"
	d := Document{Applications: map[string]*Application{"shop": a, "web": b}}
	fs := d.Validate()
	if len(fs) != 1 || fs[0].Path != "applications.web.user_tokens[0]" || !strings.Contains(fs[0].Message, `"shop"`) {
		t.Fatalf("faults: %v", fs)
	}
}

func TestResolve_KeepsStoredSecrets(t *testing.T) {
	stored := validApp()
	a := NewApplication("shop")
	a.Instances = []Instance{{Name: "dify1", Host: "10.0.0.2"}, {Name: "new", Host: "10.0.0.3"}}
	a.UserTokens = []UserToken{{Ref: stored.UserTokens[0].ID(), Label: "renamed"}, {Ref: "0123456789abcdef"}}
	fs := a.Resolve(stored, "applications.shop")
	if a.Instances[0].Token != "app-1" || a.Instances[1].Token != "" || a.Instances[0].Port != 80 {
		t.Errorf("instances: %+v", a.Instances)
	}
	if got := a.UserTokens[0]; got.SHA256 != stored.UserTokens[0].SHA256 || got.Label != "renamed" || got.Ref != "" {
		t.Errorf("token: %+v", got)
	}
	if len(fs) != 1 || fs[0].Path != "applications.shop.user_tokens[1].id" {
		t.Errorf("faults: %v", fs)
	}
}

func TestInstance_Address(t *testing.T) {
	for _, c := range []struct {
		in         Instance
		addr, base string
	}{
		{Instance{Host: "h", Port: 80}, "h:80", "http://h"},
		{Instance{Host: "10.0.0.1", Port: 5001}, "10.0.0.1:5001", "http://10.0.0.1:5001"},
		{Instance{Host: "fd00::1", Port: 80}, "[fd00::1]:80", "http://[fd00::1]"},
		{Instance{URL: "https://api.dify.ai"}, "api.dify.ai:443", "https://api.dify.ai"},
		{Instance{URL: "https://api.dify.ai:8443/"}, "api.dify.ai:8443", "https://api.dify.ai:8443"},
		{Instance{URL: "http://[::1]"}, "[::1]:80", "http://[::1]"},
	} {
		if got := c.in.Address(); got != c.addr {
			t.Errorf("address %q, want %q", got, c.addr)
		}
		if got := c.in.BaseURL().String(); got != c.base {
			t.Errorf("base URL %q, want %q", got, c.base)
		}
	}
}

func TestDidYouMean_Nearest(t *testing.T) {
	if s := DidYouMean("wieght", []string{"name", "weight", "host"}); s != `; did you mean "weight"?` {
		t.Error(s)
	}
	if s := DidYouMean("zebra", []string{"name", "weight"}); s != "" {
		t.Error(s)
	}
}

func TestClone_SharesNothing(t *testing.T) {
	a := validApp()
	a.RateLimit.PerApp = &Rate{PerSecond: 1, Burst: 1}
	c := a.Clone()
	c.Instances[0].Weight = 9
	c.RateLimit.PerApp.Burst = 9
	c.UserTokens[0].Label = "x"
	if a.Instances[0].Weight == 9 || a.RateLimit.PerApp.Burst == 9 || a.UserTokens[0].Label == "x" {
		t.Error("the clone shares memory with the original")
	}
}

func TestLoadFactor_IsOffOrAboveOne(t *testing.T) {
	for factor, ok := range map[float64]bool{0: true, 1.25: true, 1.001: true, MaxLoadFactor: true, 1: false, 0.5: false, -1.5: false, MaxLoadFactor + 1: false} {
		a := NewApplication("shop")
		a.ConsistentHash.LoadFactor = factor
		if faults := a.Validate("applications.shop"); (len(faults) == 0) != ok {
			t.Errorf("%v: %v", factor, faults)
		}
	}
}
