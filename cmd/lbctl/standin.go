package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"difylb/pkg/lb"
	"difylb/pkg/standin"
)

// startStandins runs a stand-in at every loopback address of the document.
func (u *upCluster) startStandins() error {
	at := make(map[string]*standin.Options)
	for _, name := range sortedNames(u.doc) {
		for i := range u.doc.Applications[name].Instances {
			in := &u.doc.Applications[name].Instances[i]
			addr := in.Address()
			host, _, err := net.SplitHostPort(addr)
			if ip := net.ParseIP(host); err != nil || (host != "localhost" && (ip == nil || !ip.IsLoopback())) {
				continue
			}
			if at[addr] == nil {
				at[addr] = &standin.Options{Name: in.Name}
			}
			at[addr].Apps = append(at[addr].Apps, standin.App{Key: in.Token.Reveal(), Mode: modeOf(in.Token.Reveal()), Name: name})
		}
	}
	if len(at) == 0 {
		return usagef("--demo: %s names no instance at a loopback address, so there is nowhere to run a stand-in", u.o.file)
	}
	addrs := make([]string, 0, len(at))
	for addr := range at {
		addrs = append(addrs, addr)
	}
	sort.Strings(addrs)
	for _, addr := range addrs {
		ln, err := net.Listen("tcp", addr)
		if err != nil {
			return fmt.Errorf("stand-in Dify at %s: %w", addr, err)
		}
		u.standins = append(u.standins, ln.Addr().String())
		srv := standin.New(*at[addr])
		u.begin("stand-in "+addr, func(ctx context.Context) error { return srv.Run(ctx, ln) })
	}
	return nil
}

func sortedNames(doc *lb.Document) []string {
	names := make([]string, 0, len(doc.Applications))
	for name := range doc.Applications {
		names = append(names, name)
	}
	sort.Strings(names)
	return names
}

// modes are those that a stand-in knows, longest names first: "advanced-chat"
// holds "chat".
var modes = []standin.Mode{standin.AdvancedChat, standin.AgentChat, standin.Completion, standin.Workflow, standin.Chat}

// modeOf guesses an application's mode from the word in a demo token.
func modeOf(token string) standin.Mode {
	for _, m := range modes {
		if strings.Contains(token, string(m)) {
			return m
		}
	}
	return standin.Chat
}

func (c *cli) standinCommand() *cobra.Command {
	var listen, name string
	var apps []string
	var slots int
	var control, nginx bool
	cmd := &cobra.Command{
		Use:   "standin",
		Short: "Run a stand-in Dify instance, to try the balancer without Dify",
		Long: `Runs a server that behaves like Dify's Service API: the same calls, streams, errors and
limits, ten connections at a time included; answers are made of the question and filler
words. Each --app is MODE=TOKEN; modes are chat, agent-chat, advanced-chat, completion and
workflow.`,
		Example: "  lbctl standin --listen 127.0.0.1:5001 --app chat=app-demo-token",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			o := standin.Options{Name: name, Slots: slots, Control: control}
			if nginx {
				o.Front = standin.Nginx
			}
			for _, a := range apps {
				mode, key, ok := strings.Cut(a, "=")
				if !ok || key == "" {
					return usagef("--app: give MODE=TOKEN, for example chat=app-demo-token")
				}
				if !knownMode(mode) {
					return usagef("--app: %q is not a mode; there are chat, agent-chat, advanced-chat, completion, workflow", mode)
				}
				o.Apps = append(o.Apps, standin.App{Key: key, Mode: standin.Mode(mode)})
			}
			if len(o.Apps) == 0 {
				return usagef("--app: none is given; for example --app chat=app-demo-token")
			}
			ln, err := net.Listen("tcp", listen)
			if err != nil {
				return fmt.Errorf("--listen %s: %w", listen, err)
			}
			fmt.Fprintf(c.out, "stand-in Dify %q at http://%s\n", name, ln.Addr())
			err = standin.New(o).Run(cmd.Context(), ln)
			if errors.Is(err, context.Canceled) {
				return nil
			}
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&listen, "listen", "127.0.0.1:5001", "`address` to serve")
	f.StringVar(&name, "name", "standin", "told in every answer")
	f.StringArrayVar(&apps, "app", nil, "`MODE=TOKEN` of an application; repeatable")
	f.IntVar(&slots, "slots", 0, "connections served at a time (default 10, as Dify ships; -1: no limit)")
	f.BoolVar(&nginx, "nginx", false, "behave as behind Dify's nginx, not as its API container")
	f.BoolVar(&control, "control", false, "serve /_standin/ with counts and faults, for tests")
	return cmd
}

func knownMode(mode string) bool {
	for _, m := range modes {
		if string(m) == mode {
			return true
		}
	}
	return false
}
