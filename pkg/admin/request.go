package admin

import (
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"net/url"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"time"

	"difylb/pkg/lb"
)

const (
	maxBodyBytes  = 1 << 20
	maxApplyBytes = 64 << 20 // 10,000 applications
	maxWait       = 10 * time.Minute
)

// bodyTypes are the media types in which a declaration may come. JSON is YAML,
// so all of them are read alike. The form type is what curl -d sends when it
// is told nothing; it is taken because no browser can forge a call here: the
// API knows no cookies.
var bodyTypes = []string{
	"application/json", "application/yaml", "application/x-yaml", "text/yaml", "text/x-yaml",
	"application/x-www-form-urlencoded",
}

// readBody reads a body of one of the media types, at most limit bytes.
func readBody(w http.ResponseWriter, r *http.Request, limit int64, types ...string) ([]byte, error) {
	if ct := r.Header.Get("Content-Type"); ct != "" {
		kind, _, err := mime.ParseMediaType(ct)
		if err != nil || !slices.Contains(types, kind) {
			f := fail(http.StatusUnsupportedMediaType, "media-type", "the body is %q; send %s", ct, strings.Join(types[:len(types)-1], ", "))
			f.header = http.Header{"Accept": {strings.Join(types[:len(types)-1], ", ")}}
			return nil, f
		}
	}
	data, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &tooLarge):
		return nil, err
	case err != nil:
		return nil, fail(http.StatusBadRequest, "malformed", "the body broke off")
	case len(strings.TrimSpace(string(data))) == 0:
		return nil, fail(http.StatusBadRequest, "malformed", "the body is empty")
	}
	return data, nil
}

// declarationFaults tells a body that could not be read at all, 400, from one
// that says something wrong, 422.
func declarationFaults(fs lb.Faults) error {
	if unreadable(fs) {
		f := fail(http.StatusBadRequest, "malformed", "%s", fs[0])
		f.faults = fs
		return f
	}
	return fs.Err()
}

// unreadable relies on how pkg/document words the faults of syntax: they have no path.
func unreadable(fs lb.Faults) bool {
	return len(fs) == 1 && fs[0].Path == "" &&
		(strings.HasPrefix(fs[0].Message, "not JSON") || strings.HasPrefix(fs[0].Message, "not YAML"))
}

// decodeJSON reads a small request of ours strictly.
func decodeJSON(data []byte, into any) error {
	dec := json.NewDecoder(strings.NewReader(string(data)))
	dec.DisallowUnknownFields()
	err := dec.Decode(into)
	var syntax *json.SyntaxError
	var kind *json.UnmarshalTypeError
	switch {
	case errors.As(err, &syntax), errors.Is(err, io.ErrUnexpectedEOF):
		return fail(http.StatusBadRequest, "malformed", "not JSON: %s", err)
	case errors.As(err, &kind):
		return invalid(lb.Faults{{Path: kind.Field, Message: kindOf(kind.Value) + " stands where " + belongs(kind.Type) + " belongs"}})
	case err != nil:
		// Of encoding/json's other errors there is one, which has no type.
		text := strings.TrimPrefix(err.Error(), "json: ")
		if name, ok := strings.CutPrefix(text, "unknown field "); ok {
			name, _ = strconv.Unquote(name)
			text = "there is no such key" + lb.DidYouMean(name, keysOf(into))
			return invalid(lb.Faults{{Path: name, Message: text}})
		}
		return invalid(lb.Faults{{Message: text}})
	}
	if _, err := dec.Token(); err != io.EOF {
		return fail(http.StatusBadRequest, "malformed", "not JSON: something follows the object")
	}
	return nil
}

// kindOf says in words what encoding/json calls a value.
func kindOf(value string) string {
	switch {
	case value == "string":
		return "text"
	case value == "bool":
		return "true or false"
	case value == "array":
		return "a list"
	case value == "object":
		return "a mapping"
	}
	return "a number" // "number", or with its digits
}

func belongs(t reflect.Type) string {
	switch t.Kind() {
	case reflect.String:
		return "text"
	case reflect.Bool:
		return "true or false"
	case reflect.Slice:
		return "a list"
	case reflect.Struct, reflect.Map:
		return "a mapping"
	}
	return "a whole number"
}

// keysOf lists the keys that a struct is read from.
func keysOf(into any) []string {
	t := reflect.TypeOf(into).Elem()
	var keys []string
	for i := range t.NumField() {
		if key, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ","); key != "" && key != "-" {
			keys = append(keys, key)
		}
	}
	return keys
}

// query reads parameters, collecting every fault.
type query struct {
	values url.Values
	faults lb.Faults
}

// queryOf refuses parameters that the call does not know: a misspelt dry_run
// must not become a real run.
func queryOf(r *http.Request, known ...string) *query {
	q := &query{}
	var err error
	if q.values, err = url.ParseQuery(r.URL.RawQuery); err != nil {
		q.faults.Add("query", "is malformed")
	}
	for k, v := range q.values {
		switch {
		case !slices.Contains(known, k):
			q.faults.Add("query", "there is no parameter %q%s", k, lb.DidYouMean(k, known))
		case len(v) > 1:
			q.faults.Add("query."+k, "stands twice")
		}
	}
	return q
}

// err returns the faults of the parameters, 400.
func (q *query) err() error {
	if len(q.faults) == 0 {
		return nil
	}
	f := fail(http.StatusBadRequest, "malformed", "%s", q.faults)
	f.faults = q.faults
	return f
}

func (q *query) text(key string) string { return q.values.Get(key) }

// flag reads a boolean; ?prune alone means true.
func (q *query) flag(key string) bool {
	if !q.values.Has(key) {
		return false
	}
	v := q.values.Get(key)
	if v == "" {
		return true
	}
	b, err := strconv.ParseBool(v)
	if err != nil {
		q.faults.Add("query."+key, "%q is not true or false", v)
	}
	return b
}

func (q *query) number(key string, fallback, lo, hi int64) int64 {
	v := q.values.Get(key)
	if v == "" {
		return fallback
	}
	n, err := strconv.ParseInt(v, 10, 64)
	if err != nil || n < lo || n > hi {
		q.faults.Add("query."+key, "%q is not a number from %d to %d", v, lo, hi)
		return fallback
	}
	return n
}

// wait reads how long the caller wants to wait, 0 when it does not.
func (q *query) wait() time.Duration {
	v := q.values.Get("wait")
	if v == "" {
		return 0
	}
	d, err := lb.ParseDuration(v)
	if err != nil || d < 0 || d.D() > maxWait {
		q.faults.Add("query.wait", "%q is not a duration from 0s to %s", v, lb.Duration(maxWait))
		return 0
	}
	return d.D()
}

// condition is what If-Match and If-None-Match ask for (RFC 9110 section 13).
type condition struct {
	match   []string // entity tags, or "*"; nil when the field is absent
	absent  bool     // If-None-Match: *
	refused bool     // something that can never hold
}

func conditionOf(r *http.Request) condition {
	var c condition
	if v := r.Header.Values("If-Match"); len(v) > 0 {
		c.match = tagsOf(v)
	}
	if v := r.Header.Values("If-None-Match"); len(v) > 0 {
		tags := tagsOf(v)
		c.absent = len(tags) == 1 && tags[0] == "*"
		c.refused = !c.absent
	}
	return c
}

func tagsOf(fields []string) []string {
	tags := []string{}
	for _, f := range fields {
		for _, t := range strings.Split(f, ",") {
			if t = strings.TrimSpace(t); t != "" {
				tags = append(tags, t)
			}
		}
	}
	return tags
}

// check returns the 412 that the condition asks for when the object is at the
// revision; 0 means that it does not exist.
func (c condition) check(what string, revision int64) error {
	switch {
	case c.refused:
		return fail(http.StatusBadRequest, "malformed", "If-None-Match of a write can only be *")
	case c.absent && revision != 0:
		return fail(http.StatusPreconditionFailed, "changed", "%s exists, at revision %d", what, revision)
	case c.match == nil:
		return nil
	case revision == 0:
		return fail(http.StatusPreconditionFailed, "changed", "%s does not exist", what)
	}
	for _, t := range c.match {
		// The strong comparison, so a weak tag never matches (section 8.8.3.2).
		if t == "*" || t == ETag(revision) {
			return nil
		}
	}
	return fail(http.StatusPreconditionFailed, "changed", "%s is at revision %d, not at %s: someone changed it meanwhile", what, revision, strings.Join(c.match, ", "))
}

// page cuts a sorted listing: items after the one whose key is the
// continuation, at most limit.
func page[T any](q *query, items []T, key func(T) string) List[T] {
	limit := int(q.number("limit", 0, 0, 100_000))
	start := 0
	if after := q.text("continue"); after != "" {
		for start < len(items) && key(items[start]) <= after {
			start++
		}
	}
	items = items[start:]
	out := List[T]{Items: items}
	if limit > 0 && len(items) > limit {
		out.Items = items[:limit]
		out.Continue = key(items[limit-1])
	}
	if out.Items == nil {
		out.Items = []T{}
	}
	return out
}

// declaredPage cuts a listing whose order is not its keys': items behind the
// one that the continuation names.
func declaredPage[T any](q *query, items []T, key func(T) string) List[T] {
	if after := q.text("continue"); after != "" {
		at := slices.IndexFunc(items, func(v T) bool { return key(v) == after })
		if at < 0 {
			q.faults.Add("query.continue", "%q is no longer in the list; begin again", after)
		}
		items = items[at+1:]
	}
	limit := int(q.number("limit", 0, 0, 100_000))
	out := List[T]{Items: items}
	if limit > 0 && len(items) > limit {
		out.Items = items[:limit]
		out.Continue = key(items[limit-1])
	}
	if out.Items == nil {
		out.Items = []T{}
	}
	return out
}

// decodeOptional is readBody and decodeJSON for a call that may come without a
// body: into stays as it is then.
func decodeOptional(w http.ResponseWriter, r *http.Request, into any) error {
	if r.ContentLength == 0 {
		return nil
	}
	data, err := readBody(w, r, maxBodyBytes, "application/json", "application/x-www-form-urlencoded")
	if err != nil {
		return err
	}
	return decodeJSON(data, into)
}
