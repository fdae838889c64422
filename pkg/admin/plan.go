package admin

import (
	"math"
	"net/http"
	"sort"
	"strconv"
	"strings"

	"difylb/pkg/lb"
	"difylb/pkg/route"
	"difylb/pkg/store"
)

// ParseShare reads a share of users: "5%", or "0.05". More than all, less than
// none, and a bare number above 1, which may mean either, are errors.
func ParseShare(text string) (float64, error) {
	digits, percent := strings.CutSuffix(strings.TrimSpace(text), "%")
	v, err := strconv.ParseFloat(strings.TrimSpace(digits), 64)
	switch {
	case err != nil || math.IsNaN(v):
		return 0, lb.Errorf(lb.ErrInvalid, "%q is not a share such as 5%% or 0.05", text)
	case !percent && v > 1 && v <= 100:
		return 0, lb.Errorf(lb.ErrInvalid, "%q is more than all; %s%% is a share", text, digits)
	case percent:
		v /= 100
	}
	if v < 0 || v > 1 {
		return 0, lb.Errorf(lb.ErrInvalid, "%q is not a share from 0%% to 100%%", text)
	}
	return v, nil
}

// share reads a share of users, nil when it is not asked for.
func (q *query) share(key string) *float64 {
	if !q.values.Has(key) {
		return nil
	}
	v, err := ParseShare(q.values.Get(key))
	if err != nil {
		q.faults.Add("query."+key, "%s", err)
		return nil
	}
	return &v
}

// movements says who moves in each application that is touched: in those that
// stay by their tables, in those that go everybody.
func (s *Server) movements(base *lb.Snapshot, out *ApplyResult, from, to *route.Table) {
	for app, share := range out.Moved {
		m := Movement{Share: share, Flows: route.Flows(from, to, app)}
		m.Recent = s.recentUsers(app, base, route.Moves(from, to, app))
		out.Movements[app] = m
	}
	for _, app := range out.Deleted {
		a := base.Application(app)
		if a == nil || len(a.Instances) == 0 {
			continue
		}
		out.Movements[app] = Movement{Share: 1, Flows: []Flow{}, Recent: s.recentUsers(app, base, nil)}
	}
}

// recentUsers counts who of the users seen within the last day moves; nil for
// moves means that all do. It is nil while no proxy has told of any.
func (s *Server) recentUsers(app string, base *lb.Snapshot, moves func(point uint64) bool) *RecentUsers {
	if s.recent == nil {
		return nil
	}
	sample := s.recent(app)
	a := base.Application(app)
	if sample.Len() == 0 || a == nil || sample.Kind != string(a.ConsistentHash.HashAlgorithm) {
		return nil
	}
	if moves == nil {
		moves = func(uint64) bool { return true }
	}
	users, share := sample.Users(), sample.Share(moves)
	return &RecentUsers{Seen: int64(math.Round(users)), Moving: int64(math.Round(users * share)), Exact: sample.Exact()}
}

// touched lists the instances that the draft takes from their users, with what
// is open on them now.
func (s *Server) touched(base *lb.Snapshot, d *store.Draft, apps map[string]bool) []Touched {
	out := []Touched{}
	for app := range apps {
		before, after := base.Application(app), d.Application(app)
		if before == nil {
			continue
		}
		for i := range before.Instances {
			in := &before.Instances[i]
			how := Removed
			if after != nil {
				if next, _ := after.Instance(in.Name); next != nil {
					how = becomes(in, next)
				}
			}
			if how != "" {
				out = append(out, Touched{App: app, Instance: in.Name, How: how})
			}
		}
	}
	if len(out) == 0 {
		return out
	}
	sort.Slice(out, func(i, j int) bool {
		if out[i].App != out[j].App {
			return out[i].App < out[j].App
		}
		return out[i].Instance < out[j].Instance
	})
	st := s.hub.Status()
	if st == nil {
		return out
	}
	for i := range out {
		if a := st.Applications[out[i].App]; a != nil {
			if in := a.Instances[out[i].Instance]; in != nil {
				out[i].Open, out[i].Streams = in.Active, in.Streams
			}
		}
	}
	return out
}

// becomes says what of the change matters to requests that are open.
func becomes(before, after *lb.Instance) string {
	switch {
	case after.State != before.State && after.State != lb.Active:
		return string(after.State)
	case after.Address() != before.Address() || after.BaseURL().Scheme != before.BaseURL().Scheme:
		return Readdressed
	}
	return ""
}

// refuseMoves is the error of a change that moves more users than it may.
func refuseMoves(out *ApplyResult, most *float64, unknown error) error {
	if most == nil {
		return nil
	}
	if unknown != nil {
		return fail(http.StatusConflict, "moves-too-many", "it can't be told how many users move (%s); nothing was changed", unknown)
	}
	var fs lb.Faults
	for app, m := range out.Movements {
		if m.Share > *most {
			what := "of the users move"
			if _, stays := out.Moved[app]; !stays {
				what = "of the users lose the application, which is deleted"
			}
			fs.Add(appPath(app), "%s %s; at most %s may", percentText(m.Share), what, percentText(*most))
		}
	}
	if len(fs) == 0 {
		return nil
	}
	sort.Slice(fs, func(i, j int) bool { return fs[i].Path < fs[j].Path })
	f := fail(http.StatusConflict, "moves-too-many", "in %d applications more users move than may; nothing was changed", len(fs))
	if len(fs) == 1 {
		f.detail = fs[0].String() + "; nothing was changed"
	}
	f.faults = fs
	return f
}

// percentText writes a share with four digits that count.
func percentText(share float64) string {
	return strconv.FormatFloat(share*100, 'g', 4, 64) + "%"
}
