package proxy

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cespare/xxhash/v2"
	"github.com/rs/zerolog"

	"difylb/pkg/lb"
)

// AccessLog writes one JSON line per request. Requests only append to buffers
// in memory, several so that cores do not meet at one; a goroutine of its own
// writes them out. A disk that is too slow costs lines, which are counted,
// never a request's time.
type AccessLog struct {
	opts AccessLogOptions
	log  zerolog.Logger

	threshold uint64 // requests are logged whose id hashes to no more
	weight    string // of those, as the last field of their line; "" where all are logged
	second    atomic.Pointer[secondText]

	shards []logShard    // as many as there are cores, up to accessLogShards
	wake   chan struct{} // capacity 1: a buffer has grown large

	out     io.Writer // owned by Run
	torn    bool      // the last line in out is not whole; owned by Run
	failing bool      // the last write failed; owned by Run
	reopen  atomic.Bool
	dropped atomic.Uint64
}

// logShard holds the lines of some requests that are not written yet.
type logShard struct {
	mu  sync.Mutex // never held over I/O
	buf []byte
	_   [32]byte // a cache line each
}

// AccessLogOptions say what is logged, where and how.
type AccessLogOptions struct {
	// Path is a file, "-" for standard output, "off" or "" for no log.
	Path string
	// Format is one of the names below; "" is FormatJSON.
	Format string
	// Users writes user ids in clear. Otherwise a keyed hash stands for them.
	Users bool
	// Sample is the part of requests that is logged, above 0 and up to 1; 0 means
	// 1, all. Those that went wrong or were slow always are.
	Sample float64
	// Slow is how long the first byte of an answer takes, or a request without
	// one, so that it counts as slow. 0 or less: none does.
	Slow time.Duration
	Log  zerolog.Logger
}

// The formats of the access log.
const (
	FormatJSON = "json" // the fields of appendAccessLine
	FormatSeed = "seed" // the OpenResty balancer's app_routing fields
)

const (
	accessLogShards = 8                      // at most
	accessLogFlush  = 200 * time.Millisecond // the longest that a line waits
	accessLogWake   = 96 << 10               // bytes of a shard that are written without waiting
	accessLogBound  = 4 << 20                // bytes that wait at most; further lines are dropped
	loggedPath      = 2 << 10                // bytes of a path that are logged
)

// shardBound is how many bytes wait in a shard at most.
func (l *AccessLog) shardBound() int { return accessLogBound / len(l.shards) }

// OpenAccessLog opens the log, nil for none.
func OpenAccessLog(opts AccessLogOptions) (*AccessLog, error) {
	if opts.Path == "off" || opts.Path == "" {
		return nil, nil
	}
	l, err := newLog(opts)
	if err != nil || opts.Path == "-" {
		return l, err
	}
	f, err := openLog(opts.Path)
	if err != nil {
		return nil, fmt.Errorf("open access log: %w", err)
	}
	l.out = f
	return l, nil
}

func newLog(opts AccessLogOptions) (*AccessLog, error) {
	switch opts.Format {
	case "":
		opts.Format = FormatJSON
	case FormatJSON, FormatSeed:
	default:
		return nil, lb.Errorf(lb.ErrInvalid, "format %q is not known; there are %s and %s%s", opts.Format, FormatJSON, FormatSeed, lb.DidYouMean(opts.Format, []string{FormatJSON, FormatSeed}))
	}
	l := &AccessLog{opts: opts, log: opts.Log, out: os.Stdout, wake: make(chan struct{}, 1), threshold: 1<<64 - 1,
		shards: make([]logShard, min(Cores(), accessLogShards))}
	switch s := opts.Sample; {
	case s == 0, s == 1:
	case s > 0 && s < 1:
		l.threshold = uint64(s * (1 << 64))
		l.weight = `,"weight":` + strconv.FormatFloat(1/s, 'g', 6, 64)
	default:
		return nil, lb.Errorf(lb.ErrInvalid, "sample %v is out of range; above 0, up to 1", s)
	}
	return l, nil
}

func openLog(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
}

func newAccessLog(w io.Writer, log zerolog.Logger) *AccessLog {
	l, err := newLog(AccessLogOptions{Log: log})
	if err != nil {
		panic(err)
	}
	l.out = w
	return l
}

// Reopen opens the file anew before the next line is written, as log rotation
// wants on SIGHUP.
func (l *AccessLog) Reopen() { l.reopen.Store(true) }

// Dropped returns how many lines were lost to a slow disk.
func (l *AccessLog) Dropped() uint64 { return l.dropped.Load() }

// Run writes lines out until ctx ends and all that was appended is written.
func (l *AccessLog) Run(ctx context.Context) error {
	tick := time.NewTicker(accessLogFlush)
	defer tick.Stop()
	var spares [accessLogShards][]byte
	for {
		select {
		case <-tick.C:
		case <-l.wake:
		case <-ctx.Done():
			l.flush(&spares)
			if f, ok := l.out.(*os.File); ok && f != os.Stdout {
				return f.Close()
			}
			return nil
		}
		l.flush(&spares)
	}
}

// flush writes what is in the buffers, and leaves them the spares instead.
func (l *AccessLog) flush(spares *[accessLogShards][]byte) {
	if l.reopen.Swap(false) && l.opts.Path != "" && l.opts.Path != "-" {
		if f, err := openLog(l.opts.Path); err != nil {
			l.log.Error().Err(err).Msg("access log not reopened, writing to the old file")
		} else {
			l.out.(*os.File).Close()
			l.out, l.torn = f, false
		}
	}
	for i := range l.shards {
		s := &l.shards[i]
		s.mu.Lock()
		full := s.buf
		s.buf = spares[i][:0]
		s.mu.Unlock()
		if len(full) > 0 {
			l.put(full)
		}
		if spares[i] = full; cap(full) > l.shardBound()/4 {
			spares[i] = nil // a burst's buffer is not kept
		}
	}
}

// put writes lines. Those that a disk does not take are lost: others would have
// to wait for them. A line that was taken in part is ended before the next.
func (l *AccessLog) put(lines []byte) {
	var n int
	var err error
	if l.torn {
		_, err = l.out.Write([]byte{'\n'})
		l.torn = err != nil
	}
	if err == nil {
		n, err = l.out.Write(lines)
	}
	if err != nil {
		if n > 0 {
			l.torn = lines[n-1] != '\n'
		}
		l.dropped.Add(uint64(bytes.Count(lines[n:], []byte{'\n'})))
	}
	switch {
	case err != nil && !l.failing:
		l.log.Error().Err(err).Msg("access log not written, lines are lost")
	case err == nil && l.failing:
		l.log.Info().Uint64("lost", l.dropped.Load()).Msg("access log written again")
	}
	l.failing = err != nil
}

// write takes the account of a call that has ended.
func (l *AccessLog) write(c *call, now time.Time) {
	weight := l.weight
	if weight != "" {
		if l.remarkable(c, now) {
			weight = `,"weight":1`
		} else if xxhash.Sum64String(c.id) > l.threshold {
			return
		}
	}
	var space [1024]byte
	line := space[:0] // a hash and much formatting: not under the lock
	if l.opts.Format == FormatSeed {
		line = l.appendSeedLine(line, c, now)
	} else {
		line = l.appendAccessLine(line, c, now)
	}
	line = append(append(line, weight...), "}\n"...)
	s := &l.shards[c.shard%uint32(len(l.shards))]
	s.mu.Lock()
	before := len(s.buf)
	if before > l.shardBound() {
		s.mu.Unlock()
		l.dropped.Add(1)
		return
	}
	s.buf = append(s.buf, line...)
	loud := before < accessLogWake && len(s.buf) >= accessLogWake
	s.mu.Unlock()
	if loud {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// remarkable reports calls that are logged whatever the sample is.
func (l *AccessLog) remarkable(c *call, now time.Time) bool {
	if c.reason != lb.ReasonOK || c.status >= 400 {
		return true
	}
	took := c.firstByte
	if took == 0 {
		took = now.Sub(c.start)
	}
	return l.opts.Slow > 0 && took >= l.opts.Slow
}

// appendAccessLine writes the line but for its end. Numbers are in the units
// that their names say; tokens do not appear.
func (l *AccessLog) appendAccessLine(b []byte, c *call, now time.Time) []byte {
	b = append(b, `{"time":"`...)
	b = l.appendTime(b, now)
	b = append(b, `","request_id":`...)
	b = appendJSONString(b, c.id)
	if c.client.IsValid() {
		b = append(b, `,"remote":"`...)
		b = append(c.client.AppendTo(b), '"')
	}
	b = append(b, `,"method":`...)
	b = appendJSONString(b, c.method)
	b = append(b, `,"path":`...)
	b = appendJSONString(b, c.path[:min(len(c.path), loggedPath)])
	b = append(b, `,"status":`...)
	b = strconv.AppendInt(b, int64(c.status), 10)
	b = append(b, `,"reason":"`...)
	b = append(b, c.reason.String()...)
	b = append(b, `","dur_ms":`...)
	b = appendThousandths(b, now.Sub(c.start), time.Millisecond)
	if c.firstByte > 0 {
		b = append(b, `,"first_byte_ms":`...)
		b = appendThousandths(b, c.firstByte, time.Millisecond)
	}
	b = append(b, `,"bytes_in":`...)
	b = strconv.AppendInt(b, c.bytesIn, 10)
	b = append(b, `,"bytes_out":`...)
	b = strconv.AppendInt(b, c.bytesOut, 10)
	if c.app != nil {
		b = append(b, `,"app":"`...)
		b = append(b, c.app.app.Decl.Name...)
		b = append(b, `","revision":`...)
		b = strconv.AppendInt(b, c.v.table.ConfigRevision, 10)
		if c.token.Label != "" {
			b = append(b, `,"token_label":`...)
			b = appendJSONString(b, c.token.Label)
		}
		if c.user != "" {
			b = append(b, `,"user_hash":"`...)
			b = c.p.appendUserHash(b, c.user)
			b = append(b, `","user_source":"`...)
			b = append(b, c.source.String()...)
			b = append(b, '"')
			if l.opts.Users {
				b = append(b, `,"user":`...)
				b = appendJSONString(b, c.user)
			}
		}
	}
	if c.instance != "" {
		b = append(b, `,"instance":"`...)
		b = append(b, c.instance...)
		b = append(b, `","attempts":`...)
		b = strconv.AppendInt(b, int64(c.attempts), 10)
	}
	if c.events > 0 {
		b = append(b, `,"events":`...)
		b = strconv.AppendUint(b, c.events, 10)
	}
	if c.upgraded {
		b = append(b, `,"upgraded":true`...)
	}
	return b
}
