package lb

import (
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"strings"
)

// InstanceTLS says how an https instance proves who it is. It is immutable.
type InstanceTLS struct {
	// CA is PEM with the certificates of the authorities that are believed,
	// instead of the system's; empty: the system's.
	CA string `json:"ca,omitempty"`
	// ServerName is the name that the certificate must be for, and that is asked
	// for (SNI, RFC 6066 section 3); empty: the host of the URL.
	ServerName string `json:"server_name,omitempty"`
	// InsecureSkipVerify believes any certificate: whoever sits between sees
	// everything, the instance's token included.
	InsecureSkipVerify bool `json:"insecure_skip_verify,omitempty"`
}

// MaxCABytes bounds the text of the authorities of one instance.
const MaxCABytes = 64 << 10

// CACertificates reads the certificates of CA, in their order. The error says
// what is wrong, and where; a text without any certificate is wrong, too.
func (t *InstanceTLS) CACertificates() ([]*x509.Certificate, error) {
	var out []*x509.Certificate
	rest := []byte(t.CA)
	for {
		var block *pem.Block
		block, rest = pem.Decode(rest)
		if block == nil {
			break
		}
		n := len(out) + 1
		if strings.Contains(block.Type, "PRIVATE KEY") {
			return nil, Errorf(ErrInvalid, "block %d is a private key; give the authority's certificate only, and take that key for known", n)
		}
		if block.Type != "CERTIFICATE" {
			return nil, Errorf(ErrInvalid, "block %d is %q; every block must be a CERTIFICATE", n, block.Type)
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, Errorf(ErrInvalid, "certificate %d can't be read: %s", n, err)
		}
		out = append(out, c)
	}
	switch {
	case strings.Contains(string(rest), "-----BEGIN"):
		return nil, Errorf(ErrInvalid, "block %d is broken; it begins with -----BEGIN CERTIFICATE----- and ends with -----END CERTIFICATE-----", len(out)+1)
	case len(out) == 0:
		return nil, Errorf(ErrInvalid, "holds no certificate; give the PEM text itself, from -----BEGIN CERTIFICATE----- on, not the name of a file")
	}
	return out, nil
}

// validate returns the faults of the settings; secure says whether the
// instance's address is an https URL.
func (t *InstanceTLS) validate(fs *Faults, path string, secure bool) {
	at := func(key string) string { return JoinPath(path, key) }
	if !secure {
		fs.Add(path, "goes with an https url; this instance is reached in clear (write url: https://…, or leave tls away)")
	}
	switch {
	case t.CA == "":
	case len(t.CA) > MaxCABytes:
		fs.Add(at("ca"), "has %d bytes; at most %d", len(t.CA), MaxCABytes)
	case t.InsecureSkipVerify:
		fs.Add(at("ca"), "does nothing beside insecure_skip_verify; leave one of the two away")
	default:
		if _, err := t.CACertificates(); err != nil {
			fs.Add(at("ca"), "%s", err)
		}
	}
	if name := t.ServerName; name != "" {
		if _, err := netip.ParseAddr(name); err != nil && (len(name) > 253 || !hostName.MatchString(name) || numericHost.MatchString(name)) {
			fs.Add(at("server_name"), "%q is not a host name or IP address, without scheme and port, such as dify.internal", name)
		}
	}
}

// clone returns a copy; nil for nil.
func (t *InstanceTLS) clone() *InstanceTLS {
	if t == nil {
		return nil
	}
	c := *t
	return &c
}
