package dataplane

import (
	"context"
	"net"
	"net/http/httptest"
	"strings"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/lb"
	"difylb/pkg/names"
	"difylb/pkg/route"
)

func TestReach_ConnectsAsARequestWould(t *testing.T) {
	up := httptest.NewServer(nil)
	defer up.Close()
	secure := httptest.NewTLSServer(nil) // signed by nobody who is known
	defer secure.Close()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	down := "http://" + ln.Addr().String()
	ln.Close()
	shop, desk := lb.NewApplication("shop"), lb.NewApplication("desk")
	for _, in := range []lb.Instance{
		{Name: "up", URL: up.URL}, {Name: "down", URL: down}, {Name: "secure", URL: secure.URL},
		{Name: "cloud", URL: "http://169.254.169.254"}, {Name: "off", URL: up.URL},
	} {
		in.SetDefaults()
		if in.Name == "off" {
			in.State = lb.Disabled
		}
		shop.Instances = append(shop.Instances, in)
	}
	desk.Instances = shop.Clone().Instances[:1]
	table, err := route.Build(&lb.Snapshot{Applications: []*lb.Application{desk, shop}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	by := names.New(names.Options{Log: zerolog.Nop()})
	got := make(map[string]string)
	for _, r := range reach(ctx, table, "shop", by) {
		if r.App != "shop" || r.Address == "" {
			t.Errorf("%+v", r)
		}
		got[r.Instance] = r.Error
	}
	for name, want := range map[string]string{"up": "", "down": "refused", "secure": "certificate", "cloud": "link-local"} {
		if err, there := got[name]; !there || !strings.Contains(err, want) || (want == "") != (err == "") {
			t.Errorf("%s: %q, want %q", name, err, want)
		}
	}
	if _, there := got["off"]; there || len(got) != 4 {
		t.Errorf("asked of %v", got)
	}
	if all := reach(ctx, table, "", by); len(all) != 5 {
		t.Errorf("of all applications %d", len(all))
	}
}
