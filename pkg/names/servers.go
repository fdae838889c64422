package names

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"time"
)

// serverPatience is how long each server is waited for, first all of them in
// turn, then all once more: a datagram may be lost.
var serverPatience = []time.Duration{time.Second, 3 * time.Second}

// lookUp returns how to ask: the servers, or the system.
func lookUp(servers []netip.AddrPort) func(context.Context, string) ([]netip.Addr, error) {
	if len(servers) == 0 {
		return func(ctx context.Context, host string) ([]netip.Addr, error) {
			return net.DefaultResolver.LookupNetIP(ctx, "ip", host)
		}
	}
	resolvers := make([]*net.Resolver, len(servers))
	for i, s := range servers {
		resolvers[i] = &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, network, s.String())
		}}
	}
	return func(ctx context.Context, host string) ([]netip.Addr, error) {
		var faults []error
		for _, patience := range serverPatience {
			faults = faults[:0]
			for i, r := range resolvers {
				found, err := askOne(ctx, r, host, patience)
				if err == nil {
					return found, nil
				}
				if definite(err) || ctx.Err() != nil {
					return nil, fmt.Errorf("%s: %w", servers[i], err)
				}
				faults = append(faults, fmt.Errorf("%s: %w", servers[i], err))
			}
		}
		return nil, errors.Join(faults...)
	}
}

func askOne(ctx context.Context, r *net.Resolver, host string, patience time.Duration) ([]netip.Addr, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return r.LookupNetIP(ctx, "ip", host)
}

// definite reports whether a server said that there is no such name, which the
// others would not know better.
func definite(err error) bool {
	var d *net.DNSError
	return errors.As(err, &d) && d.IsNotFound
}
