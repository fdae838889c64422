package store

import (
	"context"
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sync/errgroup"

	"difylb/pkg/lb"
)

// A change that does not fit into one transaction is staged:
//
//  1. its records are written as chunks, beside an owner key under a lease;
//  2. one transaction, conditional as every change is, makes it take effect:
//     it puts meta/pending, and from that revision on every reader lays the
//     chunks over the keys;
//  3. anyone rolls it forward: the records into their keys, and last
//     meta/pending away. That is idempotent, may be done by several at once,
//     and stops when another has finished.
//
// A crash before 2 leaves chunks that sweep removes once the lease is gone; a
// crash after 2 leaves a change that is in force. The chunks stay as the
// history entry's records.
const (
	chunkBytes   = 640 << 10
	maxChunks    = 200 // some 125 MiB
	ownerTTL     = 30  // seconds
	stagedBudget = 256 << 20
	parallel     = 4
)

type chunkWire struct {
	Records []record `json:"records"`
}

func (s *Store) commitStaged(ctx context.Context, e *entryWire, b base, p *plan) (int64, error) {
	chunks, err := cut(p.records)
	if err != nil {
		return 0, err
	}
	var random [8]byte
	rand.Read(random[:])
	id := hex.EncodeToString(random[:])
	st, err := s.stage(ctx, id, chunks)
	if err != nil {
		return 0, err
	}
	if err := s.at("before commit"); err != nil {
		return 0, err
	}
	size := 0
	for _, c := range chunks {
		size += len(c)
	}
	e.Records, e.Staged, e.Chunks = nil, id, len(chunks)
	conds := []clientv3.Cmp{
		clientv3.Compare(clientv3.CreateRevision(s.prefix+keyPending), "=", 0),
		clientv3.Compare(clientv3.CreateRevision(s.prefix+ownerKey(id)), "=", st.ownerRev),
	}
	ops := []clientv3.Op{
		clientv3.OpPut(s.prefix+keyPending, string(mustMarshal(pendingWire{ID: id, Chunks: len(chunks), Seq: e.Seq}))),
		clientv3.OpPut(s.prefix+committedKey(id), string(mustMarshal(committedWire{Seq: e.Seq, Bytes: size}))),
	}
	rev, err := s.commitEntry(ctx, e, b, conds, ops)
	if err != nil {
		st.abandon(ctx, !ambiguous(err) || isConflict(err))
		return 0, err
	}
	if err := s.at("after commit"); err != nil {
		return 0, err
	}
	st.abandon(ctx, false)
	// The change is in force. What follows is housekeeping: a failure is left
	// to whoever writes next.
	if _, err := s.rollForward(ctx); err != nil {
		s.log.Warn().Err(err).Int64("revision", rev).Msg("large change is in force, but not yet in its keys")
	} else if err := s.sweep(ctx); err != nil {
		s.log.Warn().Err(err).Msg("staging not cleared")
	}
	return rev, nil
}

func isConflict(err error) bool { _, ok := err.(*conflict); return ok }

// cut packs the records into chunks that fit into one request each.
func cut(records []record) ([][]byte, error) {
	var chunks [][]byte
	var c chunkWire
	size := 0
	flush := func() {
		if len(c.Records) > 0 {
			chunks = append(chunks, mustMarshal(c))
			c.Records, size = c.Records[:0], 0
		}
	}
	for _, r := range records {
		n := len(r.Key) + len(r.before()) + len(r.After) + 64
		if n > chunkBytes {
			return nil, lb.Errorf(lb.ErrInvalid, "the object at %s has %d bytes; that is more than the store takes", shownKey(r.Key), n)
		}
		if size+n > chunkBytes {
			flush()
		}
		c.Records, size = append(c.Records, r), size+n
	}
	flush()
	if len(chunks) > maxChunks {
		return nil, lb.Errorf(lb.ErrInvalid, "the change has %d MiB; at most %d can be made at once, apply it in parts", len(chunks)*chunkBytes>>20, maxChunks*chunkBytes>>20)
	}
	return chunks, nil
}

// staging is a large change while it is being written.
type staging struct {
	s        *Store
	id       string
	lease    clientv3.LeaseID
	ownerRev int64
	stop     context.CancelFunc // ends the lease's keepalive
	alive    <-chan *clientv3.LeaseKeepAliveResponse
}

func (s *Store) stage(ctx context.Context, id string, chunks [][]byte) (*staging, error) {
	cli, err := s.client.get()
	if err != nil {
		return nil, err
	}
	gctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	lease, err := cli.Grant(gctx, ownerTTL)
	if err != nil {
		return nil, err
	}
	kctx, stop := context.WithCancel(ctx)
	st := &staging{s: s, id: id, lease: lease.ID, stop: stop}
	if st.alive, err = cli.KeepAlive(kctx, lease.ID); err != nil {
		stop()
		return nil, err
	}
	resp, err := cli.Put(gctx, s.prefix+ownerKey(id), "{}", clientv3.WithLease(lease.ID))
	if err != nil {
		st.abandon(ctx, true)
		return nil, err
	}
	st.ownerRev = resp.Header.Revision
	if err := s.at("owner"); err != nil {
		return nil, err
	}
	if err := st.put(ctx, chunks); err != nil {
		if !isCrash(err) {
			st.abandon(ctx, true)
		}
		return nil, err
	}
	return st, nil
}

func (st *staging) put(ctx context.Context, chunks [][]byte) error {
	g, ctx := errgroup.WithContext(ctx)
	g.SetLimit(parallel)
	for n, c := range chunks {
		g.Go(func() error {
			if err := st.s.at(fmt.Sprintf("chunk %d", n)); err != nil {
				return err
			}
			return st.s.again(ctx, func(ctx context.Context, cli *clientv3.Client) error {
				_, err := cli.Put(ctx, st.s.prefix+chunkKey(st.id, n), string(c))
				return err
			})
		})
	}
	return g.Wait()
}

// abandon gives the lease back and, if the change did not take effect for
// certain, the chunks. What fails here is left to the lease and to sweep.
func (st *staging) abandon(ctx context.Context, chunksToo bool) {
	st.stop()
	for range st.alive { // closed once the keepalive has ended
	}
	cli, err := st.s.client.get()
	if err != nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), opTimeout)
	defer cancel()
	if chunksToo {
		if _, err := cli.Delete(ctx, st.s.prefix+dirStaging+st.id+"/", clientv3.WithPrefix()); err != nil {
			return
		}
	}
	_, _ = cli.Revoke(ctx, st.lease)
}

// again repeats an idempotent request while its outcome is unclear.
func (s *Store) again(ctx context.Context, do func(context.Context, *clientv3.Client) error) error {
	deadline := time.Now().Add(writeTimeout)
	for wait := 50 * time.Millisecond; ; wait = min(2*wait, time.Second) {
		cli, err := s.client.get()
		if err != nil {
			return err
		}
		octx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), min(opTimeout, time.Until(deadline)))
		err = do(octx, cli)
		cancel()
		if err == nil || !ambiguous(err) || ctx.Err() != nil || time.Now().Add(wait).After(deadline) {
			return err
		}
		if err := sleep(ctx, wait); err != nil {
			return err
		}
	}
}

// readChunk reads a chunk as it was at the revision; 0 means now.
func readChunk(ctx context.Context, cli *clientv3.Client, key string, rev int64) ([]record, error) {
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	var opts []clientv3.OpOption
	if rev > 0 {
		opts = append(opts, clientv3.WithRev(rev))
	}
	resp, err := cli.Get(ctx, key, opts...)
	if err != nil {
		return nil, err
	}
	if len(resp.Kvs) == 0 {
		return nil, fmt.Errorf("the chunk %s of a large change is gone", key)
	}
	var c chunkWire
	if err := json.Unmarshal(resp.Kvs[0].Value, &c); err != nil {
		return nil, fmt.Errorf("the chunk %s of a large change is damaged: %w", key, err)
	}
	return c.Records, nil
}

// overlay returns the events of a committed large change, as if its keys had
// been written in the transaction that committed it.
func (s *Store) overlay(ctx context.Context, cli *clientv3.Client, p event, rev int64) ([]event, error) {
	var w pendingWire
	if err := unmarshal(p.raw, &w); err != nil {
		return nil, nil // not ours; it becomes a fault
	}
	var evs []event
	for n := range w.Chunks {
		records, err := readChunk(ctx, cli, s.prefix+chunkKey(w.ID, n), rev)
		if err != nil {
			return nil, fmt.Errorf("read the large change of revision %d: %w", p.mod, err)
		}
		for i := range records {
			evs = append(evs, records[i].event(p.mod))
		}
	}
	return evs, nil
}

func (r *record) event(rev int64) event {
	if r.After == nil {
		return event{key: r.Key, deleted: true, mod: rev}
	}
	return event{key: r.Key, raw: withRevision(r.After, rev), mod: rev}
}

// rollForward writes a pending change into its keys and returns the revision
// from which on nothing is pending.
func (s *Store) rollForward(ctx context.Context) (int64, error) {
	resp, err := s.get(ctx, keyPending)
	if err != nil {
		return 0, err
	}
	if len(resp.Kvs) == 0 {
		return resp.Header.Revision, nil
	}
	var w pendingWire
	if err := unmarshal(resp.Kvs[0].Value, &w); err != nil {
		return 0, fmt.Errorf("%s%s is damaged; delete it by hand if no large change was being made: %w", s.prefix, keyPending, err)
	}
	rev := resp.Kvs[0].ModRevision
	cond := clientv3.Compare(clientv3.ModRevision(s.prefix+keyPending), "=", rev)
	done, err := s.rollChunks(ctx, w, rev, cond)
	if err != nil {
		return 0, err
	}
	if done > 0 { // another one was faster
		return done, nil
	}
	if err := s.at("before the end"); err != nil {
		return 0, err
	}
	var end int64
	err = s.again(ctx, func(ctx context.Context, cli *clientv3.Client) error {
		resp, err := cli.Txn(ctx).If(cond).Then(clientv3.OpDelete(s.prefix + keyPending)).Commit()
		if err == nil {
			end = resp.Header.Revision
		}
		return err
	})
	return end, err
}

// rollChunks writes the records of every chunk. A revision above 0 means that
// the change was found finished.
func (s *Store) rollChunks(ctx context.Context, w pendingWire, rev int64, cond clientv3.Cmp) (int64, error) {
	finished := make(chan int64, 1) // the first to notice says so
	for n := range w.Chunks {
		var records []record
		err := s.again(ctx, func(ctx context.Context, cli *clientv3.Client) (err error) {
			records, err = readChunk(ctx, cli, s.prefix+chunkKey(w.ID, n), 0)
			return err
		})
		if err != nil {
			return 0, err
		}
		g, gctx := errgroup.WithContext(ctx)
		g.SetLimit(2 * parallel)
		for i, batch := range s.batches(records, rev) {
			g.Go(func() error {
				if err := s.at(fmt.Sprintf("roll %d.%d", n, i)); err != nil {
					return err
				}
				return s.again(gctx, func(ctx context.Context, cli *clientv3.Client) error {
					resp, err := cli.Txn(ctx).If(cond).Then(batch...).Commit()
					if err == nil && !resp.Succeeded {
						select {
						case finished <- resp.Header.Revision:
						default:
						}
					}
					return err
				})
			})
		}
		if err := g.Wait(); err != nil {
			return 0, err
		}
		select {
		case at := <-finished:
			return at, nil
		default:
		}
	}
	return 0, nil
}

// batches packs the records' operations into transactions.
func (s *Store) batches(records []record, rev int64) [][]clientv3.Op {
	var all [][]clientv3.Op
	var ops []clientv3.Op
	size := 0
	for i := range records {
		n := len(records[i].Key) + len(records[i].After) + 64
		if len(ops) == maxOps || (size+n > maxTxnBytes && len(ops) > 0) {
			all, ops, size = append(all, ops), nil, 0
		}
		ops, size = append(ops, s.write(&records[i], rev)), size+n
	}
	if len(ops) > 0 {
		all = append(all, ops)
	}
	return all
}

// sweep removes staged chunks that nothing refers to: those of writers that
// crashed before they committed, those whose history entry was trimmed, and
// the oldest where all together pass the budget.
func (s *Store) sweep(ctx context.Context) error {
	cli, err := s.client.get()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, writeTimeout)
	defer cancel()
	keys, err := cli.Get(ctx, s.prefix+dirStaging, clientv3.WithPrefix(), clientv3.WithKeysOnly())
	if err != nil || len(keys.Kvs) == 0 {
		return err
	}
	config, pending, err := s.heads(ctx, cli)
	if err != nil {
		return err
	}
	found := make(map[string]map[string]int64) // id → rest of the key → mod revision
	for _, kv := range keys.Kvs {
		id, rest, _ := strings.Cut(strings.TrimPrefix(string(kv.Key), s.prefix+dirStaging), "/")
		if found[id] == nil {
			found[id] = make(map[string]int64)
		}
		found[id][rest] = kv.ModRevision
	}
	var kept []committedAt
	for id, rest := range found {
		if _, writing := rest["owner"]; writing || id == pending {
			continue
		}
		if rest["committed"] == 0 {
			if err := s.removeStaged(ctx, cli, id, 0); err != nil {
				return err
			}
			continue
		}
		resp, err := cli.Get(ctx, s.prefix+committedKey(id))
		if err != nil {
			return err
		}
		c := committedAt{id: id, mod: rest["committed"]}
		if len(resp.Kvs) == 0 || unmarshal(resp.Kvs[0].Value, &c.committedWire) != nil {
			continue
		}
		kept = append(kept, c)
	}
	for _, c := range surplus(kept, config.Seq) {
		if err := s.removeStaged(ctx, cli, c.id, c.mod); err != nil {
			return err
		}
	}
	return nil
}

type committedAt struct {
	committedWire
	id  string
	mod int64
}

// surplus returns those that history no longer refers to, and the oldest over
// the budget. The newest always stays.
func surplus(kept []committedAt, seq int64) []committedAt {
	sortBySeq(kept)
	var out []committedAt
	total := 0
	for i, c := range kept { // newest first
		total += c.Bytes
		if c.Seq <= seq-keepHistory || (i > 0 && total > stagedBudget) {
			out = append(out, c)
		}
	}
	return out
}

// heads reads meta/config and the id of a pending change.
func (s *Store) heads(ctx context.Context, cli *clientv3.Client) (config configWire, pending string, err error) {
	resp, err := cli.Txn(ctx).Then(clientv3.OpGet(s.prefix+keyConfig), clientv3.OpGet(s.prefix+keyPending)).Commit()
	if err != nil {
		return config, "", err
	}
	for _, kv := range resp.Responses[0].GetResponseRange().Kvs {
		_ = unmarshal(kv.Value, &config) // damaged: nothing is old enough to go
	}
	var p pendingWire
	for _, kv := range resp.Responses[1].GetResponseRange().Kvs {
		if err := unmarshal(kv.Value, &p); err != nil {
			return config, "", fmt.Errorf("%s: %w", keyPending, err)
		}
	}
	return config, p.ID, nil
}

// removeStaged deletes the chunks if nothing began to refer to them meanwhile.
func (s *Store) removeStaged(ctx context.Context, cli *clientv3.Client, id string, committed int64) error {
	_, err := cli.Txn(ctx).If(
		clientv3.Compare(clientv3.CreateRevision(s.prefix+ownerKey(id)), "=", 0),
		clientv3.Compare(clientv3.ModRevision(s.prefix+committedKey(id)), "=", committed),
	).Then(clientv3.OpDelete(s.prefix+dirStaging+id+"/", clientv3.WithPrefix())).Commit()
	return err
}

// at is where a test may end an Update as a crash would.
func (s *Store) at(step string) error {
	if s.step == nil {
		return nil
	}
	if err := s.step(step); err != nil {
		return &crash{err}
	}
	return nil
}

type crash struct{ error }

func isCrash(err error) bool { _, ok := err.(*crash); return ok }
