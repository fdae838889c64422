package proxy

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/rs/zerolog"
)

// Certificates is a certificate that is read again when its files change, so
// that renewing it needs no restart. Safe for concurrent use.
type Certificates struct {
	certFile, keyFile string
	log               zerolog.Logger

	mu      sync.Mutex
	current *tls.Certificate
	stamp   [2]fileStamp
	checked time.Time
}

// certificateCheck is how often the files are looked at, at most.
const certificateCheck = time.Second

// LoadCertificates reads the two PEM files.
func LoadCertificates(certFile, keyFile string, log zerolog.Logger) (*Certificates, error) {
	c := &Certificates{certFile: certFile, keyFile: keyFile, log: log}
	return c, c.load()
}

func (c *Certificates) load() error {
	stamp, err := c.stamps()
	if err != nil {
		return err
	}
	pair, err := tls.LoadX509KeyPair(c.certFile, c.keyFile)
	if err != nil {
		return fmt.Errorf("load certificate %s with key %s: %w", c.certFile, c.keyFile, err)
	}
	c.current, c.stamp = &pair, stamp
	return nil
}

// fileStamp tells a file that was written anew from what it was.
type fileStamp struct {
	modified time.Time
	size     int64
}

func (c *Certificates) stamps() (s [2]fileStamp, err error) {
	for i, name := range []string{c.certFile, c.keyFile} {
		st, err := os.Stat(name)
		if err != nil {
			return s, err
		}
		s[i] = fileStamp{st.ModTime(), st.Size()}
	}
	return s, nil
}

// get returns the certificate for a handshake. Files that can't be read, or do
// not fit together yet, leave the one before in force.
func (c *Certificates) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.checked) >= certificateCheck {
		c.checked = now
		if s, err := c.stamps(); err == nil && s != c.stamp {
			if err := c.load(); err != nil {
				c.log.Error().Err(err).Msg("new certificate not usable, keeping the old one")
			} else {
				c.log.Info().Str("file", c.certFile).Msg("certificate reloaded")
			}
		}
	}
	return c.current, nil
}

func tlsConfig(certs *Certificates) *tls.Config {
	return &tls.Config{
		GetCertificate: certs.get,
		MinVersion:     tls.VersionTLS12,
		NextProtos:     []string{"h2", "http/1.1"},
		// For TLS 1.2: forward secrecy and AEAD only. TLS 1.3 has nothing else.
		CipherSuites: []uint16{
			tls.TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256, tls.TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256,
			tls.TLS_ECDHE_ECDSA_WITH_AES_256_GCM_SHA384, tls.TLS_ECDHE_RSA_WITH_AES_256_GCM_SHA384,
			tls.TLS_ECDHE_ECDSA_WITH_CHACHA20_POLY1305_SHA256, tls.TLS_ECDHE_RSA_WITH_CHACHA20_POLY1305_SHA256,
		},
	}
}
