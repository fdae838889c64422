package main

import (
	"context"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"difylb/pkg/admin"
	"difylb/pkg/cluster"
	"difylb/pkg/lb"
)

func (c *cli) explainCommand() *cobra.Command {
	var token string
	cmd := &cobra.Command{
		Use: "explain APP USER", Short: "Say which instance serves a user, and why",
		Long: `Says where a user of an application goes: the hash, the instance that owns it, the
failover order, and why an instance is passed over. --user-token finds the application by
one of its user tokens instead of by its name.`,
		Example:           "  lbctl explain customer_service user-42\n  lbctl explain --user-token usertoken--customer-service-v1 user-42",
		ValidArgsFunction: c.completeApp,
		Args: func(cmd *cobra.Command, args []string) error {
			if token != "" {
				return exactly("USER")(cmd, args)
			}
			return exactly("APP", "USER")(cmd, args)
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				var e *admin.Explanation
				var err error
				if token != "" {
					e, err = cl.ExplainToken(ctx, lb.Secret(token), args[0])
				} else {
					e, err = cl.Explain(ctx, args[0], args[1])
				}
				if err != nil {
					return err
				}
				return c.print(e, func(t *table) { explanationTable(t, e) })
			})
		},
	}
	cmd.Flags().StringVar(&token, "user-token", "", "find the application by this user `token`")
	return cmd
}

func explanationTable(t *table, e *admin.Explanation) {
	t.line("User %q of %s hashes to %s (%s).", e.User, e.App, e.Hash, e.Algorithm)
	switch {
	case e.Owner == "":
		t.line("No instance has a place on the ring: there is none with a weight above 0.")
	case e.Chosen == "":
		t.line("%s owns this user, but no instance may take the request.", e.Owner)
	case e.FailOpen:
		t.line("%s owns this user. No instance is usable, so %s is tried all the same.", e.Owner, e.Chosen)
	case e.Chosen == e.Owner:
		t.line("%s owns this user and takes the request.", e.Owner)
	default:
		t.line("%s owns this user, but %s: %s takes the request.", e.Owner, whyNot(e), e.Chosen)
	}
	if len(e.Order) == 0 {
		return
	}
	t.line("")
	t.header(">#", "INSTANCE", "STATUS", "WHY")
	for i, s := range e.Order {
		name := cell{text: s.Instance}
		if s.Instance == e.Chosen {
			name.color = bold
		}
		why := s.Why
		if s.Status == cluster.StatusEjected && len(s.EjectedBy) > 0 {
			why = strings.Replace(why, "is ejected", "is "+ejectedText(s.EjectedBy, s.EjectedSince, time.Now()), 1)
		}
		t.row(i+1, name, statusCell(s.Status), why)
	}
}

// whyNot says in short why the owner is passed over; the table says the rest.
func whyNot(e *admin.Explanation) string {
	for _, s := range e.Order {
		if s.Instance != e.Owner {
			continue
		}
		if s.Status == cluster.StatusTokenRejected {
			return "rejects its own token"
		}
		if s.Status == cluster.StatusEjected && len(s.EjectedBy) > 0 {
			return "is " + ejectedText(s.EjectedBy, s.EjectedSince, time.Now())
		}
		return "is " + s.Status
	}
	return "is not usable"
}
