package standin

import (
	"context"
	"io"
	"net"
	"net/http"
	"time"
)

// wreckBefore lets the faults of the connection and of the whole answer hit the
// request. It reports true when there is nothing left to answer.
func (s *Server) wreckBefore(x *exchange) (over bool) {
	path, ctx := x.r.URL.Path, x.r.Context()
	hit := func(kind FaultKind) (Fault, bool) { return s.faults.takeKind(path, kind) }

	if f, ok := hit(Delay); ok && !sleep(ctx, f.Duration) {
		return true
	}
	if x.reused {
		if _, ok := hit(CloseOnReuse); ok {
			x.cut()
			return true
		}
	}
	if _, ok := hit(Hang); ok {
		io.Copy(io.Discard, x.r.Body)
		await(ctx)
		panic(http.ErrAbortHandler)
	}
	if _, ok := hit(Reset); ok {
		x.reset()
		return true
	}
	if _, ok := hit(Close); ok {
		x.cut()
		return true
	}
	if _, ok := hit(Garbage); ok {
		c := x.take()
		io.WriteString(c, "\x00\x15\x03\x01\r\n<<this is not HTTP>>\r\n\r\n")
		c.Close()
		return true
	}
	if f, ok := hit(Status); ok {
		s.writeStatus(x, f.Status)
		return true
	}
	if f, ok := hit(Provider400); ok {
		if f.Code == "" {
			f.Code = "provider_quota_exceeded"
		}
		s.writeError(x, errorOfCode(f.Code))
		return true
	}
	if f, ok := hit(Trickle); ok {
		x.trickle = max(f.Duration, time.Microsecond)
	}
	if f, ok := hit(ShortBody); ok {
		x.missing = int64(max(f.After, 1))
	}
	return false
}

// wreckAfter lets the faults hit that follow a complete answer.
func (s *Server) wreckAfter(x *exchange) {
	if x.hijacked || x.status == 0 {
		return
	}
	path := x.r.URL.Path
	if x.missing > 0 {
		x.cut()
		return
	}
	if _, ok := s.faults.takeKind(path, CloseAfter); ok {
		x.finish().Close()
		return
	}
	if _, ok := s.faults.takeKind(path, SurplusBytes); ok {
		c := x.finish()
		defer c.Close()
		io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 7\r\n\r\nsurplus")
		io.Copy(io.Discard, c) // until the other side closes, or Run ends
	}
}

// finish sends the rest of a complete answer and takes the connection.
func (x *exchange) finish() net.Conn {
	io.Copy(io.Discard, x.r.Body)
	chunked := x.Header().Get("Content-Length") == "" && x.status != http.StatusNoContent && x.r.ProtoAtLeast(1, 1)
	c := x.take()
	if chunked {
		io.WriteString(c, "0\r\n\r\n")
	}
	return c
}

// await blocks until the client goes away or Run ends.
func await(ctx context.Context) {
	select {
	case <-ctx.Done():
	case <-running(ctx):
	}
}

// running returns a channel that is closed when the Run that serves ctx ends; nil
// under a server of the caller's.
func running(ctx context.Context) <-chan struct{} {
	if life, ok := ctx.Value(lifetimeKey{}).(*lifetime); ok {
		return life.ctx.Done()
	}
	return nil
}

// sleep waits for d. It reports false if the client went away or Run ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-t.C:
		return true
	case <-ctx.Done():
	case <-running(ctx):
	}
	return false
}
