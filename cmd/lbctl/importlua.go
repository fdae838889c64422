package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"net/url"
	"os"
	"sort"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	lua "github.com/yuin/gopher-lua"

	"difylb/pkg/admin"
	"difylb/pkg/document"
	"difylb/pkg/lb"
)

func (c *cli) importCommand() *cobra.Command {
	return group("import", "Take over the configuration of another balancer", "  lbctl import lua config.lua > difylb.yaml", c.importLuaCommand())
}

func (c *cli) importLuaCommand() *cobra.Command {
	var honor honored
	var apply bool
	var o admin.ApplyOptions
	cmd := &cobra.Command{
		Use: "lua FILE", Short: "Take over the config.lua of the OpenResty balancer",
		Long: `Runs a config.lua in a sandbox without files, processes and network, and prints the
document that means the same here; standard error says what was found, what it means here
and what is left out. Users stay on the instances they are on: the order of instances, the
hash and the number of virtual nodes are taken over, and weights, which that balancer
never looked at, become 1 unless --honor-weights is given. Probes of /health, which that
balancer never sent and Dify's nginx does not answer, become GET /v1/info unless every
instance is on port 5001, Dify's API itself, or --honor-health-path is given.

The document holds the tokens that the file holds; keep it as safe.`,
		Example: `  lbctl import lua config.lua > difylb.yaml
  lbctl import lua config.lua --apply --dry-run
  lbctl import lua - --apply < config.lua`,
		Args: exactly("FILE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !apply {
				for _, name := range []string{"dry-run", "prune", "max-moved", "wait"} {
					if cmd.Flags().Changed(name) {
						return usagef("--%s means something with --apply only", name)
					}
				}
			}
			name, text, err := c.readLua(args[0])
			if err != nil {
				return err
			}
			im, err := importLua(cmd.Context(), name, text, honor)
			if err != nil {
				return err
			}
			im.report(c.err)
			if fs := im.faults(); len(fs) > 0 {
				e := &documentError{what: "import " + name}
				for _, f := range fs {
					f.Line = 0
					e.faults = append(e.faults, placedFault{f, name})
				}
				return e
			}
			if !apply {
				return c.printImport(im)
			}
			s := &source{name: name}
			s.parse(im.document)
			s.root = nil // its lines are not those of the file
			return c.apply(cmd, []*source{s}, o)
		},
	}
	f := cmd.Flags()
	f.BoolVar(&honor.weights, "honor-weights", false, "take weights over, which moves users where they differ")
	f.BoolVar(&honor.healthPath, "honor-health-path", false, "probe /health where the file says so, also behind Dify's nginx, which has no such path")
	f.BoolVar(&apply, "apply", false, "apply the document instead of printing it")
	f.BoolVar(&o.DryRun, "dry-run", false, "with --apply: tell what would change, and change nothing")
	f.BoolVar(&o.Prune, "prune", false, "with --apply: delete applications that the file does not name")
	maxMovedFlag(cmd, &o.MaxMoved)
	waitFlag(cmd, &o.Wait, "with --apply: how long to wait for the proxies to have it in force")
	return cmd
}

func (c *cli) readLua(file string) (string, []byte, error) {
	name, r := "<stdin>", c.in
	if file != "-" {
		f, err := os.Open(file)
		if err != nil {
			return "", nil, usagef("%s", reason(err))
		}
		defer f.Close()
		name, r = file, f
	}
	data, err := io.ReadAll(io.LimitReader(r, maxLuaFileBytes+1))
	if err != nil {
		return "", nil, usagef("%s: %s", name, reason(err))
	}
	return name, data, nil
}

func (c *cli) printImport(im *imported) error {
	data := im.document
	var err error
	if c.output != "json" {
		if data, err = document.JSONToYAML(data); err != nil {
			return err
		}
	} else {
		var out bytes.Buffer
		if err := json.Indent(&out, data, "", "  "); err != nil {
			return err
		}
		out.WriteByte('\n')
		data = out.Bytes()
	}
	_, err = c.out.Write(data)
	return err
}

// object is a JSON object whose members keep their order.
type object []member

type member struct {
	key string
	val any
}

func (o *object) put(key string, val any) { *o = append(*o, member{key, val}) }

// MarshalJSON implements json.Marshaler.
func (o object) MarshalJSON() ([]byte, error) {
	var out bytes.Buffer
	out.WriteByte('{')
	for i, m := range o {
		if i > 0 {
			out.WriteByte(',')
		}
		key, err := json.Marshal(m.key)
		if err != nil {
			return nil, err
		}
		val, err := json.Marshal(m.val)
		if err != nil {
			return nil, err
		}
		out.Write(key)
		out.WriteByte(':')
		out.Write(val)
	}
	out.WriteByte('}')
	return out.Bytes(), nil
}

// imported is the document that a configuration comes to, and what there is to
// say about it.
type imported struct {
	file      string
	document  []byte // JSON
	apps      int
	instances int
	tokens    int
	honor     honored
	notes     []*note
}

// honored is what is taken over although that balancer never acted on it and
// it may do harm here.
type honored struct{ weights, healthPath bool }

// note is one thing to know, and the places it is about.
type note struct {
	what   string // the field
	text   string // what it means here, or why it is left out
	places []string
}

func (im *imported) note(what, place, format string, args ...any) {
	text := fmt.Sprintf(format, args...)
	for _, n := range im.notes {
		if n.what == what && n.text == text {
			n.places = append(n.places, place)
			return
		}
	}
	im.notes = append(im.notes, &note{what, text, []string{place}})
}

// report says what was found. It never shows a token.
func (im *imported) report(w io.Writer) {
	fmt.Fprintf(w, "%s: %s, %s, %s\n", clean(im.file), count(im.apps, "application"), count(im.instances, "instance"), count(im.tokens, "user token"))
	for _, n := range im.notes {
		where := ""
		if n.places[0] != "" {
			where = " (" + n.places[0]
			if len(n.places) > 1 {
				where += fmt.Sprintf(" and %d more", len(n.places)-1)
			}
			where += ")"
		}
		fmt.Fprintln(w, clean(fmt.Sprintf("  %s%s: %s", n.what, where, n.text)))
	}
}

// faults returns what is wrong with the document.
func (im *imported) faults() lb.Faults {
	s := &source{name: im.file}
	s.parse(im.document)
	return s.faults(false)
}

// importLua runs the configuration and turns what it comes to into a document.
func importLua(ctx context.Context, file string, source []byte, honor honored) (*imported, error) {
	conf, err := runLua(ctx, file, source)
	if err != nil {
		return nil, err
	}
	defer conf.close()
	root, err := findConfig(conf)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", file, err)
	}
	im := &imported{file: file, honor: honor}
	im.document, err = json.Marshal(im.root(root))
	return im, err
}

// applicationKeys are the names under which configurations keep the applications.
var applicationKeys = []string{"applications", "apps"}

// findConfig finds the configuration: what the file returns, or leaves in a
// global, as a table that holds applications or is them.
func findConfig(conf *luaConfig) (*luaValue, error) {
	candidates := []lua.LValue{conf.result}
	for _, name := range []string{"config", "_M", "M"} {
		candidates = append(candidates, conf.globals(name))
	}
	for _, v := range candidates {
		if v.Type() != lua.LTTable {
			continue
		}
		t, err := readLua(v)
		if err != nil {
			return nil, err
		}
		if t.first(applicationKeys...) != nil {
			return t, nil
		}
		if inner := t.table("config"); inner != nil && inner.first(applicationKeys...) != nil {
			return inner, nil
		}
		if t.looksLikeApplications() {
			return &luaValue{kind: lua.LTTable, keys: []string{"applications"}, fields: map[string]*luaValue{"applications": t}}, nil
		}
	}
	out := &luaValue{kind: lua.LTTable, fields: make(map[string]*luaValue)}
	for _, name := range append(applicationKeys, "consistent_hash", "rate_limit", "health_check", "timeouts") {
		g := conf.globals(name)
		if g.Type() != lua.LTTable {
			continue
		}
		v, err := readLua(g)
		if err != nil {
			return nil, err
		}
		out.keys = append(out.keys, name)
		out.fields[name] = v
	}
	if out.first(applicationKeys...) == nil {
		return nil, errors.New("it holds no applications: neither does it return a table with them, nor leave them in a global config or applications")
	}
	return out, nil
}

func (v *luaValue) looksLikeApplications() bool {
	for _, key := range v.keys {
		if v.fields[key].first(instanceKeys...) == nil {
			return false
		}
	}
	return len(v.keys) > 0
}

// first returns the first of the named fields that is there.
func (v *luaValue) first(names ...string) *luaValue {
	for _, n := range names {
		if f := v.fields[n]; f != nil {
			return f
		}
	}
	return nil
}

// table returns a field that is a table, or nil.
func (v *luaValue) table(names ...string) *luaValue {
	f := v.first(names...)
	if f == nil || f.kind != lua.LTTable {
		return nil
	}
	return f
}

func (v *luaValue) isFalse() bool { return v != nil && v.kind == lua.LTBool && !v.truth }

func (im *imported) root(root *luaValue) object {
	var doc object
	apps := root.first(applicationKeys...)
	names := append([]string(nil), apps.keys...)
	sort.Strings(names) // as an export does; their order means nothing
	im.apps = len(names)
	var list object
	for _, name := range names {
		list.put(name, im.application(name, apps.fields[name], root))
	}
	if len(apps.list) > 0 {
		im.note("applications", "", "%s without a name left out; an application is found by its name", count(len(apps.list), "entry"))
	}
	doc.put("applications", list)
	if rates := root.table("rate_limit"); rates != nil && !rates.first("enabled").isFalse() {
		if perIP := rates.table("per_ip"); perIP != nil {
			var limits, settings object
			limits.put("per_ip", im.rate("rate_limit.per_ip", perIP))
			settings.put("rate_limit", limits)
			doc.put("settings", settings)
		}
	}
	for _, key := range root.keys {
		switch {
		case contains(applicationKeys, key), contains([]string{"consistent_hash", "rate_limit", "health_check", "timeouts", "timeout"}, key):
		case root.fields[key].kind == lua.LTFunction, strings.HasPrefix(key, "_"):
		default:
			im.note(key, "", "left out: %s", whyLeftOut(key))
		}
	}
	return doc
}

// whyLeftOut says where the matter of a block is settled here.
func whyLeftOut(key string) string {
	switch strings.TrimSuffix(key, "s") {
	case "log", "logging":
		return "logs are a matter of the processes; see --log-level and --access-log"
	case "monitoring", "stat", "statistic", "metric":
		return "statistics are always on, at /status and /metrics"
	case "cache", "shared_dict", "redi":
		return "nothing is cached; state lives in etcd"
	}
	return "there is no such thing here"
}

var (
	instanceKeys = []string{"instances", "backends", "servers", "nodes", "upstreams"}
	tokenKeys    = []string{"user_tokens", "tokens", "user_token"}
)

func (im *imported) application(name string, app, root *luaValue) any {
	if app.kind != lua.LTTable {
		return app.scalar() // the reader of documents says what is wrong with it
	}
	at := "applications." + name
	var out object
	out.put("user_tokens", im.userTokens(app))
	if ch := im.consistentHash(at, app, root); ch != nil {
		out.put("consistent_hash", ch)
	}
	if t := im.timeouts(at, app, root); t != nil {
		out.put("timeouts", t)
	}
	if r := im.rateLimit(at, app, root); r != nil {
		out.put("rate_limit", r)
	}
	instances := im.instanceList(at, app)
	if h := im.healthCheck(at, app, root, instances); h != nil {
		out.put("health_check", h)
	}
	out.put("instances", instances)
	for _, key := range app.keys {
		if contains(instanceKeys, key) || contains(tokenKeys, key) || contains([]string{"consistent_hash", "rate_limit", "health_check", "timeouts", "timeout"}, key) {
			continue
		}
		im.note(key, at, "left out: there is no such field here")
	}
	return out
}

func (im *imported) userTokens(app *luaValue) []any {
	out := []any{}
	for _, key := range tokenKeys {
		v := app.fields[key]
		if v == nil {
			continue
		}
		items := v.list
		if v.kind != lua.LTTable {
			items = []*luaValue{v}
		}
		for _, item := range items {
			im.tokens++
			if item.kind != lua.LTTable {
				out = append(out, item.text)
				continue
			}
			var t object
			if value := item.first("token", "value", "key"); value != nil {
				t.put("token", value.text)
			}
			if label := item.first("label", "name"); label != nil {
				t.put("label", label.text)
			}
			if item.first("disabled") != nil && item.first("disabled").truth {
				t.put("disabled", true)
			}
			out = append(out, t)
		}
	}
	return out
}

// consistentHash keeps the placement: that balancer hashed with md5 when it
// was told exactly that, and with crc32 in every other case.
func (im *imported) consistentHash(at string, app, root *luaValue) any {
	ch := root.table("consistent_hash")
	if own := app.table("consistent_hash"); own != nil {
		if ch == nil {
			ch = own
		} else {
			im.note("consistent_hash", at, "left out: that balancer looked at the common one only, so the common one places the users")
		}
	}
	if ch == nil {
		im.note("consistent_hash", "", "not set; here it is crc32 with 150 virtual nodes")
		return nil
	}
	var out object
	switch n := ch.first("virtual_nodes", "vnodes", "replicas"); {
	case n == nil:
		out.put("virtual_nodes", 200)
		im.note("consistent_hash.virtual_nodes", "", "not set; 200 was that balancer's default, and keeps users where they are")
	default:
		out.put("virtual_nodes", n.integer())
	}
	algorithm := ch.first("hash_algorithm", "algorithm")
	switch {
	case algorithm == nil || algorithm.text == "crc32":
		out.put("hash_algorithm", "crc32")
	case algorithm.text == "md5":
		out.put("hash_algorithm", "md5")
	default:
		out.put("hash_algorithm", "crc32")
		im.note("consistent_hash.hash_algorithm", "", "%q fell back to crc32 in that balancer, so crc32 keeps users where they are", algorithm.text)
	}
	for _, key := range ch.keys {
		if !contains([]string{"virtual_nodes", "vnodes", "replicas", "hash_algorithm", "algorithm"}, key) {
			im.note("consistent_hash."+key, "", "left out: there is no such field here")
		}
	}
	return out
}

func (im *imported) timeouts(at string, app, root *luaValue) any {
	t := app.table("timeouts", "timeout")
	if t == nil {
		at = ""
		t = root.table("timeouts", "timeout")
	}
	if t == nil {
		return nil
	}
	var out object
	for _, key := range []string{"connect", "read", "send"} {
		v := t.first(key, key+"_timeout")
		if v == nil {
			continue
		}
		if v.kind == lua.LTNumber && v.number >= 1000 {
			out.put(key, numberText(v.number)+"ms")
			im.note("timeouts."+key, at, "%s is taken as milliseconds, as OpenResty counts them", v.text)
			continue
		}
		out.put(key, v.duration())
	}
	if out == nil {
		return nil
	}
	return out
}

// rateNames pairs that balancer's names of limits with ours.
var rateNames = []struct{ theirs, ours string }{{"per_app", "per_app"}, {"per_user_per_app", "per_user"}, {"per_user", "per_user"}}

func (im *imported) rateLimit(at string, app, root *luaValue) any {
	r := app.table("rate_limit")
	if r == nil {
		at = ""
		r = root.table("rate_limit")
	}
	if r == nil {
		return nil
	}
	if r.first("enabled").isFalse() {
		im.note("rate_limit", at, "left out: it is not enabled")
		return nil
	}
	var out object
	done := make(map[string]bool)
	for _, name := range rateNames {
		if v := r.table(name.theirs); v != nil && !done[name.ours] {
			done[name.ours] = true
			out.put(name.ours, im.rate("rate_limit."+name.theirs, v))
		}
	}
	for _, key := range r.keys {
		if !contains([]string{"enabled", "per_app", "per_user_per_app", "per_user", "per_ip"}, key) {
			im.note("rate_limit."+key, at, "left out: limits are per_app, per_user and per_ip")
		}
	}
	if out == nil {
		return nil
	}
	im.note("rate_limit", at, "taken over; here the limits are enforced, so look whether they fit the traffic")
	return out
}

// rate reads {rate = "500r/s", burst = 200}.
func (im *imported) rate(at string, v *luaValue) object {
	var out object
	per := 0.0
	if r := v.first("rate"); r != nil {
		n, ok := ratePerSecond(r.text)
		if per = n; ok {
			out.put("rate", n)
		} else {
			out.put("rate", r.scalar())
		}
	}
	switch b := v.first("burst"); {
	case b == nil:
		out.put("burst", max(1, int(math.Ceil(min(per, 1e9)))))
		im.note(at+".burst", "", "not set; here it is one second's worth")
	case b.kind == lua.LTNumber && b.number == 0:
		out.put("burst", 1)
	default:
		out.put("burst", b.integer())
	}
	return out
}

// ratePerSecond reads nginx's "500r/s" and "30r/m", and plain numbers.
func ratePerSecond(s string) (float64, bool) {
	per := 1.0
	if n, ok := strings.CutSuffix(s, "r/s"); ok {
		s = n
	} else if n, ok := strings.CutSuffix(s, "r/m"); ok {
		s, per = n, 60
	}
	f, err := strconv.ParseFloat(strings.TrimSpace(s), 64)
	if err != nil || f-f != 0 {
		return 0, false
	}
	return f / per, true
}

func (im *imported) healthCheck(at string, app, root *luaValue, instances any) any {
	h := app.table("health_check")
	if h == nil {
		h = root.table("health_check")
	}
	if h == nil {
		return nil
	}
	var out object
	if h.first("enabled", "enable").isFalse() {
		out.put("type", "none")
		im.note("health_check", "", "not enabled, so instances are not probed; live traffic still ejects those that fail")
		return out
	}
	for _, f := range []struct {
		ours   string
		theirs []string
		read   func(*luaValue) any
	}{
		{"path", []string{"path", "uri", "endpoint"}, (*luaValue).scalar},
		{"interval", []string{"interval"}, (*luaValue).duration},
		{"timeout", []string{"timeout"}, (*luaValue).duration},
		{"healthy_threshold", []string{"healthy_threshold", "rise", "success_threshold"}, (*luaValue).integer},
		{"unhealthy_threshold", []string{"unhealthy_threshold", "fall", "fail_threshold", "failure_threshold"}, (*luaValue).integer},
	} {
		switch v := h.first(f.theirs...); {
		case v == nil:
		case f.ours == "path":
			out.put("path", im.healthPath(at, v, instances))
		default:
			out.put(f.ours, f.read(v))
		}
	}
	known := []string{"enabled", "enable", "path", "uri", "endpoint", "interval", "timeout", "healthy_threshold", "rise", "success_threshold", "unhealthy_threshold", "fall", "fail_threshold", "failure_threshold"}
	for _, key := range h.keys {
		if !contains(known, key) {
			im.note("health_check."+key, "", "left out: there is no such field here")
		}
	}
	im.note("health_check", "", "taken over; that balancer never ran it, here instances are probed and users of unhealthy ones move until they are well")
	if out == nil {
		return nil
	}
	return out
}

// healthPath keeps probes from asking for what is not there. /health is
// gunicorn's, on the API's own port; Dify's nginx has no such location and
// hands it to the web front end, so that every instance would be unhealthy.
func (im *imported) healthPath(at string, path *luaValue, instances any) any {
	if path.text != "/health" {
		return path.scalar()
	}
	const what = "health_check.path"
	if direct(instances) {
		im.note(what, at, "/health is taken over: every instance is on port %s, where Dify's API answers it; /v1/info would look at the database and the token, too", apiPort)
		return path.text
	}
	if im.honor.healthPath {
		im.note(what, at, "/health is taken over; behind Dify's nginx there is no such path, and every instance would be unhealthy")
		return path.text
	}
	im.note(what, at, "/health becomes /v1/info, asked with the token: behind Dify's nginx there is no /health, and every instance would be unhealthy (--honor-health-path takes it over)")
	return "/v1/info"
}

// apiPort is where Dify's API listens when nothing is in front of it.
const apiPort = "5001"

// direct reports whether every instance is Dify's API itself.
func direct(instances any) bool {
	list, _ := instances.([]any)
	for _, in := range list {
		port := ""
		o, _ := in.(object)
		for _, m := range o {
			switch m.key {
			case "port":
				port = fmt.Sprint(m.val)
			case "url":
				if u, err := url.Parse(fmt.Sprint(m.val)); err == nil {
					port = u.Port()
				}
			}
		}
		if port != apiPort {
			return false
		}
	}
	return len(list) > 0
}

func (im *imported) instanceList(at string, app *luaValue) any {
	v := app.first(instanceKeys...)
	if v == nil {
		im.note("instances", at, "there are none")
		return []any{}
	}
	if v.kind != lua.LTTable {
		return v.scalar()
	}
	out := []any{}
	for i, in := range v.list {
		out = append(out, im.instance(fmt.Sprintf("%s.instances[%d]", at, i), "", in))
	}
	if len(v.keys) > 0 {
		im.note("instances", at, "keyed by name, which has no order in Lua; here they stand as in the file")
	}
	for _, name := range v.keys {
		out = append(out, im.instance(at+".instances."+name, name, v.fields[name]))
	}
	im.instances += len(out)
	return out
}

func (im *imported) instance(at, name string, in *luaValue) any {
	if in.kind != lua.LTTable {
		return in.scalar()
	}
	var out object
	if n := in.first("name", "id"); n != nil {
		name = n.text
	}
	if name != "" {
		out.put("name", name)
	}
	address(&out, in)
	if t := in.first("token", "api_key", "dify_token", "app_token"); t != nil {
		out.put("token", t.text)
	}
	if w := in.first("weight"); w != nil {
		switch {
		case im.honor.weights:
			out.put("weight", w.integer())
			im.note("weight", at, "taken over; users move where the weights of an application differ")
		default:
			out.put("weight", 1)
			if w.text != "1" {
				im.note("weight", at, "becomes 1, so that nobody moves: that balancer never looked at weights (--honor-weights takes them over)")
			}
		}
	}
	if v := in.first("max_fails"); v != nil {
		out.put("max_fails", v.integer())
	}
	if v := in.first("fail_timeout"); v != nil {
		out.put("fail_timeout", v.duration())
	}
	if in.first("max_fails", "fail_timeout") != nil {
		im.note("max_fails, fail_timeout", at, "taken over; that balancer never counted failures, here so many of live traffic eject an instance for that time")
	}
	known := []string{"name", "id", "url", "base_url", "host", "ip", "address", "port", "scheme", "protocol", "token", "api_key", "dify_token", "app_token", "weight", "max_fails", "fail_timeout"}
	for _, key := range in.keys {
		if !contains(known, key) {
			im.note(key, at, "left out: that balancer did not look at it either; see lbctl instance set for what there is here")
		}
	}
	return out
}

// address reads url, or host and port with or without a scheme.
func address(out *object, in *luaValue) {
	url, host, port := in.first("url", "base_url"), in.first("host", "ip", "address"), in.first("port")
	if url == nil && host != nil && strings.Contains(host.text, "://") {
		url = host
	}
	switch {
	case url != nil:
		base := strings.TrimSuffix(strings.TrimSuffix(url.text, "/"), "/v1")
		out.put("url", base)
		return
	case host == nil:
	case in.first("scheme", "protocol") != nil && in.first("scheme", "protocol").text == "https":
		text := "https://" + host.text
		if port != nil {
			text += ":" + port.text
		}
		out.put("url", text)
		return
	default:
		name := host.text
		if h, p, ok := strings.Cut(name, ":"); ok && port == nil && !strings.Contains(p, ":") {
			name, port = h, &luaValue{kind: lua.LTString, text: p}
		}
		out.put("host", name)
	}
	if port != nil {
		out.put("port", port.integer())
	}
}

// scalar returns the value as it is; the reader of documents says what is
// wrong with one that does not fit.
func (v *luaValue) scalar() any {
	switch v.kind {
	case lua.LTNumber:
		return json.RawMessage(finite(v))
	case lua.LTBool:
		return v.truth
	case lua.LTString:
		return v.text
	case lua.LTTable:
		return []any{}
	}
	return nil
}

// integer returns a whole number, also one that was written as text.
func (v *luaValue) integer() any {
	if n, err := strconv.ParseInt(strings.TrimSpace(v.text), 10, 64); err == nil {
		return n
	}
	return v.scalar()
}

// duration returns numbers as seconds, which they are.
func (v *luaValue) duration() any {
	if v.kind != lua.LTNumber || v.number != v.number || math.IsInf(v.number, 0) {
		return v.scalar()
	}
	return lb.Duration(v.number * 1e9).String()
}

// finite writes a number for JSON, which knows neither infinity nor NaN.
func finite(v *luaValue) string {
	if v.number-v.number != 0 {
		return `"` + v.text + `"`
	}
	return v.text
}
