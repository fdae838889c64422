package cluster

import (
	"context"
	"errors"
	"net"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc"

	"difylb/pkg/lb"
	"difylb/pkg/stats"
	pb "difylb/proto"
)

func TestLink_FlushReachesOneBesideOthersThatHang(t *testing.T) {
	c := newTestCluster(t)
	for _, id := range []string{"stuck1", "stuck2"} {
		ln, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		server := grpc.NewServer()
		pb.RegisterClusterServer(server, &stuckServer{begun: make(chan struct{}, 1)})
		stop := c.background(func(context.Context) error { return server.Serve(ln) })
		defer func() { server.Stop(); stop() }()
		c.change(func(s *lb.Snapshot) {
			s.Nodes = append(s.Nodes, lb.Node{ID: id, Role: lb.RoleAdmin, GRPC: ln.Addr().String()})
		})
	}
	h := c.hub("admin1", "127.0.0.1:0")
	// Nothing but Flush makes it report, and none is given up meanwhile.
	p := c.linkWith("proxy1", "b1", times{report: time.Hour, stalled: time.Hour, change: time.Hour, fresh: time.Hour, samples: time.Hour})
	eventually(t, "linked with all", func() bool { return p.Connected() == 3 })
	for round := range 3 {
		p.requests("dify1", 10, lb.ReasonOK)
		ctx, cancel := context.WithTimeout(t.Context(), map[bool]time.Duration{true: 3 * time.Second, false: time.Minute}[round == 0])
		done := make(chan error)
		go func() { done <- p.Flush(ctx) }() // ends with ctx
		eventually(t, "the healthy lb-admin has the last figures", func() bool {
			return h.Totals(stats.Key{App: "shop"}).Requests == uint64(10*(round+1)) || ctx.Err() != nil
		})
		if ctx.Err() != nil {
			t.Fatal("the healthy lb-admin had to wait for those that hang")
		}
		if round > 0 { // once is enough to see that it ends by the limit
			eventually(t, "the healthy lb-admin's word has come", func() bool {
				p.mu.Lock()
				defer p.mu.Unlock()
				for _, x := range p.peers {
					if x.key.id == "admin1" {
						return x.acked >= x.ended
					}
				}
				return false
			})
			cancel()
		}
		err := <-done
		cancel()
		if err == nil || !strings.Contains(err.Error(), `"stuck1"`) || !strings.Contains(err.Error(), `"stuck2"`) || strings.Contains(err.Error(), `"admin1"`) {
			t.Fatalf("Flush: %v", err)
		}
		if want := map[bool]error{true: context.Canceled, false: context.DeadlineExceeded}[round > 0]; !errors.Is(err, want) {
			t.Errorf("Flush: %v, want %v", err, want)
		}
	}
}
