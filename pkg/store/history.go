package store

import (
	"context"
	"slices"
	"strings"
	"time"

	clientv3 "go.etcd.io/etcd/client/v3"

	"difylb/pkg/lb"
)

// entryWire is one history entry. Records holds what undoes the change; for a
// large one they are in the chunks under staging.
type entryWire struct {
	Seq int64 `json:"seq"`
	lb.Audit
	At      time.Time `json:"at"`
	Nonce   string    `json:"nonce"`
	Count   int       `json:"count"`
	Records []record  `json:"records,omitempty"`
	Staged  string    `json:"staged,omitempty"`
	Chunks  int       `json:"chunks,omitempty"`
}

// HistoryEntry is one change of the configuration.
type HistoryEntry struct {
	Seq      int64 `json:"seq"`
	Revision int64 `json:"revision"` // at which it took effect; what ConfigAt takes
	lb.Audit
	At time.Time `json:"at"`
	// Count is the number of objects changed. Changes lists them, without
	// secrets; of a large change only HistoryAt fills it in.
	Count   int      `json:"count"`
	Changes []Change `json:"changes,omitempty"`
}

func sortBySeq(kept []committedAt) {
	slices.SortFunc(kept, func(a, b committedAt) int { return int(b.Seq - a.Seq) })
}

const historyPage = 50

// History returns up to limit entries, newest first, of revisions below
// before; 0 means the newest. The last 1,000 are kept. It does not need Run.
func (s *Store) History(ctx context.Context, limit int, before int64) ([]HistoryEntry, error) {
	var entries []HistoryEntry
	err := s.eachEntry(ctx, func(e *entryWire, rev int64) (bool, error) {
		if before > 0 && rev >= before {
			return true, nil
		}
		if len(entries) >= limit {
			return false, nil
		}
		entries = append(entries, e.public(rev))
		return len(entries) < limit, nil
	})
	return entries, err
}

// HistoryAt returns the entry of the change that took effect at the revision,
// with all its Changes. Error kind: lb.ErrNotFound.
func (s *Store) HistoryAt(ctx context.Context, revision int64) (HistoryEntry, error) {
	var found *HistoryEntry
	err := s.eachEntry(ctx, func(e *entryWire, rev int64) (bool, error) {
		if rev != revision {
			return rev > revision, nil
		}
		if err := s.load(ctx, e); err != nil {
			return false, err
		}
		p := e.public(rev)
		found = &p
		return false, nil
	})
	if err != nil {
		return HistoryEntry{}, err
	}
	if found == nil {
		return HistoryEntry{}, lb.Errorf(lb.ErrNotFound, "no change of revision %d is in the history", revision)
	}
	return *found, nil
}

func (e *entryWire) public(rev int64) HistoryEntry {
	return HistoryEntry{Seq: e.Seq, Revision: rev, Audit: e.Audit, At: e.At, Count: e.Count, Changes: describeAll(e.Records)}
}

// eachEntry calls f with every entry, newest first, until it returns false.
func (s *Store) eachEntry(ctx context.Context, f func(e *entryWire, rev int64) (more bool, err error)) error {
	end := s.prefix + dirHistory + ":" // behind every digit
	for {
		resp, err := s.get(ctx, dirHistory, clientv3.WithRange(end), clientv3.WithKeysOnly(),
			clientv3.WithSort(clientv3.SortByKey, clientv3.SortDescend), clientv3.WithLimit(historyPage))
		if err != nil {
			return err
		}
		if len(resp.Kvs) == 0 {
			return nil
		}
		first := string(resp.Kvs[len(resp.Kvs)-1].Key)
		page, err := s.get(ctx, strings.TrimPrefix(first, s.prefix), clientv3.WithRange(end))
		if err != nil {
			return err
		}
		for _, kv := range slices.Backward(page.Kvs) {
			var e entryWire
			if err := unmarshal(kv.Value, &e); err != nil {
				return lb.Errorf(lb.ErrUnavailable, "the history entry %s is damaged: %s", kv.Key, err)
			}
			if more, err := f(&e, kv.ModRevision); err != nil || !more {
				return err
			}
		}
		end = first
	}
}

// lastSeq returns the number of the newest entry, 0 when there is none.
func (s *Store) lastSeq(ctx context.Context) (seq int64, err error) {
	err = s.eachEntry(ctx, func(e *entryWire, _ int64) (bool, error) {
		seq = e.Seq
		return false, nil
	})
	return seq, err
}

// load fills in the records of a large change.
func (s *Store) load(ctx context.Context, e *entryWire) error {
	if e.Staged == "" || e.Records != nil {
		return nil
	}
	cli, err := s.client.get()
	if err != nil {
		return err
	}
	for n := range e.Chunks {
		key := s.prefix + chunkKey(e.Staged, n)
		records, err := readChunk(ctx, cli, key, 0)
		if err != nil {
			if resp, gerr := s.get(ctx, chunkKey(e.Staged, n), clientv3.WithCountOnly()); gerr == nil && resp.Count == 0 {
				return lb.Errorf(lb.ErrNotFound, "the details of change %d (%s) were removed from the history, which has a bound in bytes", e.Seq, e.Action)
			}
			return unavailable("read history", err)
		}
		e.Records = append(e.Records, records...)
	}
	return nil
}

// ConfigAt returns the configuration as it stood at the revision: after the
// last change whose revision is not above it. It undoes the history's entries
// newest first, and does not depend on revisions that etcd still holds. Error
// kind: lb.ErrNotFound when the history no longer reaches back so far, or the
// revision is still to come. Secrets are in it: stored tokens by hash,
// instances' tokens as they were.
func (s *Store) ConfigAt(ctx context.Context, revision int64) (*lb.Document, error) {
	for range maxConflicts {
		b, err := s.base(ctx)
		if err != nil {
			return nil, err
		}
		if current, err := s.isCurrent(ctx, b); err != nil {
			return nil, err
		} else if !current {
			continue
		}
		if revision > b.snap.Revision && revision > s.cursor.Load() {
			return nil, lb.Errorf(lb.ErrNotFound, "revision %d is still to come; the store is at %d", revision, s.cursor.Load())
		}
		raws, ok := s.rawConfig(b)
		if !ok {
			continue
		}
		ok, err = s.undo(ctx, b, raws, revision)
		if err != nil {
			return nil, err
		}
		if ok {
			return document(raws), nil
		}
	}
	return nil, lb.Errorf(lb.ErrConflict, "the configuration keeps changing; try again")
}

// rawConfig copies the keys of the configuration; false when the mirror has
// moved past the base.
func (s *Store) rawConfig(b base) (map[string][]byte, bool) {
	s.st.mu.RLock()
	defer s.st.mu.RUnlock()
	if s.st.configMod != b.mod {
		return nil, false
	}
	raws := make(map[string][]byte)
	for key, obj := range s.st.objects {
		if declares(key) {
			raws[key] = obj.raw
		}
	}
	return raws, true
}

// undo takes raws from the base back to the revision; false when somebody
// wrote meanwhile.
func (s *Store) undo(ctx context.Context, b base, raws map[string][]byte, revision int64) (bool, error) {
	expect := b.seq
	reached := false
	err := s.eachEntry(ctx, func(e *entryWire, rev int64) (bool, error) {
		if e.Seq > b.seq {
			expect = -1
			return false, nil
		}
		if e.Seq != expect {
			return false, lb.Errorf(lb.ErrNotFound, "the history has a gap before change %d; revision %d can't be restored", expect+1, revision)
		}
		if rev <= revision {
			reached = true
			return false, nil
		}
		if err := s.load(ctx, e); err != nil {
			return false, err
		}
		for i := range e.Records {
			r := &e.Records[i]
			if !declares(r.Key) {
				continue // who may change it is no part of a configuration
			}
			if before := r.before(); before != nil {
				raws[r.Key] = before
			} else {
				delete(raws, r.Key)
			}
		}
		expect--
		return true, nil
	})
	switch {
	case err != nil:
		return false, err
	case expect < 0:
		return false, nil
	case !reached && expect > 0:
		return false, lb.Errorf(lb.ErrNotFound, "the history no longer reaches back to revision %d", revision)
	}
	return true, nil
}

// document reads keys as the mirror would; what can't be read is left out.
func document(raws map[string][]byte) *lb.Document {
	st := newState()
	for key, raw := range raws {
		st.applyLocked(event{key: key, raw: raw, mod: 1})
	}
	doc := st.buildLocked(nil, "", 0).Document()
	for _, app := range doc.Applications {
		app.Revision = 0
		for i := range app.Instances {
			app.Instances[i].Revision = 0
		}
	}
	return doc
}
