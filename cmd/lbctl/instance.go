package main

import (
	"context"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"difylb/pkg/admin"
	"difylb/pkg/lb"
)

func (c *cli) instanceCommand() *cobra.Command {
	cmd := group("instance", "Instances of an application", `  lbctl instance add customer_service dify3 --url https://api.dify.ai --token app-…
  lbctl instance drain customer_service dify1 --wait 60s
  lbctl instance set customer_service dify1 weight=2 max_in_flight=8`,
		c.instanceAddCommand(), c.instanceListCommand(), c.instanceGetCommand(), c.instanceSetCommand(),
		c.drainCommand(), c.activateCommand(), c.disableCommand(), c.instanceRemoveCommand())
	cmd.Aliases = []string{"instances"}
	return cmd
}

func (c *cli) instanceAddCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "add APP [NAME] [FIELD=VALUE ...]", Aliases: []string{"create"}, Short: "Add an instance at the end of the list",
		Long: `Adds an instance to an application. Its fields are given as flags, as field=value
arguments, or as one list with commas, as lbctl app add --instance takes it.

Here --token is the token that the instance itself expects (app-…). The access token for
lb-admin comes from LBCTL_TOKEN, --token-file, the context or admin.token.`,
		Example: `  lbctl instance add customer_service dify3 --url https://api.dify.ai --token app-…
  lbctl instance add customer_service dify3 host=10.0.0.7 port=5001 token=app-… weight=2
  lbctl instance add customer_service name=dify3,url=http://10.0.0.7:5001,token=app-…`,
		Args:              namesFirst("APP"),
		ValidArgsFunction: c.completeApp,
	}
	name := cmd.Flags().String("name", "", "`name` of the instance, instead of the second argument")
	token := cmd.Flags().String("token", "", "the instance's own `token` (app-…)")
	spec := cmd.Flags().String("instance", "", "all of it as `name=…,url=…,token=…`")
	fields := fieldFlags(cmd, instanceSchema, instanceFlags)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		in := tree{}
		if err := fields(in); err != nil {
			return err
		}
		rest := args[1:]
		if len(rest) > 0 && !strings.Contains(rest[0], "=") {
			rest = append([]string{"name=" + rest[0]}, rest[1:]...)
		}
		if *spec != "" {
			rest = append(rest, *spec)
		}
		for _, f := range []struct{ key, value string }{{"name", *name}, {"token", *token}} {
			if f.value == "" {
				continue
			}
			if err := in.set(instanceSchema, f.key, f.value); err != nil {
				return usagef("--%s: %s", f.key, err)
			}
		}
		for _, text := range rest {
			more, err := parseInstance(text)
			if err != nil {
				return usagef("instance add: %s", err)
			}
			for k, v := range more {
				if _, twice := in[k]; twice {
					return usagef("instance add: %s is set twice", k)
				}
				in[k] = v
			}
		}
		fs, err := in.instanceFaults(true)
		if err == nil {
			err = commandFaults("instance add", fs)
		}
		if err != nil {
			return err
		}
		return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
			made, err := cl.CreateInstance(ctx, args[0], in.withoutNulls())
			if err != nil {
				return err
			}
			return c.printOr(made, "instance %s added to %s at %s", made.Name, args[0], addressOf(&made.Instance))
		})
	}
	return cmd
}

func (c *cli) instanceListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list APP", Aliases: []string{"ls"}, Short: "List an application's instances, in their order",
		Example:           "  lbctl instance list customer_service",
		Args:              exactly("APP"),
		ValidArgsFunction: c.completeApp,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				instances, err := cl.Instances(ctx, args[0])
				if err != nil {
					return err
				}
				return c.print(admin.List[admin.Instance]{Items: instances}, func(t *table) {
					t.header("NAME", "ADDRESS", ">WEIGHT", ">SHARE", "STATE", ">PROBED", ">LIMIT", "DOMAIN")
					now := time.Now()
					for _, in := range instances {
						state := cell{text: string(in.State)}
						if in.State != lb.Active {
							state.color = yellow
						}
						limit := "-"
						if in.MaxInFlight > 0 {
							limit = fmt.Sprint(in.MaxInFlight)
						}
						share := "-"
						if in.RingShare != nil {
							share = percent(*in.RingShare)
						}
						t.row(in.Name, addressOf(&in.Instance), in.Weight, share, state, probedCell(in.LastProbe, now), limit, in.Domain)
					}
					for _, in := range instances {
						if p := in.Probe; p != nil && (p.Health == lb.Unhealthy || p.Health == lb.TokenRejected) {
							t.line("%s is %s", in.Name, healthText(p, now))
						}
						if len(in.EjectedBy) > 0 {
							t.line("%s is %s", in.Name, ejectedText(in.EjectedBy, in.EjectedSince, now))
						}
					}
				})
			})
		},
	}
}

// probedCell says how long ago an instance was probed.
func probedCell(p *admin.LastProbe, now time.Time) cell {
	if p == nil {
		return cell{text: "-"}
	}
	c := cell{text: ageOf(p.Time, now) + " ago"}
	if p.Verdict != lb.Healthy {
		c.color = red
	}
	return c
}

// healthText says what probes found, since when and why.
func healthText(p *admin.InstanceProbe, now time.Time) string {
	text := string(p.Health)
	if p.Since != nil {
		text += " since " + ageOf(*p.Since, now)
	}
	if p.Reason != "" {
		text += ": " + p.Reason
	}
	return text
}

func hintText(hint string) string {
	if hint == "" {
		return ""
	}
	return "…" + hint
}

func (c *cli) instanceGetCommand() *cobra.Command {
	return &cobra.Command{
		Use: "get APP NAME", Aliases: []string{"show"}, Short: "Show an instance",
		Example:           "  lbctl instance get customer_service dify1\n  lbctl instance get customer_service dify1 -o yaml",
		Args:              exactly("APP", "NAME"),
		ValidArgsFunction: c.completeInstance,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				in, err := cl.Instance(ctx, args[0], args[1])
				if err != nil {
					return err
				}
				return c.print(in, func(t *table) {
					t.row("name", in.Name)
					t.row("address", addressOf(&in.Instance))
					t.row("token", hintText(in.TokenHint))
					t.row("state", in.State)
					t.row("weight", in.Weight)
					t.row("ejected after", fmt.Sprintf("%s within %s", count(in.MaxFails, "failure"), in.FailTimeout))
					if in.MaxInFlight > 0 {
						t.row("max in flight", in.MaxInFlight)
					}
					if in.Domain != "" {
						t.row("domain", in.Domain)
					}
					if in.PreserveHost != nil {
						t.row("preserve host", *in.PreserveHost)
					}
					if in.TLS != nil {
						t.row("tls", tlsText(in.TLS))
					}
					t.row("revision", in.Revision)
					now := time.Now()
					if in.RingShare != nil {
						t.row("share of users", percent(*in.RingShare))
					}
					if in.Probe != nil {
						t.row("health", healthText(in.Probe, now))
					}
					if in.LastProbe != nil {
						t.row("last probe", probeText(in.LastProbe, now)+", by "+in.LastProbe.By)
					}
					if len(in.EjectedBy) > 0 {
						t.row("ejected", strings.TrimPrefix(ejectedText(in.EjectedBy, in.EjectedSince, now), "ejected "))
					}
				})
			})
		},
	}
}

func (c *cli) instanceSetCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use: "set APP NAME [FIELD=VALUE ...]", Short: "Change fields of an instance",
		Long: `Changes the fields that are named and leaves the rest. null takes a field back to its
default.

Here --token is the token that the instance itself expects (app-…). The access token for
lb-admin comes from LBCTL_TOKEN, --token-file, the context or admin.token.`,
		Example: `  lbctl instance set customer_service dify1 weight=2 max_in_flight=8
  lbctl instance set customer_service dify1 --url https://api.dify.ai`,
		Args:              namesFirst("APP", "NAME"),
		ValidArgsFunction: c.completeInstance,
	}
	token := cmd.Flags().String("token", "", "the instance's own `token` (app-…)")
	fields := fieldFlags(cmd, instanceSchema, instanceFlags)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		patch, err := patchOf(instanceSchema, func(t tree) error {
			if err := fields(t); err != nil || *token == "" {
				return err
			}
			if err := t.set(instanceSchema, "token", *token); err != nil {
				return usagef("--token: %s", err)
			}
			return nil
		}, args[2:], cmd, "weight=2")
		if err != nil {
			return err
		}
		fs, err := patch.instanceFaults(false)
		if err == nil {
			err = commandFaults("instance set "+args[1], fs)
		}
		if err != nil {
			return err
		}
		patch.replaceAddress()
		return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
			in, err := cl.PatchInstance(ctx, args[0], args[1], patch)
			if err != nil {
				return err
			}
			return c.printOr(in, "instance %s of %s is at revision %d", in.Name, args[0], in.Revision)
		})
	}
	return cmd
}

// replaceAddress makes a new address take the place of one in the other form:
// url and host exclude each other, so setting one means dropping the other.
func (t tree) replaceAddress() {
	switch {
	case t["url"] != nil && t["host"] == nil && t["port"] == nil:
		t["host"], t["port"] = nil, nil
	case t["host"] != nil && t["url"] == nil:
		t["url"] = nil
	}
}

func (c *cli) drainCommand() *cobra.Command {
	var wait time.Duration
	var o foresight
	cmd := &cobra.Command{
		Use: "drain APP NAME", Short: "Give an instance no new requests and let the open ones finish",
		Long: `Gives the instance no new requests; open ones finish, and its users move to the next
instance of the ring until it is activated again. With --wait it returns when nothing is
open any more; if that does not come about in time, the exit code is 1.`,
		Example:           "  lbctl instance drain customer_service dify1 --wait 60s\n  lbctl instance drain customer_service dify1 --dry-run",
		Args:              exactly("APP", "NAME"),
		ValidArgsFunction: c.completeInstance,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.setState(cmd, args, wait, lb.Draining, &o, func(ctx context.Context, cl *admin.Client) (*admin.InstanceState, error) {
				return cl.DrainInstance(ctx, args[0], args[1], wait, o.options()...)
			})
		},
	}
	waitFlag(cmd, &wait, "how long to wait until nothing is open")
	o.flags(cmd)
	return cmd
}

func (c *cli) disableCommand() *cobra.Command {
	var wait time.Duration
	var o foresight
	cmd := &cobra.Command{
		Use: "disable APP NAME", Short: "Take an instance out; it is not probed either",
		Example:           "  lbctl instance disable customer_service dify1",
		Args:              exactly("APP", "NAME"),
		ValidArgsFunction: c.completeInstance,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.setState(cmd, args, wait, lb.Disabled, &o, func(ctx context.Context, cl *admin.Client) (*admin.InstanceState, error) {
				return cl.DisableInstance(ctx, args[0], args[1], wait, o.options()...)
			})
		},
	}
	waitFlag(cmd, &wait, "how long to wait until nothing is open")
	o.flags(cmd)
	return cmd
}

func (c *cli) activateCommand() *cobra.Command {
	var o foresight
	cmd := &cobra.Command{
		Use: "activate APP NAME", Aliases: []string{"enable"}, Short: "Let an instance take requests again",
		Example:           "  lbctl instance activate customer_service dify1",
		Args:              exactly("APP", "NAME"),
		ValidArgsFunction: c.completeInstance,
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.setState(cmd, args, 0, lb.Active, &o, func(ctx context.Context, cl *admin.Client) (*admin.InstanceState, error) {
				return cl.ActivateInstance(ctx, args[0], args[1], o.options()...)
			})
		},
	}
	o.flags(cmd)
	return cmd
}

// foresight is what commands on one instance take to tell or bound who moves.
type foresight struct {
	dryRun bool
	most   *float64
}

func (o *foresight) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&o.dryRun, "dry-run", false, "say who would move and what is open, and change nothing")
	maxMovedFlag(cmd, &o.most)
}

func (o *foresight) options() []admin.CallOption {
	if o.most == nil {
		return nil
	}
	return []admin.CallOption{admin.MaxMoved(*o.most)}
}

// tell shows what would happen. The bound is looked at here, so that the plan
// is shown all the same.
func (o *foresight) tell(c *cli, cmd *cobra.Command, plan func(context.Context, *admin.Client) (*admin.ApplyResult, error)) error {
	return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
		r, err := plan(ctx, cl)
		if err != nil {
			return err
		}
		if err := c.printApplied(r, 0); err != nil {
			return err
		}
		return tooMany(r, o.most)
	})
}

func waitFlag(cmd *cobra.Command, wait *time.Duration, usage string) {
	cmd.Flags().Var((*waitValue)(wait), "wait", usage+" (`time`)")
}

// waitValue is a duration that is not negative.
type waitValue time.Duration

func (w *waitValue) String() string { return lb.Duration(*w).String() }
func (w *waitValue) Type() string   { return "duration" }
func (w *waitValue) Set(s string) error {
	d, err := lb.ParseDuration(s)
	if err != nil {
		return err
	}
	if d < 0 {
		return fmt.Errorf("%q is negative", s)
	}
	*w = waitValue(d)
	return nil
}

func (c *cli) setState(cmd *cobra.Command, args []string, wait time.Duration, state lb.State, o *foresight, set func(context.Context, *admin.Client) (*admin.InstanceState, error)) error {
	if o.dryRun {
		return o.tell(c, cmd, func(ctx context.Context, cl *admin.Client) (*admin.ApplyResult, error) {
			return cl.PlanState(ctx, args[0], args[1], state)
		})
	}
	return c.call(cmd, wait, func(ctx context.Context, cl *admin.Client) error {
		s, err := set(ctx, cl)
		if err != nil {
			return err
		}
		open := "nothing is open"
		if s.Open > 0 {
			open = count(int(s.Open), "request") + " still open"
		}
		switch {
		case s.State == lb.Active:
			err = c.printOr(s, "instance %s of %s is active", args[1], args[0])
		case s.Drained:
			err = c.printOr(s, "instance %s of %s is %s and drained: %s", args[1], args[0], s.State, open)
		default:
			err = c.printOr(s, "instance %s of %s is %s, %s", args[1], args[0], s.State, open)
		}
		if err == nil && wait > 0 && s.State != lb.Active && !s.Drained {
			err = fmt.Errorf("instance %s of %s is not drained after %s: %s; wait longer, or disable it", args[1], args[0], lb.Duration(wait), open)
		}
		return err
	})
}

func (c *cli) instanceRemoveCommand() *cobra.Command {
	var yes bool
	var o foresight
	cmd := &cobra.Command{
		Use: "rm APP NAME", Aliases: []string{"remove", "delete"}, Short: "Remove an instance",
		Example:           "  lbctl instance rm customer_service dify1 --yes",
		Args:              exactly("APP", "NAME"),
		ValidArgsFunction: c.completeInstance,
		RunE: func(cmd *cobra.Command, args []string) error {
			if o.dryRun {
				return o.tell(c, cmd, func(ctx context.Context, cl *admin.Client) (*admin.ApplyResult, error) {
					return cl.PlanDeleteInstance(ctx, args[0], args[1])
				})
			}
			if err := c.confirm(yes, "Remove instance %s of %s? Its users move to the others.", args[1], args[0]); err != nil {
				return err
			}
			return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				if err := cl.DeleteInstance(ctx, args[0], args[1], o.options()...); err != nil {
					return err
				}
				return c.say("instance %s removed from %s", args[1], args[0])
			})
		},
	}
	yesFlag(cmd, &yes)
	o.flags(cmd)
	return cmd
}

// tlsText says in words what an https instance must prove.
func tlsText(s *lb.InstanceTLS) string {
	if s.InsecureSkipVerify {
		return "NOT VERIFIED (insecure_skip_verify)"
	}
	by := "the system's authorities"
	if certs, err := s.CACertificates(); s.CA != "" && err == nil {
		names := make([]string, len(certs))
		for i, c := range certs {
			names[i] = fmt.Sprintf("%s, until %s", c.Subject, c.NotAfter.Format(time.DateOnly))
		}
		by = strings.Join(names, "; ")
	}
	if s.ServerName != "" {
		return s.ServerName + ", by " + by
	}
	return "by " + by
}
