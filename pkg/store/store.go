// Package store keeps the cluster's declared state in etcd, and is the only
// package that knows etcd: keys, codec, conditional writes, watch, history,
// leases, election. It hands out complete, immutable Snapshots and writes one
// atomic change at a time, however large. It refuses to know what a
// declaration is good for: who may change it, how it is routed or probed, and
// whether a Snapshot that lost half of its instances should be believed.
package store

import (
	"context"
	"crypto/tls"
	"fmt"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"

	"difylb/pkg/lb"
)

// Options say where the store is.
type Options struct {
	// Endpoints are etcd's client URLs: http://…, https://… or unix:///path. Required.
	Endpoints []string
	// Prefix is what every key begins with; /difylb when empty.
	Prefix string
	// TLS returns the settings for the next connection, which are not to be
	// changed afterwards; nil for plain connections. Safe for concurrent use.
	TLS func() *tls.Config
	// Username and Password are empty when etcd has no users, or takes them
	// from the client's certificate.
	Username string
	Password lb.Secret
	// DialTimeout bounds one attempt to connect; 3 s when zero.
	DialTimeout time.Duration
	// CheckInterval is how often the watch is asked for a sign of life; 2 s when zero.
	CheckInterval time.Duration
	Log           zerolog.Logger
	// Now is the wall clock, for time stamps only; time.Now when nil.
	Now func() time.Time
}

const (
	opTimeout = 3 * time.Second // one request to etcd
	// Finding out whether a write was carried out: people wait for it. etcd
	// elects a new leader in 1 to 2 s, a busy machine in more.
	writeTimeout = 6 * time.Second
)

// Store is a cluster's state in etcd. Open it, Run it, and use it from any
// number of goroutines.
type Store struct {
	opt    Options
	prefix string // ends in a slash
	log    zerolog.Logger
	now    func() time.Time

	// The watch has a client of its own, so that it can be thrown away
	// together with its connections, and so that bulk on it delays no write.
	client, watchClient *client

	st   *state
	view atomic.Pointer[view]

	signals  sync.Mutex // guards subscribers, arrived
	subs     map[chan struct{}]struct{}
	arrived  chan struct{} // closed and replaced whenever cursor moves
	cursor   atomic.Int64  // revision up to which the mirror has everything
	watching watchStatus

	writing chan struct{} // holds one token: Updates of one process take turns
	// step is called between the steps of a large change; an error ends the
	// Update as a crash would. Tests set it, otherwise nil.
	step func(string) error
}

// view is what the mirror publishes as one.
type view struct {
	snap    *lb.Snapshot
	leader  string
	access  map[lb.TokenHash]AccessToken
	objects int
}

// Open checks the options and returns a Store that has talked to nobody yet.
// Error kind: lb.ErrInvalid.
func Open(opt Options) (*Store, error) {
	if len(opt.Endpoints) == 0 {
		return nil, lb.Errorf(lb.ErrInvalid, "no etcd endpoints are given; give URLs such as http://127.0.0.1:2379")
	}
	for _, e := range opt.Endpoints {
		if !strings.HasPrefix(e, "http://") && !strings.HasPrefix(e, "https://") && !strings.HasPrefix(e, "unix://") && !strings.HasPrefix(e, "unixs://") {
			return nil, lb.Errorf(lb.ErrInvalid, "etcd endpoint %q is not a URL that begins with http://, https:// or unix://", e)
		}
	}
	return newStore(opt)
}

// NewWithClient is Open over a client that exists already, which the caller
// closes after the Store. Options that concern connections are ignored.
func NewWithClient(cli *clientv3.Client, opt Options) (*Store, error) {
	s, err := newStore(opt)
	if err != nil {
		return nil, err
	}
	s.client.cli, s.watchClient.cli = cli, cli
	return s, nil
}

func newStore(opt Options) (*Store, error) {
	if opt.Prefix == "" {
		opt.Prefix = "/difylb"
	}
	opt.Prefix = strings.TrimRight(opt.Prefix, "/")
	if opt.Prefix == "" || len(opt.Prefix) > 256 {
		return nil, lb.Errorf(lb.ErrInvalid, "the etcd prefix must be 1 to 256 characters other than /")
	}
	if opt.DialTimeout <= 0 {
		opt.DialTimeout = opTimeout
	}
	if opt.CheckInterval <= 0 {
		opt.CheckInterval = 2 * time.Second
	}
	if opt.Now == nil {
		opt.Now = time.Now
	}
	opt.Log = opt.Log.With().Str("component", "store").Logger()
	s := &Store{
		opt: opt, prefix: opt.Prefix + "/", log: opt.Log, now: opt.Now,
		client: &client{make: dial(opt)}, watchClient: &client{make: dial(opt)},
		st: newState(), subs: make(map[chan struct{}]struct{}), arrived: make(chan struct{}),
		writing: make(chan struct{}, 1),
	}
	s.view.Store(&view{})
	s.watching.since.Store(int64(time.Since(epoch)))
	return s, nil
}

// Close ends the connections. Call it after Run has returned; what still uses
// the store gets lb.ErrUnavailable.
func (s *Store) Close() error {
	err := s.client.close()
	if err2 := s.watchClient.close(); err == nil {
		err = err2
	}
	return err
}

// Current returns the newest Snapshot, nil before the first list. It takes no lock.
func (s *Store) Current() *lb.Snapshot { return s.view.Load().snap }

// Objects returns how many keys the mirror holds: applications, instances,
// tokens and what goes with them. It takes no lock.
func (s *Store) Objects() int { return s.view.Load().objects }

// Leader returns the id of the node that leads the election, "" when nobody does.
func (s *Store) Leader() string { return s.view.Load().leader }

// Subscribe returns a channel that holds one signal when Current has changed
// since the last receive, and a function that ends the subscription. Signals
// coalesce: receive, then look at Current. A slow subscriber delays nobody.
// The channel holds a signal at once if there is a Snapshot already.
func (s *Store) Subscribe() (<-chan struct{}, func()) {
	ch := make(chan struct{}, 1)
	s.signals.Lock()
	defer s.signals.Unlock()
	s.subs[ch] = struct{}{}
	if s.Current() != nil {
		ch <- struct{}{}
	}
	return ch, func() {
		s.signals.Lock()
		defer s.signals.Unlock()
		delete(s.subs, ch)
	}
}

// WaitRevision blocks until the mirror has everything up to the revision. The
// error is that of ctx, of kind lb.ErrUnavailable for a deadline.
func (s *Store) WaitRevision(ctx context.Context, rev int64) error {
	for {
		s.signals.Lock()
		arrived := s.arrived
		s.signals.Unlock()
		if at := s.cursor.Load(); at >= rev && s.Current() != nil {
			return nil
		}
		select {
		case <-arrived:
		case <-ctx.Done():
			if ctx.Err() == context.DeadlineExceeded && s.Current() == nil {
				return lb.Errorf(lb.ErrUnavailable, "the configuration has not been read from etcd yet")
			}
			if ctx.Err() == context.DeadlineExceeded {
				return lb.Errorf(lb.ErrUnavailable, "the watch on etcd is at revision %d, and did not reach %d in time", s.cursor.Load(), rev)
			}
			return fmt.Errorf("wait for revision %d: %w", rev, ctx.Err())
		}
	}
}

// moved publishes that the mirror's cursor has moved.
func (s *Store) moved(rev int64) {
	s.signals.Lock()
	defer s.signals.Unlock()
	s.cursor.Store(rev)
	close(s.arrived)
	s.arrived = make(chan struct{})
}

func (s *Store) signal() {
	s.signals.Lock()
	defer s.signals.Unlock()
	for ch := range s.subs {
		select {
		case ch <- struct{}{}:
		default: // a signal waits there already
		}
	}
}

// Ping asks etcd for a linearizable read, at most 3 s. nil means that etcd has
// a quorum and serves us.
func (s *Store) Ping(ctx context.Context) error {
	_, err := s.get(ctx, keyEpoch, clientv3.WithKeysOnly())
	return err
}

// Alarms returns etcd's alarms in words, none when all is well.
func (s *Store) Alarms(ctx context.Context) ([]string, error) {
	cli, err := s.client.get()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, opTimeout)
	defer cancel()
	resp, err := cli.AlarmList(ctx)
	if err != nil {
		return nil, s.client.unreached("list alarms", err)
	}
	var alarms []string
	for _, a := range resp.Alarms {
		alarms = append(alarms, fmt.Sprintf("%s on etcd member %x", a.Alarm, a.MemberID))
	}
	return alarms, nil
}

// get is one bounded, linearizable read of a key relative to the prefix.
func (s *Store) get(ctx context.Context, key string, opts ...clientv3.OpOption) (*clientv3.GetResponse, error) {
	cli, err := s.client.get()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), opTimeout)
	defer cancel()
	resp, err := cli.Get(ctx, s.prefix+key, opts...)
	if err != nil {
		return nil, s.client.unreached("read "+shownKey(key), err)
	}
	return resp, nil
}

// txn is one bounded transaction; the error is etcd's own.
func (s *Store) txn(ctx context.Context, timeout time.Duration, build func(clientv3.Txn) clientv3.Txn) (*clientv3.TxnResponse, error) {
	cli, err := s.client.get()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(clientv3.WithRequireLeader(ctx), timeout)
	defer cancel()
	return build(cli.Txn(ctx)).Commit()
}
