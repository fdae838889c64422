package main

import (
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"difylb/pkg/admin"
	"difylb/pkg/lb"
)

func (c *cli) accessCommand() *cobra.Command {
	return group("access", "Access tokens of lb-admin and their roles", `  lbctl access add grafana --role viewer
  lbctl access list
  lbctl access rm grafana`,
		c.accessAddCommand(), c.accessListCommand(), c.accessRemoveCommand())
}

func (c *cli) accessAddCommand() *cobra.Command {
	var role string
	cmd := &cobra.Command{
		Use: "add NAME --role ROLE", Aliases: []string{"create"}, Short: "Make an access token and show it, this once",
		Long: `Makes an access token. Roles: viewer may look; operator may also drain, activate and
disable instances; admin may do everything. NAME stands in the history.`,
		Example: "  lbctl access add grafana --role viewer\n  lbctl access add ci --role admin > ci.token",
		Args:    exactly("NAME"),
		RunE: func(cmd *cobra.Command, args []string) error {
			roles := []string{string(admin.RoleViewer), string(admin.RoleOperator), string(admin.RoleAdmin)}
			if !contains(roles, role) {
				return usagef("--role %q: it is one of %s%s", role, strings.Join(roles, ", "), lb.DidYouMean(role, roles))
			}
			return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				t, err := cl.CreateAccess(ctx, admin.AccessRequest{Name: args[0], Role: admin.AccessRole(role)})
				if err != nil {
					return err
				}
				if c.output != "table" {
					return c.print(t, nil)
				}
				fmt.Fprintf(c.err, "access token %s (%s) made; it is shown this once:\n", clean(t.Name), clean(string(t.Role)))
				return c.say("%s", t.Token)
			})
		},
	}
	cmd.Flags().StringVar(&role, "role", string(admin.RoleViewer), "`role`: viewer, operator or admin")
	_ = cmd.RegisterFlagCompletionFunc("role", cobra.FixedCompletions([]string{"viewer", "operator", "admin"}, cobra.ShellCompDirectiveNoFileComp))
	return cmd
}

func (c *cli) accessListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the access tokens",
		Example: "  lbctl access list",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				tokens, err := cl.AccessTokens(ctx)
				if err != nil {
					return err
				}
				return c.print(admin.List[admin.AccessToken]{Items: tokens}, func(t *table) {
					t.header("NAME", "ROLE", "ID", "ENDS IN", "CREATED", "LAST USED")
					for _, a := range tokens {
						t.row(a.Name, a.Role, a.ID, a.Hint, timeText(a.Created), timeText(a.LastUsed))
					}
				})
			})
		},
	}
}

func (c *cli) accessRemoveCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "rm NAME", Aliases: []string{"remove", "delete"}, Short: "Revoke an access token by its name or id",
		Example: "  lbctl access rm grafana --yes",
		Args:    exactly("NAME"),

		ValidArgsFunction: c.completeAccess,
		RunE: func(cmd *cobra.Command, args []string) error {
			var target admin.AccessToken
			err := c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				tokens, err := cl.AccessTokens(ctx)
				if err != nil {
					return err
				}
				var names []string
				for _, t := range tokens {
					names = append(names, t.Name)
					if t.ID == args[0] || t.Name == args[0] {
						target = t
						return nil
					}
				}
				return lb.Errorf(lb.ErrNotFound, "there is no access token with the name or id %q%s", args[0], orSee(lb.DidYouMean(args[0], names), "lbctl access list"))
			})
			if err != nil {
				return err
			}
			if err := c.confirm(yes, "Revoke access token %s (%s)?", target.Name, target.Role); err != nil {
				return err
			}
			return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				if err := cl.DeleteAccess(ctx, target.ID); err != nil {
					return err
				}
				return c.say("access token %s revoked", target.Name)
			})
		},
	}
	yesFlag(cmd, &yes)
	return cmd
}
