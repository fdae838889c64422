package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"difylb/pkg/admin"
	"difylb/pkg/lb"
)

func (c *cli) nodeCommand() *cobra.Command {
	cmd := group("node", "Running lb-proxies and lb-admins", "  lbctl node list", c.nodeListCommand())
	cmd.Aliases = []string{"nodes"}
	return cmd
}

func (c *cli) nodeListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the live nodes",
		Long: `Lists every live lb-proxy and lb-admin with the configuration revision that it has in
force. LAG is for how long a newer one has been waiting to be in force there.`,
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
						t.row(n.ID, n.Role, n.Address, revision, lag, age(n.UptimeSeconds), n.Version, nodeState(n))
					}
					for _, n := range nodes {
						if n.Refused != "" {
							t.line("%s refused the newest configuration: %s", n.ID, n.Refused)
						}
					}
				})
			})
		},
	}
}

func nodeState(n admin.Node) cell {
	switch {
	case n.Refused != "":
		return cell{"refused", red}
	case !n.Connected:
		return cell{"disconnected", yellow}
	case n.Role == lb.RoleProxy && n.LagSeconds > 0:
		return cell{"behind", yellow}
	}
	return cell{"ok", green}
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
