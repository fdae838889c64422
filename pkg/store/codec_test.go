package store

import (
	"bytes"
	"encoding/json"
	"fmt"
	"reflect"
	"strings"
	"testing"

	"difylb/pkg/lb"
)

func TestCodec_RoundTrips(t *testing.T) {
	app := lb.NewApplication("shop")
	app.RateLimit.PerUser = &lb.Rate{PerSecond: 2.5, Burst: 3}
	app.Check.ExpectBody = "<&>"
	in := lb.Instance{Name: "a", URL: "https://h", Token: "app-x"}
	in.SetDefaults()
	yes := true
	in.PreserveHost = &yes
	in.TLS = &lb.InstanceTLS{ServerName: "dify.internal", InsecureSkipVerify: true}
	for _, c := range []struct {
		key string
		raw []byte
		get func(decoded) any
		val any
	}{
		{"apps/shop", encodeApplication(app), func(d decoded) any { return d.app }, app},
		{"instances/shop/a", encodeInstance(&in, 7), func(d decoded) any { return d.instance }, &in},
		{"settings", encodeSettings(&lb.Settings{}), func(d decoded) any { return d.settings }, &lb.Settings{}},
	} {
		for _, raw := range [][]byte{c.raw, withRevision(c.raw, 42)} {
			d, err := decode(c.key, raw)
			if err != nil {
				t.Fatalf("%s: %v", c.key, err)
			}
			if !reflect.DeepEqual(c.get(d), c.val) {
				t.Errorf("%s: %+v, want %+v", c.key, c.get(d), c.val)
			}
		}
		if !bytes.Equal(withoutRevision(withRevision(c.raw, 42)), c.raw) {
			t.Errorf("%s: the revision does not come off again", c.key)
		}
	}
}

func TestCodec_MissingFieldsHaveTheirDefaults(t *testing.T) {
	d, err := decode("apps/shop", []byte(`{}`))
	if err != nil || !reflect.DeepEqual(d.app, lb.NewApplication("shop")) {
		t.Errorf("%+v, %v", d.app, err)
	}
	d, err = decode("instances/shop/a", []byte(`{"host":"h","token":"t"}`))
	if err != nil || d.instance.Weight != 1 || d.instance.Port != 80 || d.instance.State != lb.Active {
		t.Errorf("%+v, %v", d.instance, err)
	}
}

// A type that nests, to see that unknown fields are kept at every level.
func TestKeepUnknown_AtEveryLevel(t *testing.T) {
	prev := []byte(`{"new":1,"retry":{"attempts":5,"deep":{"x":[1]}},"rate_limit":{"per_app":{"rate":1,"burst":1,"shape":"s"},"later":null},"name":"old"}`)
	app := lb.NewApplication("shop")
	app.RateLimit.PerApp = &lb.Rate{PerSecond: 9, Burst: 9}
	got := keepUnknown(applicationWire{}, prev, encodeApplication(app))
	for _, want := range []string{`"new":1`, `"deep":{"x":[1]}`, `"shape":"s"`, `"later":null`, `"name":"shop"`, `"attempts":2`, `"rate":9`} {
		if !strings.Contains(string(got), want) {
			t.Errorf("%s is not in %s", want, got)
		}
	}
	if !json.Valid(got) {
		t.Errorf("not JSON: %s", got)
	}
	// A known field that was dropped stays dropped.
	app.RateLimit.PerApp = nil
	got = keepUnknown(applicationWire{}, got, encodeApplication(app))
	if strings.Contains(string(got), "per_app") {
		t.Errorf("a rate limit came back: %s", got)
	}
}

func FuzzDecode(f *testing.F) {
	in := lb.Instance{Name: "a", Host: "h", Port: 80, Token: "t"}
	in.SetDefaults()
	f.Add("apps/shop", encodeApplication(lb.NewApplication("shop")))
	f.Add("instances/shop/a", encodeInstance(&in, 1))
	f.Add("tokens/"+lb.Secret("x").Hash().String(), []byte(`{"app":"shop"}`))
	f.Add("settings", []byte(`{"rate_limit":{"per_ip":{"rate":1,"burst":1}}}`))
	f.Add("instances/shop", []byte(`{"weight":1e400}`))
	f.Add("apps/", []byte("null"))
	f.Add("meta/config", []byte(`{"seq":"x"}`))
	f.Add("nodes/proxy/%zz", []byte(`{}`))
	f.Add("health/a/b", []byte(`{"health":"healthy"}`))
	f.Fuzz(func(t *testing.T, key string, raw []byte) {
		st := newState()
		st.applyLocked(event{key: key, raw: raw, mod: 5, create: 5})
		first := st.buildLocked(nil, "/p/", 5)
		for _, app := range first.Applications {
			if err := app.Validate("").Err(); err != nil {
				t.Errorf("%s: an invalid application got through: %v", key, err)
			}
		}
		if d, err := decode(key, raw); err == nil {
			// What was read writes back as something that reads the same, and
			// loses no field that only raw had.
			var wire any
			var enc []byte
			switch {
			case d.app != nil:
				wire, enc = applicationWire{}, encodeApplication(d.app)
			case d.instance != nil:
				wire, enc = instanceWire{}, encodeInstance(d.instance, d.position)
			case d.token != nil:
				wire, enc = tokenWire{}, encodeToken(d.owner, d.token, d.position)
			default:
				wire, enc = settingsWire{}, encodeSettings(d.settings)
			}
			merged := keepUnknown(wire, raw, enc)
			again, err := decode(key, merged)
			if err != nil {
				t.Fatalf("%s → %s: %v", raw, merged, err)
			}
			d.revision, again.revision = 0, 0
			if fmt.Sprint(describeDecoded(d)) != fmt.Sprint(describeDecoded(again)) {
				t.Errorf("%s → %s", raw, merged)
			}
		}
		st.applyLocked(event{key: key, deleted: true, mod: 6})
		last := st.buildLocked(first, "/p/", 6)
		if len(last.Applications) != 0 || len(last.Faults) != 0 || len(last.Nodes) != 0 || len(last.Health) != 0 || len(st.objects) != 0 || len(st.apps) != 0 || len(st.owners) != 0 {
			t.Errorf("%q left something behind: %+v", key, last)
		}
	})
}

func describeDecoded(d decoded) string {
	switch {
	case d.app != nil:
		return string(encodeApplication(d.app))
	case d.instance != nil:
		return string(encodeInstance(d.instance, d.position))
	case d.token != nil:
		return string(encodeToken(d.owner, d.token, d.position))
	}
	return string(encodeSettings(d.settings))
}

// large is a mirror of n applications of 5 instances and 10 tokens each.
func large(n int) *state {
	st := newState()
	for i := range n {
		name := fmt.Sprintf("app-%05d", i)
		st.applyLocked(event{key: appKey(name), raw: encodeApplication(lb.NewApplication(name)), mod: 1})
		for k := range 5 {
			in := lb.Instance{Name: fmt.Sprintf("dify%d", k), Host: "h", Port: 80, Token: "t"}
			in.SetDefaults()
			st.applyLocked(event{key: instanceKey(name, in.Name), raw: encodeInstance(&in, k), mod: 1})
			st.setHealthLocked(name, in.Name, &lb.Verdict{Health: lb.Healthy})
		}
		for k := range 10 {
			tok := lb.NewUserToken(lb.Secret(fmt.Sprintf("user-token-%d-%d", i, k)), "web", false)
			st.applyLocked(event{key: tokenKey(tok.SHA256), raw: encodeToken(name, &tok, k), mod: 1})
		}
	}
	return st
}

func BenchmarkState_OneInstanceOf10000Applications(b *testing.B) {
	st := large(10_000)
	snap := st.buildLocked(nil, "/p/", 1)
	in := snap.Applications[5000].Instances[2]
	b.ReportAllocs()
	rev := int64(1)
	for b.Loop() {
		rev++
		in.Weight = int(rev % 1000)
		st.applyLocked(event{key: instanceKey("app-05000", in.Name), raw: encodeInstance(&in, 2), mod: rev})
		st.applyLocked(event{key: appKey("app-05000"), raw: encodeApplication(lb.NewApplication("app-05000")), mod: rev})
		next := st.buildLocked(snap, "/p/", rev)
		if next == snap {
			b.Fatal("nothing changed")
		}
		snap = next
	}
}

func BenchmarkState_OneVerdictOf50000(b *testing.B) {
	st := large(10_000)
	snap := st.buildLocked(nil, "/p/", 1)
	b.ReportAllocs()
	rev := int64(1)
	for b.Loop() {
		rev++
		raw := mustMarshal(lb.Verdict{Health: lb.Unhealthy, Reason: fmt.Sprint(rev)})
		st.applyLocked(event{key: healthKey("app-05000", "dify2"), raw: raw, mod: rev})
		snap = st.buildLocked(snap, "/p/", rev)
	}
}

func BenchmarkState_First1000Applications(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		large(1000).buildLocked(nil, "/p/", 1)
	}
}
