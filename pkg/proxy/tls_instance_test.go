package proxy

import (
	"crypto/tls"
	"io"
	"log"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"difylb/pkg/lb"
	"difylb/test/testbed"
)

// secureInstance serves https with a certificate, and counts the connections
// that brought a request, and those that took a session up again.
func secureInstance(t *testing.T, cert tls.Certificate) (url string, connections, resumed *atomic.Int64) {
	connections, resumed = new(atomic.Int64), new(atomic.Int64)
	var seen sync.Map
	srv := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if _, before := seen.LoadOrStore(r.RemoteAddr, true); !before {
			connections.Add(1)
			if r.TLS.DidResume {
				resumed.Add(1)
			}
		}
		io.WriteString(w, r.TLS.ServerName)
	}))
	srv.TLS = &tls.Config{Certificates: []tls.Certificate{cert}}
	srv.Config.ErrorLog = log.New(io.Discard, "", 0)
	srv.StartTLS()
	t.Cleanup(srv.Close)
	return srv.URL, connections, resumed
}

func TestInstance_ProvesWhoItIs(t *testing.T) {
	ours, other := testbed.NewCA(t, "ours"), testbed.NewCA(t, "other")
	url, _, _ := secureInstance(t, ours.Issue("dify.internal"))
	for _, c := range []struct {
		name string
		tls  *lb.InstanceTLS
		want int
		why  string // in the log
	}{
		{"right authority and name", &lb.InstanceTLS{CA: ours.PEM, ServerName: "dify.internal"}, 200, ""},
		{"one of two authorities", &lb.InstanceTLS{CA: other.PEM + ours.PEM, ServerName: "dify.internal"}, 200, ""},
		{"nothing verified", &lb.InstanceTLS{InsecureSkipVerify: true}, 200, "is not verified"},
		{"wrong authority", &lb.InstanceTLS{CA: other.PEM, ServerName: "dify.internal"}, 502, "unknown authority"},
		{"the system's authorities", &lb.InstanceTLS{ServerName: "dify.internal"}, 502, "certificate"},
		{"wrong name", &lb.InstanceTLS{CA: ours.PEM, ServerName: "dify.example"}, 502, "is valid for dify.internal, not dify.example"},
		{"the address for a name", &lb.InstanceTLS{CA: ours.PEM}, 502, "doesn't contain any IP SANs"},
		{"no settings", nil, 502, "certificate"},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := newRig(t, func(_ *Options, a *lb.Application) {
				in := instanceAt("a", url)
				in.Host, in.Port, in.URL, in.TLS = "", 0, url, c.tls
				a.Instances = []lb.Instance{in}
			})
			resp, body := r.do("GET", "/v1/info", "u", "")
			if resp.StatusCode != c.want {
				t.Errorf("%d %s", resp.StatusCode, body)
			}
			if c.want == 502 && !strings.Contains(body, `"code":"bad_gateway"`) {
				t.Errorf("answer %s", body)
			}
			if c.want == 200 && c.tls.ServerName != body {
				t.Errorf("the instance was asked for %q", body)
			}
			logged := r.log.String()
			if !strings.Contains(logged, c.why) || c.why != "" && !strings.Contains(logged, `"level":"warn"`) {
				t.Errorf("want %q in the log:\n%s", c.why, logged)
			}
			if c.want == 502 && !strings.Contains(logged, `"message":"no connection to an instance"`) {
				t.Errorf("the log does not say that:\n%s", logged)
			}
		})
	}
}

func TestInstance_ChangedTrustTakesNewConnections(t *testing.T) {
	ours, other := testbed.NewCA(t, "ours"), testbed.NewCA(t, "other")
	url, connections, _ := secureInstance(t, ours.Issue("dify.internal"))
	r := newRig(t, func(_ *Options, a *lb.Application) {
		in := instanceAt("a", url)
		in.Host, in.Port, in.URL, in.TLS = "", 0, url, &lb.InstanceTLS{CA: ours.PEM, ServerName: "dify.internal"}
		in.MaxFails = 0
		a.Instances = []lb.Instance{in}
		a.Retry.Attempts = 0
	})
	ask := func(want int) {
		t.Helper()
		if resp, body := r.do("GET", "/v1/info", "u", ""); resp.StatusCode != want {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
	}
	set := func(edit func(*lb.Instance)) {
		r.app = r.app.Clone()
		edit(&r.app.Instances[0])
		r.apply()
	}
	ask(200)
	set(func(in *lb.Instance) { in.Token = "app-other" })
	ask(200)
	if n := connections.Load(); n != 1 {
		t.Errorf("%d connections after a change of the token, want the one", n)
	}
	set(func(in *lb.Instance) { in.TLS.CA = other.PEM })
	ask(502)
	set(func(in *lb.Instance) { in.TLS = &lb.InstanceTLS{InsecureSkipVerify: true} })
	ask(200)
	set(func(in *lb.Instance) { in.TLS = &lb.InstanceTLS{CA: ours.PEM, ServerName: "dify.internal"} })
	ask(200)
	if n := connections.Load(); n != 3 {
		t.Errorf("%d connections, want one for each time that it was believed", n)
	}
}

func TestInstance_TakesSessionsUpAgain(t *testing.T) {
	ours := testbed.NewCA(t, "ours")
	srvURL, connections, resumed := secureInstance(t, ours.Issue("dify.internal"))
	r := newRig(t, func(_ *Options, a *lb.Application) {
		in := instanceAt("a", srvURL)
		in.Host, in.Port, in.URL, in.TLS = "", 0, srvURL, &lb.InstanceTLS{CA: ours.PEM, ServerName: "dify.internal"}
		a.Instances = []lb.Instance{in}
	})
	for range 2 {
		if resp, body := r.do("GET", "/v1/info", "u", ""); resp.StatusCode != 200 {
			t.Fatalf("%d %s", resp.StatusCode, body)
		}
		up := r.p.view.Load().apps[0].instances[0].upstream
		eventually(t, "the connection is idle", func() bool {
			for i := range up.idle {
				if c := up.idle[i].pop(); c != nil {
					c.close() // the next request needs a new one
					return true
				}
			}
			return false
		})
	}
	if connections.Load() != 2 || resumed.Load() != 1 {
		t.Errorf("%d connections, %d of them took a session up again; want 2 and 1", connections.Load(), resumed.Load())
	}
}
