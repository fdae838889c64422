//go:build linux

package contest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"os/signal"
	"syscall"
	"time"

	"difylb/bench/instance"
	"difylb/bench/relay"
	"difylb/bench/stdproxy"
)

// The benchmark's own program plays these parts, too, as other processes.
const (
	roleInstances    = "play-instances"
	roleReverseProxy = "play-reverse-proxy"
	roleRelay        = "play-relay"
)

const instanceCount = 4

// Role plays a part if args, without the program's name, name one, until the
// process is told to end. Otherwise it returns false at once. Every program
// that calls Run must begin with it.
func Role(args []string) (bool, error) {
	if len(args) == 0 {
		return false, nil
	}
	play, ok := map[string]func(context.Context, []string) error{
		roleInstances: playInstances, roleReverseProxy: playReverseProxy, roleRelay: playRelay,
	}[args[0]]
	if !ok {
		return false, nil
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	return true, play(ctx, args[1:])
}

// playInstances serves, and writes the addresses as JSON into the file named.
func playInstances(ctx context.Context, args []string) error {
	if len(args) != 1 {
		return fmt.Errorf("%s needs a file", roleInstances)
	}
	s, err := instance.New(instanceCount)
	if err != nil {
		return err
	}
	text, err := json.Marshal(s.Addrs())
	if err != nil {
		return err
	}
	// By another name first: who waits for the file must find it whole.
	if err := os.WriteFile(args[0]+".new", text, 0o600); err != nil {
		return err
	}
	if err := os.Rename(args[0]+".new", args[0]); err != nil {
		return err
	}
	return s.Run(ctx)
}

func playReverseProxy(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("%s needs an address to listen at, and instances", roleReverseProxy)
	}
	var instances []*url.URL
	for _, addr := range args[1:] {
		instances = append(instances, &url.URL{Scheme: "http", Host: addr})
	}
	listener, err := net.Listen("tcp", args[0])
	if err != nil {
		return err
	}
	server := &http.Server{Handler: stdproxy.New(instances, instanceToken), ReadHeaderTimeout: 30 * time.Second}
	closed := make(chan struct{})
	stop := context.AfterFunc(ctx, func() { defer close(closed); _ = server.Close() })
	defer stop()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	<-closed
	return nil
}

func playRelay(ctx context.Context, args []string) error {
	if len(args) < 2 {
		return fmt.Errorf("%s needs an address to listen at, and instances", roleRelay)
	}
	var addrs []netip.AddrPort
	for _, arg := range args {
		addr, err := netip.ParseAddrPort(arg)
		if err != nil {
			return err
		}
		addrs = append(addrs, addr)
	}
	r, err := relay.New(addrs[0], addrs[1:])
	if err != nil {
		return err
	}
	return r.Run(ctx)
}
