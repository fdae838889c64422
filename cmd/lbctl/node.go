package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"difylb/pkg/admin"
	"difylb/pkg/cluster"
	"difylb/pkg/lb"
)

func (c *cli) nodeCommand() *cobra.Command {
	cmd := group("node", "Running lb-proxies and lb-admins", "  lbctl node list\n  lbctl node accept proxy-1", c.nodeListCommand(), c.nodeAcceptCommand())
	cmd.Aliases = []string{"nodes"}
	return cmd
}

func (c *cli) nodeListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the live nodes",
		Long: `Lists every live lb-proxy and lb-admin with the configuration revision that it has in
force. LAG is for how long a newer one has been waiting to be in force there. STATE is ok,
or the worst that there is to say: disconnected, held back, refused, ring differs (it places
users in another way than most proxies at its revision) or behind.`,
		Example: "  lbctl node list\n  lbctl node list -o json",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				nodes, err := cl.Nodes(ctx)
				if err != nil {
					return err
				}
				return c.print(admin.List[admin.Node]{Items: nodes}, func(t *table) {
					t.header("NODE", "ROLE", "ADDRESS", ">REVISION", ">LAG", "UPTIME", "VERSION", "STATE")
					for _, n := range nodes {
						revision, lag := "-", "-"
						if n.ConfigRevision > 0 {
							revision, lag = fmt.Sprint(n.ConfigRevision), lagText(n.LagSeconds)
						}
						t.row(n.ID, n.Role, n.Address, revision, lag, age(n.UptimeSeconds), n.Version, nodeStateCell(n))
					}
					for _, n := range nodes {
						switch nodeState(n) {
						case cluster.NodeHeldBack:
							t.line("%s holds revision %d back and runs revision %d: %s", n.ID, n.RefusedRevision, n.ConfigRevision, n.Refused)
						case cluster.NodeRefused:
							t.line("%s refused the newest configuration and runs revision %d: %s", n.ID, n.ConfigRevision, n.Refused)
						case cluster.NodeRingDiffers:
							t.line("%s places users in another way than most proxies at revision %d: ring checksum %s.", n.ID, n.ConfigRevision, n.RingChecksum)
						}
					}
				})
			})
		},
	}
}

func (c *cli) nodeAcceptCommand() *cobra.Command {
	yes := new(bool)
	cmd := &cobra.Command{
		Use: "accept [NODE]", Short: "Accept what a proxy holds back",
		Long: `A proxy does not believe a store that was replaced or went back in time, and in which most
instances would be gone: it goes on by the last good configuration and waits. If the loss
is meant, accept it: for one proxy, or for all that hold something back. What is accepted
is the revision that is shown; whatever comes after it is looked at anew.`,
		Example: "  lbctl node accept\n  lbctl node accept proxy-1 --yes",
		Args:    between(0, "the node"),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				return c.acceptNodes(ctx, cl, args, *yes)
			})
		},
	}
	cmd.Flags().BoolVarP(yes, "yes", "y", false, "do not ask")
	return cmd
}

func (c *cli) acceptNodes(ctx context.Context, cl *admin.Client, args []string, yes bool) error {
	nodes, err := cl.Nodes(ctx)
	if err != nil {
		return err
	}
	var held []admin.Node
	for _, n := range nodes {
		if n.Role == lb.RoleProxy && (len(args) == 0 && n.HeldBack || len(args) == 1 && n.ID == args[0]) {
			held = append(held, n)
		}
	}
	if len(held) == 0 {
		if len(args) == 1 {
			return lb.Errorf(lb.ErrNotFound, "there is no live proxy %q", args[0])
		}
		return c.print(admin.List[admin.Node]{Items: []admin.Node{}}, func(t *table) { t.line("No proxy holds anything back.") })
	}
	done := admin.List[admin.Node]{}
	for _, n := range held {
		if n.HeldBack {
			if err := c.confirm(yes, "%s: %s\nPut revision %d in force on %s?", n.ID, n.Refused, n.RefusedRevision, n.ID); err != nil {
				return err
			}
		}
		// Named, so that another loss that comes meanwhile is not accepted with it.
		got, err := cl.AcceptNode(ctx, n.ID, admin.AcceptRequest{Revision: n.RefusedRevision, Epoch: n.RefusedEpoch})
		if err != nil {
			return err
		}
		done.Items = append(done.Items, *got)
	}
	return c.print(done, func(t *table) {
		for _, n := range done.Items {
			if n.Refused != "" {
				t.line("%s still runs revision %d: %s", n.ID, n.ConfigRevision, n.Refused)
				continue
			}
			t.line("%s runs revision %d.", n.ID, n.ConfigRevision)
		}
	})
}

func nodeStateCell(n admin.Node) cell {
	state := nodeState(n)
	text := strings.ReplaceAll(string(state), "_", " ")
	switch state {
	case cluster.NodeOK:
		return cell{text, green}
	case cluster.NodeHeldBack, cluster.NodeRefused, cluster.NodeRingDiffers:
		return cell{text, red}
	}
	return cell{text, yellow}
}

// nodeState is the node's state, also from an lb-admin that does not tell it yet.
func nodeState(n admin.Node) cluster.NodeState {
	switch {
	case n.State != "":
		return n.State
	case n.Refused != "":
		return cluster.NodeRefused
	case !n.Connected:
		return cluster.NodeDisconnected
	case n.Role == lb.RoleProxy && n.LagSeconds > 0:
		return cluster.NodeBehind
	}
	return cluster.NodeOK
}

func lagText(seconds float64) string {
	if seconds <= 0 {
		return "0s"
	}
	return millis(seconds * 1000)
}

// age writes seconds with its two largest units.
func age(seconds int64) string {
	d := time.Duration(seconds) * time.Second
	switch {
	case d < time.Minute:
	case d < time.Hour:
	case d < 48*time.Hour:
		d = d.Truncate(time.Minute)
	default:
		return count(int(d.Hours()/24), "day")
	}
	return lb.Duration(d).String()
}
