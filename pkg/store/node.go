package store

import (
	"context"
	"errors"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"difylb/pkg/lb"
)

const nodeTTL = 10 // seconds

// Register keeps the node's key alive under a lease until ctx ends, and then
// deletes it at once and returns nil. It makes the key anew whenever the lease
// or the key is lost.
//
// Of two processes that use one id, the one that registered later has the
// key. The earlier one notices, logs a warning and waits until the key is
// free again: two that fight over it would make the cluster see a new node
// every few seconds.
func (s *Store) Register(ctx context.Context, n lb.Node) error {
	if n.ID == "" || (n.Role != lb.RoleAdmin && n.Role != lb.RoleProxy) {
		return lb.Errorf(lb.ErrInvalid, "a node needs an id and the role admin or proxy; this is %q, %q", n.ID, n.Role)
	}
	r := &registration{s: s, node: n, key: s.prefix + nodeKey(n.Role, n.ID)}
	for wait := minBackoff; ctx.Err() == nil; wait = min(2*wait, maxBackoff/4) {
		err := r.hold(ctx)
		r.release()
		if ctx.Err() != nil {
			break
		}
		if r.held {
			wait, r.held = minBackoff, false
		}
		s.log.Warn().Err(err).Str("node", n.ID).Msg("node registration lost, registering again")
		if sleep(ctx, wait) != nil {
			break
		}
	}
	return nil
}

type registration struct {
	s     *Store
	node  lb.Node
	key   string
	cli   *clientv3.Client
	lease clientv3.LeaseID
	held  bool // the key was put at least once under this lease
}

// hold registers and stays until the registration is lost or ctx ends.
func (r *registration) hold(ctx context.Context) error {
	var err error
	if r.cli, err = r.s.client.get(); err != nil {
		return err
	}
	gctx, cancel := context.WithTimeout(ctx, opTimeout)
	lease, err := r.cli.Grant(gctx, nodeTTL)
	cancel()
	if err != nil {
		return unavailable("register node", err)
	}
	r.lease = lease.ID
	kctx, cancel := context.WithCancel(ctx)
	defer cancel()
	alive, err := r.cli.KeepAlive(kctx, r.lease)
	if err != nil {
		return unavailable("register node", err)
	}
	rev, err := r.put(ctx)
	if err != nil {
		return unavailable("register node", err)
	}
	changed, unsubscribe := r.s.Subscribe()
	defer unsubscribe()
	warned := false
	for {
		select {
		case _, ok := <-alive:
			if !ok {
				return errors.New("the lease was lost")
			}
		case <-changed:
			snap := r.s.Current()
			if snap == nil || snap.Revision < rev {
				continue // does not know of our key yet
			}
			switch boot, there := r.seen(snap); {
			case !there:
				if rev, err = r.put(ctx); err != nil {
					return unavailable("register node", err)
				}
				warned = false
			case boot != r.node.BootID && !warned:
				r.s.log.Warn().Str("node", r.node.ID).Str("role", string(r.node.Role)).Msg("another process has registered under this node id; give each its own --node-id")
				warned = true
			}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

func (r *registration) put(ctx context.Context) (int64, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	resp, err := r.cli.Put(ctx, r.key, string(mustMarshal(r.node)), clientv3.WithLease(r.lease))
	if err != nil {
		return 0, err
	}
	r.held = true
	return resp.Header.Revision, nil
}

func (r *registration) seen(snap *lb.Snapshot) (bootID string, there bool) {
	for _, n := range snap.Nodes {
		if n.Role == r.node.Role && n.ID == r.node.ID {
			return n.BootID, true
		}
	}
	return "", false
}

// release deletes the key, if it is still ours: it hangs on our lease.
func (r *registration) release() {
	if r.lease == clientv3.NoLease {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), 2*time.Second)
	defer cancel()
	_, _ = r.cli.Revoke(ctx, r.lease) // unreachable: it runs out
	r.lease = clientv3.NoLease
}
