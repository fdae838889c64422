package cluster

import (
	"context"
	"crypto/tls"

	"google.golang.org/grpc"
	"google.golang.org/grpc/metadata"

	"difylb/pkg/lb"
	pb "difylb/proto"
)

// otherAdmin is a live lb-admin beside this one.
type otherAdmin struct {
	lb.Node
	key lb.Secret // by which they know each other
	tls func() *tls.Config
}

// others returns the other lb-admins of a snapshot.
func (h *Hub) others(snap *lb.Snapshot) (all []*otherAdmin) {
	for _, n := range snap.Nodes {
		if n.Role == lb.RoleAdmin && n.GRPC != "" && n.ID != h.opts.NodeID {
			all = append(all, &otherAdmin{n, snap.ClusterKey, h.opts.TLS})
		}
	}
	return all
}

// call connects to it for f.
func (o *otherAdmin) call(ctx context.Context, f func(context.Context, pb.ClusterClient) error) error {
	conn, err := grpc.NewClient("passthrough:///"+o.GRPC, dialOptions(o.TLS, o.tls)...)
	if err != nil {
		return err
	}
	defer conn.Close()
	return f(metadata.AppendToOutgoingContext(ctx, "authorization", "Bearer "+o.key.Reveal()), pb.NewClusterClient(conn))
}
