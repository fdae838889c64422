package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	mathrand "math/rand/v2"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"difylb/pkg/lb"
)

// Result is what became of a change.
type Result struct {
	// Revision is the one at which the change took effect; without a change,
	// that of the last one.
	Revision int64
	Changed  bool
	plan     *plan
}

// Changes returns what was changed, worked out anew with each call, as that of
// a Draft.
func (r *Result) Changes() []Change {
	if r.plan == nil {
		return nil
	}
	return r.plan.changes()
}

// Bounds of a change that fits into one transaction. etcd's own, by default,
// are 128 operations and 1.5 MiB; the history keeps every value a second time.
const (
	maxOps       = 120
	maxTxnBytes  = 512 << 10
	maxConflicts = 100
	keepHistory  = 1000
)

// Update makes one change: it calls edit with a draft of the newest state and
// writes what edit did to it, all or nothing, if nobody else wrote meanwhile.
// If somebody did, it waits until the mirror has seen that and calls edit
// again, at most 100 times: edit must be pure but for the draft. An edit that
// changes nothing writes nothing.
//
// It blocks until the change is in etcd, and in Current if the watch is alive.
// Updates of one process take turns. Error kinds: what edit returned;
// lb.ErrInvalid (as lb.Faults) for a draft that would not read back;
// lb.ErrConflict after 100 conflicts; lb.ErrUnavailable when etcd can't be
// reached or refuses, after some 4 s for a change of one transaction: whether
// the change was made is then unknown only if etcd did not answer at all to the
// end.
func (s *Store) Update(ctx context.Context, audit lb.Audit, edit func(*Draft) error) (Result, error) {
	select {
	case s.writing <- struct{}{}:
		defer func() { <-s.writing }()
	case <-ctx.Done():
		if errors.Is(ctx.Err(), context.DeadlineExceeded) {
			return Result{}, fmt.Errorf("update: %w", lb.Errorf(lb.ErrUnavailable, "other changes were still being made"))
		}
		return Result{}, unavailable("update", ctx.Err())
	}
	conflicts := 0
	for {
		base, err := s.base(ctx)
		if err != nil {
			return Result{}, err
		}
		d := newDraft(s, base.snap)
		err = edit(d)
		var p *plan
		if err == nil {
			p, err = d.plan()
		}
		if errors.Is(err, errStale) {
			if err := sleep(ctx, time.Millisecond); err != nil {
				return Result{}, err
			}
			continue
		}
		if err != nil || len(p.records) == 0 {
			// Said of an old base, neither a refusal nor "nothing to do" counts.
			current, verr := s.isCurrent(ctx, base)
			switch {
			case verr == nil && !current && conflicts < maxConflicts:
				conflicts++
				continue
			case err != nil:
				return Result{}, err
			case verr != nil:
				return Result{}, verr
			}
			return Result{Revision: base.snap.ConfigRevision}, nil
		}
		rev, err := s.commit(ctx, audit, base, p)
		if err == nil {
			s.catchUp(ctx, rev)
			return Result{Revision: rev, Changed: true, plan: p}, nil
		}
		var beaten *conflict
		if !errors.As(err, &beaten) {
			return Result{}, s.client.unanswered("update", err)
		}
		if conflicts++; conflicts > maxConflicts {
			return Result{}, lb.Errorf(lb.ErrConflict, "others changed the configuration %d times while this change was made; try again", conflicts)
		}
		if err := s.waitFor(ctx, beaten.revision); err != nil {
			return Result{}, err
		}
		if err := sleep(ctx, mathrand.N(2*time.Millisecond)); err != nil {
			return Result{}, err
		}
	}
}

// conflict: somebody else wrote first. The mirror must reach the revision
// before another attempt makes sense.
type conflict struct{ revision int64 }

func (c *conflict) Error() string { return "the configuration was changed meanwhile" }

// base is what a change starts from.
type base struct {
	snap *lb.Snapshot
	seq  int64 // number of the last change
	mod  int64 // revision of meta/config
}

// base returns the newest state, with no large change waiting.
func (s *Store) base(ctx context.Context) (base, error) {
	if s.Current() == nil {
		if err := s.waitFor(ctx, 1); err != nil {
			return base{}, err
		}
	}
	for {
		snap := s.Current()
		s.st.mu.RLock()
		b := base{snap: snap, seq: s.st.config.Seq, mod: s.st.configMod}
		pending, fresh := s.st.pending != nil, s.st.configRev == snap.ConfigRevision
		_, damaged := s.st.faulty[keyConfig]
		s.st.mu.RUnlock()
		if damaged {
			// Its number can't be read; the next one must not overwrite history.
			last, err := s.lastSeq(ctx)
			if err != nil {
				return base{}, err
			}
			b.seq = max(b.seq, last)
		}
		if pending {
			rev, err := s.rollForward(ctx)
			if err != nil {
				return base{}, unavailable("finish the large change before this one", err)
			}
			if err := s.waitFor(ctx, rev); err != nil {
				return base{}, err
			}
			continue
		}
		if fresh {
			return b, nil
		}
		if err := sleep(ctx, time.Millisecond); err != nil { // applied, about to be published
			return base{}, err
		}
	}
}

// waitFor is WaitRevision with a bound of its own.
func (s *Store) waitFor(ctx context.Context, rev int64) error {
	ctx, cancel := context.WithTimeout(ctx, 2*opTimeout)
	defer cancel()
	err := s.WaitRevision(ctx, rev)
	if err != nil && s.Status().LastError != "" {
		return lb.Errorf(lb.ErrUnavailable, "%s; %s", err, s.Status().LastError)
	}
	return err
}

// catchUp waits for our own write, so that the caller reads what it wrote. The
// write is done: a watch that is cut off does not make it a failure.
func (s *Store) catchUp(ctx context.Context, rev int64) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	if err := s.WaitRevision(ctx, rev); err != nil && !errors.Is(err, context.Canceled) { // cancelled: nobody will read
		s.log.Warn().Err(err).Int64("revision", rev).Msg("change written, but the watch has not seen it yet")
	}
}

// isCurrent asks etcd whether the base is the newest state, and if it is not
// waits until the mirror is newer.
func (s *Store) isCurrent(ctx context.Context, b base) (bool, error) {
	resp, err := s.get(ctx, keyConfig)
	if err != nil {
		return false, err
	}
	var mod int64
	if len(resp.Kvs) > 0 {
		mod = resp.Kvs[0].ModRevision
	}
	if mod == b.mod {
		return true, nil
	}
	return false, s.waitFor(ctx, mod)
}

// commit writes the plan and returns the revision at which it took effect.
// The error is *conflict, etcd's own, or has a kind.
func (s *Store) commit(ctx context.Context, audit lb.Audit, b base, p *plan) (int64, error) {
	e := s.newEntry(audit, b)
	size := 0
	for i := range p.records {
		r := &p.records[i]
		size += 2*(len(r.Key)+len(r.After)) + len(r.before()) + 64
		if !r.quiet() {
			e.Records = append(e.Records, *r)
		}
	}
	e.Count = len(e.Records)
	if len(p.records) > maxOps || size > maxTxnBytes {
		return s.commitStaged(ctx, e, b, p)
	}
	conds := []clientv3.Cmp{clientv3.Compare(clientv3.CreateRevision(s.prefix+keyPending), "=", 0)}
	// A hand-made edit does not move meta/config; it must not be overwritten
	// unseen either.
	for key, mod := range p.mods {
		conds = append(conds, clientv3.Compare(clientv3.ModRevision(s.prefix+key), "=", mod))
	}
	var ops []clientv3.Op
	for i := range p.records {
		ops = append(ops, s.write(&p.records[i], 0))
	}
	return s.commitEntry(ctx, e, b, conds, ops)
}

// write is the operation that carries out a record; rev is that of a staged
// change, 0 for a direct one.
func (s *Store) write(r *record, rev int64) clientv3.Op {
	if r.After == nil {
		return clientv3.OpDelete(s.prefix + r.Key)
	}
	v := []byte(r.After)
	if rev > 0 {
		v = withRevision(v, rev)
	}
	return clientv3.OpPut(s.prefix+r.Key, string(v))
}

func (s *Store) newEntry(audit lb.Audit, b base) *entryWire {
	var nonce [16]byte
	rand.Read(nonce[:])
	return &entryWire{
		Seq: b.seq + 1, Audit: audit, At: s.now().UTC(), Nonce: hex.EncodeToString(nonce[:]),
	}
}

// commitEntry writes the history entry, meta/config and ops in one
// transaction. Where it stays unclear whether that was carried out, it sends
// the same transaction again: whichever comes first makes the other fail, and
// the nonce tells whose it was.
func (s *Store) commitEntry(ctx context.Context, e *entryWire, b base, conds []clientv3.Cmp, ops []clientv3.Op) (int64, error) {
	config := mustMarshal(configWire{Seq: e.Seq, Who: e.Who, From: e.From, At: e.At, Nonce: e.Nonce})
	hist := s.prefix + historyKey(e.Seq)
	conds = append(conds, clientv3.Compare(clientv3.ModRevision(s.prefix+keyConfig), "=", b.mod))
	ops = append(ops, clientv3.OpPut(s.prefix+keyConfig, string(config)), clientv3.OpPut(hist, string(mustMarshal(e))))
	if e.Seq > keepHistory {
		ops = append(ops, clientv3.OpDelete(s.prefix+historyKey(e.Seq-keepHistory)))
	}
	deadline := time.Now().Add(writeTimeout)
	// A request that a dying leader swallowed is never answered: the first
	// attempts are short.
	patience := time.Second
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		resp, err := s.txn(ctx, min(patience, time.Until(deadline)), func(t clientv3.Txn) clientv3.Txn {
			return t.If(conds...).Then(ops...).Else(clientv3.OpGet(hist))
		})
		patience = min(2*patience, opTimeout)
		switch {
		case err == nil && resp.Succeeded:
			return resp.Header.Revision, nil
		case err == nil:
			// Ours all the same, if an earlier sending of it got through.
			for _, kv := range resp.Responses[0].GetResponseRange().Kvs {
				if strings.Contains(string(kv.Value), e.Nonce) {
					return kv.ModRevision, nil
				}
			}
			return 0, &conflict{revision: resp.Header.Revision}
		case !ambiguous(err) || ctx.Err() != nil || time.Now().Add(wait).After(deadline):
			return 0, err
		}
		s.log.Debug().Err(err).Int64("seq", e.Seq).Msg("unclear whether the change was made, asking again")
		if err := sleep(ctx, wait); err != nil {
			return 0, err
		}
	}
}

func sleep(ctx context.Context, d time.Duration) error {
	if d <= 0 {
		return ctx.Err()
	}
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return nil
	case <-ctx.Done():
		return unavailable("update", ctx.Err())
	}
}

// Init makes what a new store needs, the epoch and the cluster key, unless
// they exist; finishes a large change that was left half-way; and clears away
// what crashed writers left behind. Every lb-admin calls it at its start; it
// does not need Run. A proxy never calls it: it writes nothing but its node.
func (s *Store) Init(ctx context.Context) error {
	var id [16]byte
	rand.Read(id[:])
	// The epoch last: who sees one finds the rest there, too.
	for _, once := range []struct {
		key   string
		value any
	}{
		{keyCluster, clusterKeyWire{Key: lb.NewSecret("ck-").Reveal()}},
		{keyEpoch, epochWire{ID: hex.EncodeToString(id[:]), Created: s.now().UTC()}},
	} {
		key := s.prefix + once.key
		_, err := s.txn(ctx, opTimeout, func(t clientv3.Txn) clientv3.Txn {
			return t.If(clientv3.Compare(clientv3.CreateRevision(key), "=", 0)).Then(clientv3.OpPut(key, string(mustMarshal(once.value))))
		})
		if err != nil {
			return s.client.unreached("prepare the store", err)
		}
	}
	if _, err := s.rollForward(ctx); err != nil {
		return unavailable("finish a large change", err)
	}
	return unavailable("clear staging", s.sweep(ctx))
}
