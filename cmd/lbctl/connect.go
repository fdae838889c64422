package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"difylb/pkg/admin"
	"difylb/pkg/lb"
)

const (
	defaultServer = "http://127.0.0.1:9180"
	// localTokenFile is where the first start of an lb-admin with default
	// flags, in this directory, writes its token.
	localTokenFile = "./data/lb-admin/admin.token"
	tokenFileName  = "admin.token"
)

// settings is what flags, environment and context come to.
type settings struct {
	server    string
	token     lb.Secret
	tokenFrom string // empty: there is no token
	ca        string
	cert, key string
}

// resolve decides which lb-admin is asked and with which token. A context that
// was named beats the environment, the current one does not. The token of a
// context goes to no other server than the context's own.
func (c *cli) resolve() (settings, error) {
	s := settings{server: defaultServer, ca: c.caFile, cert: c.certFile, key: c.keyFile}
	named := c.contextName != ""
	name, used, err := c.activeContext()
	if err != nil {
		return s, err
	}
	env := c.getenv(envName("server"))
	fromContext := false
	switch {
	case c.server != "":
		s.server = c.server
	case named && used.Server != "":
		s.server, fromContext = used.Server, true
	case env != "":
		s.server = env
	case used.Server != "":
		s.server, fromContext = used.Server, true
	}
	if used.Server == "" || used.Server == s.server {
		fromContext = name != ""
	}
	if s.ca == "" && fromContext {
		s.ca = used.CA
	}

	value, file, from := c.token, c.tokenFile, ""
	switch {
	case value != "" && file != "":
		return s, usagef("--token and --token-file are both given; one is enough")
	case value != "":
		from = "--token"
	case file != "":
		from = "--token-file"
	case named && fromContext && used.hasToken():
		value, file, from = used.Token, used.TokenFile, "context "+name
	case c.getenv(envName("token")) != "":
		value, from = c.getenv(envName("token")), envName("token")
	case c.getenv(envName("token-file")) != "":
		file, from = c.getenv(envName("token-file")), envName("token-file")
	case fromContext && used.hasToken():
		value, file, from = used.Token, used.TokenFile, "context "+name
	default:
		data, err := os.ReadFile(localTokenFile)
		if err != nil {
			return s, nil
		}
		value, from = string(data), localTokenFile
	}
	if value == "" {
		data, err := os.ReadFile(file)
		if err != nil {
			return s, usagef("%s: read token: %s", from, reason(err))
		}
		value, from = string(data), from+" "+file
	}
	s.token, s.tokenFrom = lb.Secret(strings.TrimSpace(value)), from
	if err := lb.CheckToken(s.token); err != nil {
		return s, usagef("the token from %s %s", from, err)
	}
	return s, nil
}

// reason drops the operation and path that os errors repeat.
func reason(err error) string {
	var pe *fs.PathError
	if errors.As(err, &pe) {
		return pe.Path + ": " + pe.Err.Error()
	}
	return err.Error()
}

// client makes the client of the REST API.
func (c *cli) client() (*admin.Client, error) {
	s, err := c.resolve()
	if err != nil {
		return nil, err
	}
	c.tokenFrom = s.tokenFrom
	o := admin.ClientOptions{Server: s.server, Token: s.token, UserAgent: "lbctl/" + currentVersion().Version}
	if s.ca != "" || s.cert != "" || s.key != "" {
		if o.HTTPClient, err = tlsClient(s); err != nil {
			return nil, err
		}
	}
	cl, err := admin.NewClient(o)
	if err != nil {
		return nil, usagef("%s", err)
	}
	return cl, nil
}

func tlsClient(s settings) (*http.Client, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12}
	if s.ca != "" {
		pem, err := os.ReadFile(s.ca)
		if err != nil {
			return nil, usagef("--ca: %s", reason(err))
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return nil, usagef("--ca: %s holds no PEM certificate", s.ca)
		}
	}
	if (s.cert == "") != (s.key == "") {
		return nil, usagef("--cert and --key belong together; one of them is missing")
	}
	if s.cert != "" {
		pair, err := tls.LoadX509KeyPair(s.cert, s.key)
		if err != nil {
			return nil, usagef("--cert %s, --key %s: %s", s.cert, s.key, reason(err))
		}
		conf.Certificates = []tls.Certificate{pair}
	}
	return &http.Client{Transport: &http.Transport{
		Proxy:               http.ProxyFromEnvironment,
		DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
		TLSClientConfig:     conf,
		TLSHandshakeTimeout: 5 * time.Second,
		ForceAttemptHTTP2:   true,
		IdleConnTimeout:     30 * time.Second,
	}}, nil
}

// call runs f with a client, within --timeout and what the server is asked to
// wait on top of it.
func (c *cli) call(cmd *cobra.Command, wait time.Duration, f func(context.Context, *admin.Client) error) error {
	cl, err := c.client()
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx, cancel := context.WithTimeout(cmd.Context(), c.timeout+wait)
	defer cancel()
	return f(ctx, cl)
}
