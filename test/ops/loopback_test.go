package ops

import (
	"fmt"
	"regexp"
	"strconv"
	"testing"

	"difylb/test/testbed"
)

// loopback maps the addresses of several hosts to ports of this machine, the
// same one to the same one.
type loopback struct {
	t     *testing.T
	hosts map[string]bool
	ports map[string]string
}

func newLoopback(t *testing.T) *loopback {
	return &loopback{t: t, hosts: make(map[string]bool), ports: make(map[string]string)}
}

// port returns the address here of a port of a host there.
func (l *loopback) port(host, port string) string {
	l.t.Helper()
	key := host + ":" + port
	if l.ports[key] == "" {
		l.ports[key] = strconv.Itoa(testbed.FreePorts(l.t, 1))
	}
	return "127.0.0.1:" + l.ports[key]
}

var address = regexp.MustCompile(`([A-Za-z0-9.-]*):(\d{2,5})\b`)

// rewrite replaces every address in a text that stands on the host of that name.
func (l *loopback) rewrite(host, text string) string {
	l.t.Helper()
	return address.ReplaceAllStringFunc(text, func(found string) string {
		m := address.FindStringSubmatch(found)
		switch {
		case m[1] == "", m[1] == "0.0.0.0", m[1] == "127.0.0.1":
			return l.port(host, m[2])
		case l.hosts[m[1]]:
			return l.port(m[1], m[2])
		}
		l.t.Fatalf("%s: %q is no host of this cluster", text, m[1])
		return ""
	})
}

func TestLoopback_RewritesEveryAddress(t *testing.T) {
	l := newLoopback(t)
	l.hosts["etcd1"] = true
	at := l.port("etcd1", "2379")
	for in, want := range map[string]string{
		"--initial-cluster=etcd1=http://etcd1:2379": "--initial-cluster=etcd1=http://" + at,
		"--listen=:2379":               "--listen=" + at,
		"http://0.0.0.0:2379":          "http://" + at,
		"http://127.0.0.1:2379/readyz": "http://" + at + "/readyz",
		"--node-id=etcd1":              "--node-id=etcd1",
		"--log-level=info":             "--log-level=info",
	} {
		if got := l.rewrite("etcd1", in); got != want {
			t.Errorf("%s became %s, want %s", in, got, want)
		}
	}
	if a, b := l.port("etcd1", "2380"), l.port("etcd2", "2379"); a == at || b == at || a == b {
		t.Error(fmt.Sprint("ports are shared: ", at, a, b))
	}
}
