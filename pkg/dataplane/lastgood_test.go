package dataplane

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

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
	if l.holds(sampleSnapshot(7)) {
		t.Error("an empty directory holds something")
	}
	want := sampleSnapshot(7)
	want.ChangeRevision = 5
	second := *want.Applications[0]
	second.Name = "shop\"2"
	want.Applications = append(want.Applications, &second)
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
	for what, c := range map[string]struct {
		edit func(*lb.Snapshot)
		want bool
	}{
		"the same":            {func(*lb.Snapshot) {}, true},
		"a later revision":    {func(s *lb.Snapshot) { s.Revision = 100 }, true},
		"an earlier one":      {func(s *lb.Snapshot) { s.Revision = 6 }, false},
		"another store":       {func(s *lb.Snapshot) { s.Epoch = "e2" }, false},
		"declared anew":       {func(s *lb.Snapshot) { s.ConfigRevision++ }, false},
		"an application less": {func(s *lb.Snapshot) { s.Applications = s.Applications[:1] }, false},
	} {
		other := *want
		c.edit(&other)
		if l.holds(&other) != c.want {
			t.Errorf("holds %s: %t", what, !c.want)
		}
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
			said := new(strings.Builder)
			l.log = zerolog.New(said)
			got, err := l.load()
			if err != nil || got.Revision != 7 {
				t.Fatalf("%+v, %v", got, err)
			}
			if !strings.Contains(said.String(), "damaged") || strings.Contains(said.String(), "canary") {
				t.Errorf("it says %q", said)
			}
			os.WriteFile(file+".1", []byte("x"), 0o600)
			if _, err := l.load(); err == nil || strings.Contains(err.Error(), "canary") {
				t.Errorf("both spoilt: %v", err)
			}
		})
	}
}

func TestSuspicious_AStoreThatLostMost(t *testing.T) {
	old := sampleSnapshot(100)
	old.ChangeRevision = 90
	later := func(edit func(*lb.Snapshot, *lb.Application)) *lb.Snapshot {
		s := sampleSnapshot(120)
		s.ChangeRevision = 90
		edit(s, s.Applications[0])
		return s
	}
	none := func(s *lb.Snapshot, _ *lb.Application) { s.Applications = nil }
	for name, c := range map[string]struct {
		snap *lb.Snapshot
		want string
	}{
		"wiped": {&lb.Snapshot{Epoch: "e2", Revision: 5}, "replaced"},
		"restored to before its apps": {later(func(s *lb.Snapshot, a *lb.Application) {
			none(s, a)
			s.Revision, s.ConfigRevision, s.ChangeRevision = 50, 49, 49
		}), "went back"},
		"half is not more than half": {later(func(s *lb.Snapshot, a *lb.Application) {
			s.Epoch, a.Instances = "e2", a.Instances[:1]
		}), ""},
		"replaced by its equal":          {later(func(s *lb.Snapshot, _ *lb.Application) { s.Epoch = "e2" }), ""},
		"replaced, all tokens gone":      {later(func(s *lb.Snapshot, a *lb.Application) { s.Epoch, a.UserTokens = "e2", nil }), "2 of 2 user tokens"},
		"the same again":                 {old, ""},
		"an operator removed all":        {later(func(s *lb.Snapshot, a *lb.Application) { none(s, a); s.ChangeRevision = 110 }), ""},
		"all deleted past lb-admin":      {later(none), "past lb-admin"},
		"half deleted past lb-admin":     {later(func(_ *lb.Snapshot, a *lb.Application) { a.Instances = a.Instances[1:] }), ""},
		"tokens deleted past lb-admin":   {later(func(_ *lb.Snapshot, a *lb.Application) { a.UserTokens = nil }), "2 of 2 user tokens"},
		"deleted with what tells of it":  {later(func(s *lb.Snapshot, a *lb.Application) { none(s, a); s.ChangeRevision = 0 }), "past lb-admin"},
		"deleted, then an honest change": {later(func(s *lb.Snapshot, a *lb.Application) { none(s, a); s.StrayRevision, s.ChangeRevision = 110, 115 }), "past lb-admin"},
		"astray, but before":             {later(func(s *lb.Snapshot, a *lb.Application) { none(s, a); s.StrayRevision, s.ChangeRevision = 95, 115 }), ""},
	} {
		got := suspicious(old, c.snap)
		if (got == "") != (c.want == "") || !strings.Contains(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
	if why := suspicious(nil, &lb.Snapshot{}); why != "" {
		t.Errorf("nothing to compare with: %q", why)
	}
	// A file of an older release does not tell the revision of the last change.
	old.ChangeRevision = 0
	if why := suspicious(old, later(none)); why != "" {
		t.Errorf("%q", why)
	}
}

func TestApplier_HoldsOffInProportion(t *testing.T) {
	for took, want := range map[time.Duration]time.Duration{0: time.Millisecond, 100 * time.Microsecond: time.Millisecond, 5 * time.Millisecond: 20 * time.Millisecond, time.Second: 100 * time.Millisecond} {
		if got := (&applier{took: took}).holdOff(); got != want {
			t.Errorf("after %v: %v, want %v", took, got, want)
		}
	}
}

// What could not be written is tried again, though nothing changes.
func TestSave_TriesAgain(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "data")
	if err := os.WriteFile(dir, nil, 0o600); err != nil { // in the way
		t.Fatal(err)
	}
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		a := &applier{disk: newLastGood(dir), log: zerolog.Nop(), dirty: make(chan struct{}, 1)}
		a.held.Store(sampleSnapshot(7))
		a.dirty <- struct{}{}
		done := make(chan struct{})
		go func() { defer close(done); _ = a.save(ctx) }()
		time.Sleep(3 * saveRetry)
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		time.Sleep(2 * saveRetry)
		if snap, err := a.disk.load(); err != nil || snap.Revision != 7 {
			t.Errorf("%v, %v", snap, err)
		}
		saved, err := os.Stat(filepath.Join(dir, lastGoodName))
		if err != nil {
			t.Fatal(err)
		}
		time.Sleep(5 * saveRetry)
		if now, err := os.Stat(filepath.Join(dir, lastGoodName)); err != nil || !os.SameFile(now, saved) {
			t.Errorf("it was written again for nothing, %v", err)
		}
		cancel()
		<-done
	})
}
