package cluster

import (
	"context"
	"sync"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	pb "difylb/proto"
)

// maxAnnouncement bounds the data of what lb-admins tell each other.
const maxAnnouncement = 64 << 10

// Tell tells every other live lb-admin of something that happened, and
// blocks until each has heard it or ctx ends. Who can't be reached misses it:
// it is for those who watch, not for keeping.
func (h *Hub) Tell(ctx context.Context, kind string, data []byte) {
	h.mu.Lock()
	snap := h.snapshot
	h.mu.Unlock()
	if snap == nil {
		return
	}
	var wg sync.WaitGroup
	for _, n := range h.others(snap) {
		wg.Go(func() {
			if err := n.announce(ctx, kind, data); err != nil {
				h.log.Info().Err(err).Str("admin", n.ID).Str("event", kind).Msg("another lb-admin was not told")
			}
		})
	}
	wg.Wait()
}

func (o *otherAdmin) announce(ctx context.Context, kind string, data []byte) error {
	return o.call(ctx, func(ctx context.Context, c pb.ClusterClient) error {
		_, err := c.Announce(ctx, &pb.Announcement{Kind: kind, Data: data})
		return err
	})
}

// OnAnnounced says who hears what other lb-admins tell; an error of kind
// Invalid refuses it. f does not wait for anything. Nil: nobody hears.
func (h *Hub) OnAnnounced(f func(kind string, data []byte) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.announced = f
}

// Announce serves what another lb-admin tells.
func (h *Hub) Announce(ctx context.Context, a *pb.Announcement) (*pb.Heard, error) {
	if err := h.authorize(ctx); err != nil {
		return nil, err
	}
	h.mu.Lock()
	f := h.announced
	h.mu.Unlock()
	if f == nil {
		return nil, status.Error(codes.Unavailable, "nobody hears here")
	}
	if len(a.GetData()) > maxAnnouncement || len(a.GetKind()) > maxNameBytes {
		return nil, status.Error(codes.InvalidArgument, "too large")
	}
	if err := f(a.GetKind(), a.GetData()); err != nil {
		return nil, status.Error(codes.InvalidArgument, err.Error())
	}
	return &pb.Heard{}, nil
}
