package dataplane

import (
	"context"
	"time"

	"difylb/pkg/cluster"
)

// demandEvery is how often the lb-admins are told what this proxy is asked for
// of the limits that hold for the cluster.
const demandEvery = time.Second

// shareLimits carries demands to the lb-admins, and puts in force what the
// elected one leases.
func (p *Plane) shareLimits(ctx context.Context) error {
	tick := time.NewTicker(demandEvery)
	defer tick.Stop()
	var by cluster.Leases
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		case <-p.link.LeasesChanged():
			by = p.link.Leases()
			p.proxy.SetShares(by.Shares, by.Until)
		}
		p.link.SetDemands(p.proxy.Demands(time.Now()), by)
	}
}
