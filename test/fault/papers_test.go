package fault

import (
	"crypto/tls"
	"crypto/x509"
	"io"
	"net"
	"path/filepath"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"difylb/test/testbed"
)

// papers are the certificates of a cluster that speaks TLS.
type papers struct {
	t        testing.TB // that they are good for
	dir      string
	ca       *testbed.CA
	pool     *x509.CertPool
	instance atomic.Pointer[tls.Certificate] // what the instance that speaks TLS shows
}

// longLived outlasts every test.
const longLived = time.Hour

func newPapers(t testing.TB, dir string) *papers {
	t.Helper()
	p := &papers{t: t, dir: dir, ca: testbed.NewCA(t, "the test's own"), pool: x509.NewCertPool()}
	p.pool.AppendCertsFromPEM([]byte(p.ca.PEM))
	p.write("ca", p.ca.PEM)
	p.write("ca-of-etcd", p.ca.PEM)
	p.write("ca-of-admin", p.ca.PEM)
	for _, who := range []string{"etcd", "admin", "front", "to-etcd", "to-admin"} {
		p.issue(p.ca, who, longLived)
	}
	visitor := p.ca.Issue("visitor")
	testbed.Visitor.Store(&visitor)
	p.renew(longLived)
	return p
}

func (p *papers) crt(who string) string { return filepath.Join(p.dir, who+".pem") }
func (p *papers) key(who string) string { return filepath.Join(p.dir, who+".key") }

func (p *papers) write(who, pem string) {
	p.t.Helper()
	testbed.WriteFile(p.t, p.crt(who), []byte(pem))
}

// issue writes a new certificate of an authority into somebody's files.
func (p *papers) issue(by *testbed.CA, who string, life time.Duration) {
	p.t.Helper()
	testbed.WritePair(p.t, by.IssueFor(life, "127.0.0.1"), p.crt(who), p.key(who))
}

// renew makes a new certificate for the instance that speaks TLS.
func (p *papers) renew(life time.Duration) {
	p.t.Helper()
	c := p.ca.IssueFor(life, "127.0.0.1")
	p.instance.Store(&c)
}

// towards are the flags of a program that speaks TLS to etcd or to lb-admin.
func (p *papers) towards(who string) []string {
	return []string{"--" + who + "-cacert", p.crt("ca-of-" + who), "--" + who + "-cert", p.crt("to-" + who), "--" + who + "-key", p.key("to-" + who)}
}

// terminate puts an end of TLS before an address, and returns its own.
func (p *papers) terminate(t testing.TB, target string) string {
	t.Helper()
	ln, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	config := &tls.Config{GetCertificate: func(*tls.ClientHelloInfo) (*tls.Certificate, error) { return p.instance.Load(), nil }}
	var mu sync.Mutex
	open := make(map[net.Conn]bool) // guarded by mu; nil: the test has ended
	var running sync.WaitGroup
	keep := func(c net.Conn) bool {
		mu.Lock()
		defer mu.Unlock()
		if open == nil {
			c.Close()
			return false
		}
		open[c] = true
		return true
	}
	drop := func(c net.Conn) {
		mu.Lock()
		defer mu.Unlock()
		delete(open, c)
		c.Close()
	}
	serve := func(raw net.Conn) {
		defer drop(raw)
		out, err := net.DialTimeout("tcp", target, 5*time.Second)
		if err != nil {
			return
		}
		defer out.Close()
		in := tls.Server(raw, config)
		back := make(chan struct{})
		go func() { // ends with out
			defer close(back)
			_, _ = io.Copy(in, out)
			_ = in.CloseWrite()
		}()
		_, _ = io.Copy(out, in)
		_ = out.(*net.TCPConn).CloseWrite()
		<-back
	}
	running.Go(func() {
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			if keep(c) {
				running.Go(func() { serve(c) })
			}
		}
	})
	t.Cleanup(func() {
		ln.Close()
		mu.Lock()
		for c := range open {
			c.Close()
		}
		open = nil
		mu.Unlock()
		running.Wait()
	})
	return ln.Addr().String()
}

// scheme is how processes of the cluster are asked.
func (c *cluster) scheme() string {
	if c.papers != nil {
		return "https://"
	}
	return "http://"
}

// https reports whether an instance speaks TLS: the first of a secure cluster.
func (c *cluster) https(in *node) bool { return c.papers != nil && in == c.instances[0] }
