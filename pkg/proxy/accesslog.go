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
	"unicode/utf8"

	"github.com/rs/zerolog"
)

// AccessLog writes one JSON line per request. Requests only append to a buffer
// in memory; a goroutine of its own writes it out. A disk that is too slow
// costs lines, which are counted, never a request's time.
type AccessLog struct {
	path string // "" for a given writer
	log  zerolog.Logger

	mu   sync.Mutex // guards buf; never held over I/O
	buf  []byte
	wake chan struct{} // capacity 1: buf has grown large

	out     io.Writer // owned by Run
	reopen  atomic.Bool
	dropped atomic.Uint64
}

const (
	accessLogFlush = 200 * time.Millisecond // the longest that a line waits
	accessLogWake  = 64 << 10               // bytes that are written without waiting
	accessLogBound = 4 << 20                // bytes that wait at most; further lines are dropped
	loggedPath     = 2 << 10                // bytes of a path that are logged
)

// OpenAccessLog opens the log: a file path, "-" for standard output. nil for "off".
func OpenAccessLog(path string, log zerolog.Logger) (*AccessLog, error) {
	switch path {
	case "off", "":
		return nil, nil
	case "-":
		return newAccessLog(os.Stdout, log), nil
	}
	l := newAccessLog(nil, log)
	l.path = path
	f, err := openLog(path)
	if err != nil {
		return nil, fmt.Errorf("open access log: %w", err)
	}
	l.out = f
	return l, nil
}

func openLog(path string) (*os.File, error) {
	return os.OpenFile(path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o640)
}

func newAccessLog(w io.Writer, log zerolog.Logger) *AccessLog {
	return &AccessLog{out: w, log: log, wake: make(chan struct{}, 1)}
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
	var spare []byte
	for {
		select {
		case <-tick.C:
		case <-l.wake:
		case <-ctx.Done():
			l.flush(spare)
			if c, ok := l.out.(*os.File); ok && l.path != "" {
				return c.Close()
			}
			return nil
		}
		spare = l.flush(spare)
	}
}

// flush writes the buffer and returns it to be filled again.
func (l *AccessLog) flush(spare []byte) []byte {
	if l.reopen.Swap(false) && l.path != "" {
		if f, err := openLog(l.path); err != nil {
			l.log.Error().Err(err).Msg("access log not reopened, writing to the old file")
		} else {
			l.out.(*os.File).Close()
			l.out = f
		}
	}
	l.mu.Lock()
	full := l.buf
	l.buf = spare[:0]
	l.mu.Unlock()
	if len(full) > 0 {
		if n, err := l.out.Write(full); err != nil {
			l.dropped.Add(uint64(bytes.Count(full[n:], []byte{'\n'})))
		}
	}
	if cap(full) > accessLogBound/4 {
		return nil // a burst's buffer is not kept
	}
	return full[:0]
}

func (l *AccessLog) write(c *call, now time.Time) {
	var space [768]byte
	line := appendAccessLine(space[:0], c, now) // a hash and much formatting: not under the lock
	l.mu.Lock()
	before := len(l.buf)
	if before > accessLogBound {
		l.mu.Unlock()
		l.dropped.Add(1)
		return
	}
	l.buf = append(l.buf, line...)
	loud := before < accessLogWake && len(l.buf) >= accessLogWake
	l.mu.Unlock()
	if loud {
		select {
		case l.wake <- struct{}{}:
		default:
		}
	}
}

// appendAccessLine writes the line. Numbers are in the units that their names
// say; the user appears as a keyed hash, tokens not at all.
func appendAccessLine(b []byte, c *call, now time.Time) []byte {
	str := func(key, v string) {
		b = append(b, `,"`...)
		b = append(b, key...)
		b = append(b, `":`...)
		b = appendJSONString(b, v)
	}
	num := func(key string, v int64) {
		b = append(b, `,"`...)
		b = append(b, key...)
		b = append(b, `":`...)
		b = strconv.AppendInt(b, v, 10)
	}
	ms := func(key string, d time.Duration) {
		b = append(b, `,"`...)
		b = append(b, key...)
		b = append(b, `":`...)
		b = strconv.AppendFloat(b, float64(d)/1e6, 'f', 3, 64)
	}
	b = append(b, `{"time":"`...)
	b = now.UTC().AppendFormat(b, "2006-01-02T15:04:05.000Z07:00")
	b = append(b, '"')
	str("request_id", c.id)
	if c.client.IsValid() {
		str("remote", c.client.String())
	}
	str("method", c.method)
	path := c.path
	if len(path) > loggedPath {
		path = path[:loggedPath]
	}
	str("path", path)
	num("status", int64(c.status))
	str("reason", c.reason.String())
	ms("dur_ms", now.Sub(c.start))
	if c.firstByte > 0 {
		ms("first_byte_ms", c.firstByte)
	}
	num("bytes_in", c.bytesIn)
	num("bytes_out", c.bytesOut)
	if c.app != nil {
		str("app", c.app.app.Decl.Name)
		num("revision", c.v.table.ConfigRevision)
		if c.token.Label != "" {
			str("token_label", c.token.Label)
		}
		if c.user != "" {
			str("user_hash", c.p.userHash(c.user))
			str("user_source", c.source.String())
		}
	}
	if c.instance != "" {
		str("instance", c.instance)
		num("attempts", int64(c.attempts))
	}
	if c.events > 0 {
		num("events", int64(c.events))
	}
	if c.upgraded {
		b = append(b, `,"upgraded":true`...)
	}
	return append(b, '}', '\n')
}

// appendJSONString writes s as a JSON string (RFC 8259 section 7): control
// bytes escaped, what is not UTF-8 replaced.
func appendJSONString(b []byte, s string) []byte {
	const hexDigits = "0123456789abcdef"
	b = append(b, '"')
	for i := 0; i < len(s); {
		c := s[i]
		switch {
		case c == '"' || c == '\\':
			b = append(b, '\\', c)
			i++
		case c < 0x20 || c == 0x7f:
			b = append(b, '\\', 'u', '0', '0', hexDigits[c>>4], hexDigits[c&15])
			i++
		case c < utf8.RuneSelf:
			b = append(b, c)
			i++
		default:
			r, n := utf8.DecodeRuneInString(s[i:])
			b = utf8.AppendRune(b, r)
			i += n
		}
	}
	return append(b, '"')
}
