package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"difylb/pkg/admin"
	"difylb/pkg/cluster"
	"difylb/pkg/lb"
)

// The levels of a finding.
const (
	levelOK   = "ok"
	levelWarn = "warn"
	levelFail = "fail"
)

// finding is one line of the doctor's list.
type finding struct {
	Check  string `json:"check"`
	Level  string `json:"level"`
	Found  string `json:"found"`
	Advice string `json:"advice,omitempty"` // what to do; none where it is ok
}

// diagnosis is all of them.
type diagnosis struct {
	Level    string    `json:"level"` // the worst
	Findings []finding `json:"findings"`
}

func (d *diagnosis) ok(check, format string, args ...any) {
	d.Findings = append(d.Findings, finding{check, levelOK, fmt.Sprintf(format, args...), ""})
}

func (d *diagnosis) warn(check, advice, format string, args ...any) {
	d.Findings = append(d.Findings, finding{check, levelWarn, fmt.Sprintf(format, args...), advice})
}

func (d *diagnosis) fail(check, advice, format string, args ...any) {
	d.Findings = append(d.Findings, finding{check, levelFail, fmt.Sprintf(format, args...), advice})
}

func (d *diagnosis) worst() string {
	worst := levelOK
	for _, f := range d.Findings {
		if f.Level == levelFail || (f.Level == levelWarn && worst == levelOK) {
			worst = f.Level
		}
	}
	return worst
}

func (c *cli) doctorCommand() *cobra.Command {
	var app string
	canary := canaryOptions{user: "lbctl-doctor"}
	var tokenFile string
	cmd := &cobra.Command{
		Use: "doctor", Short: "Look for what is wrong with the cluster, and say what to do",
		Long: `Goes through a list and says of each point ok, warn or fail, and what to do: lb-admin and etcd
(health, alarms, latency), the clocks of this machine and of the proxies, whether every proxy
has the configuration in force and reaches each instance (each proxy connects to each,
now), which instances reject their token or are unhealthy.

With --canary it also listens through the public address, as a client would, to a stream
that lb-proxy itself sends, in which each event says when it was sent: so a hop that buffers
is told from a slow one. Then it streams an answer and looks at when its events arrive. That
asks a real question of a real application.

It needs the role operator. Exit code 1 when a point fails.`,
		Example: `  lbctl doctor
  lbctl doctor --canary https://ai.example.com --canary-token-file web.token`,
		Args: exactly(),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := canary.settle(tokenFile); err != nil {
				return err
			}
			d := &diagnosis{}
			if err := c.diagnose(cmd, d, app); err != nil {
				return err
			}
			if canary.url != "" {
				if err := c.canary(cmd, d, canary); err != nil {
					return err
				}
			}
			d.Level = d.worst()
			if err := c.print(d, func(t *table) { diagnosisTable(t, d) }); err != nil {
				return err
			}
			if d.Level == levelFail {
				n := 0
				for _, f := range d.Findings {
					if f.Level == levelFail {
						n++
					}
				}
				return fmt.Errorf("doctor: %s", plural(n, "point fails", "points fail"))
			}
			return nil
		},
	}
	f := cmd.Flags()
	f.StringVar(&app, "app", "", "look at the instances of this `application` only")
	f.StringVar(&canary.url, "canary", "", "public `URL` of the balancer, or of a call of it, to stream an answer through")
	f.StringVar((*string)(&canary.token), "canary-token", "", "user `token` of the application that the canary asks")
	f.StringVar(&tokenFile, "canary-token-file", "", "`file` that holds it")
	f.StringVar(&canary.user, "canary-user", canary.user, "`user` id that the canary asks as")
	f.StringVar(&canary.body, "canary-body", "", "`JSON` to send instead of a question to a chat application")
	_ = cmd.RegisterFlagCompletionFunc("app", func(cmd *cobra.Command, _ []string, prefix string) ([]string, cobra.ShellCompDirective) {
		return c.completeApp(cmd, nil, prefix)
	})
	return cmd
}

// diagnose asks the server for everything that it knows.
func (c *cli) diagnose(cmd *cobra.Command, d *diagnosis, app string) error {
	return c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
		began := time.Now()
		h, err := cl.Ready(ctx)
		took := time.Since(began)
		var problem *admin.ProblemError
		switch {
		case err == nil:
			d.ok("lb-admin", "is ready, version %s, answers in %s", h.Version, took.Round(time.Millisecond/10))
		case errors.As(err, &problem):
			d.fail("lb-admin", "see its log; while etcd is away nothing can be changed, and proxies go on with what they have", "is not ready: %s", problem.Detail)
		default:
			return err
		}
		began = time.Now()
		check, err := cl.Check(ctx, app)
		if err != nil {
			return err
		}
		diagnoseStore(d, check)
		diagnoseClock(d, check.Time.Sub(began), time.Since(began))
		nodes, err := cl.Nodes(ctx)
		if err != nil {
			return err
		}
		diagnoseNodes(d, nodes, check)
		diagnoseReach(d, check)
		status, err := cl.Status(ctx)
		if err != nil {
			return err
		}
		diagnoseInstances(d, status, app)
		return nil
	})
}

func diagnoseStore(d *diagnosis, check *admin.Check) {
	s := check.Store
	switch {
	case !s.OK:
		d.fail("etcd", "start etcd again, or mend the way to it: lb-admin's --etcd-endpoints; meanwhile nothing can be changed", "does not answer: %s", s.Error)
	case s.MS > 100:
		d.warn("etcd", "its disk or the network is slow; etcd wants a disk of its own whose fsync takes less than 10 ms", "answers in %.0f ms", s.MS)
	default:
		d.ok("etcd", "answers in %.1f ms", s.MS)
	}
	for _, a := range s.Alarms {
		advice := "see etcd's documentation of this alarm, then etcdctl alarm disarm"
		switch {
		case strings.Contains(a, "NOSPACE"):
			advice = "it refuses writes: etcdctl compact, etcdctl defrag, then etcdctl alarm disarm; give it a larger --quota-backend-bytes"
		case strings.Contains(a, "CORRUPT"):
			advice = "a member's data is damaged: take it out of the cluster and let a new one in its place"
		}
		d.fail("etcd alarm", advice, "%s", a)
	}
	if s.OK && len(s.Alarms) == 0 {
		d.ok("etcd alarm", "none")
	}
	if s.OK && s.StaleSeconds > 1 {
		d.warn("etcd watch", "if this stays, restart this lb-admin and look at its log", "lb-admin may be %.0f s behind etcd", s.StaleSeconds)
	}
}

const (
	skewWarn = 2 * time.Second
	skewFail = time.Minute
)

// diagnoseClock judges the server's clock by when it answered: within `within`
// after it was asked.
func diagnoseClock(d *diagnosis, ahead, within time.Duration) {
	switch {
	case ahead < 0:
		skewed(d, "clock of lb-admin", -ahead, "behind this machine's")
	default:
		skewed(d, "clock of lb-admin", max(ahead-within, 0), "ahead of this machine's")
	}
}

func skewed(d *diagnosis, check string, by time.Duration, how string) {
	const advice = "let NTP or chrony set the clocks; times in logs and figures can't be compared until then"
	switch {
	case by >= skewFail:
		d.fail(check, advice, "is %s %s", by.Round(time.Millisecond), how)
	case by >= skewWarn:
		d.warn(check, advice, "is %s %s", by.Round(time.Millisecond), how)
	case by >= 100*time.Millisecond:
		d.ok(check, "is %s %s", by.Round(time.Millisecond), how)
	default:
		d.ok(check, "agrees with %s", strings.TrimPrefix(strings.TrimPrefix(how, "ahead of "), "behind "))
	}
}

func diagnoseNodes(d *diagnosis, nodes []admin.Node, check *admin.Check) {
	var newest int64
	proxies := 0
	versions := make(map[string][]string)
	rings := make(map[string][]string)
	for _, n := range nodes {
		newest = max(newest, n.ConfigRevision)
		versions[n.Version] = append(versions[n.Version], n.ID)
	}
	for _, n := range nodes {
		if n.Role != lb.RoleProxy {
			continue
		}
		proxies++
		name := "proxy " + n.ID
		switch {
		case !n.Connected:
			d.fail(name, "it serves, but does not report: see its log for the link to lb-admin (--grpc-advertise there must be reachable from here)", "has not reported for 3 s")
		case n.Refused != "":
			d.fail(name, "correct the configuration, or roll it back: lbctl history, lbctl rollback", "refuses revision %d: %s", n.RefusedRevision, n.Refused)
		case n.ConfigRevision < newest && n.LagSeconds > 1:
			d.fail(name, "see its log, and its way to etcd", "has revision %d in force, %d is newer by %.0f s", n.ConfigRevision, newest, n.LagSeconds)
		default:
			d.ok(name, "has revision %d in force", n.ConfigRevision)
			if n.RingChecksum != "" && n.ConfigRevision == newest {
				rings[n.RingChecksum] = append(rings[n.RingChecksum], n.ID)
			}
		}
	}
	if proxies == 0 {
		d.fail("proxies", "start lb-proxy with the same --etcd-endpoints and --etcd-prefix", "there is none")
	}
	if len(rings) > 1 {
		d.fail("placement", "run the same version everywhere, and restart the proxies that differ", "proxies place users differently: %s", groups(rings))
	} else if proxies > 1 && len(rings) == 1 {
		d.ok("placement", "all proxies place users alike")
	}
	if len(versions) > 1 {
		d.warn("versions", "finish the upgrade", "differ: %s", groups(versions))
	}
	for _, p := range check.Proxies {
		if !p.Answered {
			d.warn("checks of "+p.Node, "if it is linked with another lb-admin or of an older version, ask there, or upgrade it", "did not say what it reaches")
			continue
		}
		skew := time.Duration(p.SkewMS * float64(time.Millisecond))
		how := "ahead of lb-admin's"
		if skew < 0 {
			skew, how = -skew, "behind lb-admin's"
		}
		// What the way there and back may explain is no skew.
		skew = max(skew-time.Duration(p.RoundTripMS*float64(time.Millisecond))/2, 0)
		skewed(d, "clock of "+p.Node, skew, how)
	}
}

// groups writes who has which, "v1: a, b; v2: c".
func groups(m map[string][]string) string {
	var out []string
	for _, k := range sortedKeys(m) {
		out = append(out, k+": "+strings.Join(m[k], ", "))
	}
	return strings.Join(out, "; ")
}

// diagnoseReach puts together what the proxies reach.
func diagnoseReach(d *diagnosis, check *admin.Check) {
	type seen struct {
		reach cluster.Reach
		by    []string
		not   []string
		err   string
	}
	all := make(map[string]*seen)
	asked := 0
	for _, p := range check.Proxies {
		if !p.Answered {
			continue
		}
		asked++
		for _, r := range p.Instances {
			key := r.App + "/" + r.Instance
			s := all[key]
			if s == nil {
				s = &seen{reach: r}
				all[key] = s
			}
			if r.Error == "" {
				s.by = append(s.by, p.Node)
			} else {
				s.not, s.err = append(s.not, p.Node), r.Error
			}
		}
	}
	reached := 0
	for _, key := range sortedKeys(all) {
		s := all[key]
		switch {
		case len(s.not) == 0:
			reached++
		case len(s.by) == 0:
			d.fail("reach "+key, "start it, or correct its address: lbctl instance set "+s.reach.App+" "+s.reach.Instance+" --url …",
				"at %s no proxy can connect: %s", s.reach.Address, s.err)
		default:
			d.fail("reach "+key, "look at the firewall and the routes of "+strings.Join(s.not, ", "),
				"at %s is reached from %s, not from %s: %s", s.reach.Address, strings.Join(s.by, ", "), strings.Join(s.not, ", "), s.err)
		}
	}
	if reached > 0 {
		d.ok("reach", "%s can be connected to from %s", plural(reached, "instance", "instances"), plural(asked, "proxy", "proxies"))
	}
}

func diagnoseInstances(d *diagnosis, status *admin.Status, only string) {
	accepted, healthy := 0, 0
	for _, name := range sortedKeys(status.Applications) {
		a := status.Applications[name]
		if a == nil || (only != "" && name != only) {
			continue
		}
		usable, active := 0, 0
		for _, in := range sortedKeys(a.Instances) {
			s := a.Instances[in]
			if s == nil {
				continue
			}
			if s.State == lb.Active {
				active++
			}
			if s.Status != cluster.StatusTokenRejected && s.Status != cluster.StatusUnknown {
				accepted++
			}
			what := name + "/" + in
			why := ""
			if s.LastError != nil {
				why = fmt.Sprintf("; the last error was %s at %s", s.LastError.Reason, timeText(&s.LastError.Time))
			}
			switch s.Status {
			case cluster.StatusTokenRejected:
				d.fail("token of "+what, "take the token from Dify's page of the application: lbctl instance set "+name+" "+in+" --token app-…", "is rejected with 401 or 403")
			case cluster.StatusUnhealthy:
				d.warn("health of "+what, "see the instance's own log; lbctl explain says who serves its users meanwhile", "its probes fail%s", why)
			case cluster.StatusEjected:
				d.warn("health of "+what, "see the instance's own log; it comes back after fail_timeout", "a proxy has ejected it%s", why)
			case cluster.StatusUnknown:
				usable++
				if s.State == lb.Active {
					d.warn("health of "+what, "wait for the first probe; if it stays, health_check.type is none, or no lb-admin is elected", "is not known")
				}
			case cluster.StatusHealthy:
				usable++
				healthy++
			}
		}
		if active > 0 && usable == 0 {
			d.fail("application "+name, "mend one of its instances first; until then proxies try them all the same", "has no usable instance")
		} else if active == 0 {
			d.warn("application "+name, "lbctl instance add, or activate", "has no active instance and answers 503")
		}
	}
	if accepted > 0 {
		d.ok("tokens", "%s accept their token", plural(accepted, "instance", "instances"))
	}
	if healthy > 0 {
		d.ok("health", "%s healthy", plural(healthy, "instance is", "instances are"))
	}
}

func diagnosisTable(t *table, d *diagnosis) {
	colors := map[string]string{levelOK: green, levelWarn: yellow, levelFail: red}
	for _, level := range []string{levelFail, levelWarn, levelOK} {
		for _, f := range d.Findings {
			if f.Level != level {
				continue
			}
			t.row(cell{f.Level, colors[f.Level]}, f.Check, f.Found)
			if f.Advice != "" {
				t.row("", "", "→ "+f.Advice)
			}
		}
	}
}

// settle checks the canary's flags before anything is asked.
func (o *canaryOptions) settle(tokenFile string) error {
	if tokenFile != "" {
		if o.token != "" {
			return usagef("--canary-token and --canary-token-file are both given; one is enough")
		}
		data, err := os.ReadFile(tokenFile)
		if err != nil {
			return usagef("--canary-token-file %s", reason(err))
		}
		o.token = lb.Secret(strings.TrimSpace(string(data)))
	}
	switch {
	case o.url == "" && (o.token != "" || o.body != ""):
		return usagef("--canary URL is missing; the other --canary flags belong to it")
	case o.url == "":
		return nil
	case o.token == "":
		return usagef("--canary needs --canary-token or --canary-token-file: a user token of the application to ask")
	}
	if err := lb.CheckToken(o.token); err != nil {
		return usagef("the canary's token %s", err)
	}
	return o.parse()
}
