package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	"github.com/spf13/cobra"

	"difylb/pkg/admin"
	"difylb/pkg/controlplane"
	"difylb/pkg/daemon"
	"difylb/pkg/dataplane"
	"difylb/pkg/document"
	"difylb/pkg/lb"
	"difylb/pkg/store"
)

// upOptions are the flags of `lbctl up`.
type upOptions struct {
	file      string
	proxies   int
	demo      bool
	dataDir   string
	listen    string
	ops       string
	http      string
	grpc      string
	etcd      string
	etcdPeer  string
	accessLog string
	logLevel  string
	logFormat string
}

func (c *cli) upCommand() *cobra.Command {
	o := &upOptions{}
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Run a whole cluster on this machine: etcd, one lb-admin, lb-proxies",
		Long: `Runs an embedded etcd, one lb-admin and one or more lb-proxies in this process, as the
real daemons would run, applies a file, and says what to try. Ctrl-C ends everything.
The first proxy listens on --listen, each further one a port higher.

--demo adds a stand-in Dify at every loopback address that the file names: chat,
completion and workflow applications by the word in the instance's token.`,
		Example: "  lbctl up -f examples/difylb.yaml --proxies 2 --demo\n  lbctl up -f difylb.yaml --listen :82",
		Args:    cobra.NoArgs,
		RunE:    func(cmd *cobra.Command, _ []string) error { return c.up(cmd.Context(), o) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.file, "file", "f", "", "document to apply, YAML or JSON")
	f.IntVar(&o.proxies, "proxies", 1, "number of lb-proxies")
	f.BoolVar(&o.demo, "demo", false, "run stand-in Dify instances where the file says that instances are")
	f.StringVar(&o.dataDir, "data-dir", "./data", "`directory` for everything that is kept")
	f.StringVar(&o.listen, "listen", ":8082", "`address` of the first proxy")
	f.StringVar(&o.ops, "ops-listen", "127.0.0.1:9182", "`address` of the first proxy's /metrics and /readyz")
	f.StringVar(&o.http, "http-listen", "127.0.0.1:9180", "`address` of lb-admin's REST API")
	f.StringVar(&o.grpc, "grpc-listen", "127.0.0.1:9190", "`address` of lb-admin's link to the proxies")
	f.StringVar(&o.etcd, "etcd-listen-client", "http://127.0.0.1:2379", "`URL` of the embedded etcd")
	f.StringVar(&o.etcdPeer, "etcd-listen-peer", "http://127.0.0.1:2380", "`URL` of the embedded etcd for peers")
	f.StringVar(&o.accessLog, "access-log", "off", "`file` for the proxies' access log, - for standard output, or off")
	f.StringVar(&o.logLevel, "log-level", "warn", "trace, debug, info, warn or error")
	f.StringVar(&o.logFormat, "log-format", "console", "json or console")
	_ = cmd.MarkFlagFilename("file", "yaml", "yml", "json")
	return cmd
}

// cluster is what `lbctl up` runs. Parts end in the reverse of the order in
// which they were started.
type upCluster struct {
	c   *cli
	o   *upOptions
	log zerolog.Logger

	admin    *controlplane.Plane
	proxies  []*dataplane.Plane
	standins []string // addresses
	doc      *lb.Document
	raw      []byte

	stops  []func() // newest last
	failed chan error
}

func (c *cli) up(ctx context.Context, o *upOptions) (err error) {
	if o.proxies < 1 || o.proxies > 100 {
		return usagef("--proxies: %d is out of range; 1 to 100", o.proxies)
	}
	if err := o.checkAddresses(); err != nil {
		return usagef("%s", err)
	}
	if o.demo && o.file == "" {
		return usagef("--demo needs -f FILE: the stand-ins run where the file's instances are")
	}
	u := &upCluster{c: c, o: o, failed: make(chan error, 1)}
	if u.log, err = daemon.NewLogger(c.err, o.logLevel, o.logFormat); err != nil {
		return usagef("%s", err)
	}
	daemon.RouteGRPCLog(u.log)
	if o.file != "" {
		if u.raw, u.doc, err = readDocument(o.file); err != nil {
			return err
		}
	}
	defer u.stop()
	if err := u.start(ctx); err != nil {
		return err
	}
	u.say()
	select {
	case <-ctx.Done():
		fmt.Fprintln(c.err, "\nending everything …")
		return nil
	case err := <-u.failed:
		return err
	}
}

// checkAddresses says what is wrong with an address before anything is started.
func (o *upOptions) checkAddresses() error {
	return cmp.Or(
		daemon.CheckAddress("listen", o.listen), daemon.CheckAddress("ops-listen", o.ops),
		daemon.CheckAddress("http-listen", o.http), daemon.CheckAddress("grpc-listen", o.grpc),
		daemon.CheckListenURL("etcd-listen-client", o.etcd), daemon.CheckListenURL("etcd-listen-peer", o.etcdPeer))
}

func readDocument(file string) ([]byte, *lb.Document, error) {
	raw, err := os.ReadFile(file)
	if err != nil {
		return nil, nil, usagef("-f: %s", err)
	}
	doc, err := document.Parse(raw)
	var faults lb.Faults
	if errors.As(err, &faults) {
		e := &documentError{what: "read " + file}
		for _, f := range faults {
			e.faults = append(e.faults, placedFault{Fault: f, file: file})
		}
		return nil, nil, e
	}
	return raw, doc, err
}

// begin runs a part until stop; a part that ends by itself ends the whole.
func (u *upCluster) begin(name string, run func(context.Context) error) {
	ctx, cancel := context.WithCancelCause(context.Background())
	var wg sync.WaitGroup
	wg.Add(1)
	go func() { // ends by stop
		defer wg.Done()
		if err := run(ctx); err != nil && ctx.Err() == nil {
			select {
			case u.failed <- fmt.Errorf("%s: %w", name, err):
			default:
			}
		}
	}()
	u.stops = append(u.stops, func() {
		cancel(errors.New("lbctl up ends"))
		wg.Wait()
	})
}

func (u *upCluster) stop() {
	for i := len(u.stops) - 1; i >= 0; i-- {
		u.stops[i]()
	}
}

// await waits for a part to be ready.
func (u *upCluster) await(ctx context.Context, ready <-chan struct{}, what string) error {
	limit := time.NewTimer(30 * time.Second)
	defer limit.Stop()
	select {
	case <-ready:
		return nil
	case err := <-u.failed:
		return err
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-limit.C:
		return fmt.Errorf("%s is not ready after 30 s; run with --log-level info to see why", what)
	}
}

func (u *upCluster) start(ctx context.Context) (err error) {
	o := u.o
	if o.demo {
		if err := u.startStandins(); err != nil {
			return err
		}
	}
	u.admin, err = controlplane.New(controlplane.Options{
		NodeID: "admin-1", Version: daemon.Version, HTTPListen: o.http, GRPCListen: o.grpc,
		EtcdListenClient: o.etcd, EtcdListenPeer: o.etcdPeer, DataDir: filepath.Join(o.dataDir, "lb-admin"), Log: u.log,
	})
	if err != nil {
		return err
	}
	u.begin("lb-admin", u.admin.Run)
	if err := u.await(ctx, u.admin.Ready(), "lb-admin"); err != nil {
		return err
	}
	client, err := u.client()
	if err != nil {
		return err
	}
	defer client.Close()
	if u.raw != nil {
		if _, err := client.Apply(ctx, u.raw, admin.ApplyOptions{}); err != nil {
			return err
		}
	}
	for i := range o.proxies {
		if err := u.startProxy(ctx, i); err != nil {
			return err
		}
	}
	if u.raw != nil { // once more: nothing changes, but now it waits for the proxies
		if _, err := client.Apply(ctx, u.raw, admin.ApplyOptions{Wait: 10 * time.Second}); err != nil {
			return err
		}
	}
	return nil
}

func (u *upCluster) startProxy(ctx context.Context, i int) error {
	listen, err := portAfter(u.o.listen, i)
	if err != nil {
		return usagef("--listen: %s", err)
	}
	ops, err := portAfter(u.o.ops, i)
	if err != nil {
		return usagef("--ops-listen: %s", err)
	}
	id := "proxy-" + strconv.Itoa(i+1)
	p, err := dataplane.New(dataplane.Options{
		NodeID: id, Version: daemon.Version, Listen: []string{listen}, OpsListen: ops,
		Store:   store.Options{Endpoints: u.admin.Endpoints(), Prefix: "/difylb"},
		DataDir: filepath.Join(u.o.dataDir, "lb-"+id), AccessLog: u.o.accessLog,
		ShutdownGrace: 5 * time.Second, MaxConnections: 65536, MaxBody: 100 << 20,
		StatusAllow: daemon.PrivatePrefixes(), DebugHeaders: u.o.demo, Log: u.log,
	})
	if err != nil {
		return err
	}
	u.proxies = append(u.proxies, p)
	u.begin("lb-"+id, p.Run)
	return u.await(ctx, p.Ready(), "lb-"+id)
}

// portAfter returns the address with its port i higher; port 0 stays.
func portAfter(addr string, i int) (string, error) {
	host, port, err := net.SplitHostPort(addr)
	if err != nil {
		return "", fmt.Errorf("%q is not an address such as :8082", addr)
	}
	n, err := strconv.Atoi(port)
	if err != nil || n < 0 || n+i > 65535 {
		return "", fmt.Errorf("%q has no port of 0 to 65535", addr)
	}
	if n > 0 {
		n += i
	}
	return net.JoinHostPort(host, strconv.Itoa(n)), nil
}

func (u *upCluster) client() (*admin.Client, error) {
	token, err := os.ReadFile(u.admin.TokenFile())
	if err != nil {
		return nil, fmt.Errorf("%w; the data directory holds a cluster whose admin token lies elsewhere: name another --data-dir", err)
	}
	return admin.NewClient(admin.ClientOptions{Server: "http://" + u.admin.Address(), Token: lb.Secret(strings.TrimSpace(string(token)))})
}

// say prints what runs where, and what to try.
func (u *upCluster) say() {
	w := u.c.out
	fmt.Fprintln(w, "difylb is up. Ctrl-C ends everything.")
	fmt.Fprintln(w)
	for i, p := range u.proxies {
		fmt.Fprintf(w, "  lb-proxy %d   http://%-21s  metrics http://%s/metrics\n", i+1, reachable(p.Addresses()[0]), p.OpsAddress())
	}
	fmt.Fprintf(w, "  lb-admin     http://%-21s  token in %s\n", u.admin.Address(), u.admin.TokenFile())
	fmt.Fprintf(w, "  etcd         %s\n", strings.Join(u.admin.Endpoints(), ", "))
	for _, addr := range u.standins {
		fmt.Fprintf(w, "  stand-in     http://%s\n", addr)
	}
	proxy := reachable(u.proxies[0].Addresses()[0])
	lbctl := "bin/lbctl"
	if u.o.http != "127.0.0.1:9180" {
		lbctl += " --server http://" + u.admin.Address()
	}
	if u.admin.TokenFile() != "data/lb-admin/admin.token" {
		lbctl += " --token-file " + u.admin.TokenFile()
	}
	fmt.Fprintln(w, "\nTry, in another terminal:")
	if u.o.demo {
		fmt.Fprintf(w, `
  curl http://%[1]s/v1/chat-messages \
    -H 'Authorization: Bearer usertoken--customer-service-v1' \
    -H 'Content-Type: application/json' \
    -d '{"query":"hello","inputs":{},"user":"alice","response_mode":"streaming"}'
  curl http://%[1]s/status
`, proxy)
	}
	fmt.Fprintf(w, `
  %[1]s status
  %[1]s explain customer_service alice
  %[1]s instance drain customer_service dify1 --wait 60s
  %[1]s instance activate customer_service dify1
`, lbctl)
}

// reachable turns the address of a listener on all interfaces into one to try.
func reachable(addr string) string {
	host, port, err := net.SplitHostPort(addr)
	if ip := net.ParseIP(host); err == nil && (host == "" || ip != nil && ip.IsUnspecified()) {
		return net.JoinHostPort("127.0.0.1", port)
	}
	return addr
}
