package main

import (
	"fmt"
	"maps"
	"sort"

	"github.com/spf13/cobra"

	"difylb/pkg/admin"
)

func (c *cli) planCommand() *cobra.Command {
	o := admin.ApplyOptions{DryRun: true}
	var most *float64
	cmd := &cobra.Command{
		Use: "plan -f FILE", Short: "Say who would move by an apply, from where to where",
		Long: `Says what an apply of the documents would change, and changes nothing: which share of the
users of each application would move, from which instance to which, how many there are of
those that the proxies saw within the last day, and how many requests and streams are open
on instances that are taken away.

With --max-moved the exit code is 1 when more would move in any application.`,
		Example: `  lbctl plan -f difylb.yaml
  lbctl plan -f difylb.yaml --prune --max-moved 5%`,
	}
	files := sourcesFlag(cmd)
	cmd.Flags().BoolVar(&o.Prune, "prune", false, "count applications that the documents do not name as deleted")
	maxMovedFlag(cmd, &most)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		sources, err := c.readSources(cmd, *files, args)
		if err != nil {
			return err
		}
		// The limit is looked at here, so that the plan is shown all the same.
		r, err := c.submit(cmd, "plan", sources, o)
		if err != nil {
			return err
		}
		if err := c.printApplied(r, 0); err != nil {
			return err
		}
		return tooMany(r, most)
	}
	return cmd
}

// tooMany is the error of a plan that moves more than may.
func tooMany(r *admin.ApplyResult, most *float64) error {
	if most == nil {
		return nil
	}
	for _, app := range sortedKeys(r.Movements) {
		if share := r.Movements[app].Share; share > *most {
			return fmt.Errorf("%s of the users of %s would move; at most %s may (--max-moved)", percent(share), app, percent(*most))
		}
	}
	return nil
}

func sortedKeys[T any](m map[string]T) []string {
	keys := make([]string, 0, len(m))
	for k := range m {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	return keys
}

// shareValue is a flag for a share of users.
type shareValue struct{ share **float64 }

func (v shareValue) Type() string { return "share" }
func (v shareValue) String() string {
	if v.share == nil || *v.share == nil {
		return ""
	}
	return percent(**v.share)
}

func (v shareValue) Set(s string) error {
	share, err := admin.ParseShare(s)
	if err == nil {
		*v.share = &share
	}
	return err
}

func maxMovedFlag(cmd *cobra.Command, most **float64) {
	cmd.Flags().Var(shareValue{most}, "max-moved", "refuse what moves a larger `share` of the users of any application, as 5%")
}

// flowsShown is how many flows of an application a table names.
const flowsShown = 10

// movedTable says who moves, and what is open on what is taken away.
func movedTable(t *table, r *admin.ApplyResult) {
	verb := "move"
	if r.DryRun {
		verb = "would move"
	}
	all := maps.Clone(r.Movements)
	for app, share := range r.Moved {
		// A server that tells less.
		if _, known := all[app]; !known {
			if all == nil {
				all = make(map[string]admin.Movement)
			}
			all[app] = admin.Movement{Share: share}
		}
	}
	for _, app := range sortedKeys(all) {
		m := all[app]
		if _, stays := r.Moved[app]; stays {
			t.line("%s of the users of %s %s to another instance", percent(m.Share), app, verb)
		} else {
			t.line("%s is deleted: none of its users is served any more", app)
		}
		for i, f := range m.Flows {
			if i == flowsShown {
				t.line("  and in %d further ways", len(m.Flows)-i)
				break
			}
			t.line("  %s from %s to %s", percent(f.Share), orNobody(f.From), orNobody(f.To))
		}
		if u := m.Recent; u != nil {
			about := ""
			if !u.Exact {
				about = "about "
			}
			t.line("  of %s seen within the last day %s%d", about+plural64(u.Seen, "user"), about, u.Moving)
		}
	}
	if len(all) == 0 && r.DryRun {
		t.line("nobody would move")
	}
	for _, in := range r.Touched {
		t.line("%s/%s, which %s, has %s, %d of them streams", in.App, in.Instance, touchedHow(in.How),
			plural64(in.Open, "open request"), in.Streams)
	}
}

func orNobody(instance string) string {
	if instance == "" {
		return "nobody"
	}
	return instance
}

func touchedHow(how string) string {
	switch how {
	case admin.Removed:
		return "is removed"
	case admin.Readdressed:
		return "gets another address"
	}
	return "becomes " + how
}
