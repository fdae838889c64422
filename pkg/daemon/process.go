package daemon

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"runtime"
	"runtime/debug"
	"sync"
	"syscall"
	"time"

	"github.com/rs/zerolog"
)

// Version and Revision are set by the linker (-X); see the Makefile.
var (
	Version  = "dev"
	Revision = ""
)

// VersionString returns version, revision and Go version on one line.
func VersionString() string {
	rev := Revision
	if rev == "" {
		if info, ok := debug.ReadBuildInfo(); ok {
			for _, s := range info.Settings {
				if s.Key == "vcs.revision" && len(s.Value) >= 12 {
					rev = s.Value[:12]
				}
			}
		}
	}
	if rev == "" {
		rev = "unknown"
	}
	return fmt.Sprintf("%s (revision %s, %s %s/%s)", Version, rev, runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// NewLogger makes the process's logger. level is debug, info, warn or error;
// format is json or console. Errors are UsageErrors.
func NewLogger(w io.Writer, level, format string) (zerolog.Logger, error) {
	lvl, err := zerolog.ParseLevel(level)
	if err != nil || level == "" {
		return zerolog.Nop(), Usagef("--log-level: %q is not one of trace, debug, info, warn, error", level)
	}
	switch format {
	case "json":
	case "console":
		w = zerolog.ConsoleWriter{Out: w, TimeFormat: time.TimeOnly, NoColor: os.Getenv("NO_COLOR") != "" || !isTerminal(w)}
	default:
		return zerolog.Nop(), Usagef("--log-format: %q is not one of json, console", format)
	}
	return zerolog.New(w).Level(lvl).With().Timestamp().Logger(), nil
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode()&os.ModeCharDevice != 0
}

// Signals returns a context that ends at the first SIGTERM or SIGINT, and one
// that ends at the second: the first asks for an orderly end, the second for
// one at once. stop gives the signals back and ends both; it may be called
// again.
func Signals(parent context.Context) (orderly, now context.Context, stop func()) {
	orderly, endOrderly := context.WithCancelCause(parent)
	now, endNow := context.WithCancelCause(parent)
	ch := make(chan os.Signal, 2) // two are all that count
	signal.Notify(ch, syscall.SIGTERM, os.Interrupt)
	done := make(chan struct{})
	finished := make(chan struct{})
	go func() { // ends by stop
		defer close(finished)
		for n := 0; ; n++ {
			select {
			case s := <-ch:
				cause := fmt.Errorf("received %s", s)
				endOrderly(cause)
				if n > 0 {
					endNow(cause)
				}
			case <-done:
				return
			}
		}
	}()
	return orderly, now, sync.OnceFunc(func() {
		signal.Stop(ch)
		close(done)
		<-finished
		endOrderly(nil)
		endNow(nil)
	})
}

// OnHangup calls f at each SIGHUP until the context ends. It blocks.
func OnHangup(ctx context.Context, f func()) {
	ch := make(chan os.Signal, 1)
	signal.Notify(ch, syscall.SIGHUP)
	defer signal.Stop(ch)
	for {
		select {
		case <-ch:
			f()
		case <-ctx.Done():
			return
		}
	}
}
