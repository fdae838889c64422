package store_test

import (
	"errors"
	"strings"
	"testing"

	"difylb/pkg/lb"
	"difylb/pkg/store"
	"difylb/pkg/store/storetest"
)

func TestChangeAccess_StandsInTheHistory(t *testing.T) {
	s := storetest.Open(t)
	app := lb.NewApplication("shop")
	put := func(d *store.Draft) error { d.Put(app.Clone()); return nil }
	first, err := s.Update(t.Context(), lb.Audit{Who: "a", Action: "app.create"}, put)
	if err != nil {
		t.Fatal(err)
	}
	secret := lb.NewSecret("lb-")
	tok := store.AccessToken{SHA256: secret.Hash(), Name: "grafana", Role: store.AccessViewer, Hint: secret.Hint()}
	who := lb.Audit{Who: "root", From: "10.0.0.9", Action: "access.create", Note: "grafana"}
	if err := s.ChangeAccess(t.Context(), who, tok, false); err != nil {
		t.Fatal(err)
	}
	if got, ok := s.Access(tok.SHA256); !ok || got.Name != "grafana" {
		t.Errorf("not there: %+v", got)
	}
	other := lb.NewSecret("lb-")
	if err := s.ChangeAccess(t.Context(), who, store.AccessToken{SHA256: other.Hash(), Name: "grafana", Role: store.AccessAdmin}, false); !errors.Is(err, lb.ErrExists) {
		t.Errorf("a second of that name: %v", err)
	}
	if err := s.ChangeAccess(t.Context(), who, store.AccessToken{SHA256: other.Hash(), Name: "x", Role: "god"}, false); !errors.Is(err, lb.ErrInvalid) {
		t.Errorf("of no role: %v", err)
	}
	who.Action = "access.delete"
	if err := s.ChangeAccess(t.Context(), who, tok, true); err != nil {
		t.Fatal(err)
	}
	if err := s.ChangeAccess(t.Context(), who, tok, true); !errors.Is(err, lb.ErrNotFound) {
		t.Errorf("twice: %v", err)
	}
	if _, ok := s.Access(tok.SHA256); ok {
		t.Error("still valid")
	}
	entries, err := s.History(t.Context(), 10, 0)
	if err != nil || len(entries) != 3 {
		t.Fatalf("%d entries, %v", len(entries), err)
	}
	gone, made := entries[0], entries[1]
	if made.Who != "root" || made.From != "10.0.0.9" || made.Count != 1 || len(made.Changes) != 1 {
		t.Fatalf("%+v", made)
	}
	c := made.Changes[0]
	if c.Kind != "access" || c.Action != "created" || c.Name != tok.SHA256.ID() || c.Before != nil || !strings.Contains(string(c.After), `"role":"viewer"`) {
		t.Errorf("%+v: %s", c, c.After)
	}
	if c := gone.Changes[0]; c.Action != "deleted" || c.After != nil || !strings.Contains(string(c.Before), `"name":"grafana"`) {
		t.Errorf("%+v", c)
	}
	for _, e := range entries {
		for _, c := range e.Changes {
			if all := string(c.Before) + string(c.After); strings.Contains(all, secret.Reveal()) || strings.Contains(all, tok.SHA256.String()) {
				t.Errorf("the history shows a secret: %s", all)
			}
		}
	}
	// Going back to before it leaves who may do what as it is, and further
	// changes of the configuration follow on.
	doc, err := s.ConfigAt(t.Context(), first.Revision)
	if err != nil || doc.Applications["shop"] == nil {
		t.Errorf("%+v, %v", doc, err)
	}
	if doc, err = s.ConfigAt(t.Context(), gone.Revision); err != nil || doc.Applications["shop"] == nil {
		t.Errorf("at the change itself: %+v, %v", doc, err)
	}
	app.MaxBody = 5 << 20
	if _, err := s.Update(t.Context(), lb.Audit{Who: "a", Action: "app.put"}, put); err != nil {
		t.Fatal(err)
	}
}
