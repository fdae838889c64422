package document

import (
	"encoding/json"
	"errors"
	"reflect"
	"strings"
	"testing"

	"difylb/pkg/lb"
)

const full = `
applications:
  customer_service:
    user_tokens:
      - usertoken--customer-service-v1
      - {token: second-token-0002, label: web, disabled: true}
    consistent_hash: {virtual_nodes: 200, hash_algorithm: md5}
    missing_user: reject
    timeouts: {connect: 1s, read: 10s}
    retry: {attempts: 0}
    max_body: 1m
    rate_limit: {per_app: {rate: 500, burst: 200}, per_user: {rate: 0.5, burst: 1}}
    health_check: {type: tcp, interval: 2s}
    instances:
      - name: dify1
        host: 172.20.62.200
        token: app-9VSEFXR2qoMRoUHfmzxClGhe
        fail_timeout: 45
      - {name: dify2, url: "https://api.dify.ai", token: app-second, weight: 0, state: draining, preserve_host: true}
settings:
  rate_limit: {per_ip: {rate: 200, burst: 100}}
`

func TestParse_FillsDefaultsAndKeepsOrder(t *testing.T) {
	doc, err := Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	a := doc.Applications["customer_service"]
	if a.Timeouts.Send != lb.Duration(300e9) || a.Timeouts.Read != lb.Duration(10e9) || a.Retry.Attempts != 0 || a.Retry.Timeout != lb.Duration(30e9) {
		t.Errorf("timeouts %+v, retry %+v", a.Timeouts, a.Retry)
	}
	if a.Check.Type != lb.CheckTCP || a.Check.UnhealthyThreshold != 3 || a.Check.Path != "/v1/info" {
		t.Errorf("check %+v", a.Check)
	}
	if a.UserTokens[0].SHA256 != lb.Secret("usertoken--customer-service-v1").Hash() || a.UserTokens[1].Label != "web" || !a.UserTokens[1].Disabled {
		t.Errorf("tokens %+v", a.UserTokens)
	}
	in := a.Instances[0]
	if in.FailTimeout.String() != "45s" || in.Weight != 1 || in.MaxFails != 3 || in.State != lb.Active {
		t.Errorf("instance %+v", in)
	}
	if in := a.Instances[1]; in.Weight != 0 || in.State != lb.Draining || in.PreserveHost == nil || !*in.PreserveHost {
		t.Errorf("instance %+v", in)
	}
	for _, app := range doc.Applications {
		if fs := app.Resolve(nil, "x"); len(fs) > 0 {
			t.Fatal(fs)
		}
	}
	if fs := doc.Validate(); len(fs) > 0 {
		t.Fatal(fs)
	}
}

func TestParse_YAMLAndJSONAgree(t *testing.T) {
	fromYAML, err := Parse([]byte(full))
	if err != nil {
		t.Fatal(err)
	}
	js, err := MarshalJSON(fromYAML, true)
	if err != nil {
		t.Fatal(err)
	}
	yml, err := MarshalYAML(fromYAML, true)
	if err != nil {
		t.Fatal(err)
	}
	for name, data := range map[string][]byte{"JSON": js, "YAML": yml} {
		back, err := Parse(data)
		if err != nil {
			t.Fatalf("%s: %v\n%s", name, err, data)
		}
		if !reflect.DeepEqual(back, fromYAML) {
			t.Errorf("%s does not come back:\n%s", name, data)
		}
	}
}

func TestMarshal_WithoutSecretsShowsNone(t *testing.T) {
	doc, _ := Parse([]byte(full))
	out, err := MarshalYAML(doc, false)
	if err != nil {
		t.Fatal(err)
	}
	for _, secret := range []string{"usertoken--", "app-9VSE", doc.Applications["customer_service"].UserTokens[0].SHA256.String()} {
		if strings.Contains(string(out), secret) {
			t.Errorf("shows %s:\n%s", secret, out)
		}
	}
	// What it shows applies again to a cluster that holds the tokens.
	again, err := Parse(out)
	if err != nil {
		t.Fatal(err)
	}
	a := again.Applications["customer_service"]
	if fs := a.Resolve(doc.Applications["customer_service"], "a"); len(fs) > 0 {
		t.Fatal(fs)
	}
	want := doc.Applications["customer_service"]
	want.Resolve(nil, "a")
	if !reflect.DeepEqual(a, want) {
		t.Errorf("got %+v\nwant %+v", a, want)
	}
}

func TestParse_ReportsEveryFaultWithLine(t *testing.T) {
	_, err := Parse([]byte(`applications:
  shop:
    instanses: []
    missing_user: [auto]
    timeouts: {connect: fast, raed: 3s}
    instances:
      - name: a
        wieght: 3
        port: "80"
        weight: heavy
      - name: a
        name: b
        host: [x]
    user_tokens: {a: b}
  shop:
    max_body: 1t
setings: {}
`))
	var fs lb.Faults
	if !errors.As(err, &fs) {
		t.Fatal(err)
	}
	want := map[string]int{
		"applications.shop.instanses":           3,
		"applications.shop.missing_user":        4,
		"applications.shop.timeouts.connect":    5,
		"applications.shop.timeouts.raed":       5,
		"applications.shop.instances[0].wieght": 8,
		"applications.shop.instances[0].port":   9,
		"applications.shop.instances[0].weight": 10,
		"applications.shop.instances[1].name":   12,
		"applications.shop.instances[1].host":   13,
		"applications.shop.user_tokens":         14,
		"applications.shop":                     15,
		"setings":                               17,
	}
	for _, f := range fs {
		if line, ok := want[f.Path]; !ok || line != f.Line {
			t.Errorf("line %d, %s: %s", f.Line, f.Path, f.Message)
		}
		delete(want, f.Path)
	}
	for path := range want {
		t.Errorf("no fault at %s", path)
	}
	if !strings.Contains(fs.Error(), `did you mean "weight"`) {
		t.Error(fs.Error())
	}
}

func TestParse_FaultsNeverShowTokens(t *testing.T) {
	_, err := Parse([]byte(`{"applications":{"a":{"user_tokens":["canary one","` + strings.Repeat("canary", 100) + `",{"tokn":"canary"},{"sha256":"canary"}],
		"instances":[{"name":"x","host":"h","token":["canary"]}]}}}`))
	if err == nil || strings.Contains(err.Error(), "canary") {
		t.Fatal(err)
	}
	for _, in := range []string{
		`{"applications":{"a":{"user_tokens":"canary"}}}`, `{"applications":{"a":{"instances":"canary"}}}`, `{"applications":{"a":{"instances":["canary"]}}}`,
		`{"applications":{"a":"canary"}}`, `{"applications":"canary"}`, "applications: {a: {user_tokens: [*canary]}}", "applications: {a: {user_tokens: [&canary]}}", "applications: {a: {user_tokens: ['canary}}",
		`{"applications":{"a":{"instances":[{"name":"x","host":"h","token":{"canary":1}}]}}}`,
	} {
		if _, err := Parse([]byte(in)); err != nil && strings.Contains(err.Error(), "canary") {
			t.Errorf("%s: %v", in, err)
		}
	}
}

func TestParse_RefusesWhatIsNoDocument(t *testing.T) {
	deep := strings.Repeat("[", 100000) + strings.Repeat("]", 100000)
	bomb := "a: &a [x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e]\ng: &g [*f,*f,*f,*f,*f,*f,*f,*f]\nh: [*g,*g,*g,*g,*g,*g,*g,*g]\n"
	for name, in := range map[string]string{
		"list": "[]", "text": "hello", "bad yaml": "a: [", "bad json": `{"a":`, "two documents": "a: 1\n---\nb: 2\n",
		"deep": deep, "bomb": bomb, "tab": "a:\n\tb: 1", "key": "? [a]\n: b",
	} {
		if _, err := Parse([]byte(in)); err == nil {
			t.Errorf("%s: no error", name)
		}
	}
	if doc, err := Parse(nil); err != nil || len(doc.Applications) != 0 {
		t.Errorf("empty: %v, %v", doc, err)
	}
}

func TestLenient_PassesOverNewerKeys(t *testing.T) {
	var in lb.Instance
	if err := Lenient([]byte(`{"name":"a","host":"h","token":"t","zone":{"x":1}}`), &in); err != nil || in.Token != "t" || in.Weight != 1 {
		t.Fatalf("%+v, %v", in, err)
	}
	if err := Lenient([]byte(`{"name":"a","weight":"x"}`), &in); err == nil {
		t.Error("a wrong type passes")
	}
}

func FuzzParse(f *testing.F) {
	f.Add([]byte(full))
	f.Add([]byte(`{"applications":{"a":{"instances":[{"name":"x"}]}}}`))
	f.Add([]byte("a: &x {b: *x}"))
	f.Add([]byte("<<: {a: 1}"))
	f.Fuzz(func(t *testing.T, data []byte) {
		doc, err := Parse(data)
		if err != nil {
			return
		}
		for name, a := range doc.Applications {
			a.Resolve(nil, name)
		}
		doc.Validate()
		out, err := MarshalJSON(doc, true)
		if err != nil || !json.Valid(out) {
			t.Fatalf("%v: %s", err, out)
		}
	})
}
