package route

import (
	"crypto/tls"
	"crypto/x509"
	"net/url"

	"difylb/pkg/lb"
)

// sessionsKept: a cache holds one session for each server name, and an
// instance has one. New connections take it up again (RFC 8446 section 2.2).
const sessionsKept = 1

// authorities holds the pools of one application by their text: most often its
// instances share one.
type authorities map[string]*x509.CertPool

// config makes ready how to speak TLS to instance i; nil for one in clear.
// What old has serves again if it would come out the same.
func (known authorities) config(i int, in *lb.Instance, base *url.URL, old *App) (*tls.Config, error) {
	if base.Scheme != "https" {
		return nil, nil
	}
	var want lb.InstanceTLS
	if in.TLS != nil {
		want = *in.TLS
	}
	if old != nil {
		if i >= len(old.Instances) || old.Instances[i].Decl.Name != in.Name {
			i = old.Index(in.Name)
		}
		if i >= 0 && sameTLS(old.Instances[i].Decl, in) {
			return old.Instances[i].TLS, nil
		}
	}
	c := &tls.Config{
		ServerName: base.Hostname(), MinVersion: tls.VersionTLS12, NextProtos: []string{"http/1.1"},
		InsecureSkipVerify: want.InsecureSkipVerify, // as the operator wants; who puts it in force warns
		ClientSessionCache: tls.NewLRUClientSessionCache(sessionsKept),
	}
	if want.ServerName != "" {
		c.ServerName = want.ServerName
	}
	if want.CA == "" {
		return c, nil
	}
	pool := known[want.CA]
	if pool == nil {
		certs, err := want.CACertificates()
		if err != nil {
			return nil, err
		}
		pool = x509.NewCertPool()
		for _, cert := range certs {
			pool.AddCert(cert)
		}
		known[want.CA] = pool
	}
	c.RootCAs = pool
	return c, nil
}

// sameTLS reports whether two declarations of one instance come to the same
// place, and believe the same.
func sameTLS(a, b *lb.Instance) bool {
	if a.URL != b.URL || (a.TLS == nil) != (b.TLS == nil) {
		return false
	}
	return a.TLS == nil || *a.TLS == *b.TLS
}
