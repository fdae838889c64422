package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"difylb/pkg/admin"
	"difylb/pkg/lb"
)

func (c *cli) applyCommand() *cobra.Command {
	var o admin.ApplyOptions
	cmd := &cobra.Command{
		Use: "apply -f FILE", Short: "Apply a document of declarations as one change",
		Long: `Applies documents of declarations. All of it is one atomic change: every proxy goes from
the old configuration to the new one in one step. A document with faults changes nothing;
every fault is listed, with its file and line, and the exit code is 1.

With --wait it returns when every live proxy has the result in force; if that does not
come about in time, the exit code is 1.`,
		Example: `  lbctl apply -f difylb.yaml --dry-run
  lbctl apply -f shop.yaml -f chat.yaml --wait 10s
  lbctl apply -f difylb.yaml --max-moved 5%
  lbctl import lua config.lua | lbctl apply -f -`,
	}
	files := sourcesFlag(cmd)
	cmd.Flags().BoolVar(&o.DryRun, "dry-run", false, "tell what would change, and change nothing")
	cmd.Flags().BoolVar(&o.Prune, "prune", false, "delete applications that the documents do not name")
	maxMovedFlag(cmd, &o.MaxMoved)
	waitFlag(cmd, &o.Wait, "how long to wait for the proxies to have it in force")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		sources, err := c.readSources(cmd, *files, args)
		if err != nil {
			return err
		}
		return c.apply(cmd, sources, o)
	}
	return cmd
}

func (c *cli) apply(cmd *cobra.Command, sources []*source, o admin.ApplyOptions) error {
	r, err := c.submit(cmd, "apply", sources, o)
	if err != nil {
		return err
	}
	return c.printApplied(r, o.Wait)
}

// submit lets the server carry the files out, or list everything that is wrong
// with them. It is asked even where some of it could not be read, so that
// nobody mends one kind of fault only to be told of the next.
func (c *cli) submit(cmd *cobra.Command, what string, sources []*source, o admin.ApplyOptions) (*admin.ApplyResult, error) {
	all, err := merge(what, sources)
	if err != nil {
		return nil, err
	}
	unread := unreadable(sources)
	if len(unread) > 0 {
		// What could not be read may be missing from several files put together.
		o.DryRun, o.Wait = true, 0
	}
	var r *admin.ApplyResult
	err = c.call(cmd, o.Wait, func(ctx context.Context, cl *admin.Client) (err error) {
		r, err = cl.Apply(ctx, all.data, o)
		return err
	})
	var p *admin.ProblemError
	switch {
	case errors.As(err, &p) && len(p.Faults) > 0:
		return nil, &documentError{what: what + ": the server refused it", faults: inOrder(sources, unread, placeIn(sources, p.Faults))}
	case len(unread) > 0:
		return nil, &documentError{what: what, faults: faultsOffline(sources, true)}
	}
	return r, err
}

// inOrder joins what was found here with what the server found, in the order of
// the files and their lines. What both found is known here more exactly.
func inOrder(sources []*source, here, there []placedFault) []placedFault {
	for _, f := range there {
		if !slices.ContainsFunc(here, func(g placedFault) bool { return g.Path == f.Path && g.Message == f.Message }) {
			here = append(here, f)
		}
	}
	file := func(f placedFault) int {
		return slices.IndexFunc(sources, func(s *source) bool { return s.name == f.file })
	}
	slices.SortStableFunc(here, func(a, b placedFault) int { return cmp.Or(file(a)-file(b), a.Line-b.Line) })
	return here
}

// printApplied prints what apply, import --apply or rollback did.
func (c *cli) printApplied(r *admin.ApplyResult, wait time.Duration) error {
	err := c.print(r, func(t *table) { appliedTable(t, r, wait) })
	if err == nil && r.InForce != nil && !r.InForce.All {
		err = fmt.Errorf("revision %d is stored, but not every proxy has it in force", r.Revision)
	}
	return err
}

func appliedTable(t *table, r *admin.ApplyResult, wait time.Duration) {
	if r.Unchanged {
		t.line("nothing changes; revision %d holds all of it", r.Revision)
	} else {
		changesTable(t, r.Changes)
		movedTable(t, r)
		if r.DryRun {
			t.line("dry run: nothing was changed")
		} else {
			t.line("applied as revision %d", r.Revision)
		}
	}
	if f := r.InForce; f != nil {
		switch {
		case f.All && len(f.Nodes) == 0:
			t.line("there is no live proxy to wait for")
		case f.All:
			t.line("in force on %s", count(len(f.Nodes), "proxy node"))
		}
		if len(f.Waiting) > 0 {
			t.line("after %s not in force on %s", lb.Duration(wait), strings.Join(f.Waiting, ", "))
		}
		if len(f.Refused) > 0 {
			t.line("refused by %s", strings.Join(f.Refused, ", "))
		}
	}
}

func changesTable(t *table, changes []admin.Change) {
	for _, ch := range changes {
		color := yellow
		switch ch.Action {
		case "created":
			color = green
		case "deleted":
			color = red
		}
		t.row(cell{ch.Action, color}, ch.Kind, changeName(ch))
	}
}

func changeName(ch admin.Change) string {
	switch {
	case ch.Name == "":
		return ch.App
	case ch.App == "":
		return ch.Name
	}
	return ch.App + "/" + ch.Name
}

// percent writes a share so that a small one is not shown as none.
func percent(share float64) string {
	p := share * 100
	switch {
	case p > 0 && p < 0.1:
		return "less than 0.1%"
	case p > 99.9 && p < 100:
		return "more than 99.9%"
	}
	return strings.TrimSuffix(fmt.Sprintf("%.1f", p), ".0") + "%"
}

func (c *cli) exportCommand() *cobra.Command {
	var secrets bool
	cmd := &cobra.Command{
		Use: "export", Short: "Print the whole document, as apply takes it",
		Long: `Prints the declarations, in YAML unless -o json is given. Without --secrets tokens are
named by id and last characters; such a document applies to a cluster that holds the
tokens. With --secrets, which needs the role admin, it restores an empty cluster: keep it
where nobody else reads it.`,
		Example: `  lbctl export > difylb.yaml
  (umask 077; lbctl export --secrets > backup.yaml)`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			format := admin.YAML
			if c.output == "json" {
				format = admin.JSON
			}
			return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				data, err := cl.Export(ctx, format, secrets)
				if err != nil {
					return err
				}
				_, err = c.out.Write(data)
				return err
			})
		},
	}
	cmd.Flags().BoolVar(&secrets, "secrets", false, "with instance tokens and the hashes of user tokens")
	return cmd
}

func (c *cli) validateCommand() *cobra.Command {
	var partial bool
	cmd := &cobra.Command{
		Use: "validate -f FILE", Short: "Check documents without a server",
		Long: `Checks documents of declarations offline and lists every fault with its file and line.
Exit code 1 when there are faults.

A document that lbctl export wrote without --secrets leaves tokens to the cluster that
holds them; --partial lets them be missing.`,
		Example: "  lbctl validate -f difylb.yaml",
	}
	files := sourcesFlag(cmd)
	cmd.Flags().BoolVar(&partial, "partial", false, "let tokens be missing that the cluster may hold")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		sources, err := c.readSources(cmd, *files, args)
		if err != nil {
			return err
		}
		if fs := faultsOffline(sources, partial); len(fs) > 0 {
			return &documentError{what: "validate", faults: fs}
		}
		all, err := merge("validate", sources)
		if err != nil {
			return err
		}
		n := 0
		for _, a := range all.doc.Applications {
			n += len(a.Instances)
		}
		v := struct {
			Valid        bool `json:"valid"`
			Applications int  `json:"applications"`
			Instances    int  `json:"instances"`
		}{true, len(all.doc.Applications), n}
		return c.printOr(v, "%s: valid, %s with %s", all.name, count(v.Applications, "application"), count(n, "instance"))
	}
	return cmd
}

// faultsOffline returns what could not be read, and what does not make sense,
// of every file, and of all together.
func faultsOffline(sources []*source, partial bool) []placedFault {
	var out []placedFault
	whole := &lb.Document{Applications: make(map[string]*lb.Application)}
	for _, s := range sources {
		out = append(out, s.place(s.faults(partial))...)
		if s.doc == nil {
			continue
		}
		for name, a := range s.doc.Applications {
			whole.Applications[name] = a
		}
	}
	if len(out) == 0 && len(sources) > 1 {
		// A token in two files is seen only when they are looked at together.
		fs := lb.Faults(nil)
		for _, f := range whole.Validate() {
			if !partial || !aboutStoredToken(whole, f) {
				fs = append(fs, f)
			}
		}
		out = placeIn(sources, fs)
	}
	return out
}

// faults returns what of the file could not be read, and what of the rest
// makes no sense.
func (s *source) faults(partial bool) lb.Faults {
	fs := append(lb.Faults(nil), s.errs...)
	if s.doc == nil {
		return fs
	}
	seen := make(map[string]bool)
	for _, f := range fs {
		seen[f.Path] = true
	}
	for _, f := range validate(s.doc, partial) {
		// What could not be read is not complained about twice.
		if !seen[f.Path] {
			fs = append(fs, f)
		}
	}
	return fs
}

func validate(doc *lb.Document, partial bool) lb.Faults {
	var fs lb.Faults
	for name, a := range doc.Applications {
		for _, f := range a.Resolve(nil, "applications."+name) {
			if !partial {
				fs = append(fs, f)
			}
		}
	}
	for _, f := range doc.Validate() {
		if !partial || !aboutStoredToken(doc, f) {
			fs = append(fs, f)
		}
	}
	return fs
}

// aboutStoredToken reports whether the fault is that an instance has no token.
func aboutStoredToken(doc *lb.Document, f lb.Fault) bool {
	for name, a := range doc.Applications {
		for i := range a.Instances {
			if a.Instances[i].Token == "" && f.Path == fmt.Sprintf("applications.%s.instances[%d].token", name, i) {
				return true
			}
		}
	}
	return false
}

func (c *cli) diffCommand() *cobra.Command {
	var prune bool
	cmd := &cobra.Command{
		Use: "diff -f FILE", Short: "Show what an apply would change",
		Long: `Shows, per object, how the documents differ from what the server holds. Tokens are not
shown; where nothing else of an object changes, it says that the token does.
Exit code 0 when nothing differs, 1 when something does.`,
		Example: "  lbctl diff -f difylb.yaml && echo in step",
	}
	files := sourcesFlag(cmd)
	cmd.Flags().BoolVar(&prune, "prune", false, "count applications that the documents do not name as deleted")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		sources, err := c.readSources(cmd, *files, args)
		if err != nil {
			return err
		}
		r, err := c.submit(cmd, "diff", sources, admin.ApplyOptions{DryRun: true, Prune: prune})
		if err != nil {
			return err
		}
		var faulty error
		err = c.print(r, func(t *table) { faulty = changeDiffs(t, r.Changes) })
		switch {
		case faulty != nil:
			return faulty
		case err == nil && !r.Unchanged:
			return errDiffers
		}
		return err
	}
	return cmd
}
