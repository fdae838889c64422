// Package etcdlog carries what etcd's client and server log with zap into
// zerolog, so that one process has one log. It knows nothing of etcd itself,
// and of what is kept there only that a SHA-256 must not be shown whole.
package etcdlog

import (
	"regexp"

	"github.com/rs/zerolog"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// New returns a zap logger that writes to log. Lines below least are dropped
// before they cost anything. A Fatal line panics instead of ending the
// process: whether to exit is decided in a main, not in a library. A message
// for which demote returns true is written as debug; nil demotes none.
func New(log zerolog.Logger, least zapcore.Level, demote func(message string) bool) *zap.Logger {
	if demote == nil {
		demote = func(string) bool { return false }
	}
	return zap.New(&core{log: log, least: least, demote: demote}, zap.WithFatalHook(zapcore.WriteThenPanic))
}

// core implements zapcore.Core. Immutable; With returns a changed copy.
type core struct {
	log    zerolog.Logger
	least  zapcore.Level
	demote func(string) bool
	fields []zapcore.Field
}

func (c *core) Enabled(l zapcore.Level) bool { return l >= c.least }

func (c *core) With(fields []zapcore.Field) zapcore.Core {
	merged := make([]zapcore.Field, 0, len(c.fields)+len(fields))
	merged = append(append(merged, c.fields...), fields...)
	return &core{log: c.log, least: c.least, demote: c.demote, fields: merged}
}

func (c *core) Check(e zapcore.Entry, ce *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(e.Level) {
		return ce.AddCore(e, c)
	}
	return ce
}

func (c *core) Write(e zapcore.Entry, fields []zapcore.Field) error {
	lvl := level(e.Level)
	if c.demote(e.Message) {
		lvl = zerolog.DebugLevel
	}
	ev := c.log.WithLevel(lvl)
	if ev == nil {
		return nil
	}
	enc := zapcore.NewMapObjectEncoder()
	for _, f := range c.fields {
		f.AddTo(enc)
	}
	for _, f := range fields {
		f.AddTo(enc)
	}
	if e.LoggerName != "" {
		ev = ev.Str("logger", e.LoggerName)
	}
	ev.Fields(cut(enc.Fields)).Msg(cutText(e.Message))
	return nil
}

// digest matches a SHA-256 in hexadecimal. etcd logs the keys of slow requests,
// and keys hold the hashes of tokens: their first 16 digits are public ids,
// whoever has the whole can test guesses of a token against it.
var digest = regexp.MustCompile(`([0-9A-Fa-f]{16})[0-9A-Fa-f]{48}`)

func cutText(s string) string {
	if len(s) < 64 {
		return s
	}
	return digest.ReplaceAllString(s, "$1…")
}

// cut shortens the digests in what a zapcore.MapObjectEncoder holds.
func cut(v any) any {
	switch v := v.(type) {
	case string:
		return cutText(v)
	case map[string]any:
		out := make(map[string]any, len(v)) // it may be the caller's
		for key, val := range v {
			out[key] = cut(val)
		}
		return out
	case []any:
		out := make([]any, len(v))
		for i, val := range v {
			out[i] = cut(val)
		}
		return out
	}
	return v
}

func (c *core) Sync() error { return nil }

func level(l zapcore.Level) zerolog.Level {
	switch {
	case l <= zapcore.DebugLevel:
		return zerolog.DebugLevel
	case l == zapcore.InfoLevel:
		return zerolog.InfoLevel
	case l == zapcore.WarnLevel:
		return zerolog.WarnLevel
	}
	return zerolog.ErrorLevel
}
