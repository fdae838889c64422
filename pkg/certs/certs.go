// Package certs keeps certificates, keys and authorities that stand in files:
// they are read again when the files change, so that renewing them needs no
// restart. It refuses to know whose connections they are for.
package certs

import (
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
)

// checkEvery is how often files are looked at, at most.
const checkEvery = time.Second

// files are some files that together make one value. A value that can't be
// made of what they hold now leaves the one before in force.
type files[T any] struct {
	names []string
	read  func() (T, error)
	log   zerolog.Logger

	mu      sync.Mutex // guards all below; held while the files are read
	value   T
	stamp   []stamp // of the files that value was made of
	refused []stamp // of those that nothing could be made of; told of once
	checked time.Time
}

// stamp tells a file that was written anew from what it was.
type stamp struct {
	modified time.Time
	size     int64
}

func load[T any](log zerolog.Logger, read func() (T, error), names ...string) (*files[T], error) {
	f := &files[T]{names: names, read: read, log: log, checked: time.Now()}
	var err error
	if f.stamp, err = f.stamps(); err != nil {
		return nil, err
	}
	f.value, err = read()
	return f, err
}

func (f *files[T]) stamps() ([]stamp, error) {
	out := make([]stamp, len(f.names))
	for i, name := range f.names {
		st, err := os.Stat(name)
		if err != nil {
			return nil, err
		}
		out[i] = stamp{st.ModTime(), st.Size()}
	}
	return out, nil
}

// current returns the value, of what the files hold by now if it is good.
func (f *files[T]) current() T {
	f.mu.Lock()
	defer f.mu.Unlock()
	// A clock that was set back looks at once.
	if now := time.Now(); now.Sub(f.checked).Abs() >= checkEvery {
		f.checked = now
		f.check()
	}
	return f.value
}

func (f *files[T]) check() {
	s, err := f.stamps()
	if err != nil || slices.Equal(s, f.stamp) {
		return
	}
	value, err := f.read()
	switch {
	case err == nil:
		f.value, f.stamp, f.refused = value, s, nil
		f.log.Info().Strs("files", f.names).Msg("certificates reloaded")
	case !slices.Equal(s, f.refused):
		f.refused = s
		f.log.Error().Err(err).Strs("files", f.names).Msg("new certificates not usable, keeping the old ones")
	}
}

// Pair is a certificate and its key. Safe for concurrent use.
type Pair struct {
	files *files[*tls.Certificate]
	told  atomic.Pointer[tls.Certificate] // that has run out
}

// LoadPair reads the two PEM files: the certificate, with those between it and
// its authority behind it, and its key.
func LoadPair(certFile, keyFile string, log zerolog.Logger) (*Pair, error) {
	f, err := load(log, func() (*tls.Certificate, error) {
		pair, err := tls.LoadX509KeyPair(certFile, keyFile)
		if err != nil {
			return nil, fmt.Errorf("load certificate %s with key %s: %w", certFile, keyFile, err)
		}
		return &pair, nil
	}, certFile, keyFile)
	return &Pair{files: f}, err
}

// Current returns the newest that could be read. It is not to be changed. One
// that has run out is told of in the log: whom it is shown to will refuse it.
func (p *Pair) Current() *tls.Certificate {
	c := p.files.current()
	if time.Now().After(c.Leaf.NotAfter) && p.told.Swap(c) != c {
		p.files.log.Error().Strs("files", p.files.names).Time("expired", c.Leaf.NotAfter).Msg("a certificate has run out; put a new one into its files")
	}
	return c
}

// Expires returns when the newest certificate runs out.
func (p *Pair) Expires() time.Time { return p.Current().Leaf.NotAfter }

// Pool is a set of authorities. Safe for concurrent use.
type Pool struct{ files *files[*x509.CertPool] }

// LoadPool reads a PEM file of certificates.
func LoadPool(file string, log zerolog.Logger) (*Pool, error) {
	f, err := load(log, func() (*x509.CertPool, error) {
		pem, err := os.ReadFile(file)
		if err != nil {
			return nil, err
		}
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(pem) {
			return nil, fmt.Errorf("%s holds no PEM certificate", file)
		}
		return pool, nil
	}, file)
	return &Pool{f}, err
}

// Current returns the newest that could be read. It is not to be changed.
func (p *Pool) Current() *x509.CertPool { return p.files.current() }

// Client is how a client of TLS proves who it is, and whom it believes.
type Client struct {
	CAs *Pool // nil: the system's
	Own *Pair // nil: it shows none
}

// Config returns the settings for the next connection.
func (c *Client) Config() *tls.Config {
	out := &tls.Config{MinVersion: tls.VersionTLS12}
	if c.CAs != nil {
		out.RootCAs = c.CAs.Current()
	}
	if c.Own != nil {
		out.Certificates = []tls.Certificate{*c.Own.Current()}
	}
	return out
}

// Settings is Config as a value; nil for a nil Client.
func (c *Client) Settings() func() *tls.Config {
	if c == nil {
		return nil
	}
	return c.Config
}

// Shown returns the certificate that it shows, nil for none.
func (c *Client) Shown() *Pair {
	if c == nil {
		return nil
	}
	return c.Own
}

// Server returns the settings of a server, for HTTP of both versions: each
// connection gets the newest certificate and, with clients, is only let in with
// one of an authority of theirs.
func Server(own *Pair, clients *Pool) *tls.Config {
	protocols := []string{"h2", "http/1.1"}
	return &tls.Config{
		MinVersion: tls.VersionTLS12, NextProtos: protocols,
		GetConfigForClient: func(*tls.ClientHelloInfo) (*tls.Config, error) {
			c := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: protocols, Certificates: []tls.Certificate{*own.Current()}}
			if clients != nil {
				c.ClientCAs, c.ClientAuth = clients.Current(), tls.RequireAndVerifyClientCert
			}
			return c, nil
		},
	}
}
