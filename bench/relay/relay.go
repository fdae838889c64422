//go:build linux

// Package relay moves bytes between each client and an instance of its own, and
// looks at none of them: four system calls a request, which no proxy can do
// with less. The benchmark measures it beside the others, because what lies
// above it is all that a proxy can save. It refuses everything else: users,
// tokens, a log, and peers that are slow to read.
package relay

import (
	"context"
	"net/netip"
	"runtime"

	"difylb/bench/wire"
)

// Relay is one epoll loop. Make one with New.
type Relay struct {
	loop      *wire.Loop
	listener  int
	instances []netip.AddrPort
	clients   int   // ever accepted
	peers     []int // of each descriptor, 0 for none
	buf       []byte
}

// New listens at addr. Its clients are given the instances in turn.
func New(addr netip.AddrPort, instances []netip.AddrPort) (*Relay, error) {
	loop, err := wire.NewLoop()
	if err != nil {
		return nil, err
	}
	r := &Relay{loop: loop, instances: instances, buf: make([]byte, 16<<10)}
	if r.listener, _, err = wire.Listen(addr); err != nil {
		loop.Close()
		return nil, err
	}
	if err := loop.Add(r.listener); err != nil {
		r.closeAll()
		return nil, err
	}
	return r, nil
}

// Run relays until ctx ends, and then closes everything. It occupies a thread.
func (r *Relay) Run(ctx context.Context) error {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	woken := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { defer close(woken); r.loop.Wake() })
	defer func() {
		if !stop() {
			<-woken
		}
		r.closeAll()
	}()
	for ctx.Err() == nil {
		events, err := r.loop.Wait(-1)
		if err != nil {
			return err
		}
		for _, e := range events {
			if e.FD != r.listener {
				r.pass(e.FD)
			} else if err := r.accept(); err != nil {
				return err
			}
		}
	}
	return nil
}

func (r *Relay) closeAll() {
	for fd, peer := range r.peers {
		if peer != 0 {
			wire.Close(fd)
		}
	}
	wire.Close(r.listener)
	r.loop.Close()
}

// accept gives every client that waits its instance.
func (r *Relay) accept() error {
	for {
		client, err := wire.Accept(r.listener)
		if err == wire.ErrAgain {
			return nil
		} else if err != nil {
			return err
		}
		instance, err := wire.Connect(r.instances[r.clients%len(r.instances)])
		if err != nil {
			wire.Close(client)
			return err
		}
		r.clients++
		for max(client, instance) >= len(r.peers) {
			r.peers = append(r.peers, 0)
		}
		r.peers[client], r.peers[instance] = instance, client
		for _, fd := range []int{client, instance} {
			if err := r.loop.Add(fd); err != nil {
				return err
			}
		}
	}
}

// pass moves what has come from one end to the other.
func (r *Relay) pass(fd int) {
	peer := r.peers[fd]
	if peer == 0 {
		return // closed by an earlier event of the batch
	}
	n, err := wire.Read(fd, r.buf)
	if err == wire.ErrAgain {
		return
	}
	if err == nil {
		if wrote, _ := wire.Write(peer, r.buf[:n]); wrote == n {
			return
		}
	}
	r.peers[fd], r.peers[peer] = 0, 0
	wire.Close(fd)
	wire.Close(peer)
}
