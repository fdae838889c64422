package store

import (
	"context"
	"errors"
	"fmt"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"difylb/pkg/lb"
)

const electionTTL = 5 // seconds; a dead leader is replaced after at most this and a second

// Fence proves leadership to etcd: a write under a Fence is refused once
// another has been elected, even if the old leader, paused meanwhile, still
// believes in itself. The zero Fence is always refused.
type Fence struct {
	key  string
	rev  int64
	lost context.CancelCauseFunc
}

// Term tells one time in office from another: it grows with every election of
// one store.
func (f Fence) Term() uint64 { return uint64(max(0, f.rev)) }

var errDeposed = lb.Errorf(lb.ErrConflict, "this node no longer leads")

func (f Fence) cond() clientv3.Cmp {
	return clientv3.Compare(clientv3.CreateRevision(f.key), "=", f.rev)
}

// refused ends the leader's context: etcd has spoken.
func (f Fence) refused() error {
	if f.lost != nil {
		f.lost(errDeposed)
	}
	return errDeposed
}

// Campaign stands for election until ctx ends. It calls lead each time this
// node is elected, with a context that ends when leadership is lost, and
// waits for lead to return. When ctx ends it resigns, so that another takes
// over at once, and returns nil. If lead returns while it still leads,
// Campaign resigns and returns lead's error.
func (s *Store) Campaign(ctx context.Context, nodeID string, lead func(ctx context.Context, f Fence) error) error {
	log := s.log.With().Str("node", nodeID).Logger()
	for wait := minBackoff; ctx.Err() == nil; wait = min(2*wait, maxBackoff/4) {
		term := &term{s: s, node: nodeID}
		err := term.win(ctx)
		if err == nil {
			wait = minBackoff
			log.Info().Msg("elected")
			var over bool
			over, err = term.lead(ctx, lead)
			if over {
				term.end()
				return err
			}
			log.Info().Msg("no longer leading")
		}
		term.end()
		if ctx.Err() != nil {
			break
		}
		if err != nil {
			log.Warn().Err(err).Msg("election interrupted, standing again")
		}
		if sleep(ctx, wait) != nil {
			break
		}
	}
	return nil
}

// term is one candidacy, from its lease to its end. It is not built on
// etcd's concurrency.Election, which may block for ever when it is cancelled
// while etcd is away.
type term struct {
	s     *Store
	node  string
	cli   *clientv3.Client
	lease clientv3.LeaseID
	key   string
	rev   int64              // create revision of key: the older leads
	stop  context.CancelFunc // ends the keepalive
	lost  chan struct{}      // closed when the lease is no longer kept alive
}

// win blocks until this node is elected.
func (t *term) win(ctx context.Context) error {
	if err := t.keepLease(ctx); err != nil {
		return unavailable("stand for election", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := make(chan struct{})
	defer func() { cancel(nil); <-watched }()
	go func() { // ends with win
		defer close(watched)
		select {
		case <-t.lost:
			cancel(errLeaseLost)
		case <-ctx.Done():
		}
	}()
	err := t.stand(ctx)
	if err == nil {
		err = t.outlive(ctx)
	}
	if cause := context.Cause(ctx); errors.Is(cause, errLeaseLost) {
		return cause
	}
	return unavailable("stand for election", err)
}

var errLeaseLost = errors.New("the candidate's lease was lost")

func (t *term) keepLease(ctx context.Context) error {
	var err error
	if t.cli, err = t.s.client.get(); err != nil {
		return err
	}
	gctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	lease, err := t.cli.Grant(gctx, electionTTL)
	if err != nil {
		return err
	}
	t.lease = lease.ID
	// Not under ctx: the lease has to live until lead has returned.
	var kctx context.Context
	kctx, t.stop = context.WithCancel(context.WithoutCancel(ctx))
	alive, err := t.cli.KeepAlive(kctx, t.lease)
	if err != nil {
		return err
	}
	t.lost = make(chan struct{})
	go func() { // ends with stop, or when the lease can't be kept; end waits for it
		defer close(t.lost)
		for range alive {
		}
	}()
	return nil
}

// stand puts the candidate's key.
func (t *term) stand(ctx context.Context) error {
	t.key = fmt.Sprintf("%s%s%x", t.s.prefix, dirElection, t.lease)
	absent := clientv3.Compare(clientv3.CreateRevision(t.key), "=", 0)
	return t.s.again(ctx, func(ctx context.Context, cli *clientv3.Client) error {
		resp, err := cli.Txn(ctx).If(absent).
			Then(clientv3.OpPut(t.key, t.node, clientv3.WithLease(t.lease))).
			Else(clientv3.OpGet(t.key)).Commit()
		if err != nil {
			return err
		}
		t.rev = resp.Header.Revision
		if !resp.Succeeded { // an earlier sending of it got through
			t.rev = resp.Responses[0].GetResponseRange().Kvs[0].CreateRevision
		}
		return nil
	})
}

// outlive blocks until no older candidate is left.
func (t *term) outlive(ctx context.Context) error {
	opts := append(clientv3.WithLastCreate(), clientv3.WithMaxCreateRev(t.rev-1))
	for {
		resp, err := t.s.get(ctx, dirElection, opts...)
		if err != nil {
			return err
		}
		if len(resp.Kvs) == 0 {
			return nil
		}
		if err := t.waitGone(ctx, string(resp.Kvs[0].Key), resp.Header.Revision+1); err != nil {
			return err
		}
	}
}

func (t *term) waitGone(ctx context.Context, key string, rev int64) error {
	ctx, cancel := context.WithCancel(clientv3.WithRequireLeader(ctx))
	defer cancel()
	for resp := range t.cli.Watch(ctx, key, clientv3.WithRev(rev), clientv3.WithFilterPut()) {
		if err := resp.Err(); err != nil {
			return err
		}
		if len(resp.Events) > 0 {
			return nil
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	return errors.New("the watch was closed")
}

// lead runs the leader's work. over: it returned by itself, or ctx ended.
func (t *term) lead(ctx context.Context, work func(context.Context, Fence) error) (over bool, err error) {
	lctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watched := make(chan struct{})
	go func() { // ends with lead
		defer close(watched)
		select {
		case <-t.lost:
			cancel(errDeposed)
		case <-lctx.Done():
		}
	}()
	err = work(lctx, Fence{key: t.key, rev: t.rev, lost: cancel})
	deposed := errors.Is(context.Cause(lctx), errDeposed)
	cancel(nil)
	<-watched
	if ctx.Err() != nil {
		return true, nil
	}
	if deposed {
		return false, nil
	}
	return true, err
}

// end gives up the candidacy at once, as far as etcd can be reached.
func (t *term) end() {
	if t.stop != nil {
		t.stop()
	}
	if t.lost != nil {
		<-t.lost
	}
	if t.lease != clientv3.NoLease {
		// Takes the election key along. Where it fails the lease runs out.
		ctx, cancel := context.WithTimeout(context.Background(), time.Second)
		defer cancel()
		_, _ = t.cli.Revoke(ctx, t.lease)
	}
}

// PutHealth stores what the leader found out about an instance. Call it on
// transitions only. Error kinds: lb.ErrConflict when the Fence's node no
// longer leads (its context ends, too), lb.ErrNotFound when the instance does
// not exist, lb.ErrInvalid for a verdict that is none, lb.ErrUnavailable.
func (s *Store) PutHealth(ctx context.Context, app, instance string, v lb.Verdict, f Fence) error {
	op := fmt.Sprintf("put health of %s/%s", app, instance)
	value := mustMarshal(v)
	if _, err := decodeVerdict(value); err != nil {
		return fmt.Errorf("%s: %w", op, lb.Errorf(lb.ErrInvalid, "%s", err))
	}
	for retry := true; ; retry = false {
		there := clientv3.Compare(clientv3.CreateRevision(s.prefix+instanceKey(app, instance)), ">", 0)
		ok, err := s.fenced(ctx, f, []clientv3.Cmp{there}, clientv3.OpPut(s.prefix+healthKey(app, instance), string(value)))
		if err != nil || ok {
			return unavailable(op, err)
		}
		// Its key may still have to be written by the large change that made it.
		if snap := s.Current(); retry && snap != nil {
			if a := snap.Application(app); a != nil {
				if in, _ := a.Instance(instance); in != nil {
					if _, err := s.rollForward(ctx); err != nil {
						return unavailable(op, err)
					}
					continue
				}
			}
		}
		return lb.Errorf(lb.ErrNotFound, "application %q has no instance %q", app, instance)
	}
}

// DeleteHealth forgets the verdict on an instance; one that is not there is no
// error. Removing an instance does that by itself. Errors as PutHealth.
func (s *Store) DeleteHealth(ctx context.Context, app, instance string, f Fence) error {
	_, err := s.fenced(ctx, f, nil, clientv3.OpDelete(s.prefix+healthKey(app, instance)))
	return unavailable(fmt.Sprintf("delete health of %s/%s", app, instance), err)
}

// fenced carries the operations out if the Fence and the conditions hold.
// false: the Fence holds, a condition does not. The operations must bear being
// carried out twice.
func (s *Store) fenced(ctx context.Context, f Fence, conds []clientv3.Cmp, ops ...clientv3.Op) (bool, error) {
	if f.key == "" {
		return false, f.refused()
	}
	var resp *clientv3.TxnResponse
	err := s.again(ctx, func(ctx context.Context, cli *clientv3.Client) (err error) {
		resp, err = cli.Txn(ctx).If(append(conds, f.cond())...).Then(ops...).Else(clientv3.OpGet(f.key)).Commit()
		return err
	})
	if err != nil {
		return false, err
	}
	if resp.Succeeded {
		return true, nil
	}
	kvs := resp.Responses[0].GetResponseRange().Kvs
	if len(kvs) == 0 || kvs[0].CreateRevision != f.rev {
		return false, f.refused()
	}
	return false, nil
}
