package dataplane

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"time"

	"difylb/pkg/lb"
)

func sampleSnapshot(rev int64) *lb.Snapshot {
	app := lb.NewApplication("shop")
	app.UserTokens = []lb.UserToken{lb.NewUserToken("user-token-canary-1", "web", false), lb.NewUserToken("user-token-canary-2", "", true)}
	in := lb.Instance{Name: "z", Host: "10.0.0.1", Port: 80, Token: "app-canary"}
	in.SetDefaults()
	second := in
	second.Name, second.URL, second.Host, second.Port, second.State = "a", "https://dify.example", "", 0, lb.Draining
	app.Instances = []lb.Instance{in, second}
	return &lb.Snapshot{
		Epoch: "e1", Revision: rev, ConfigRevision: rev - 1, ClusterKey: "key",
		Applications: []*lb.Application{app},
		Settings:     lb.Settings{RateLimit: lb.GlobalRateLimit{PerIP: &lb.Rate{PerSecond: 5, Burst: 10}}},
		Health:       map[string]map[string]lb.Verdict{"shop": {"z": {Health: lb.Unhealthy, Since: time.Unix(1e9, 0).UTC(), Reason: "connection refused"}}},
		Nodes:        []lb.Node{{ID: "adm", Role: lb.RoleAdmin, GRPC: "10.0.0.9:9190", Started: time.Unix(1e9, 0).UTC()}},
	}
}

func TestLastGood_ComesBackWhole(t *testing.T) {
	l := newLastGood(filepath.Join(t.TempDir(), "deep", "dir"))
	if _, err := l.load(); !errors.Is(err, errNoLastGood) {
		t.Fatalf("empty directory: %v", err)
	}
	want := sampleSnapshot(7)
	if err := l.save(want); err != nil {
		t.Fatal(err)
	}
	got, err := l.load()
	if err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v\nwant %+v", got.Applications[0], want.Applications[0])
	}
	st, err := os.Stat(filepath.Join(l.dir, lastGoodName))
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if st, _ := os.Stat(l.dir); st.Mode().Perm() != 0o700 {
		t.Errorf("directory mode %v", st.Mode())
	}
}

func TestLastGood_SpoiltFileLeavesTheOneBefore(t *testing.T) {
	for name, spoil := range map[string]func([]byte) []byte{
		"empty":     func([]byte) []byte { return nil },
		"cut off":   func(b []byte) []byte { return b[:len(b)/2] },
		"bit flip":  func(b []byte) []byte { b[len(b)-20] ^= 1; return b },
		"no header": func(b []byte) []byte { return b[strings.IndexByte(string(b), '\n'):] },
		"newer":     func(b []byte) []byte { return []byte(strings.Replace(string(b), `"version":1`, `"version":9`, 1)) },
	} {
		t.Run(name, func(t *testing.T) {
			l := newLastGood(t.TempDir())
			for rev := int64(7); rev < 9; rev++ {
				if err := l.save(sampleSnapshot(rev)); err != nil {
					t.Fatal(err)
				}
			}
			file := filepath.Join(l.dir, lastGoodName)
			b, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(file, spoil(b), 0o600); err != nil {
				t.Fatal(err)
			}
			got, err := l.load()
			if err != nil || got.Revision != 7 {
				t.Fatalf("%+v, %v", got, err)
			}
			os.WriteFile(file+".1", []byte("x"), 0o600)
			if _, err := l.load(); err == nil || strings.Contains(err.Error(), "canary") {
				t.Errorf("both spoilt: %v", err)
			}
		})
	}
}

func TestApplier_SuspectsAStoreThatLostMost(t *testing.T) {
	a := &applier{}
	old := sampleSnapshot(100)
	a.held.Store(old)
	empty := &lb.Snapshot{Epoch: "e2", Revision: 5}
	back := sampleSnapshot(50)
	back.Applications = nil
	half := sampleSnapshot(50)
	half.Applications[0].Instances = half.Applications[0].Instances[:1]
	forward := &lb.Snapshot{Epoch: "e1", Revision: 101}
	for name, c := range map[string]struct {
		snap *lb.Snapshot
		want bool
	}{
		"wiped":                       {empty, true},
		"restored to before its apps": {back, true},
		"half is not more than half":  {half, false},
		"an operator removed all":     {forward, false},
		"the same again":              {old, false},
	} {
		if why := a.suspicious(c.snap); (why != "") != c.want {
			t.Errorf("%s: %q", name, why)
		}
	}
}

func TestApplier_HoldsOffInProportion(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{0: time.Millisecond, 100 * time.Microsecond: time.Millisecond, 5 * time.Millisecond: 20 * time.Millisecond, time.Second: 100 * time.Millisecond} {
		if got := (&applier{took: took}).holdOff(); got != want {
			t.Errorf("after %v: %v, want %v", took, got, want)
		}
	}
}
