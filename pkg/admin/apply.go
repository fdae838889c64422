package admin

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/http"
	"reflect"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"difylb/pkg/document"
	"difylb/pkg/lb"
	"difylb/pkg/route"
	"difylb/pkg/store"
)

// application of a document: what is to become of the configuration.
type application struct {
	doc    *lb.Document
	faults lb.Faults // of reading it
	prune  bool
	dryRun bool
	wait   time.Duration
	most   *float64 // share of users that may move; nil: all
	action string
	note   string
}

func (s *Server) apply(w http.ResponseWriter, r *http.Request, q *query) error {
	a := application{prune: q.flag("prune"), dryRun: q.flag("dry_run"), wait: q.wait(), most: q.share("max_moved"), action: "apply"}
	if err := q.err(); err != nil {
		return err
	}
	data, err := readBody(w, r, maxApplyBytes, bodyTypes...)
	if err != nil {
		return err
	}
	a.doc, err = document.Parse(data)
	errors.As(err, &a.faults)
	if unreadable(a.faults) || a.doc == nil {
		return declarationFaults(a.faults)
	}
	return s.carryOut(w, r, a)
}

func (s *Server) rollback(w http.ResponseWriter, r *http.Request, q *query) error {
	a := application{prune: true, dryRun: q.flag("dry_run"), wait: q.wait(), most: q.share("max_moved"), action: "rollback"}
	if err := q.err(); err != nil {
		return err
	}
	revision, err := revisionOf(r)
	if err != nil {
		return err
	}
	if a.doc, err = s.store.ConfigAt(r.Context(), revision); err != nil {
		return err
	}
	// Before the first change there was nothing; a mistyped revision must not
	// delete everything.
	if entries, err := s.store.History(r.Context(), 1, revision+1); err != nil {
		return err
	} else if len(entries) == 0 {
		return lb.Errorf(lb.ErrNotFound, "revision %d is before the first change of the configuration; see the history for revisions to return to", revision)
	}
	if a.doc.Settings == nil {
		a.doc.Settings = &lb.Settings{}
	}
	a.note = strconv.FormatInt(revision, 10)
	return s.carryOut(w, r, a)
}

func revisionOf(r *http.Request) (int64, error) {
	text := r.PathValue("revision")
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < 1 {
		return 0, fail(http.StatusBadRequest, "malformed", "%q is not a revision; GET %s/history lists them", text, Base)
	}
	return n, nil
}

// errDryRun ends a dry run before anything is written.
var errDryRun = errors.New("dry run")

// carryOut makes the document the configuration, in one change, or tells what
// that would do.
func (s *Server) carryOut(w http.ResponseWriter, r *http.Request, a application) error {
	patience(w, a.wait)
	out, res, err := s.foresee(r, a.action, a.note, limits{a.dryRun, a.most}, func(d *store.Draft) error {
		if err := conditionOf(r).check("the configuration", d.Base().ConfigRevision); err != nil {
			return err
		}
		return declareAll(d, a)
	})
	if err != nil {
		return err
	}
	if res.Changed {
		out.Revision = res.Revision
		s.settled(r.Context(), res.Revision)
	}
	if a.wait > 0 && !a.dryRun {
		out.InForce = s.awaitReceipts(r.Context(), out.Revision, a.wait)
	}
	w.Header().Set("ETag", ETag(out.Revision))
	return answer(w, http.StatusOK, out)
}

// limits are what a caller asks of a change beside itself.
type limits struct {
	dryRun bool
	most   *float64 // share of an application's users that may move; nil: all
}

func limitsOf(q *query) limits { return limits{q.flag("dry_run"), q.share("max_moved")} }

// asked reports whether it must be known who moves.
func (l limits) asked() bool { return l.dryRun || l.most != nil }

// foresee makes a change after it has told what it does, unless that is more
// than the limits let happen. In a dry run it only tells.
func (s *Server) foresee(r *http.Request, action, note string, l limits, change func(*store.Draft) error) (out ApplyResult, res store.Result, err error) {
	res, err = s.store.Update(r.Context(), audit(r, action, note), func(d *store.Draft) error {
		if err := change(d); err != nil {
			return err
		}
		var unknown error
		out, unknown = s.outcome(d, l.dryRun)
		out.DryRun, out.Revision = l.dryRun, d.Base().ConfigRevision
		if err := refuseMoves(&out, l.most, unknown); err != nil {
			return err
		}
		if l.dryRun {
			return errDryRun
		}
		return nil
	})
	if errors.Is(err, errDryRun) {
		return out, store.Result{}, nil
	}
	return out, res, err
}

// declareAll puts the document into the draft, or returns every fault of the
// whole.
func declareAll(d *store.Draft, a application) error {
	// Update may call again on a newer base, and Resolve changes what it is
	// given, so each call has its own copies.
	doc := &lb.Document{Applications: make(map[string]*lb.Application, len(a.doc.Applications)), Settings: a.doc.Settings}
	var more lb.Faults
	names := make([]string, 0, len(a.doc.Applications))
	for name, app := range a.doc.Applications {
		doc.Applications[name] = cloneDeclared(app)
		names = append(names, name)
	}
	sort.Strings(names)
	for _, name := range names {
		more = append(more, doc.Applications[name].Resolve(d.Application(name), appPath(name))...)
	}
	more = append(more, doc.Validate()...)
	for _, name := range names {
		more = append(more, foreignTokens(d, doc, name, a.prune)...)
	}
	if fs := join(slices.Clone(a.faults), more); len(fs) > 0 {
		return fs
	}
	if a.prune {
		for _, app := range d.Base().Applications {
			if doc.Applications[app.Name] == nil {
				d.Delete(app.Name)
			}
		}
	}
	// Only what differs is put, so that a large document with a small change
	// costs little more than reading it. Not where keys could not be read:
	// writing them anew is what repairs them.
	sound := len(d.Base().Faults) == 0
	for _, name := range names {
		if stored := d.Application(name); !sound || stored == nil || !sameDeclaration(stored, doc.Applications[name]) {
			d.Put(doc.Applications[name])
		}
	}
	if doc.Settings != nil {
		d.SetSettings(*doc.Settings)
	}
	return nil
}

// cloneDeclared is Clone for a declaration, in which a list that is empty
// means something else than one that is absent.
func cloneDeclared(a *lb.Application) *lb.Application {
	c := a.Clone()
	if a.Instances != nil && c.Instances == nil {
		c.Instances = []lb.Instance{}
	}
	if a.UserTokens != nil && c.UserTokens == nil {
		c.UserTokens = []lb.UserToken{}
	}
	return c
}

// sameDeclaration reports whether two applications declare the same; when and
// at which revision does not count.
func sameDeclaration(a, b *lb.Application) bool {
	if len(a.Instances) != len(b.Instances) || len(a.UserTokens) != len(b.UserTokens) {
		return false
	}
	for i := range a.Instances {
		x, y := a.Instances[i], b.Instances[i]
		x.Revision = y.Revision
		if !reflect.DeepEqual(x, y) {
			return false
		}
	}
	for i := range a.UserTokens {
		x, y := a.UserTokens[i], b.UserTokens[i]
		x.Created = y.Created
		if x != y {
			return false
		}
	}
	x, y := *a, *b
	x.Revision = y.Revision
	x.Instances, y.Instances, x.UserTokens, y.UserTokens = nil, nil, nil, nil
	return reflect.DeepEqual(x, y)
}

// foreignTokens finds tokens that belong to applications which the document
// does not name and which stay. Those within the document are Validate's.
func foreignTokens(d *store.Draft, doc *lb.Document, name string, prune bool) lb.Faults {
	var fs lb.Faults
	for i, t := range doc.Applications[name].UserTokens {
		owner, taken := d.TokenOwner(t.SHA256)
		if taken && owner != name && doc.Applications[owner] == nil && !prune {
			fs.Add(fmt.Sprintf("%s.user_tokens[%d]", appPath(name), i), "this token belongs to application %q already; a token belongs to one application only", owner)
		}
	}
	return fs
}

// outcome tells what the draft does, with the objects before and after where
// whole is true. With an error it does not tell who moves.
func (s *Server) outcome(d *store.Draft, whole bool) (ApplyResult, error) {
	changes := d.Changes()
	out := ApplyResult{
		Unchanged: len(changes) == 0, Changes: changesOf(changes, whole),
		Created: []string{}, Changed: []string{}, Deleted: []string{}, Moved: map[string]float64{},
		Movements: map[string]Movement{},
	}
	base := d.Base()
	touched := make(map[string]bool)
	for _, c := range changes {
		if c.App != "" {
			touched[c.App] = true
		}
	}
	for name := range touched {
		switch before, after := base.Application(name) != nil, d.Application(name) != nil; {
		case !before:
			out.Created = append(out.Created, name)
		case !after:
			out.Deleted = append(out.Deleted, name)
		default:
			out.Changed = append(out.Changed, name)
		}
	}
	sort.Strings(out.Created)
	sort.Strings(out.Changed)
	sort.Strings(out.Deleted)
	out.Touched = s.touched(base, d, touched)
	from, to, err := s.tables(base, d, touched)
	if err != nil {
		// The change itself may be sound all the same; proxies decide that.
		s.log.Warn().Err(err).Msg("the share of users that move is not known")
		return out, err
	}
	if from != nil {
		for app, share := range route.Moved(from, to) {
			out.Moved[app] = share
		}
	}
	s.movements(base, &out, from, to)
	return out, nil
}

// tables compiles the tables before and after; nil where nobody can move.
func (s *Server) tables(base *lb.Snapshot, d *store.Draft, touched map[string]bool) (from, to *route.Table, err error) {
	// Of a new application nobody moves.
	if !slices.ContainsFunc(slices.Collect(maps.Keys(touched)), func(name string) bool { return base.Application(name) != nil }) {
		return nil, nil, nil
	}
	if from, err = s.tableOf(base); err != nil {
		return nil, nil, err
	}
	next := *base
	next.Applications = make([]*lb.Application, 0, len(base.Applications))
	for _, app := range base.Applications {
		if !touched[app.Name] {
			next.Applications = append(next.Applications, app)
		} else if after := d.Application(app.Name); after != nil {
			next.Applications = append(next.Applications, after)
		}
	}
	if to, err = route.Build(&next, from); err != nil {
		return nil, nil, err
	}
	return from, to, nil
}

// tableOf compiles a snapshot, reusing what the process has compiled already.
func (s *Server) tableOf(snap *lb.Snapshot) (*route.Table, error) {
	have := s.table()
	if have != nil && have.ConfigRevision == snap.ConfigRevision && have.Epoch == snap.Epoch {
		return have, nil
	}
	return route.Build(snap, have)
}

// awaitReceipts waits until every live proxy has the configuration.
func (s *Server) awaitReceipts(ctx context.Context, revision int64, wait time.Duration) *InForce {
	ctx, cancel := context.WithTimeout(ctx, wait)
	defer cancel()
	defer context.AfterFunc(s.closing, cancel)()
	// The error only says that the time was over; the list says more.
	lagging, _ := s.hub.WaitReceipts(ctx, revision)
	out := &InForce{All: len(lagging) == 0, Nodes: []string{}, Waiting: []string{}, Refused: []string{}}
	behind := make(map[string]bool, len(lagging))
	for _, l := range lagging {
		behind[l.Node] = true
		if l.Refused != "" {
			out.Refused = append(out.Refused, l.Node+": "+l.Refused)
		} else {
			out.Waiting = append(out.Waiting, l.Node)
		}
	}
	for _, n := range s.hub.Nodes() {
		if n.Role == lb.RoleProxy && !behind[n.ID] {
			out.Nodes = append(out.Nodes, n.ID)
		}
	}
	return out
}

func (s *Server) export(w http.ResponseWriter, r *http.Request, q *query) error {
	secrets, format := q.flag("secrets"), Format(q.text("format"))
	if format != "" && format != JSON && format != YAML {
		q.faults.Add("query.format", "%q is not json or yaml", string(format))
	}
	if err := q.err(); err != nil {
		return err
	}
	if c := callerOf(r); secrets && c.role.rank() < RoleAdmin.rank() {
		return forbidden(c, RoleAdmin)
	}
	if format == "" && strings.Contains(r.Header.Get("Accept"), "yaml") {
		format = YAML
	}
	marshal, kind := document.MarshalJSON, "application/json"
	if format == YAML {
		marshal, kind = document.MarshalYAML, "application/yaml"
	}
	snap := s.store.Current()
	data, err := marshal(snap.Document(), document.Secrets(secrets))
	if err != nil {
		return fmt.Errorf("export: %w", err)
	}
	if secrets {
		c := callerOf(r)
		s.log.Warn().Str("who", c.name).Str("from", c.address()).Str("action", EventSecretsExport).Msg("exported with secrets")
		s.act(r, EventSecretsExport, ActEvent{})
	}
	h := w.Header()
	h.Set("Content-Type", kind)
	h.Set("Cache-Control", "no-store")
	h.Set("Vary", "Accept")
	h.Set("ETag", ETag(snap.ConfigRevision))
	_, _ = w.Write(data) // an error is the client's going away
	return nil
}
