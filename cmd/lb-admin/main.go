// Command lb-admin is the control plane: it keeps the configuration in etcd,
// its own unless told otherwise, serves the REST API, probes instances and
// adds up what the proxies count.
package main

import (
	"context"
	"errors"
	"os"

	"github.com/spf13/cobra"

	"difylb/pkg/controlplane"
	"difylb/pkg/daemon"
	"difylb/pkg/lb"
	"difylb/pkg/store"
)

func main() { os.Exit(daemon.Main(command())) }

// options are the flags as they are parsed.
type options struct {
	plane    controlplane.Options
	etcd     daemon.EtcdOptions
	trusted  daemon.Prefixes
	level    string
	format   string
	resolver daemon.ResolverOptions
}

func command() *cobra.Command {
	o := &options{}
	cmd := &cobra.Command{
		Use:   "lb-admin",
		Short: "Control plane of the difylb load balancer for Dify",
		Long: `lb-admin keeps applications, user tokens and instances in etcd: an embedded one in
--data-dir, or the cluster that --etcd-endpoints names. It serves the REST API that
lbctl and the dashboard speak. Several may run; one is elected to probe instances.

Every flag can be given as an environment variable (--http-listen is
LB_ADMIN_HTTP_LISTEN) and as a key of the YAML file that --config names. Flags beat
the environment, which beats the file.`,
		Example: `  lb-admin
  lb-admin --http-listen 0.0.0.0:9180 --grpc-listen 0.0.0.0:9190 --etcd-listen-client http://0.0.0.0:2379
  lb-admin --etcd-endpoints http://10.0.0.5:2379,http://10.0.0.6:2379,http://10.0.0.7:2379`,
	}
	f := cmd.Flags()
	p := &o.plane
	f.StringVar(&p.HTTPListen, "http-listen", "127.0.0.1:9180", "`address` of the REST API, /metrics, /status, /health and /readyz")
	f.StringVar(&p.GRPCListen, "grpc-listen", "127.0.0.1:9190", "`address` for the proxies' link")
	f.StringVar(&p.GRPCAdvertise, "grpc-advertise", "", "`address` that proxies dial (default: the listen address, or this host's own)")
	o.etcd.AddFlags(f, nil, "client `URLs` of an external etcd; empty runs an embedded one")
	f.StringVar(&p.EtcdListenClient, "etcd-listen-client", "http://127.0.0.1:2379", "`URL` at which the embedded etcd serves clients")
	f.StringVar(&p.EtcdListenPeer, "etcd-listen-peer", "http://127.0.0.1:2380", "`URL` of the embedded etcd for its peers")
	f.StringVar(&p.DataDir, "data-dir", "./data/lb-admin", "`directory` of the embedded etcd and of the generated admin.token")
	f.StringVar(&p.NodeID, "node-id", daemon.DefaultNodeID(), "`name` of this node, unique per lb-admin")
	f.StringVar(&p.TLSCert, "tls-cert", "", "PEM `file` with the certificate chain for REST and gRPC")
	f.StringVar(&p.TLSKey, "tls-key", "", "PEM `file` with the certificate's key")
	f.StringVar(&p.ClientCA, "client-ca", "", "PEM `file` with the CA that clients of REST and gRPC must be certified by")
	o.resolver.AddFlags(f)
	f.Var(&o.trusted, "trusted-proxies", "networks whose X-Forwarded-For is believed")
	f.StringVar(&o.level, "log-level", "info", "trace, debug, info, warn or error")
	f.StringVar(&o.format, "log-format", "json", "json, or console for people")
	return daemon.Command(cmd, "LB_ADMIN", func(*cobra.Command) error { return o.run() })
}

func (o *options) run() error {
	log, err := daemon.NewLogger(os.Stderr, o.level, o.format)
	if err != nil {
		return err
	}
	daemon.RouteGRPCLog(log)
	p := &o.plane
	if err := daemon.CheckNodeID(p.NodeID); err != nil {
		return err
	}
	for flag, addr := range map[string]string{"http-listen": p.HTTPListen, "grpc-listen": p.GRPCListen, "grpc-advertise": p.GRPCAdvertise} {
		if flag == "grpc-advertise" && addr == "" {
			continue
		}
		if err := daemon.CheckAddress(flag, addr); err != nil {
			return err
		}
	}
	for flag, addr := range map[string]string{"etcd-listen-client": p.EtcdListenClient, "etcd-listen-peer": p.EtcdListenPeer} {
		if err := daemon.CheckListenURL(flag, addr); err != nil {
			return err
		}
	}
	if p.Names, err = o.resolver.Names(); err != nil {
		return err
	}
	var password lb.Secret
	if p.EtcdTLS, password, err = o.etcd.Credentials(log); err != nil {
		return err
	}
	p.Store = store.Options{Endpoints: o.etcd.Endpoints, Prefix: o.etcd.Prefix, Username: o.etcd.User, Password: password}
	p.TrustedProxies, p.Log, p.Version = o.trusted, log, daemon.Version
	plane, err := controlplane.New(*p)
	if err != nil {
		return err
	}
	orderly, now, stop := daemon.Signals(context.Background())
	defer stop()
	context.AfterFunc(now, func() {
		if !errors.Is(context.Cause(now), context.Canceled) { // a second signal, not our own stop
			os.Exit(1)
		}
	})
	return plane.Run(orderly)
}
