// Package embedded runs an etcd server inside the process, for clusters that
// bring no etcd of their own. It knows how to start and end one and where it
// listens, and refuses to know what is kept in it. Only lb-admin and lbctl may
// link it: it is most of the size of a binary.
package embedded

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/rs/zerolog"
	"go.etcd.io/bbolt"
	berrors "go.etcd.io/bbolt/errors"
	"go.etcd.io/etcd/api/v3/version"
	"go.etcd.io/etcd/server/v3/embed"
	"go.uber.org/zap/zapcore"

	"difylb/pkg/lb"
	"difylb/pkg/store/etcdlog"
)

// Options are the settings of an embedded etcd. The zero value of a field
// means its default.
type Options struct {
	// DataDir holds the database; made with mode 0700. Required.
	DataDir string
	// ListenClient and ListenPeer are URLs: http://127.0.0.1:2379 and
	// http://127.0.0.1:2380 by default. Port 0 takes a free one. unix:///path
	// listens on a socket. The scheme may be left away for http.
	ListenClient string
	ListenPeer   string
	// Name is the member's name; "default" when empty.
	Name string
	Log  zerolog.Logger
	// QuotaBytes bounds the database; 4 GiB by default.
	QuotaBytes int64
	// SnapshotCount is how many entries the raft log keeps before etcd
	// snapshots; 10,000 by default.
	SnapshotCount uint64
	// ProgressInterval is how often an idle watch hears the store's revision; 5 s by default.
	ProgressInterval time.Duration
	// NoSync leaves out fsync: for tests only, a crash may lose everything.
	NoSync bool
}

// catchUpEntries is how many entries of the raft log stay in memory for members
// that lag behind. There are none; etcd's own 5,000 are some 100 MiB behind a
// large change.
const catchUpEntries = 100

const (
	startTimeout = 60 * time.Second // a large database takes its time to open
	stopTimeout  = 10 * time.Second
)

// Server is one embedded etcd: New, then Run once; or Start and Stop in pairs.
type Server struct {
	opt   Options
	log   zerolog.Logger
	ready chan struct{} // closed by Start

	stopping atomic.Bool
	// set by Start, read after ready
	etcd *embed.Etcd
	lock *os.File
	urls []string
}

// New returns a server that is not started.
func New(opt Options) *Server {
	if opt.ListenClient == "" {
		opt.ListenClient = "http://127.0.0.1:2379"
	}
	if opt.ListenPeer == "" {
		opt.ListenPeer = "http://127.0.0.1:2380"
	}
	if opt.Name == "" {
		opt.Name = "default"
	}
	if opt.QuotaBytes == 0 {
		opt.QuotaBytes = 4 << 30
	}
	if opt.SnapshotCount == 0 {
		opt.SnapshotCount = 10_000
	}
	if opt.ProgressInterval == 0 {
		opt.ProgressInterval = 5 * time.Second
	}
	return &Server{opt: opt, log: opt.Log.With().Str("component", "etcd").Logger(), ready: make(chan struct{})}
}

// Run starts the server, and ends it when ctx ends. It returns nil after an
// ordered end, an error when etcd did not start or died. Close clients first:
// etcd waits for open watches.
func (s *Server) Run(ctx context.Context) error {
	if err := s.Start(ctx); err != nil {
		return err
	}
	var died error
	select {
	case <-ctx.Done():
	case err := <-s.etcd.Err():
		died = fmt.Errorf("embedded etcd died: %w", err)
	}
	return errors.Join(died, s.Stop())
}

// Ready is closed once the server answers.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Client returns the URLs at which clients reach the server, with the real
// port. It blocks until Ready.
func (s *Server) Client() []string {
	<-s.ready
	return s.urls
}

// Start starts the server and returns when it answers. On an error nothing is
// left running. ErrInvalid: an option is at fault; ErrUnavailable: an address
// or the data directory is in use.
func (s *Server) Start(ctx context.Context) error {
	cfg, err := s.config()
	if err != nil {
		return err
	}
	if err := s.lockDataDir(); err != nil {
		return err
	}
	if err := s.checkData(cfg.Dir); err != nil {
		s.unlock()
		return err
	}
	s.etcd, err = startEtcd(cfg)
	if err != nil {
		s.unlock()
		return s.explain(err)
	}
	ctx, cancel := context.WithTimeout(ctx, startTimeout)
	defer cancel()
	select {
	case <-s.etcd.Server.ReadyNotify():
	case err = <-s.etcd.Err():
	case <-s.etcd.Server.StopNotify():
		err = errors.New("it stopped while it started")
	case <-ctx.Done():
		err = fmt.Errorf("it is not ready: %w", ctx.Err())
	}
	if err != nil {
		return errors.Join(s.explain(err), s.Stop())
	}
	for _, l := range s.etcd.Clients {
		s.urls = append(s.urls, clientURL(l.Addr()))
	}
	close(s.ready)
	s.log.Info().Strs("listen", s.urls).Str("data_dir", s.opt.DataDir).Msg("embedded etcd is ready")
	return nil
}

// Stop ends the server and waits until it has ended, at most 10 s.
func (s *Server) Stop() error {
	s.stopping.Store(true)
	done := make(chan struct{})
	go func() { // ends when etcd lets go; the process ends next in any case
		defer close(done)
		s.etcd.Close()
	}()
	select {
	case <-done:
		s.unlock()
		return nil
	case <-time.After(stopTimeout):
		return fmt.Errorf("embedded etcd did not end within %s", stopTimeout)
	}
}

// harmless are warnings about what we chose knowingly: one port for gRPC and
// its HTTP gateway, and no users, because the address is ours alone.
var harmless = map[string]bool{
	"Running http and grpc server on single port. This is not recommended for production.": true,
	"simple token is not cryptographically signed":                                         true,
}

// isHarmless reports messages that nobody needs to act on. While etcd stops, it
// complains that its listeners are being closed.
func (s *Server) isHarmless(message string) bool { return s.stopping.Load() || harmless[message] }

func (s *Server) config() (*embed.Config, error) {
	if s.opt.DataDir == "" {
		return nil, lb.Errorf(lb.ErrInvalid, "embedded etcd: the data directory is empty")
	}
	client, err := listenURL(s.opt.ListenClient)
	if err != nil {
		return nil, err
	}
	peer, err := listenURL(s.opt.ListenPeer)
	if err != nil {
		return nil, err
	}
	cfg := embed.NewConfig()
	cfg.Dir = filepath.Join(s.opt.DataDir, "etcd")
	cfg.Name = s.opt.Name
	cfg.ListenClientUrls, cfg.AdvertiseClientUrls = []url.URL{*client}, []url.URL{*client}
	cfg.ListenPeerUrls, cfg.AdvertisePeerUrls = []url.URL{*peer}, []url.URL{*peer}
	cfg.InitialCluster = cfg.InitialClusterFromName(cfg.Name)
	cfg.QuotaBackendBytes = s.opt.QuotaBytes
	cfg.SnapshotCount = s.opt.SnapshotCount
	cfg.SnapshotCatchUpEntries = catchUpEntries
	cfg.AutoCompactionMode = embed.CompactorModePeriodic
	cfg.AutoCompactionRetention = "1h"
	cfg.WatchProgressNotifyInterval = s.opt.ProgressInterval
	cfg.UnsafeNoFsync = s.opt.NoSync
	cfg.LogLevel = "warn"
	cfg.ZapLoggerBuilder = embed.NewZapLoggerBuilder(etcdlog.New(s.log, zapcore.WarnLevel, s.isHarmless))
	return cfg, nil
}

// lockDataDir makes the directory and takes its lock. etcd itself would wait
// in silence for another process to let go of the database.
func (s *Server) lockDataDir() error {
	if err := os.MkdirAll(s.opt.DataDir, 0o700); err != nil {
		return fmt.Errorf("embedded etcd: %w", err)
	}
	if err := os.MkdirAll(filepath.Join(s.opt.DataDir, "etcd"), 0o700); err != nil {
		return fmt.Errorf("embedded etcd: %w", err)
	}
	f, err := os.OpenFile(filepath.Join(s.opt.DataDir, "etcd.lock"), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return fmt.Errorf("embedded etcd: %w", err)
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		return lb.Errorf(lb.ErrUnavailable, "embedded etcd: the data directory %s is in use by another process; end that one or give another directory", s.opt.DataDir)
	}
	s.lock = f
	return nil
}

// checkData looks at an existing database before etcd does, because over one
// that is damaged or too new etcd panics in a goroutine of its own, which
// nobody can catch.
func (s *Server) checkData(dir string) error {
	path := filepath.Join(dir, "member", "snap", "db")
	if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
		return nil
	}
	db, err := bbolt.Open(path, 0o600, &bbolt.Options{ReadOnly: true, Timeout: time.Second})
	if errors.Is(err, berrors.ErrTimeout) {
		return lb.Errorf(lb.ErrUnavailable, "embedded etcd: the database %s is in use by another process", path)
	}
	if err != nil {
		return fmt.Errorf("embedded etcd: the database %s is damaged (restore a backup, or give another directory): %w", path, err)
	}
	defer db.Close()
	var stored string
	err = db.View(func(tx *bbolt.Tx) error {
		if b := tx.Bucket([]byte("meta")); b != nil {
			stored = string(b.Get([]byte("storageVersion")))
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("embedded etcd: read %s: %w", path, err)
	}
	if newer(stored, version.Version) {
		return lb.Errorf(lb.ErrInvalid, "embedded etcd: the data in %s was written by etcd %s, newer than the %s built in; run a newer lb-admin or give another directory", dir, stored, version.Version)
	}
	return nil
}

// newer compares major and minor versions; what is no version is not newer.
func newer(stored, ours string) bool {
	var a, b [2]int
	if n, _ := fmt.Sscanf(stored, "%d.%d", &a[0], &a[1]); n != 2 {
		return false
	}
	if n, _ := fmt.Sscanf(ours, "%d.%d", &b[0], &b[1]); n != 2 {
		return false
	}
	return a[0] > b[0] || a[0] == b[0] && a[1] > b[1]
}

func (s *Server) unlock() {
	if s.lock != nil {
		s.lock.Close() // gives the lock back
		s.lock = nil
	}
}

// startEtcd turns etcd's panics over foreign or damaged data into errors.
func startEtcd(cfg *embed.Config) (e *embed.Etcd, err error) {
	defer func() {
		if p := recover(); p != nil {
			e, err = nil, fmt.Errorf("%v", p)
		}
	}()
	return embed.StartEtcd(cfg)
}

func (s *Server) explain(err error) error {
	text := err.Error()
	switch {
	case errors.Is(err, syscall.EADDRINUSE) || strings.Contains(text, "address already in use"):
		return lb.Errorf(lb.ErrUnavailable, "embedded etcd: an address is taken (client %s, peer %s): %s", s.opt.ListenClient, s.opt.ListenPeer, text)
	case strings.Contains(text, "downgrade") || strings.Contains(text, "newer than") || strings.Contains(text, "not supported version"):
		return fmt.Errorf("embedded etcd: the data in %s was written by a newer version of etcd; run that version or give another directory: %w", s.opt.DataDir, err)
	}
	return fmt.Errorf("start embedded etcd in %s: %w", s.opt.DataDir, err)
}

func listenURL(raw string) (*url.URL, error) {
	full := raw
	if !strings.Contains(raw, "://") {
		full = "http://" + raw
	}
	u, err := url.Parse(full)
	if err != nil {
		return nil, lb.Errorf(lb.ErrInvalid, "embedded etcd: %q is not a URL such as http://127.0.0.1:2379 or unix:///run/etcd.sock", raw)
	}
	switch u.Scheme {
	case "unix":
		if u.Path == "" || u.Host != "" {
			return nil, lb.Errorf(lb.ErrInvalid, "embedded etcd: %q names no absolute path; write unix:///path", raw)
		}
	case "http":
		if u.Port() == "" || u.Path != "" && u.Path != "/" {
			return nil, lb.Errorf(lb.ErrInvalid, "embedded etcd: %q must be http://HOST:PORT", raw)
		}
		// etcd listens on IP addresses only.
		if host := u.Hostname(); host == "localhost" {
			u.Host = net.JoinHostPort("127.0.0.1", u.Port())
		}
		u.Path = ""
	default:
		return nil, lb.Errorf(lb.ErrInvalid, "embedded etcd: %q has the scheme %q; it must be http or unix", raw, u.Scheme)
	}
	return u, nil
}

func clientURL(a net.Addr) string {
	if a.Network() == "unix" {
		return "unix://" + a.String()
	}
	if tcp, ok := a.(*net.TCPAddr); ok && tcp.IP.IsUnspecified() {
		return "http://" + net.JoinHostPort("127.0.0.1", fmt.Sprint(tcp.Port))
	}
	return "http://" + a.String()
}
