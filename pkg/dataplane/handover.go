package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"difylb/pkg/daemon"
)

const (
	// firstStateOfHeir bounds how long a successor waits for a configuration
	// before it gives up. It is less than the predecessor's patience.
	firstStateOfHeir = daemon.HandoverPatience / 2
	// restBound is how long connections that were accepted last may wait for a
	// slot, where all of --max-connections are taken.
	restBound = 5 * time.Second
)

// gate is a listening socket on which accepting can end before it is closed:
// a successor accepts on it too, and what this process has accepted must be
// served, not be caught between Accept and the server's books by its shutdown.
type gate struct {
	*net.TCPListener
	closed, resting      chan struct{}
	closeOnce, restsOnce sync.Once
}

func newGate(ln *net.TCPListener) *gate {
	return &gate{TCPListener: ln, closed: make(chan struct{}), resting: make(chan struct{})}
}

// Accept accepts until retire or Close; after retire it blocks until Close.
func (g *gate) Accept() (net.Conn, error) {
	conn, err := g.TCPListener.Accept()
	if err == nil || !errors.Is(err, os.ErrDeadlineExceeded) {
		return conn, err
	}
	g.restsOnce.Do(func() { close(g.resting) })
	<-g.closed
	return nil, net.ErrClosed
}

// Close may be called again.
func (g *gate) Close() error {
	g.closeOnce.Do(func() { close(g.closed) })
	return g.TCPListener.Close()
}

// retire ends accepting. The channel is closed when whoever accepts has done
// with the last connection and asks for another.
func (g *gate) retire() <-chan struct{} {
	g.SetDeadline(time.Unix(1, 0)) // long ago; it is of this process, not of the socket
	return g.resting
}

// inherit takes over what a predecessor offers, or makes sure that this
// process can make the offer.
func (p *Plane) inherit() (err error) {
	if p.opts.Handover == "" {
		return nil
	}
	var want []daemon.Socket
	for _, addr := range p.opts.Listen {
		want = append(want, daemon.Socket{Flag: "listen", Address: addr})
	}
	for _, addr := range p.opts.TLSListen {
		want = append(want, daemon.Socket{Flag: "tls-listen", Address: addr})
	}
	if p.heir, err = daemon.Inherit(p.opts.Handover, want); err == nil && p.heir == nil {
		p.offer, err = daemon.OpenOffer(p.opts.Handover)
	}
	if err != nil {
		return fmt.Errorf("--handover: %w", err)
	}
	return nil
}

// succeed tells the predecessor that this process serves, and takes its place
// as the one that offers. An error means that the predecessor goes on, and
// that this process must not.
func (p *Plane) succeed() (err error) {
	if p.heir == nil {
		return nil
	}
	told := p.heir.Serving()
	if told != nil {
		p.log.Warn().Err(told).Str("handover", p.opts.Handover).Msg("the predecessor did not let go in good order")
	} else {
		p.log.Info().Str("handover", p.opts.Handover).Msg("took over from the predecessor")
	}
	p.offer, err = daemon.OpenOffer(p.opts.Handover)
	if told != nil && errors.Is(err, daemon.ErrHandoverTaken) {
		return fmt.Errorf("--handover: %w", err)
	}
	if err != nil { // clients are served: no reason to end
		p.log.Error().Err(err).Str("handover", p.opts.Handover).Msg("the sockets cannot be offered to a successor")
	}
	return nil
}

// offerSockets closes succeeded when a successor serves on the sockets.
func (p *Plane) offerSockets(ctx context.Context, succeeded chan<- struct{}) {
	sockets := make(map[daemon.Socket]*net.TCPListener)
	for i, g := range p.listeners {
		if i < len(p.opts.Listen) {
			sockets[daemon.Socket{Flag: "listen", Address: p.opts.Listen[i]}] = g.TCPListener
		} else {
			sockets[daemon.Socket{Flag: "tls-listen", Address: p.opts.TLSListen[i-len(p.opts.Listen)]}] = g.TCPListener
		}
	}
	if p.offer.Run(ctx, sockets) == nil {
		close(succeeded)
	}
}

// retire ends accepting on sockets on which another process accepts. Every
// connection that was accepted here is served here. accepting is how many
// listeners are served.
func (p *Plane) retire(accepting int) {
	if accepting == 0 {
		return
	}
	bound := time.NewTimer(restBound)
	defer bound.Stop()
	for _, g := range p.listeners {
		g.retire()
	}
	for _, g := range p.listeners {
		select {
		case <-g.resting:
		case <-bound.C:
			return
		}
	}
}
