package main

import (
	"context"
	"errors"
	"strconv"

	"github.com/spf13/cobra"

	"difylb/pkg/admin"
)

func (c *cli) historyCommand() *cobra.Command {
	var limit int
	var before int64
	cmd := &cobra.Command{
		Use: "history [REVISION]", Short: "Show who changed what, the newest first",
		Long:    "Lists the changes of the configuration, or shows the one of a revision in full.",
		Example: "  lbctl history --limit 5\n  lbctl history 4711",
		Args:    between(0, "REVISION"),

		ValidArgsFunction: c.completeRevision,
		RunE: func(cmd *cobra.Command, args []string) error {
			if limit < 0 {
				return usagef("--limit %d is negative", limit)
			}
			if len(args) == 1 {
				revision, err := revisionOf(args[0])
				if err != nil {
					return err
				}
				return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
					e, err := cl.HistoryAt(ctx, revision)
					if err != nil {
						return err
					}
					var faulty error
					err = c.print(e, func(t *table) {
						t.line("revision %d at %s: %s by %s from %s", e.Revision, timeText(&e.Time), e.Action, e.Who, e.From)
						if e.Note != "" {
							t.line("%s", e.Note)
						}
						faulty = changeDiffs(t, e.Changes)
					})
					return errors.Join(faulty, err)
				})
			}
			return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				entries, err := cl.History(ctx, limit, before)
				if err != nil {
					return err
				}
				return c.print(admin.List[admin.HistoryEntry]{Items: entries}, func(t *table) {
					t.header(">REVISION", "TIME", "WHO", "ACTION", "CHANGES")
					for _, e := range entries {
						changes := changesText(e.Changes, 1)
						if len(e.Changes) < e.Count {
							changes = count(e.Count, "object")
						}
						t.row(e.Revision, timeText(&e.Time), e.Who, e.Action, changes)
					}
				})
			})
		},
	}
	cmd.Flags().IntVar(&limit, "limit", 20, "how many entries at most (`number`)")
	cmd.Flags().Int64Var(&before, "before", 0, "only entries older than this `revision`")
	return cmd
}

func revisionOf(s string) (int64, error) {
	n, err := strconv.ParseInt(s, 10, 64)
	if err != nil || n <= 0 {
		return 0, usagef("%q is not a revision; lbctl history lists them", s)
	}
	return n, nil
}

func (c *cli) rollbackCommand() *cobra.Command {
	var o admin.ApplyOptions
	var yes bool
	cmd := &cobra.Command{
		Use: "rollback REVISION", Short: "Return to the configuration of an earlier revision",
		Long: `Returns all declarations to what they were at a revision. It is a change like any other:
it stands in the history, and can be rolled back itself.`,
		Example: "  lbctl rollback 4711 --dry-run\n  lbctl rollback 4711 --yes --wait 10s",
		Args:    exactly("REVISION"),

		ValidArgsFunction: c.completeRevision,
		RunE: func(cmd *cobra.Command, args []string) error {
			revision, err := revisionOf(args[0])
			if err != nil {
				return err
			}
			if !o.DryRun {
				if err := c.confirm(yes, "Return the whole configuration to revision %d?", revision); err != nil {
					return err
				}
			}
			return c.call(cmd, o.Wait, func(ctx context.Context, cl *admin.Client) error {
				r, err := cl.Rollback(ctx, revision, o)
				if err != nil {
					return err
				}
				return c.printApplied(r, o.Wait)
			})
		},
	}
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "tell what would change, and change nothing")
	maxMovedFlag(cmd, &o.MaxMoved)
	waitFlag(cmd, &o.Wait, "how long to wait for the proxies to have it in force")
	yesFlag(cmd, &yes)
	return cmd
}
