package store_test

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"

	"difylb/pkg/lb"
	"difylb/pkg/store"
	"difylb/pkg/store/storetest"
)

// canonical writes a document with its secrets, for comparison.
func canonical(t testing.TB, doc *lb.Document) string {
	t.Helper()
	var b bytes.Buffer
	names := make(map[string]*lb.Application, len(doc.Applications))
	for name, app := range doc.Applications {
		bare := app.Clone()
		bare.Instances = nil
		names[name] = bare
		for _, in := range app.Instances {
			raw, err := in.MarshalSecret()
			if err != nil {
				t.Fatal(err)
			}
			bare.Check.ExpectBody += "\n" + string(raw)
		}
		for _, tok := range app.UserTokens {
			bare.Check.ExpectBody += "\n" + fmt.Sprint(tok.SHA256, tok.Label, tok.Disabled, tok.Hint, tok.Created)
		}
	}
	if err := json.NewEncoder(&b).Encode(struct {
		Apps     any
		Settings any
	}{names, doc.Settings}); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// scribble makes a random edit.
func scribble(r *rand.Rand, d *store.Draft) {
	name := fmt.Sprintf("app%d", r.IntN(5))
	app := d.Application(name)
	if app == nil {
		app = application(name, "a")
		app.UserTokens = nil // its usual token may be elsewhere by now
	}
	app = app.Clone()
	switch r.IntN(9) {
	case 0:
		d.Delete(name)
		return
	case 1:
		d.SetSettings(lb.Settings{RateLimit: lb.GlobalRateLimit{PerIP: &lb.Rate{PerSecond: float64(1 + r.IntN(9)), Burst: 5}}})
		return
	case 2:
		app.Instances = append(app.Instances, instance(fmt.Sprintf("in%d", r.IntN(1<<30))))
	case 3:
		if n := len(app.Instances); n > 0 {
			i := r.IntN(n)
			app.Instances = append(app.Instances[:i], app.Instances[i+1:]...)
		}
	case 4:
		r.Shuffle(len(app.Instances), func(i, j int) { app.Instances[i], app.Instances[j] = app.Instances[j], app.Instances[i] })
	case 5:
		app.UserTokens = append(app.UserTokens, lb.NewUserToken(lb.Secret(fmt.Sprintf("user-token-%d", r.IntN(1<<30))), "l", r.IntN(2) == 0))
	case 6: // a token moves
		other := d.Application(fmt.Sprintf("app%d", r.IntN(5)))
		if other != nil && other.Name != name && len(other.UserTokens) > 0 {
			from := other.Clone()
			app.UserTokens = append(app.UserTokens, from.UserTokens[0])
			from.UserTokens = from.UserTokens[1:]
			d.Put(from)
		}
	case 7:
		app.MaxBody = lb.Size(r.IntN(1000))
		app.Check.ExpectBody = strings.Repeat("<é>", r.IntN(50))
	case 8: // large enough to be staged
		for i := range 130 {
			app.Instances = append(app.Instances, instance(fmt.Sprintf("big%d-%d", i, r.IntN(1<<30))))
		}
	}
	d.Put(app)
}

func TestConfigAt_EqualsWhatItWas(t *testing.T) {
	s := storetest.Open(t)
	r := rand.New(rand.NewPCG(1, 2))
	type stand struct {
		rev  int64
		want string
	}
	var stands []stand
	for range 60 {
		res := update(t, s, func(d *store.Draft) {
			for range 1 + r.IntN(3) {
				scribble(r, d)
			}
		})
		if res.Changed {
			stands = append(stands, stand{res.Revision, canonical(t, s.Current().Document())})
		}
	}
	for i, st := range stands {
		doc, err := s.ConfigAt(t.Context(), st.rev)
		if err != nil {
			t.Fatal(err)
		}
		if got := canonical(t, doc); got != st.want {
			t.Errorf("change %d of %d (revision %d):\n got %.600s\nwant %.600s", i, len(stands), st.rev, got, st.want)
		}
	}
	if doc, err := s.ConfigAt(t.Context(), stands[0].rev-1); err != nil || len(doc.Applications) != 0 {
		t.Errorf("before the first change: %+v, %v", doc, err)
	}
	if _, err := s.ConfigAt(t.Context(), 1<<40); !errors.Is(err, lb.ErrNotFound) {
		t.Errorf("a revision to come: %v", err)
	}
	// Putting an old document back is a change like any other.
	old, err := s.ConfigAt(t.Context(), stands[3].rev)
	if err != nil {
		t.Fatal(err)
	}
	update(t, s, func(d *store.Draft) {
		for _, app := range d.Base().Applications {
			d.Delete(app.Name)
		}
		for _, app := range old.Applications {
			d.Put(app)
		}
		d.SetSettings(*old.Settings)
	})
	if got := canonical(t, s.Current().Document()); got != stands[3].want {
		t.Errorf("rolled back:\n got %.600s\nwant %.600s", got, stands[3].want)
	}
}

func TestHistory_TellsWhoAndWhatWithoutSecrets(t *testing.T) {
	s := storetest.Open(t)
	put(t, s, application("shop", "a"))
	_, err := s.Update(t.Context(), lb.Audit{Who: "alice", From: "10.1.1.1", Action: "instance.drain", Note: "n"}, func(d *store.Draft) error {
		app := d.Application("shop").Clone()
		app.Instances[0].State = lb.Draining
		d.Put(app)
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	last := update(t, s, func(d *store.Draft) { d.Delete("shop") })
	entries, err := s.History(t.Context(), 10, 0)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	if e := entries[0]; e.Revision != last.Revision || e.Seq != 3 || len(e.Changes) != 3 || e.Changes[0].Action != "deleted" {
		t.Errorf("newest %+v", e)
	}
	e := entries[1]
	if e.Who != "alice" || e.From != "10.1.1.1" || e.Action != "instance.drain" || e.Note != "n" || e.At.IsZero() || e.Count != 1 {
		t.Errorf("entry %+v", e)
	}
	if c := e.Changes[0]; c.Kind != "instance" || c.App != "shop" || c.Name != "a" || !strings.Contains(string(c.Before), `"active"`) || !strings.Contains(string(c.After), `"draining"`) {
		t.Errorf("change %+v: %s → %s", c, c.Before, c.After)
	}
	all, err := json.Marshal(entries)
	if err != nil || strings.Contains(string(all), "app-secret") || strings.Contains(string(all), lb.Secret("user-token-of-shop").Hash().String()) {
		t.Errorf("the history shows a secret: %s, %v", all, err)
	}
	if older, err := s.History(t.Context(), 10, entries[1].Revision); err != nil || len(older) != 1 || older[0].Seq != 1 {
		t.Errorf("before: %+v, %v", older, err)
	}
	if _, err := s.HistoryAt(t.Context(), last.Revision+1000); !errors.Is(err, lb.ErrNotFound) {
		t.Errorf("no entry there: %v", err)
	}
}

func TestHistory_KeepsTheLastThousand(t *testing.T) {
	if testing.Short() {
		t.Skip("makes more than a thousand changes")
	}
	s := storetest.Open(t)
	first := put(t, s, application("shop", "a"))
	var last store.Result
	for i := range 1005 {
		last = update(t, s, func(d *store.Draft) {
			app := d.Application("shop").Clone()
			app.Instances[0].Weight = i + 2
			d.Put(app)
		})
	}
	entries, err := s.History(t.Context(), 5000, 0)
	if err != nil || len(entries) != 1000 || entries[0].Revision != last.Revision {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	if _, err := s.ConfigAt(t.Context(), first.Revision); !errors.Is(err, lb.ErrNotFound) {
		t.Errorf("the first configuration: %v", err)
	}
	doc, err := s.ConfigAt(t.Context(), entries[999].Revision)
	if err != nil || doc.Applications["shop"].Instances[0].Weight != 1007-1000 {
		t.Errorf("the oldest kept: %v, %+v", err, doc)
	}
}
