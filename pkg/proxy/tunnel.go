package proxy

import (
	"io"
	"net"
	"sync"
	"time"

	"difylb/pkg/h1"
	"difylb/pkg/lb"
)

// tunnel joins the two connections after the instance agreed to an upgrade.
func (a *attempt) tunnel() *refusal {
	x := a.x
	if a.sender != nil { // a body under way: where it ends, the other protocol begins
		a.stopSender()
	}
	if !a.wrote {
		a.reason = lb.ReasonUpstreamInvalid
		return refuse(a.reason, "the instance switched to another protocol before it had the request")
	}
	c, ok := x.down.(*clientConn)
	protocol := string(a.field(h1.Upgrade))
	if !ok || !x.req.WantsUpgrade || !upgradeAllowed(x.field(h1.Upgrade)) || !offered(x.field(h1.Upgrade), protocol) {
		a.reason = lb.ReasonUpstreamInvalid
		return refuse(a.reason, "the instance switched to a protocol that was not asked for")
	}
	x.status, x.reason, x.upgraded, x.firstByte = a.resp.Status, lb.ReasonOK, true, x.now.Sub(x.start)
	w := c.begin(a.resp.Status)
	x.writeAnswerFields(w, a.resp, a.head)
	w.Field("Connection", "Upgrade")
	w.Field("Upgrade", protocol)
	c.out.End()
	c.keep, x.begun = false, true
	if err := c.sendOut(); err != nil {
		a.reason, x.reason = lb.ReasonClientGone, lb.ReasonClientGone
		return nil
	}
	// From here on both ends may be silent for as long as they like, and end
	// their sides as they like: nobody watches but those who copy.
	fromClient, err := c.handOver()
	fromInstance, err2 := a.handOver()
	if err != nil || err2 != nil {
		a.reason, x.reason, c.broken = lb.ReasonInternal, lb.ReasonInternal, true
		return nil
	}
	in, out := pipe(c.conn, fromClient, a.conn.conn, fromInstance, c.over)
	c.broken = true
	x.bytesIn, x.bytesOut = in, out
	a.in.stats.Flow(x.shard, in, out)
	return nil
}

// handOver ends the watching of the connection, and returns what was read of
// it and belongs to the tunnel.
func (c *clientConn) handOver() (rest []byte, err error) {
	rest = append(rest, c.in[c.r:c.n]...)
	c.r = c.n
	return rest, c.wire.handOver()
}

func (a *attempt) handOver() ([]byte, error) {
	var rest []byte
	if a.r < a.n {
		rest = append(rest, a.input()[a.r:a.n]...)
		a.r = a.n
	}
	a.x.line.waitFor(nil)
	return rest, a.conn.wire.handOver()
}

// handOver makes the connection an ordinary one.
func (w *wire) handOver() error {
	w.relax()
	w.watched.forget()
	w.mu.Lock()
	defer w.mu.Unlock()
	w.handed = true
	if w.raw {
		return w.attach()
	}
	return w.conn.SetDeadline(time.Time{})
}

// pipe copies both ways until one of them ends, then closes both and waits.
// What was read before goes first. over is asked once the deadlines are gone:
// a cut that came earlier has no effect otherwise.
func pipe(client net.Conn, fromClient []byte, instance net.Conn, fromInstance []byte, over func() bool) (in, out int64) {
	var wg sync.WaitGroup
	var once sync.Once
	closeBoth := func() { once.Do(func() { client.Close(); instance.Close() }) }
	if over() {
		closeBoth()
	}
	move := func(dst, src net.Conn, first []byte, n *int64) {
		defer wg.Done()
		defer closeBoth()
		sent, err := dst.Write(first)
		if *n = int64(sent); err != nil {
			return
		}
		more, _ := io.Copy(dst, src)
		*n += more
	}
	wg.Add(2)
	go move(instance, client, fromClient, &in)
	go move(client, instance, fromInstance, &out)
	wg.Wait()
	return in, out
}
