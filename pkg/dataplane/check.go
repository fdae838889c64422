package dataplane

import (
	"context"
	"crypto/tls"
	"sync"
	"syscall"
	"time"

	"difylb/pkg/cluster"
	"difylb/pkg/lb"
	"difylb/pkg/names"
	"difylb/pkg/route"
)

const (
	// checksAtOnce bounds the connections that a check opens at a time.
	checksAtOnce = 64
	// checkPatience is how long one connection may take.
	checkPatience = 3 * time.Second
)

// check tries to connect to every instance of the configuration in force that
// is not disabled, or to those of one application, as a request would: name,
// address and TLS. Nothing is asked; whether the instance is well is the
// prober's to say.
func (p *Plane) check(ctx context.Context, app string) []cluster.Reach {
	table := p.proxy.Table()
	if table == nil {
		return nil
	}
	return reach(ctx, table, app, p.names)
}

func reach(ctx context.Context, table *route.Table, app string, by *names.Resolver) []cluster.Reach {
	var out []cluster.Reach
	var secure []*tls.Config // nil: in clear
	for _, a := range table.Apps() {
		if app != "" && a.Decl.Name != app {
			continue
		}
		for i := range a.Instances {
			in := &a.Instances[i]
			if in.Decl.State != lb.Disabled {
				out = append(out, cluster.Reach{App: a.Decl.Name, Instance: in.Decl.Name, Address: in.Address})
				secure = append(secure, in.TLS)
			}
		}
	}
	slots := make(chan struct{}, checksAtOnce)
	var wg sync.WaitGroup
	for i := range out {
		slots <- struct{}{}
		wg.Go(func() {
			defer func() { <-slots }()
			began := time.Now()
			if err := connect(ctx, by, out[i].Address, secure[i]); err != nil {
				out[i].Error = err.Error()
			}
			out[i].MS = float64(time.Since(began).Microseconds()) / 1000
		})
	}
	wg.Wait()
	return out
}

func connect(ctx context.Context, by *names.Resolver, address string, secure *tls.Config) error {
	ctx, cancel := context.WithTimeout(ctx, checkPatience)
	defer cancel()
	conn, err := by.Dial(ctx, address, func(_ context.Context, _, address string, _ syscall.RawConn) error {
		return lb.CheckDialAddress(address)
	})
	if err != nil {
		return err
	}
	defer conn.Close()
	if secure == nil {
		return nil
	}
	return tls.Client(conn, secure).HandshakeContext(ctx)
}
