//go:build !unix

package daemon

import (
	"context"
	"errors"
	"net"
)

var errNoHandover = errors.New("sockets cannot be passed on this system")

// Offer is not to be had on this system.
type Offer struct{}

// OpenOffer fails.
func OpenOffer(string) (*Offer, error) { return nil, errNoHandover }

// Run fails.
func (*Offer) Run(context.Context, map[Socket]*net.TCPListener) error { return errNoHandover }

// Close does nothing.
func (*Offer) Close() {}

// Inheritance is not to be had on this system.
type Inheritance struct{}

// Inherit fails.
func Inherit(string, []Socket) (*Inheritance, error) { return nil, errNoHandover }

// Take returns nil.
func (*Inheritance) Take(Socket) *net.TCPListener { return nil }

// Serving fails.
func (*Inheritance) Serving() error { return errNoHandover }

// Close does nothing.
func (*Inheritance) Close() {}
