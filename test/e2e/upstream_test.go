package e2e

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"difylb/pkg/standin"
)

// An instance may close a kept-alive connection whenever it likes, as gunicorn
// does after two seconds: no request is lost, not even one that must not be
// sent twice.
func TestUpstream_ClosedKeepAliveCostsNoRequest(t *testing.T) {
	t.Parallel()
	var app application
	var nodes []*standinNode
	c := newPair(t, func(c *cluster) []application {
		app, nodes = c.chatApplication("closing", 2, unprobed())
		return []application{app}
	})
	for _, s := range nodes {
		s.fault(faultOf(standin.CloseAfter))
	}
	l := startLoad(t, traffic{token: app.token, users: users("regular", 30), proxies: c.proxyURLs, rate: 40, streams: 4, tokens: 2, gap: 5 * time.Millisecond})
	l.await(150)
	for _, s := range nodes {
		s.fault()
	}
	l.await(20)
	// Idle for longer than the stand-in, like gunicorn, keeps a connection.
	replies := l.stop()
	time.Sleep(2500 * time.Millisecond)
	for _, u := range users("returning", 10) {
		replies = append(replies, question{token: app.token, user: u}.ask(t.Context(), c.proxies[0].url))
	}
	noFailures(t, "while instances closed connections", replies)
	for _, r := range replies {
		if r.failure == "" && r.instance != app.order(t, r.user)[0] {
			t.Errorf("%s was served by %s instead of its owner", r.user, r.instance)
		}
	}
}

// An upgraded connection is a tunnel for both directions, however large, and a
// change of the configuration or a drain does not cut it.
func TestUpstream_UpgradeIsATunnel(t *testing.T) {
	t.Parallel()
	var app application
	c := newPair(t, func(c *cluster) []application {
		app, _ = c.chatApplication("tunnelled", 1, unprobed())
		return []application{app}
	})
	for _, p := range c.proxies {
		conn, err := net.Dial("tcp", p.url[len("http://"):])
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(20 * time.Second))
		fmt.Fprintf(conn, "GET /v1/_standin/upgrade?user=u HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n", app.token)
		in := bufio.NewReader(conn)
		resp, err := http.ReadResponse(in, nil)
		if err != nil || resp.StatusCode != http.StatusSwitchingProtocols || resp.Header.Get("Upgrade") != "echo" {
			t.Fatalf("%s: %v, %v", p.Name, resp, err)
		}
		echo := func(payload []byte) {
			t.Helper()
			go func() { _, _ = conn.Write(payload) }() // ends with the connection
			got := make([]byte, len(payload))
			if _, err := io.ReadFull(in, got); err != nil || !bytes.Equal(got, payload) {
				t.Fatalf("%s: %d bytes did not come back as they were: %v", p.Name, len(payload), err)
			}
		}
		echo([]byte("before"))
		c.mustLbctl("instance", "drain", app.name, app.instances[0].name)
		echo(bytes.Repeat([]byte("during \x00\xff"), 300_000))
		c.mustLbctl("instance", "activate", app.name, app.instances[0].name)
		echo([]byte("after"))
	}
}
