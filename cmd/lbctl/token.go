package main

import (
	"bufio"
	"context"
	"fmt"
	"strings"

	"github.com/spf13/cobra"

	"difylb/pkg/admin"
	"difylb/pkg/lb"
)

func (c *cli) tokenCommand() *cobra.Command {
	cmd := group("token", "User tokens, by which clients reach an application", `  lbctl token add customer_service --label web
  lbctl token list customer_service
  lbctl token rm customer_service 3f2a91c0d4e5b678`,
		c.tokenAddCommand(), c.tokenListCommand(), c.tokenRemoveCommand(),
		c.tokenSwitchCommand("enable", "Let a user token in again", false),
		c.tokenSwitchCommand("disable", "Answer 401 to a user token without forgetting it", true))
	cmd.Aliases = []string{"tokens"}
	return cmd
}

func (c *cli) tokenAddCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "add APP [TOKEN]", Aliases: []string{"create"}, Short: "Add a user token, or make one",
		Long: `Adds a user token to an application. Without TOKEN one of 256 random bits is made and
shown, this once. "-" reads the token from standard input, where no other user of this
machine sees it.

Here --token is the user token. The access token for lb-admin comes from LBCTL_TOKEN,
--token-file, the context or admin.token.`,
		Example: `  lbctl token add customer_service
  lbctl token add customer_service usertoken--customer-service-v2 --label web
  pass show dify/web | lbctl token add customer_service -`,
		Args:              between(1, "APP", "TOKEN"),
		ValidArgsFunction: c.completeApp,
	}
	token := cmd.Flags().String("token", "", "the user `token`, instead of the second argument")
	label := cmd.Flags().String("label", "", "`name` for it, shown in statistics")
	disabled := cmd.Flags().Bool("disabled", false, "answer 401 to it until lbctl token enable")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		value := *token
		if len(args) == 2 {
			if value != "" {
				return usagef("the token is given twice, as argument and as --token")
			}
			value = args[1]
		}
		if value == "-" {
			line, err := bufio.NewReader(c.in).ReadString('\n')
			if value = strings.TrimSpace(line); value == "" {
				return usagef("standard input holds no token (%v)", err)
			}
		}
		if value != "" {
			if err := lb.CheckToken(lb.Secret(value)); err != nil {
				return usagef("the token %s", err)
			}
		}
		return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
			u, err := cl.CreateToken(ctx, args[0], admin.TokenRequest{Token: lb.Secret(value), Label: *label, Disabled: *disabled})
			if err != nil {
				return err
			}
			if u.Token == "" || c.output != "table" {
				return c.printOr(u, "user token %s added to %s", u.ID, args[0])
			}
			fmt.Fprintf(c.err, "user token %s added to %s; it is shown this once:\n", clean(u.ID), clean(args[0]))
			return c.say("%s", u.Token)
		})
	}
	return cmd
}

func (c *cli) tokenListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list APP", Aliases: []string{"ls"}, Short: "List an application's user tokens",
		Example:           "  lbctl token list customer_service",
		Args:              exactly("APP"),
		ValidArgsFunction: c.completeApp,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				tokens, err := cl.Tokens(ctx, args[0])
				if err != nil {
					return err
				}
				return c.print(admin.List[admin.UserToken]{Items: tokens}, func(t *table) {
					t.header("ID", "ENDS IN", "LABEL", "STATE", "CREATED")
					for _, u := range tokens {
						state := cell{text: "enabled"}
						if u.Disabled {
							state = cell{"disabled", yellow}
						}
						t.row(u.ID, u.Hint, u.Label, state, timeText(u.Created))
					}
				})
			})
		},
	}
}

func tokenText(u admin.UserToken) string {
	s := u.ID
	if u.Hint != "" {
		s += " …" + u.Hint
	}
	if u.Label != "" {
		s += " " + u.Label
	}
	if u.Disabled {
		s += ", disabled"
	}
	return s
}

func (c *cli) tokenRemoveCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "rm APP ID", Aliases: []string{"remove", "delete"}, Short: "Remove a user token by its id or label",
		Example:           "  lbctl token rm customer_service 3f2a91c0d4e5b678\n  lbctl token rm customer_service web --yes",
		Args:              exactly("APP", "ID"),
		ValidArgsFunction: c.completeToken,
		RunE: func(cmd *cobra.Command, args []string) error {
			var target admin.UserToken
			err := c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				tokens, err := cl.Tokens(ctx, args[0])
				if err != nil {
					return err
				}
				target, err = tokenNamed(tokens, args[0], args[1])
				return err
			})
			if err != nil {
				return err
			}
			if err := c.confirm(yes, "Remove user token %s of %s?", tokenText(target), args[0]); err != nil {
				return err
			}
			return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				if err := cl.DeleteToken(ctx, args[0], target.ID); err != nil {
					return err
				}
				return c.say("user token %s removed from %s", target.ID, args[0])
			})
		},
	}
	yesFlag(cmd, &yes)
	return cmd
}

// tokenSwitchCommand makes token enable and token disable. The list of tokens
// is written back as ids, on the condition that nobody changed the application
// meanwhile.
func (c *cli) tokenSwitchCommand(verb, short string, disabled bool) *cobra.Command {
	return &cobra.Command{
		Use: verb + " APP ID", Short: short,
		Example:           "  lbctl token " + verb + " customer_service web",
		Args:              exactly("APP", "ID"),
		ValidArgsFunction: c.completeToken,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				app, err := cl.Application(ctx, args[0])
				if err != nil {
					return err
				}
				target, err := tokenNamed(app.UserTokens, args[0], args[1])
				if err != nil {
					return err
				}
				list := []tree{}
				for _, u := range app.UserTokens {
					if u.ID == target.ID {
						u.Disabled = disabled
					}
					list = append(list, tree{"id": u.ID, "label": u.Label, "disabled": u.Disabled})
				}
				if _, err := cl.PatchApplication(ctx, args[0], tree{"user_tokens": list}, admin.IfRevision(app.Revision)); err != nil {
					return err
				}
				return c.say("user token %s of %s is %sd", target.ID, args[0], verb)
			})
		},
	}
}

// tokenNamed finds a token by its id, else by a label that only one has.
func tokenNamed(tokens []admin.UserToken, app, name string) (admin.UserToken, error) {
	var labelled []admin.UserToken
	var names []string
	for _, u := range tokens {
		names = append(names, u.ID)
		if u.Label != "" {
			names = append(names, u.Label)
		}
		if u.ID == name {
			return u, nil
		}
		if u.Label == name {
			labelled = append(labelled, u)
		}
	}
	switch len(labelled) {
	case 1:
		return labelled[0], nil
	case 0:
		return admin.UserToken{}, lb.Errorf(lb.ErrNotFound, "%s has no user token with the id or label %q%s", app, name, orSee(lb.DidYouMean(name, names), "lbctl token list "+app))
	}
	return admin.UserToken{}, lb.Errorf(lb.ErrInvalid, "%d user tokens of %s have the label %q; name one by its id", len(labelled), app, name)
}
