package store

import (
	"context"
	"crypto/tls"
	"errors"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/rs/zerolog"
	clientv3 "go.etcd.io/etcd/client/v3"
	"go.uber.org/zap/zapcore"
	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/credentials"

	"difylb/pkg/lb"
	"difylb/pkg/store/etcdlog"
)

// client makes an etcd client when it is first needed: with a user name,
// making one talks to etcd already.
type client struct {
	make func() (*clientv3.Client, error)

	mu     sync.Mutex // guards cli, closed; held while a client is made, at most the dial timeout
	cli    *clientv3.Client
	closed bool
	owned  bool // we made cli and close it
}

// get returns the client. The error has kind lb.ErrUnavailable.
func (c *client) get() (*clientv3.Client, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil, lb.Errorf(lb.ErrUnavailable, "the store is closed")
	}
	if c.cli == nil {
		cli, err := c.make()
		if err != nil {
			return nil, unavailable("connect to etcd", err)
		}
		c.cli, c.owned = cli, true
	}
	return c.cli, nil
}

// discard throws the client away, so that the next get makes new connections.
func (c *client) discard(cli *clientv3.Client) {
	c.mu.Lock()
	if c.cli != cli || !c.owned {
		c.mu.Unlock()
		return
	}
	c.cli = nil
	c.mu.Unlock()
	cli.Close()
}

func (c *client) close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.closed = true
	if c.cli == nil || !c.owned {
		return nil
	}
	err := c.cli.Close()
	c.cli = nil
	return err
}

// told are messages about attempts that failed, our own cancelling included:
// who asked is told the error, and decides what it is worth.
func told(message string) bool { return strings.HasPrefix(message, "retrying of unary invoker failed") }

func dial(opt Options) func() (*clientv3.Client, error) {
	trouble := &handshakeTrouble{log: opt.Log}
	return func() (*clientv3.Client, error) {
		config := clientv3.Config{
			Endpoints:   opt.Endpoints,
			Username:    opt.Username,
			Password:    opt.Password.Reveal(),
			DialTimeout: opt.DialTimeout,
			// etcd refuses more than one ping in 5 s (grpc-keepalive-min-time),
			// and any ping while nothing is asked of it.
			DialKeepAliveTime:    5 * time.Second,
			DialKeepAliveTimeout: 3 * time.Second,
			Logger:               etcdlog.New(opt.Log, zapcore.WarnLevel, told),
			DialOptions: []grpc.DialOption{
				// gRPC's own maximum of two minutes would keep us away long
				// after etcd is back.
				grpc.WithConnectParams(grpc.ConnectParams{
					Backoff:           backoff.Config{BaseDelay: 100 * time.Millisecond, Multiplier: 1.6, Jitter: 0.2, MaxDelay: 3 * time.Second},
					MinConnectTimeout: opt.DialTimeout,
				}),
			},
		}
		if opt.TLS != nil {
			config.TLS = opt.TLS()
			if !strings.HasPrefix(opt.Endpoints[0], "http://") { // whose scheme goes for all
				config.DialOptions = append(config.DialOptions, grpc.WithTransportCredentials(&freshTLS{credentials.NewTLS(config.TLS), opt.TLS, trouble}))
			}
		}
		return clientv3.New(config)
	}
}

// freshTLS asks for the settings at each handshake: certificates are renewed
// while the client lives.
type freshTLS struct {
	credentials.TransportCredentials
	newest  func() *tls.Config
	trouble *handshakeTrouble
}

func (c *freshTLS) ClientHandshake(ctx context.Context, authority string, conn net.Conn) (net.Conn, credentials.AuthInfo, error) {
	secure, info, err := credentials.NewTLS(c.newest()).ClientHandshake(ctx, authority, conn)
	if err != nil {
		c.trouble.tell(err)
	}
	return secure, info, err
}

func (c *freshTLS) Clone() credentials.TransportCredentials {
	return &freshTLS{c.TransportCredentials.Clone(), c.newest, c.trouble}
}

// handshakeTrouble tells why etcd can't be spoken to: who waits for an answer
// learns only that none came.
type handshakeTrouble struct {
	log  zerolog.Logger
	mu   sync.Mutex
	last time.Time // when it was told; guarded by mu
}

// handshakesTold is how often that is told.
const handshakesTold = 10 * time.Second

func (t *handshakeTrouble) tell(err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	if now := time.Now(); t.last.IsZero() || now.Sub(t.last) >= handshakesTold {
		t.last = now
		t.log.Warn().Err(err).Msg("TLS with etcd failed")
	}
}
