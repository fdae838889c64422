package daemon

import (
	"fmt"
	"net/url"
	"os"
	"strings"

	"github.com/rs/zerolog"
	"github.com/spf13/pflag"

	"difylb/pkg/certs"
	"difylb/pkg/lb"
)

// EtcdOptions are the flags towards etcd that both daemons have.
type EtcdOptions struct {
	Endpoints    []string
	Prefix       string
	CACert       string
	Cert, Key    string
	User         string
	PasswordFile string
}

// AddFlags declares the flags; endpoints are their default.
func (o *EtcdOptions) AddFlags(f *pflag.FlagSet, endpoints []string, help string) {
	f.StringSliceVar(&o.Endpoints, "etcd-endpoints", endpoints, help)
	f.StringVar(&o.Prefix, "etcd-prefix", "/difylb", "everything lives under this key; two clusters can share one etcd")
	f.StringVar(&o.CACert, "etcd-cacert", "", "file with the CA certificates that etcd's certificate is verified with")
	f.StringVar(&o.Cert, "etcd-cert", "", "file with the client certificate for etcd")
	f.StringVar(&o.Key, "etcd-key", "", "file with the key of --etcd-cert")
	f.StringVar(&o.User, "etcd-user", "", "user name for etcd's authentication")
	f.StringVar(&o.PasswordFile, "etcd-password-file", "", "file with the password of --etcd-user")
}

// Credentials checks the options and reads the files that they name: the TLS
// settings, nil without TLS, and the password. Errors are UsageErrors. What
// becomes of the certificates afterwards is logged.
func (o *EtcdOptions) Credentials(log zerolog.Logger) (*certs.Client, lb.Secret, error) {
	if err := o.Validate(); err != nil {
		return nil, "", err
	}
	client, err := o.TLS(log)
	if err != nil {
		return nil, "", err
	}
	password, err := o.Password()
	return client, password, err
}

// Validate reports the first option that can't be right, as a UsageError.
func (o *EtcdOptions) Validate() error {
	for _, e := range o.Endpoints {
		u, err := url.Parse(e)
		if err != nil || (u.Scheme != "unix" && u.Host == "") || (u.Scheme != "http" && u.Scheme != "https" && u.Scheme != "unix" && u.Scheme != "unixs") {
			return Usagef("--etcd-endpoints: %q is not a URL such as http://10.0.0.5:2379", e)
		}
	}
	if !strings.HasPrefix(o.Prefix, "/") || strings.HasSuffix(o.Prefix, "/") || strings.Contains(o.Prefix, "//") {
		return Usagef("--etcd-prefix: %q is not a prefix such as /difylb: it begins with / and does not end with it", o.Prefix)
	}
	if (o.Cert == "") != (o.Key == "") { // before anything is read
		return Usagef("--etcd-cert and --etcd-key go together; only one is given")
	}
	if o.PasswordFile != "" && o.User == "" {
		return Usagef("--etcd-password-file goes with --etcd-user, which is not given")
	}
	return nil
}

// Password reads the password; empty when no file is given.
func (o *EtcdOptions) Password() (lb.Secret, error) {
	if o.PasswordFile == "" {
		return "", nil
	}
	b, err := os.ReadFile(o.PasswordFile)
	if err != nil {
		return "", Usagef("--etcd-password-file: %w", err)
	}
	return lb.Secret(strings.TrimRight(string(b), "\r\n")), nil
}

// TLS returns the client's TLS settings, nil when no option asks for TLS.
func (o *EtcdOptions) TLS(log zerolog.Logger) (*certs.Client, error) {
	secure := o.CACert != "" || o.Cert != ""
	for _, e := range o.Endpoints {
		secure = secure || strings.HasPrefix(e, "https://") || strings.HasPrefix(e, "unixs://")
	}
	if !secure {
		return nil, nil
	}
	c, err := ClientTLS(log, "etcd-cacert", o.CACert, "etcd-cert", o.Cert, "etcd-key", o.Key)
	if c == nil && err == nil {
		c = &certs.Client{}
	}
	return c, err
}

// ClientTLS reads the settings of a client: the CAs that it trusts (none
// given: the system's) and its own certificate. nil when no file is given.
// Errors are UsageErrors that name the flag.
func ClientTLS(log zerolog.Logger, caFlag, ca, certFlag, cert, keyFlag, key string) (*certs.Client, error) {
	if (cert == "") != (key == "") {
		return nil, Usagef("--%s and --%s go together; only one is given", certFlag, keyFlag)
	}
	if ca == "" && cert == "" {
		return nil, nil
	}
	var c certs.Client
	var err error
	if ca != "" {
		if c.CAs, err = certs.LoadPool(ca, log); err != nil {
			return nil, Usagef("--%s: %w", caFlag, err)
		}
	}
	if cert != "" {
		if c.Own, err = certs.LoadPair(cert, key, log); err != nil {
			return nil, Usagef("--%s, --%s: %w", certFlag, keyFlag, err)
		}
	}
	return &c, nil
}

// DefaultNodeID returns the host's name, which names a node unless --node-id does.
func DefaultNodeID() string {
	name, err := os.Hostname()
	if err != nil || name == "" {
		return fmt.Sprintf("node-%d", os.Getpid())
	}
	return name
}

// CheckNodeID reports, as a UsageError, an id that can't be part of a key.
func CheckNodeID(id string) error {
	if id == "" || len(id) > 253 || strings.ContainsFunc(id, func(r rune) bool {
		return !strings.ContainsRune("abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789._-", r)
	}) {
		return Usagef("--node-id: %q is not 1 to 253 letters, digits, '.', '_', '-'", id)
	}
	return nil
}
