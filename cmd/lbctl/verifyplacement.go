package main

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"hash/maphash"
	"io"
	"net"
	"os"
	"slices"
	"sort"
	"strings"

	"github.com/spf13/cobra"

	"difylb/pkg/admin"
	"difylb/pkg/document"
	"difylb/pkg/lb"
	"difylb/pkg/route"
)

const (
	// maxLogLine is the longest line that is looked at; a longer one is passed
	// over, and counted as not understood.
	maxLogLine = 1 << 20
	// maxCountedUsers bounds the users that are told apart exactly. Beyond
	// that, their number is estimated; whether one moves is not.
	maxCountedUsers = 1 << 20
	// maxMovedUsers bounds those who would move that are told apart.
	maxMovedUsers = 1 << 20
	// maxUnknownNames bounds what is remembered of names that the
	// configuration does not know.
	maxUnknownNames = 1000
)

func (c *cli) verifyPlacementCommand() *cobra.Command {
	var logs, renames []string
	examples := 10
	cmd := &cobra.Command{
		Use: "verify-placement --log FILE [-f FILE]", Short: "Prove on the old balancer's log that every user stays where he is",
		Long: `Reads the app_routing.log of the OpenResty balancer and computes for every request where
its user goes here: by the documents given with -f, offline, or by what the server holds.
Where the log's last request of a user went is where he is.

A line may have anything before and after its JSON object. It counts if the object has the
fields app_type (the application), user_id and backend_instance (the instance's name, or
its host:port), as in what lb-proxy writes with --access-log-format seed --access-log-users.
Lines without a user or an instance are counted, and prove nothing.

Memory is bounded however long the log is: above a million users their number is an
estimate. Exit code 1 if anybody moves, if the log names an application that is not in the
configuration, or if it proves nothing.`,
		Example: `  lbctl import lua config.lua > difylb.yaml
  lbctl verify-placement --log app_routing.log -f difylb.yaml
  zcat app_routing.log.*.gz | lbctl verify-placement --log -`,
	}
	files := sourcesFlag(cmd)
	cmd.Flags().StringArrayVar(&logs, "log", nil, "`file` to read, also gzipped, the oldest first; - is standard input; repeatable")
	_ = cmd.MarkFlagFilename("log")
	cmd.Flags().StringArrayVar(&renames, "rename", nil, "`OLD=NEW`: the application that the log calls OLD is called NEW here; repeatable")
	cmd.Flags().IntVar(&examples, "examples", examples, "how many users who move to name, per application (`number`)")
	cmd.Args = exactly()
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if len(logs) == 0 {
			return usagef("%s needs --log FILE (- for standard input)", cmd.CommandPath())
		}
		if examples < 0 {
			return usagef("--examples %d is negative", examples)
		}
		rings, from, err := c.placements(cmd, *files)
		if err != nil {
			return err
		}
		v := newVerifier(rings, examples)
		for _, r := range renames {
			was, is, ok := strings.Cut(r, "=")
			if !ok || was == "" || is == "" {
				return usagef("--rename %q is not OLD=NEW", r)
			}
			if rings.App(is) == nil {
				return usagef("--rename %s: %s has no application %q%s", r, from, is, lb.DidYouMean(is, v.names()))
			}
			v.renamed[was] = is
		}
		for _, name := range logs {
			if err := c.readLog(name, *files, v.line); err != nil {
				return err
			}
		}
		r := v.report(from)
		if err := c.print(r, func(t *table) { placementTable(t, r) }); err != nil {
			return err
		}
		return r.verdict()
	}
	return cmd
}

// placements returns what places users: the files', or the server's.
func (c *cli) placements(cmd *cobra.Command, files []string) (*route.Table, string, error) {
	var doc *lb.Document
	from := "the server"
	if len(files) > 0 {
		sources, err := c.readSources(cmd, files, nil)
		if err != nil {
			return nil, "", err
		}
		if fs := faultsOffline(sources, true); len(fs) > 0 {
			return nil, "", &documentError{what: cmd.Name(), faults: fs}
		}
		all, err := merge(cmd.Name(), sources)
		if err != nil {
			return nil, "", err
		}
		doc, from = all.doc, all.name
	} else {
		err := c.call(cmd, 0, func(ctx context.Context, cl *admin.Client) error {
			data, err := cl.Export(ctx, admin.JSON, false)
			if err != nil {
				return err
			}
			doc, err = document.Parse(data)
			return err
		})
		if err != nil {
			return nil, "", err
		}
	}
	t, err := route.Build(snapshotOf(doc), nil)
	if err != nil {
		return nil, "", fmt.Errorf("%s: %w", from, err)
	}
	return t, from, nil
}

// snapshotOf makes of a document what rings are built from. Who may use an
// application does not matter to where its users are.
func snapshotOf(doc *lb.Document) *lb.Snapshot {
	snap := &lb.Snapshot{}
	for name, a := range doc.Applications {
		placed := a.Clone()
		placed.Name, placed.UserTokens = name, nil
		snap.Applications = append(snap.Applications, placed)
	}
	sort.Slice(snap.Applications, func(i, j int) bool { return snap.Applications[i].Name < snap.Applications[j].Name })
	return snap
}

// readLog hands the lines of a log to f, which must not keep them. A line that
// is too long comes as nil.
func (c *cli) readLog(name string, files []string, f func(line []byte)) error {
	var in io.Reader
	if name == "-" {
		if slices.Contains(files, "-") {
			return usagef("--log - and -f - can't both be standard input")
		}
		in = c.in
	} else {
		file, err := os.Open(name)
		if err != nil {
			return usagef("--log %s", reason(err))
		}
		defer file.Close()
		in = file
	}
	r := bufio.NewReaderSize(in, 64<<10)
	if magic, _ := r.Peek(2); bytes.Equal(magic, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(r)
		if err != nil {
			return fmt.Errorf("read %s: %w", name, err)
		}
		defer z.Close()
		r = bufio.NewReaderSize(z, 64<<10)
	}
	var long []byte
	over := false
	for {
		part, err := r.ReadSlice('\n')
		if err != nil && err != bufio.ErrBufferFull && err != io.EOF {
			return fmt.Errorf("read %s: %w", name, err)
		}
		ended := err != bufio.ErrBufferFull
		line := part
		if over = over || len(long)+len(part) > maxLogLine; over {
			line, long = nil, long[:0]
		} else if !ended || len(long) > 0 {
			long = append(long, part...)
			line = long
		}
		if ended && (over || len(line) > 0) {
			f(line)
			long, over = long[:0], false
		}
		if err == io.EOF {
			return nil
		}
	}
}

// verifier follows a log line by line.
type verifier struct {
	table    *route.Table
	renamed  map[string]string
	examples int
	seed     maphash.Seed

	lines       int64
	requests    int64
	noUser      int64
	noInstance  int64
	mute        int64 // lines that were not understood
	muteFirst   []lineFault
	apps        map[string]*appVerifier
	unknown     map[string]int64 // requests of applications that are not in the configuration
	unknownRest int64

	// users holds those seen, by hash, whose last bits are 0 as many as shift
	// says: all at first, half of them after each time it was full.
	users map[uint64]*appVerifier
	shift uint
	moved map[uint64]*movedUser
	// movedRest are requests that went elsewhere of users who found no place
	// in moved.
	movedRest int64
}

// appVerifier is one application of the configuration.
type appVerifier struct {
	app       *route.App
	instances map[string][]string // names by address
	users     int                 // in verifier.users
	moved     int
	requests  int64
	elsewhere int64
	shown     []*movedUser
}

// movedUser is one who would be served by another instance.
type movedUser struct {
	User    string `json:"user"`
	Was     string `json:"was"`
	WouldBe string `json:"would_be"`
	named   bool   // stands in shown
}

type lineFault struct {
	Line   int64  `json:"line"`
	Reason string `json:"reason"`
}

func newVerifier(t *route.Table, examples int) *verifier {
	v := &verifier{
		table: t, examples: examples, seed: maphash.MakeSeed(), renamed: make(map[string]string),
		apps: make(map[string]*appVerifier), unknown: make(map[string]int64),
		users: make(map[uint64]*appVerifier), moved: make(map[uint64]*movedUser),
	}
	for _, a := range t.Apps() {
		av := &appVerifier{app: a, instances: make(map[string][]string)}
		for i := range a.Instances {
			address := strings.ToLower(a.Instances[i].Address)
			av.instances[address] = append(av.instances[address], a.Instances[i].Decl.Name)
		}
		v.apps[a.Decl.Name] = av
	}
	return v
}

func (v *verifier) names() []string {
	var out []string
	for _, a := range v.table.Apps() {
		out = append(out, a.Decl.Name)
	}
	return out
}

// maxMuteLines is how many lines that were not understood are named.
const maxMuteLines = 10

func (v *verifier) notUnderstood(reason string) {
	if v.mute++; len(v.muteFirst) < maxMuteLines {
		v.muteFirst = append(v.muteFirst, lineFault{v.lines, reason})
	}
}

// line takes the next line of the log; nil is one that was too long.
func (v *verifier) line(line []byte) {
	v.lines++
	if line == nil {
		v.notUnderstood(fmt.Sprintf("it is longer than %s", lb.Size(maxLogLine)))
		return
	}
	if len(bytes.TrimSpace(line)) == 0 {
		return
	}
	r, err := parseRouted(line)
	if err != nil {
		v.notUnderstood(err.Error())
		return
	}
	v.requests++
	name := r.app
	if is, ok := v.renamed[name]; ok {
		name = is
	}
	a := v.apps[name]
	switch {
	case r.app == "":
		v.requests--
		v.notUnderstood("its app_type is empty")
	case a == nil:
		if _, known := v.unknown[name]; known || len(v.unknown) < maxUnknownNames {
			v.unknown[name]++
		} else {
			v.unknownRest++
		}
	case r.user == "":
		v.noUser++
	case r.instance == "":
		v.noInstance++
	default:
		v.see(a, r)
	}
}

// see compares where the user was with where he would be.
func (v *verifier) see(a *appVerifier, r routed) {
	a.requests++
	var h maphash.Hash
	h.SetSeed(v.seed)
	_, _ = h.WriteString(a.app.Decl.Name)
	_ = h.WriteByte(0)
	_, _ = h.WriteString(r.user)
	key := h.Sum64()
	v.count(key, a)

	is := ""
	i, _ := a.app.Choose(a.app.Point(r.user), nil, func(int) route.Condition { return route.Condition{Health: lb.Healthy} })
	if i >= 0 {
		is = a.app.Instances[i].Decl.Name
	}
	was := a.named(r.instance)
	if is != "" && slices.Contains(was, is) {
		if m := v.moved[key]; m != nil {
			delete(v.moved, key)
			a.moved--
			if m.named {
				a.shown = slices.DeleteFunc(a.shown, func(o *movedUser) bool { return o == m })
			}
		}
		return
	}
	a.elsewhere++
	m := v.moved[key]
	if m == nil {
		if len(v.moved) >= maxMovedUsers {
			v.movedRest++
			return
		}
		m = &movedUser{}
		v.moved[key] = m
		a.moved++
	}
	if !m.named && len(a.shown) < v.examples {
		m.named = true
		a.shown = append(a.shown, m)
	}
	if m.named { // of the others the number is enough
		m.User, m.Was, m.WouldBe = r.user, strings.Join(was, " or "), is
	}
}

// count notes a user in the bounded set of those seen.
func (v *verifier) count(key uint64, a *appVerifier) {
	if key&(1<<v.shift-1) != 0 || v.users[key] != nil {
		return
	}
	v.users[key] = a
	a.users++
	for len(v.users) > maxCountedUsers {
		v.shift++
		for k, of := range v.users {
			if k&(1<<v.shift-1) != 0 {
				delete(v.users, k)
				of.users--
			}
		}
	}
}

// named returns the instances that the log may mean: one by its name, those at
// its address, or what the log says, when the configuration has none of it.
func (a *appVerifier) named(logged string) []string {
	// nginx lists the servers that it tried; the last one answered.
	if i := strings.LastIndexByte(logged, ','); i >= 0 {
		logged = logged[i+1:]
	}
	logged = strings.TrimSpace(logged)
	if a.app.Index(logged) >= 0 {
		return []string{logged}
	}
	if names := a.instances[dialledAt(logged)]; names != nil {
		return names
	}
	return []string{logged}
}

// dialledAt makes host:port of what may also be a URL, or lack its port.
func dialledAt(s string) string {
	port := "80"
	if rest, ok := strings.CutPrefix(s, "http://"); ok {
		s = rest
	} else if rest, ok := strings.CutPrefix(s, "https://"); ok {
		s, port = rest, "443"
	}
	s, _, _ = strings.Cut(s, "/")
	if host, given, err := net.SplitHostPort(s); err == nil {
		s, port = host, given
	}
	return strings.ToLower(net.JoinHostPort(strings.Trim(s, "[]"), port))
}

// placementReport is what verify-placement found out.
type placementReport struct {
	Configuration string `json:"configuration"` // where placements came from
	Lines         int64  `json:"lines"`
	Requests      int64  `json:"requests"` // lines that were understood
	// Exact: Users and Same were counted, not estimated. Moved is always
	// counted; where MovedAtLeast is true there may be more.
	Exact        bool  `json:"exact"`
	MovedAtLeast bool  `json:"moved_at_least,omitempty"`
	Users        int64 `json:"users"`
	Same         int64 `json:"same"`
	Moved        int64 `json:"moved"`

	Applications []appPlacement `json:"applications"`
	// Unknown are applications that the configuration does not have, by name,
	// with the requests that the log holds of them.
	Unknown           map[string]int64 `json:"unknown_applications"`
	UnknownMore       int64            `json:"unknown_applications_more,omitempty"` // requests of further ones
	WithoutUser       int64            `json:"without_user"`
	WithoutInstance   int64            `json:"without_instance"`
	NotUnderstood     int64            `json:"not_understood"`
	NotUnderstoodHead []lineFault      `json:"not_understood_first"`

	hints map[string]string // per unknown application, the name that is meant
}

// appPlacement is one application that the log names.
type appPlacement struct {
	App      string `json:"app"`
	Requests int64  `json:"requests"`
	Users    int64  `json:"users"`
	Same     int64  `json:"same"`
	Moved    int64  `json:"moved"`
	// Elsewhere counts requests that went to another instance than the user's
	// here, also earlier ones of users who are the same in the end.
	Elsewhere int64        `json:"requests_elsewhere"`
	Examples  []*movedUser `json:"examples"`
}

func (v *verifier) report(from string) *placementReport {
	r := &placementReport{
		Configuration: from, Lines: v.lines, Requests: v.requests, Exact: v.shift == 0, MovedAtLeast: v.movedRest > 0,
		Applications: []appPlacement{}, Unknown: v.unknown, UnknownMore: v.unknownRest, WithoutUser: v.noUser, WithoutInstance: v.noInstance,
		NotUnderstood: v.mute, NotUnderstoodHead: v.muteFirst, hints: make(map[string]string),
	}
	if r.NotUnderstoodHead == nil {
		r.NotUnderstoodHead = []lineFault{}
	}
	for name := range v.unknown {
		r.hints[name] = lb.DidYouMean(name, v.names())
	}
	for _, a := range v.table.Apps() {
		of := v.apps[a.Decl.Name]
		if of.requests == 0 {
			continue
		}
		p := appPlacement{
			App: a.Decl.Name, Requests: of.requests, Users: int64(of.users) << v.shift, Moved: int64(of.moved),
			Elsewhere: of.elsewhere, Examples: of.shown,
		}
		p.Users = max(p.Users, p.Moved) // an estimate may be below what is known
		p.Same = p.Users - p.Moved
		if p.Examples == nil {
			p.Examples = []*movedUser{}
		}
		r.Users += p.Users
		r.Same += p.Same
		r.Moved += p.Moved
		r.Applications = append(r.Applications, p)
	}
	return r
}

// verdict is the error that gives the exit code.
func (r *placementReport) verdict() error {
	switch {
	case r.Moved > 0:
		return fmt.Errorf("%s would move", r.movers())
	case len(r.Unknown) > 0:
		return errors.New("the log names applications that are not in the configuration")
	case r.Users == 0:
		return errors.New("the log holds no request with a user and an instance, so nothing is proven")
	}
	return nil
}

func (r *placementReport) movers() string {
	of := plural64(r.Users, "user")
	if !r.Exact {
		of = "about " + of
	}
	least := ""
	if r.MovedAtLeast {
		least = "at least "
	}
	return fmt.Sprintf("%s%d of %s", least, r.Moved, of)
}

func plural64(n int64, one string) string {
	if n == 1 {
		return "1 " + one
	}
	return fmt.Sprintf("%d %ss", n, one)
}

func placementTable(t *table, r *placementReport) {
	t.line("%s, %s, placed by %s", plural64(r.Lines, "line"), plural64(r.Requests, "request"), r.Configuration)
	if len(r.Applications) > 0 {
		t.header("APPLICATION", ">REQUESTS", ">USERS", ">SAME", ">MOVED")
	}
	about := ""
	if !r.Exact {
		about = "~"
	}
	for _, a := range r.Applications {
		moved := cell{text: fmt.Sprint(a.Moved), color: green}
		if a.Moved > 0 {
			moved.color = red
		}
		t.row(a.App, a.Requests, about+fmt.Sprint(a.Users), about+fmt.Sprint(a.Same), moved)
	}
	for _, a := range r.Applications {
		for _, m := range a.Examples {
			is := m.WouldBe
			if is == "" {
				is = "served by nobody"
			}
			t.line("%s: user %q was on %s, would be %s", a.App, m.User, m.Was, is)
		}
		if more := a.Moved - int64(len(a.Examples)); more > 0 && len(a.Examples) > 0 {
			t.line("%s: and %d more", a.App, more)
		}
		if earlier := a.Elsewhere; earlier > 0 && a.Moved == 0 {
			t.line("%s: %s went elsewhere before, by failover or an older configuration; the last one of each user did not", a.App, plural64(earlier, "request"))
		}
	}
	var unknown []string
	for name := range r.Unknown {
		unknown = append(unknown, name)
	}
	sort.Strings(unknown)
	for _, name := range unknown {
		t.colored(red, "there is no application %q, of which the log holds %s%s", name, plural64(r.Unknown[name], "request"), r.hints[name])
	}
	if r.UnknownMore > 0 {
		t.colored(red, "and of further ones %s", plural64(r.UnknownMore, "request"))
	}
	if r.WithoutUser > 0 {
		t.line("%s without a user: they may go anywhere", plural64(r.WithoutUser, "request"))
	}
	if r.WithoutInstance > 0 {
		t.line("%s that no instance served", plural64(r.WithoutInstance, "request"))
	}
	for _, f := range r.NotUnderstoodHead {
		t.colored(yellow, "line %d is not understood: %s", f.Line, f.Reason)
	}
	if more := r.NotUnderstood - int64(len(r.NotUnderstoodHead)); more > 0 {
		t.colored(yellow, "and %d more", more)
	}
	if r.Moved == 0 && r.Users > 0 {
		t.colored(green, "every user of these applications stays where he is")
	}
}
