package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"sort"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"difylb/pkg/admin"
	"difylb/pkg/cluster"
	"difylb/pkg/lb"
)

// clearScreen homes the cursor and clears what is below it, which flickers
// less than clearing first.
const clearScreen = "\x1b[H\x1b[J"

// The alternate screen without a cursor, and back.
const (
	enterScreen = "\x1b[?1049h\x1b[?25l"
	leaveScreen = "\x1b[?25h\x1b[?1049l"
)

// fit cuts text to the lines of the terminal, so that it does not scroll, and
// says how much is left out; 0 leaves it.
func fit(text string, height int) string {
	lines := strings.Split(strings.TrimSuffix(text, "\n"), "\n")
	if height <= 1 || len(lines) <= height {
		return strings.Join(lines, "\n")
	}
	more := len(lines) - height + 1
	return strings.Join(lines[:height-1], "\n") + fmt.Sprintf("\n… and %d more lines", more)
}

func (c *cli) statusCommand() *cobra.Command {
	var watch bool
	interval := 2 * time.Second
	cmd := &cobra.Command{
		Use: "status", Short: "Show the state of the whole cluster",
		Long: `Shows every instance with its status and counters, which are sums over all proxies.
status is healthy, unhealthy, token_rejected (it answers 401 or 403 to its own token),
ejected, draining, disabled or unknown. Latency is over all time; with --watch it is that
of the last minute.`,
		Example: "  lbctl status\n  lbctl status --watch\n  lbctl status -o json | jq .complete",
		Args:    exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if watch {
				return c.watchStatus(cmd, interval)
			}
			return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
				s, err := cl.Status(ctx)
				if err != nil {
					return err
				}
				return c.print(s, func(t *table) { statusTable(t, s, false) })
			})
		},
	}
	cmd.Flags().BoolVarP(&watch, "watch", "w", false, "show it again and again")
	intervalFlag(cmd, &interval)
	return cmd
}

func intervalFlag(cmd *cobra.Command, interval *time.Duration) {
	cmd.Flags().Var((*intervalValue)(interval), "interval", "`time` between two looks")
}

// intervalValue is a duration that is not so short that looking is a load.
type intervalValue time.Duration

func (v *intervalValue) String() string { return lb.Duration(*v).String() }
func (v *intervalValue) Type() string   { return "duration" }
func (v *intervalValue) Set(s string) error {
	d, err := lb.ParseDuration(s)
	if err != nil {
		return err
	}
	if d < lb.Duration(100*time.Millisecond) {
		return fmt.Errorf("%q is too short; at least 100ms", s)
	}
	*v = intervalValue(d)
	return nil
}

// watchStatus shows the status until it is interrupted. Once it has worked, a
// server that does not answer for a while is said and waited for.
func (c *cli) watchStatus(cmd *cobra.Command, interval time.Duration) error {
	worked := false
	if c.width() > 0 && c.output == "table" {
		// A screen of its own: what stood in the terminal is there again afterwards.
		fmt.Fprint(c.out, enterScreen)
		defer fmt.Fprint(c.out, leaveScreen)
	}
	return c.repeat(cmd, interval, func(ctx context.Context, cl *admin.Client) error {
		s, err := cl.Status(ctx)
		if err != nil {
			if !worked || ctx.Err() != nil || !errors.Is(err, lb.ErrUnavailable) {
				return err
			}
			fmt.Fprintf(c.err, "lbctl: %s; trying again\n", clean(err.Error()))
			return nil
		}
		if c.output != "table" {
			if worked && c.output == "yaml" {
				fmt.Fprintln(c.out, "---")
			}
			worked = true
			return c.print(s, nil)
		}
		t := &table{color: c.color}
		statusTable(t, s, true)
		switch width := c.width(); {
		case width > 0:
			_, err = io.WriteString(c.out, clearScreen+fit(t.render(width), c.height()))
		case worked:
			_, err = io.WriteString(c.out, "\n"+t.render(0))
		default:
			_, err = io.WriteString(c.out, t.render(0))
		}
		worked = true
		return err
	})
}

// repeat calls f at once and then every interval, until it fails or the
// command is interrupted, which is its ordinary end.
func (c *cli) repeat(cmd *cobra.Command, interval time.Duration, f func(context.Context, *admin.Client) error) error {
	cl, err := c.client()
	if err != nil {
		return err
	}
	defer cl.Close()
	ctx := cmd.Context()
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		one, cancel := context.WithTimeout(ctx, c.timeout)
		err := f(one, cl)
		cancel()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

// statusTable shows latency over all time, or with recent that of the last minute.
func statusTable(t *table, s *admin.Status, recent bool) {
	statusHead(t, s, recent)
	t.header("APPLICATION", "INSTANCE", "STATUS", ">REQUESTS", ">ERRORS", ">ACTIVE", ">P50", ">P99")
	for _, r := range statusRows(s) {
		q := r.Latency
		if recent {
			q = r.LatencyRecent
		}
		t.row(r.app, r.instance, statusCell(r.Status), short(r.Requests), short(r.Errors), r.Active, millis(q.P50), millis(q.P99))
	}
	for _, r := range statusRows(s) {
		if len(r.EjectedBy) > 0 {
			t.line("%s/%s: %s", r.app, r.instance, ejectedText(r.EjectedBy, r.EjectedSince, s.Timestamp))
		}
		if p := r.LastProbe; p != nil && p.Verdict != lb.Healthy {
			t.line("%s/%s: last probe %s", r.app, r.instance, probeText(p, s.Timestamp))
		}
		if e := r.LastError; e != nil && r.Status != cluster.StatusHealthy {
			t.line("%s/%s: last error %s at %s", r.app, r.instance, e.Reason, timeText(&e.Time))
		}
	}
}

func statusHead(t *table, s *admin.Status, recent bool) {
	latency := ""
	if recent {
		latency = "; latency of the last minute"
	}
	t.line("%s, revision %d, %s, %s%s", s.Status, s.Revision, plural(s.Nodes.Proxies, "proxy", "proxies"), count(s.Nodes.Admins, "admin"), latency)
	if !s.Complete {
		t.colored(yellow, "incomplete: %d of %s reporting", s.Nodes.Reporting, plural(s.Nodes.Proxies, "proxy", "proxies"))
	}
}

// ejectedText says which proxies eject an instance, and since how long.
func ejectedText(by []string, since *time.Time, now time.Time) string {
	text := "ejected by " + strings.Join(by, ", ")
	if since != nil {
		text += " since " + ageOf(*since, now)
	}
	return text
}

// probeText says what a probe found, and how long ago.
func probeText(p *admin.LastProbe, now time.Time) string {
	text := fmt.Sprintf("%s ago: %s in %s", ageOf(p.Time, now), p.Verdict, millis(p.DurationMS))
	if p.Found != "" {
		text += ", " + p.Found
	}
	return text
}

func ageOf(at, now time.Time) string { return age(max(0, int64(now.Sub(at).Seconds()))) }

func plural(n int, one, many string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %s", n, many)
}

// statusRow is one instance with where it belongs.
type statusRow struct {
	app, instance string
	*admin.StatusInstance
}

// statusRows lists the instances by application and name.
func statusRows(s *admin.Status) []statusRow {
	var rows []statusRow
	for app, a := range s.Applications {
		if a == nil {
			continue
		}
		for name, in := range a.Instances {
			if in != nil {
				rows = append(rows, statusRow{app, name, in})
			}
		}
	}
	sort.Slice(rows, func(i, j int) bool {
		if rows[i].app != rows[j].app {
			return rows[i].app < rows[j].app
		}
		return naturalLess(rows[i].instance, rows[j].instance)
	})
	return rows
}

// naturalLess puts dify2 before dify10.
func naturalLess(a, b string) bool {
	for a != "" && b != "" {
		da, db := digits(a), digits(b)
		if da != "" && db != "" {
			na, nb := strings.TrimLeft(da, "0"), strings.TrimLeft(db, "0")
			if len(na) != len(nb) {
				return len(na) < len(nb)
			}
			if na != nb {
				return na < nb
			}
			a, b = a[len(da):], b[len(db):]
			continue
		}
		if a[0] != b[0] {
			return a[0] < b[0]
		}
		a, b = a[1:], b[1:]
	}
	return len(a) < len(b)
}

func digits(s string) string {
	for i := range len(s) {
		if s[i] < '0' || s[i] > '9' {
			return s[:i]
		}
	}
	return s
}

// short writes a number in at most six columns.
func short[T uint64 | float64](v T) string {
	n := float64(v)
	switch {
	case n < 100_000:
		return fmt.Sprintf("%.0f", n)
	case n < 10_000_000:
		return fmt.Sprintf("%.0fk", n/1e3)
	case n < 10_000_000_000:
		return fmt.Sprintf("%.0fM", n/1e6)
	}
	return fmt.Sprintf("%.0fG", n/1e9)
}

// millis writes a latency in at most five columns.
func millis(ms float64) string {
	switch {
	case ms <= 0:
		return "-"
	case ms < 10:
		return fmt.Sprintf("%.1fms", ms)
	case ms < 1000:
		return fmt.Sprintf("%.0fms", ms)
	case ms < 60_000:
		return fmt.Sprintf("%.1fs", ms/1000)
	}
	return fmt.Sprintf("%.0fs", ms/1000)
}

func bytesText(n float64) string {
	for _, u := range []struct {
		size float64
		unit string
	}{{1 << 30, "G"}, {1 << 20, "M"}, {1 << 10, "k"}} {
		if n >= u.size {
			return fmt.Sprintf("%.1f%s", n/u.size, u.unit)
		}
	}
	return fmt.Sprintf("%.0f", n)
}

func timeText(t *time.Time) string {
	if t == nil || t.IsZero() {
		return ""
	}
	return t.UTC().Format("2006-01-02 15:04:05Z")
}
