package store

import (
	"context"
	"net/url"
	"slices"
	"strconv"
	"strings"

	clientv3 "go.etcd.io/etcd/client/v3"

	"difylb/pkg/lb"
)

// MaxCounterBytes bounds one chunk of counters.
const MaxCounterBytes = 512 << 10

// Chunk is one piece of a node's folded counters. What is in it is its writer's business.
type Chunk struct {
	N    int
	Data []byte
}

// Counters returns every node's chunks, in their order. It does not need Run.
func (s *Store) Counters(ctx context.Context) (map[string][]Chunk, error) {
	all := make(map[string][]Chunk)
	from, end := dirCounters, clientv3.GetPrefixRangeEnd(s.prefix+dirCounters)
	rev := int64(0)
	for {
		opts := []clientv3.OpOption{clientv3.WithRange(end), clientv3.WithLimit(32)}
		if rev > 0 {
			opts = append(opts, clientv3.WithRev(rev))
		}
		resp, err := s.get(ctx, from, opts...)
		if err != nil {
			return nil, err
		}
		if rev == 0 {
			rev = resp.Header.Revision
		}
		for _, kv := range resp.Kvs {
			node, n, ok := strings.Cut(strings.TrimPrefix(string(kv.Key), s.prefix+dirCounters), "/")
			id, err := url.PathUnescape(node)
			num, nerr := strconv.Atoi(n)
			if !ok || err != nil || nerr != nil {
				s.log.Warn().Str("key", string(kv.Key)).Msg("key of counters not understood, left alone")
				continue
			}
			all[id] = append(all[id], Chunk{N: num, Data: kv.Value})
		}
		if !resp.More || len(resp.Kvs) == 0 {
			return all, nil
		}
		from = strings.TrimPrefix(string(resp.Kvs[len(resp.Kvs)-1].Key), s.prefix) + "\x00"
	}
}

// PutCounters replaces the given chunks of a node and leaves its others; a nil
// chunk is deleted. Chunks that together fit into one request, 1 MiB, change
// as one; more of them do not, and an error then leaves some written. Error
// kinds: lb.ErrInvalid, lb.ErrConflict when the Fence's node no longer leads,
// lb.ErrUnavailable.
func (s *Store) PutCounters(ctx context.Context, node string, chunks map[int][]byte, f Fence) error {
	var ops []clientv3.Op
	size := 0
	flush := func() error {
		if len(ops) == 0 {
			return nil
		}
		_, err := s.fenced(ctx, f, nil, ops...)
		ops, size = nil, 0
		return unavailable("put counters of "+strconv.Quote(node), err)
	}
	ns := make([]int, 0, len(chunks))
	for n, data := range chunks {
		if n < 0 || n > 999_999 || len(data) > MaxCounterBytes {
			return lb.Errorf(lb.ErrInvalid, "counters of %q: chunk %d of %d bytes; numbers are 0 to 999999, a chunk has at most %d bytes", node, n, len(data), MaxCounterBytes)
		}
		ns = append(ns, n)
	}
	slices.Sort(ns)
	for _, n := range ns {
		data := chunks[n]
		if len(ops) == maxOps || size+len(data) > 1<<20 {
			if err := flush(); err != nil {
				return err
			}
		}
		key := s.prefix + counterKey(node, n)
		if data == nil {
			ops = append(ops, clientv3.OpDelete(key))
			continue
		}
		ops, size = append(ops, clientv3.OpPut(key, string(data))), size+len(data)
	}
	return flush()
}

// DeleteCounters removes every chunk of a node. Errors as PutCounters.
func (s *Store) DeleteCounters(ctx context.Context, node string, f Fence) error {
	_, err := s.fenced(ctx, f, nil, clientv3.OpDelete(s.prefix+counterDir(node), clientv3.WithPrefix()))
	return unavailable("delete counters of "+strconv.Quote(node), err)
}
