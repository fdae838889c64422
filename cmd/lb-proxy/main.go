// Command lb-proxy is the data plane: it routes client traffic to instances.
// Any number of them run side by side, stateless, behind DNS or an L4 balancer.
package main

import (
	"context"
	"os"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"difylb/pkg/daemon"
	"difylb/pkg/dataplane"
	"difylb/pkg/lb"
	"difylb/pkg/store"
)

func main() { os.Exit(daemon.Main(command())) }

// options are the flags as they are parsed.
type options struct {
	plane    dataplane.Options
	etcd     daemon.EtcdOptions
	maxBody  daemon.SizeValue
	adminTLS struct{ ca, cert, key string }
	otlp     struct{ headers, ca string }
	resolver daemon.ResolverOptions
	level    string
	format   string
}

func command() *cobra.Command {
	o := &options{maxBody: 100 << 20}
	o.plane.StatusAllow = daemon.PrivatePrefixes()
	cmd := &cobra.Command{
		Use:   "lb-proxy",
		Short: "Data plane of the difylb load balancer for Dify",
		Long: `lb-proxy routes client traffic to Dify instances: it recognises the application by
the user token, finds the user id, and places the user on an instance by consistent
hash. Its configuration comes from etcd, live; what it last knew is kept on disk.

Every flag can be given as an environment variable (--max-body is LB_PROXY_MAX_BODY)
and as a key of the YAML file that --config names. Flags beat the environment, which
beats the file.`,
		Example: `  lb-proxy --etcd-endpoints http://10.0.0.5:2379
  lb-proxy --listen :82 --tls-listen :443 --tls-cert tls.crt --tls-key tls.key \
    --etcd-endpoints http://10.0.0.5:2379,http://10.0.0.6:2379,http://10.0.0.7:2379`,
	}
	f := cmd.Flags()
	p := &o.plane
	f.StringSliceVar(&p.Listen, "listen", []string{":8082"}, "`address` for client traffic in clear; repeatable")
	f.StringSliceVar(&p.TLSListen, "tls-listen", nil, "`address` for HTTPS, with HTTP/2; repeatable")
	f.StringVar(&p.TLSCert, "tls-cert", "", "PEM `file` with the certificate chain; read again when it changes")
	f.StringVar(&p.TLSKey, "tls-key", "", "PEM `file` with the certificate's key")
	f.StringVar(&p.Handover, "handover", "", "unix socket at this `path`: take the listening sockets over from the proxy that runs, and offer them to the next; empty for neither")
	f.StringVar(&p.OpsListen, "ops-listen", "127.0.0.1:9182", "`address` for /metrics, /health, /readyz and /debug/pprof/; empty for none")
	o.etcd.AddFlags(f, []string{"http://127.0.0.1:2379"}, "etcd's client `URLs`")
	f.StringVar(&o.adminTLS.ca, "admin-cacert", "", "PEM `file` with the CA of lb-admins that speak TLS (default: the system's)")
	f.StringVar(&o.adminTLS.cert, "admin-cert", "", "PEM `file` with the client certificate that lb-admins started with --client-ca want")
	f.StringVar(&o.adminTLS.key, "admin-key", "", "PEM `file` with the key of --admin-cert")
	f.StringVar(&p.NodeID, "node-id", daemon.DefaultNodeID(), "`name` of this node, unique per lb-proxy")
	f.StringVar(&p.DataDir, "data-dir", "./data/lb-proxy", "`directory` for the last good configuration")
	f.StringVar(&p.AccessLog, "access-log", "-", "`file` for the access log, - for standard output, or off; reopened on SIGHUP")
	f.StringVar(&p.AccessLogFormat, "access-log-format", "json", "json, or seed: the fields of the OpenResty balancer's app_routing.log")
	f.BoolVar(&p.AccessLogUsers, "access-log-users", false, "log user ids in clear, not only a keyed hash of them")
	f.Float64Var(&p.AccessLogSample, "access-log-sample", 1, "`part` of the requests to log, 0.1 for a tenth; those that went wrong or were slow are always logged")
	f.DurationVar(&p.AccessLogSlow, "access-log-slow", 10*time.Second, "how long the first byte of an answer takes so that the request counts as slow; 0 for never")
	f.StringVar(&p.OTLPEndpoint, "otlp-endpoint", "", "`URL` of an OpenTelemetry collector, OTLP over HTTP: http://host:4318; empty traces nothing")
	f.StringVar(&o.otlp.headers, "otlp-headers-file", "", "`file` with the headers that the collector wants, a line each: Name: value")
	f.StringVar(&o.otlp.ca, "otlp-cacert", "", "PEM `file` with the CA of a collector that speaks TLS (default: the system's)")
	f.Float64Var(&p.TraceSample, "trace-sample", 0.01, "`part` of the requests to trace, of those that bring no trace of their own")
	f.DurationVar(&p.ShutdownGrace, "shutdown-grace", time.Minute, "how long open requests and streams may take at SIGTERM")
	f.DurationVar(&p.ShutdownDelay, "shutdown-delay", 0, "how long to go on accepting after SIGTERM, while /readyz fails already")
	f.IntVar(&p.MaxConnections, "max-connections", 65536, "client connections open at once; further ones wait")
	f.Var(&o.maxBody, "max-body", "largest request body where an application sets no bound")
	f.Var(&p.TrustedProxies, "trusted-proxies", "networks whose X-Forwarded-For and -Proto are kept")
	f.Var(&p.StatusAllow, "status-allow", "networks that may ask for /status; \"private\" stands for loopback and private ranges")
	f.BoolVar(&p.DebugHeaders, "debug-headers", false, "tell clients and instances where a request went and why")
	f.BoolVar(&p.FilesRoute, "files-route", false, "pass /files/ links that instances signed, which need no token, to the instance that signed them")
	o.resolver.AddFlags(f)
	f.StringVar(&p.SpoolDir, "spool-dir", "", "`directory` for large bodies whose user id stands at their end (default: the system's)")
	f.StringVar(&o.level, "log-level", "info", "trace, debug, info, warn or error")
	f.StringVar(&o.format, "log-format", "json", "json, or console for people")
	return daemon.Command(cmd, "LB_PROXY", func(*cobra.Command) error { return o.run() })
}

func (o *options) run() error {
	log, err := daemon.NewLogger(os.Stderr, o.level, o.format)
	if err != nil {
		return err
	}
	daemon.RouteGRPCLog(log)
	if err := o.complete(log); err != nil {
		return err
	}
	orderly, now, stop := daemon.Signals(context.Background())
	defer stop()
	o.plane.Log, o.plane.Now = log, now
	plane, err := dataplane.New(o.plane)
	if err != nil {
		return err
	}
	hup := make(chan struct{})
	go func() { defer close(hup); daemon.OnHangup(orderly, plane.ReopenLogs) }() // ends with orderly
	err = plane.Run(orderly)
	stop()
	<-hup
	return err
}

// complete checks what flags alone can't and fills in the rest.
func (o *options) complete(log zerolog.Logger) error {
	p := &o.plane
	if err := daemon.CheckNodeID(p.NodeID); err != nil {
		return err
	}
	for flag, addrs := range map[string][]string{"listen": p.Listen, "tls-listen": p.TLSListen} {
		for _, addr := range addrs {
			if err := daemon.CheckAddress(flag, addr); err != nil {
				return err
			}
		}
	}
	if p.OpsListen != "" {
		if err := daemon.CheckAddress("ops-listen", p.OpsListen); err != nil {
			return err
		}
	}
	if len(o.etcd.Endpoints) == 0 {
		return daemon.Usagef("--etcd-endpoints: no URL; lb-proxy follows an etcd, for example the one that lb-admin embeds: http://127.0.0.1:2379")
	}
	if s := p.AccessLogSample; !(s > 0 && s <= 1) {
		return daemon.Usagef("--access-log-sample: %v is not a part of the requests; above 0, up to 1", s)
	}
	if p.AccessLogSlow < 0 {
		return daemon.Usagef("--access-log-slow: %s is negative; 0 means that no request is slow", p.AccessLogSlow)
	}
	if err := o.completeTracing(log); err != nil {
		return err
	}
	if p.MaxConnections < 1 {
		return daemon.Usagef("--max-connections: %d is out of range; from 1", p.MaxConnections)
	}
	if o.maxBody < 1 {
		return daemon.Usagef("--max-body: %s is out of range; from 1", o.maxBody.String())
	}
	if p.ShutdownGrace < 0 || p.ShutdownDelay < 0 {
		return daemon.Usagef("--shutdown-grace, --shutdown-delay: must not be negative")
	}
	p.MaxBody, p.Version = lb.Size(o.maxBody), daemon.Version
	var err error
	if p.Names, err = o.resolver.Names(); err != nil {
		return err
	}
	var password lb.Secret
	if p.EtcdTLS, password, err = o.etcd.Credentials(log); err != nil {
		return err
	}
	p.Store = store.Options{Endpoints: o.etcd.Endpoints, Prefix: o.etcd.Prefix, Username: o.etcd.User, Password: password}
	p.AdminTLS, err = daemon.ClientTLS(log, "admin-cacert", o.adminTLS.ca, "admin-cert", o.adminTLS.cert, "admin-key", o.adminTLS.key)
	return err
}

func (o *options) completeTracing(log zerolog.Logger) (err error) {
	p := &o.plane
	if s := p.TraceSample; !(s >= 0 && s <= 1) {
		return daemon.Usagef("--trace-sample: %v is not a part of the requests; 0 to 1", s)
	}
	if p.OTLPEndpoint == "" && (o.otlp.headers != "" || o.otlp.ca != "") {
		return daemon.Usagef("--otlp-headers-file and --otlp-cacert go with --otlp-endpoint")
	}
	if o.otlp.headers != "" {
		if p.OTLPHeaders, err = daemon.ReadHeaders("otlp-headers-file", o.otlp.headers); err != nil {
			return err
		}
	}
	collector, err := daemon.ClientTLS(log, "otlp-cacert", o.otlp.ca, "", "", "", "")
	if collector != nil {
		p.OTLPTLS = collector.Config() // it keeps that
	}
	return err
}
