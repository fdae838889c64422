package main

import (
	"context"
	"fmt"
	"reflect"
	"strings"

	"github.com/spf13/cobra"

	"difylb/pkg/admin"
	"difylb/pkg/lb"
)

func (c *cli) appCommand() *cobra.Command {
	cmd := group("app", "Applications", `  lbctl app add customer_service --token usertoken--customer-service-v1 \
    --instance name=dify1,url=http://172.20.62.200:80,token=app-…,weight=1
  lbctl app set customer_service timeouts.read=600s retry.attempts=1
  lbctl app list`,
		c.appAddCommand(), c.appListCommand(), c.appGetCommand(), c.appSetCommand(), c.appRemoveCommand())
	cmd.Aliases = []string{"apps", "application"}
	return cmd
}

func (c *cli) appAddCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "add NAME", Aliases: []string{"create"}, Short: "Add an application",
		Long: `Adds an application, with its user tokens and instances if they are given.

--instance takes key=value pairs of all fields of an instance: name, url (or host and
port), token, weight, max_fails, fail_timeout, max_in_flight, domain, state,
preserve_host. A value that holds a comma is put into double quotes.

Here --token is the token by which clients reach the application. The access token for
lb-admin comes from LBCTL_TOKEN, --token-file, the context or admin.token.`,
		Example: `  lbctl app add customer_service --token usertoken--customer-service-v1 \
    --instance name=dify1,url=http://172.20.62.200:80,token=app-…,weight=1 \
    --instance name=dify2,host=172.20.62.201,port=80,token=app-…
  lbctl app add shop --hash xxhash --read-timeout 600s --set rate_limit.per_app='{rate: 50, burst: 10}'`,
		Args: exactly("NAME"),
	}
	tokens := cmd.Flags().StringArray("token", nil, "user `token` of the application; repeatable")
	instances := cmd.Flags().StringArray("instance", nil, "instance as `name=…,url=…,token=…`; repeatable")
	fields := fieldFlags(cmd, applicationSchema, applicationFlags)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		app := tree{}
		if err := fields(app); err != nil {
			return err
		}
		app["name"] = args[0]
		userTokens := []string{}
		for _, t := range *tokens {
			if err := lb.CheckToken(lb.Secret(t)); err != nil {
				return usagef("--token %s", err)
			}
			userTokens = append(userTokens, t)
		}
		app["user_tokens"] = userTokens
		list := []tree{}
		for _, spec := range *instances {
			in, err := parseInstance(spec)
			if err != nil {
				return usagef("--instance: %s", err)
			}
			list = append(list, in.withoutNulls())
		}
		app["instances"] = list
		fs, err := app.applicationFaults(args[0], true)
		if err != nil {
			return err
		}
		for i := range fs {
			for j, in := range list {
				if rest, ok := strings.CutPrefix(fs[i].Path, fmt.Sprintf("instances[%d].", j)); ok {
					fs[i].Path = instanceFlagName(in) + " " + rest
				}
			}
		}
		if err := commandFaults("app add "+args[0], fs); err != nil {
			return err
		}
		return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
			a, err := cl.CreateApplication(ctx, app.withoutNulls())
			if err != nil {
				return err
			}
			return c.printOr(a, "application %s added, with %s and %s", a.Name, count(len(a.Instances), "instance"), count(len(a.UserTokens), "user token"))
		})
	}
	return cmd
}

func instanceFlagName(in tree) string {
	if name, ok := in["name"].(string); ok {
		return fmt.Sprintf("--instance %q", name)
	}
	return "--instance"
}

// count writes a number and its noun.
func count(n int, noun string) string {
	if n == 1 {
		return "1 " + noun
	}
	return fmt.Sprintf("%d %ss", n, noun)
}

func (c *cli) appListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the applications",
		Example: "  lbctl app list\n  lbctl app list -o json",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				apps, err := cl.Applications(ctx)
				if err != nil {
					return err
				}
				return c.print(admin.List[admin.Application]{Items: apps}, func(t *table) {
					t.header("NAME", ">INSTANCES", ">ACTIVE", ">TOKENS", "HASH", ">VNODES", "MISSING USER")
					for _, a := range apps {
						active := 0
						for _, in := range a.Instances {
							if in.State == lb.Active {
								active++
							}
						}
						t.row(a.Name, len(a.Instances), active, len(a.UserTokens), a.ConsistentHash.HashAlgorithm, a.ConsistentHash.VirtualNodes, a.MissingUser)
					}
				})
			})
		},
	}
}

func (c *cli) appGetCommand() *cobra.Command {
	return &cobra.Command{
		Use: "get NAME", Aliases: []string{"show"}, Short: "Show an application",
		Example:           "  lbctl app get customer_service\n  lbctl app get customer_service -o yaml",
		Args:              exactly("NAME"),
		ValidArgsFunction: c.completeApp,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				a, err := cl.Application(ctx, args[0])
				if err != nil {
					return err
				}
				return c.print(a, func(t *table) { applicationTable(t, a) })
			})
		},
	}
}

func applicationTable(t *table, a *admin.Application) {
	t.row("name", a.Name)
	t.row("hash", fmt.Sprintf("%s, %d virtual nodes", a.ConsistentHash.HashAlgorithm, a.ConsistentHash.VirtualNodes))
	t.row("missing user", a.MissingUser)
	t.row("timeouts", fmt.Sprintf("connect %s, read %s, send %s", a.Timeouts.Connect, a.Timeouts.Read, a.Timeouts.Send))
	retry := fmt.Sprintf("%d within %s", a.Retry.Attempts, a.Retry.Timeout)
	if a.Retry.NonIdempotent {
		retry += ", non-idempotent too"
	}
	t.row("retry", retry)
	t.row("max body", a.MaxBody)
	t.row("queue", fmt.Sprintf("%d for %s", a.Queue.Size, a.Queue.Timeout))
	t.row("rate limit", rateText(a.RateLimit))
	t.row("health check", checkText(a.Check))
	t.row("revision", a.Revision)
	for _, u := range a.UserTokens {
		t.row("user token", tokenText(u))
	}
	for _, in := range a.Instances {
		text := fmt.Sprintf("%s  %s  weight %d", in.Name, addressOf(&in.Instance), in.Weight)
		if in.State != lb.Active {
			text += ", " + string(in.State)
		}
		t.row("instance", text)
	}
}

func rateText(r lb.RateLimit) string {
	var parts []string
	for _, l := range []struct {
		what string
		rate *lb.Rate
	}{{"application", r.PerApp}, {"user", r.PerUser}} {
		if l.rate != nil {
			parts = append(parts, fmt.Sprintf("%g/s per %s (burst %d)", l.rate.PerSecond, l.what, l.rate.Burst))
		}
	}
	if parts == nil {
		return "none"
	}
	return strings.Join(parts, ", ")
}

func checkText(h lb.HealthCheck) string {
	switch h.Type {
	case lb.CheckNone:
		return "none"
	case lb.CheckTCP:
		return fmt.Sprintf("tcp every %s", h.Interval)
	}
	return fmt.Sprintf("%s %s every %s, expects %s", h.Type, h.Path, h.Interval, h.ExpectStatus)
}

// addressOf writes the address as it was declared.
func addressOf(in *lb.Instance) string {
	if in.URL != "" {
		return in.URL
	}
	return in.Address()
}

func (c *cli) appSetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "set NAME [FIELD=VALUE ...]", Short: "Change fields of an application",
		Long: `Changes the fields that are named, by their path in the declaration, and leaves the
rest. null takes a field back to its default.`,
		Example: `  lbctl app set customer_service timeouts.read=600s retry.attempts=1
  lbctl app set customer_service --hash xxhash
  lbctl app set customer_service rate_limit.per_user=null`,
		Args:              namesFirst("NAME"),
		ValidArgsFunction: c.completeApp,
	}
	fields := fieldFlags(cmd, applicationSchema, applicationFlags)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		patch, err := patchOf(applicationSchema, fields, args[1:], cmd, "timeouts.read=600s")
		if err != nil {
			return err
		}
		fs, err := patch.applicationFaults(args[0], false)
		if err == nil {
			err = commandFaults("app set "+args[0], fs)
		}
		if err != nil {
			return err
		}
		return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
			a, err := cl.PatchApplication(ctx, args[0], patch)
			if err != nil {
				return err
			}
			return c.printOr(a, "application %s is at revision %d", a.Name, a.Revision)
		})
	}
	return cmd
}

// namesFirst demands the named arguments and takes field=value after them.
func namesFirst(names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		for i, name := range names {
			if i >= len(args) || args[i] == "" || strings.Contains(args[i], "=") {
				return usagef("%s needs %s; see %s --help", cmd.CommandPath(), name, cmd.CommandPath())
			}
		}
		return nil
	}
}

// patchOf makes the merge patch of flags and field=value arguments.
func patchOf(schema reflect.Type, fields func(tree) error, assignments []string, cmd *cobra.Command, example string) (tree, error) {
	patch := tree{}
	if err := fields(patch); err != nil {
		return nil, err
	}
	for _, a := range assignments {
		if err := patch.assign(schema, a); err != nil {
			return nil, err
		}
	}
	if _, renames := patch["name"]; renames {
		return nil, usagef("name: a name stays; it decides where users are placed. Add another and remove this one")
	}
	if len(patch) == 0 {
		return nil, usagef("%s: nothing to change; give field=value, such as %s", cmd.CommandPath(), example)
	}
	return patch, nil
}

func (c *cli) appRemoveCommand() *cobra.Command {
	var yes bool
	cmd := &cobra.Command{
		Use: "rm NAME", Aliases: []string{"remove", "delete"}, Short: "Remove an application with its tokens and instances",
		Example:           "  lbctl app rm customer_service --yes",
		Args:              exactly("NAME"),
		ValidArgsFunction: c.completeApp,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.confirm(yes, "Remove application %s with all its instances and tokens?", args[0]); err != nil {
				return err
			}
			return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				if err := cl.DeleteApplication(ctx, args[0]); err != nil {
					return err
				}
				return c.say("application %s removed", args[0])
			})
		},
	}
	yesFlag(cmd, &yes)
	return cmd
}

func yesFlag(cmd *cobra.Command, yes *bool) {
	cmd.Flags().BoolVarP(yes, "yes", "y", false, "do not ask")
}
