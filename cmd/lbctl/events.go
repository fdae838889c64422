package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"difylb/pkg/admin"
	"difylb/pkg/document"
	"difylb/pkg/lb"
)

func (c *cli) eventsCommand() *cobra.Command {
	var follow bool
	var types []string
	cmd := &cobra.Command{
		Use: "events", Short: "Show changes of configuration, health and nodes, and operators' acts, as they happen",
		Long: `Shows events until it is interrupted, and connects again when the connection breaks:
"reset" then says that events may have been missed. With --follow=false a broken
connection ends it, with exit code 3.

With -o json every event is one line.`,
		Example: "  lbctl events\n  lbctl events --type health -o json",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			known := admin.EventTypes
			want := make(map[string]bool)
			for _, t := range types {
				if !contains(known, t) {
					return usagef("--type %q: it is one of %s%s", t, strings.Join(known, ", "), lb.DidYouMean(t, known))
				}
				want[t] = true
			}
			return c.events(cmd, follow, func(t string) bool { return len(want) == 0 || want[t] })
		},
	}
	cmd.Flags().BoolVar(&follow, "follow", true, "connect again when the connection breaks")
	cmd.Flags().StringSliceVar(&types, "type", nil, "show only events of this `type`: "+strings.Join(admin.EventTypes, ", ")+"; repeatable")
	_ = cmd.RegisterFlagCompletionFunc("type", cobra.FixedCompletions(admin.EventTypes, cobra.ShellCompDirectiveNoFileComp)) // the flag exists
	return cmd
}

func contains(list []string, s string) bool {
	for _, v := range list {
		if v == s {
			return true
		}
	}
	return false
}

// The pauses between attempts to connect again.
const (
	firstPause   = 500 * time.Millisecond
	longestPause = 10 * time.Second
)

func (c *cli) events(cmd *cobra.Command, follow bool, want func(string) bool) error {
	cl, err := c.client()
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx := cmd.Context()
	connected := false
	pause := firstPause
	for {
		err := cl.Events(ctx, func(e admin.Event) error {
			connected, pause = true, firstPause
			if !want(e.Type) {
				return nil
			}
			return c.printEvent(e)
		})
		if ctx.Err() != nil {
			return nil
		}
		// What the server refuses, and what never worked, will not work later.
		if !follow || !connected || !errors.Is(err, lb.ErrUnavailable) {
			return err
		}
		fmt.Fprintf(c.err, "lbctl: %s; connecting again\n", clean(err.Error()))
		if !sleep(ctx, pause) {
			return nil
		}
		pause = min(2*pause, longestPause)
	}
}

// sleep reports false when the context ended first.
func sleep(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

func (c *cli) printEvent(e admin.Event) error {
	data := e.Data
	if !json.Valid(data) {
		data = json.RawMessage("{}")
	}
	if c.output == "table" {
		when, text := describeEvent(e.Type, data)
		_, err := fmt.Fprintln(c.out, clean(fmt.Sprintf("%s  %-14s  %s", when.UTC().Format("15:04:05"), e.Type, text)))
		return err
	}
	line, err := json.Marshal(struct {
		Type string          `json:"type"`
		ID   string          `json:"id,omitempty"`
		Data json.RawMessage `json:"data"`
	}{e.Type, e.ID, data})
	if err != nil {
		return err
	}
	line = append(line, '\n')
	if c.output == "yaml" {
		if line, err = document.JSONToYAML(line); err != nil {
			return err
		}
		line = append([]byte("---\n"), line...)
	}
	_, err = c.out.Write(line)
	return err
}

// describeEvent puts an event into words. One that this version does not know
// is shown as it came.
func describeEvent(kind string, data []byte) (time.Time, string) {
	switch kind {
	case admin.EventConfiguration:
		var e admin.ConfigurationEvent
		if json.Unmarshal(data, &e) == nil {
			return e.Time, fmt.Sprintf("revision %d: %s", e.Revision, changesText(e.Changes, 4))
		}
	case admin.EventHealth:
		var e admin.HealthEvent
		if json.Unmarshal(data, &e) == nil {
			text := fmt.Sprintf("%s/%s: %s, was %s", e.App, e.Instance, e.To, e.From)
			if e.Reason != "" {
				text += " (" + e.Reason + ")"
			}
			return e.Time, text
		}
	case admin.EventNode:
		var e admin.NodeEvent
		if json.Unmarshal(data, &e) == nil {
			text := fmt.Sprintf("%s %s %s", e.Role, e.ID, strings.ReplaceAll(e.Action, "_", " "))
			if e.Revision > 0 {
				text += fmt.Sprintf(" revision %d", e.Revision)
			}
			if e.Reason != "" {
				text += " (" + e.Reason + ")"
			}
			return e.Time, text
		}
	case admin.EventAccept:
		var e admin.ActEvent
		if json.Unmarshal(data, &e) == nil {
			return e.Time, fmt.Sprintf("%s from %s let proxy %s put revision %d in force, which it held back", e.Who, e.From, e.Node, e.Revision)
		}
	case admin.EventSecretsExport:
		var e admin.ActEvent
		if json.Unmarshal(data, &e) == nil {
			return e.Time, fmt.Sprintf("%s from %s exported the configuration with its secrets from %s", e.Who, e.From, e.Admin)
		}
	case admin.EventReset:
		return time.Now(), "listening; what happened before is not shown"
	}
	return time.Now(), string(data)
}

// changesText sums changes up in one line, with at most so many of them.
func changesText(changes []admin.Change, most int) string {
	var parts []string
	for i, ch := range changes {
		if i == most {
			parts = append(parts, fmt.Sprintf("and %d more", len(changes)-most))
			break
		}
		parts = append(parts, strings.TrimSpace(fmt.Sprintf("%s %s %s", ch.Kind, changeName(ch), ch.Action)))
	}
	if parts == nil {
		return "nothing changed"
	}
	return strings.Join(parts, ", ")
}
