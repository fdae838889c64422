package route

import (
	"crypto/tls"
	"testing"

	"difylb/pkg/lb"
	"difylb/test/testbed"
)

func TestBuild_KeepsHowToSpeakTLS(t *testing.T) {
	ca, other := testbed.NewCA(t, "ours").PEM, testbed.NewCA(t, "other").PEM
	make2 := func(edit func(*lb.Application)) *lb.Application {
		a := app("shop", nil, "x", "y", "z")
		for i, url := range []string{"https://x.example", "https://y.example:8443", ""} {
			if url != "" {
				a.Instances[i].Host, a.Instances[i].Port, a.Instances[i].URL = "", 0, url
			}
		}
		a.Instances[0].TLS = &lb.InstanceTLS{CA: ca, ServerName: "inside"}
		if edit != nil {
			edit(a)
		}
		return a
	}
	first := build(t, snapshot(1, make2(nil)), nil)
	config := func(tbl *Table, i int) *tls.Config { return tbl.App("shop").Instances[i].TLS }
	if c := config(first, 0); c == nil || c.ServerName != "inside" || c.RootCAs == nil || c.InsecureSkipVerify || c.ClientSessionCache == nil {
		t.Errorf("%+v", c)
	}
	if c := config(first, 1); c == nil || c.ServerName != "y.example" || c.RootCAs != nil {
		t.Errorf("%+v", c)
	}
	if config(first, 2) != nil {
		t.Error("an instance in clear has a TLS configuration")
	}
	for _, c := range []struct {
		name string
		edit func(*lb.Application)
		same bool
	}{
		{"nothing", nil, true},
		{"the token", func(a *lb.Application) { a.Instances[0].Token = "app-new" }, true},
		{"the order", func(a *lb.Application) { a.Instances[0], a.Instances[2] = a.Instances[2], a.Instances[0] }, true},
		{"the authority", func(a *lb.Application) { a.Instances[0].TLS.CA = other }, false},
		{"the name", func(a *lb.Application) { a.Instances[0].TLS.ServerName = "other" }, false},
		{"the verification", func(a *lb.Application) { a.Instances[0].TLS = &lb.InstanceTLS{InsecureSkipVerify: true} }, false},
		{"no settings any more", func(a *lb.Application) { a.Instances[0].TLS = nil }, false},
		{"the address", func(a *lb.Application) { a.Instances[0].URL = "https://x2.example" }, false},
	} {
		next := build(t, snapshot(2, make2(c.edit)), first)
		i := next.App("shop").Index("x")
		if same := config(next, i) == config(first, 0); same != c.same {
			t.Errorf("%s changed: the same configuration %v, want %v", c.name, same, c.same)
		}
		if config(next, 1) != config(first, 1) {
			t.Errorf("%s changed: another instance's configuration, too", c.name)
		}
	}
	bad := make2(func(a *lb.Application) { a.Instances[0].TLS.CA = "nothing" })
	if _, err := Build(snapshot(3, bad), first); err == nil {
		t.Error("an authority that can't be read was put in force")
	}
}
