package admin

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"mime"
	"net"
	"net/http"
	"net/url"
	"strconv"
	"strings"
	"time"

	"difylb/pkg/document"
	"difylb/pkg/lb"
)

// ClientOptions say where the API is and who asks.
type ClientOptions struct {
	// Server is the base URL of an lb-admin, such as http://127.0.0.1:9180;
	// without a scheme http is meant.
	Server string
	// Token is the access token; empty sends none.
	Token lb.Secret
	// HTTPClient nil means one of the client's own, without a time limit:
	// the context of a call sets it.
	HTTPClient *http.Client
	// UserAgent empty means "difylb".
	UserAgent string
}

// Client speaks the REST API. It is safe for concurrent use. The errors of its
// methods are *ProblemError where the server answered; one that did not can't
// be told from one that is not there: errors.Is(err, lb.ErrUnavailable).
type Client struct {
	base  *url.URL // immutable after NewClient, as is the rest
	token lb.Secret
	http  *http.Client
	agent string
}

// ProblemError is an answer of the server that is not success. It is of the
// kind that its status means: 404 lb.ErrNotFound, 409 lb.ErrExists, 412
// lb.ErrConflict, 400 and 422 lb.ErrInvalid, 429, 502, 503 and 504
// lb.ErrUnavailable.
type ProblemError struct {
	Problem
	// RetryAfter is how long the server asks to wait; 0 when it does not.
	RetryAfter time.Duration
}

func (e *ProblemError) Error() string {
	switch {
	case len(e.Faults) > 0:
		return e.Faults.Error()
	case e.Detail != "":
		return e.Detail
	}
	return strconv.Itoa(e.Status) + " " + e.Title
}

// Unwrap returns the kind, or nil for a status that means none.
func (e *ProblemError) Unwrap() error {
	if e.Type == typePrefix+"changed" {
		return lb.ErrConflict // also as 409, where the write itself named no revision
	}
	switch e.Status {
	case http.StatusNotFound:
		return lb.ErrNotFound
	case http.StatusConflict:
		return lb.ErrExists
	case http.StatusPreconditionFailed:
		return lb.ErrConflict
	case http.StatusBadRequest, http.StatusUnprocessableEntity:
		return lb.ErrInvalid
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		return lb.ErrUnavailable
	}
	return nil
}

// NewClient makes a client; it does not connect.
func NewClient(o ClientOptions) (*Client, error) {
	server := o.Server
	if !strings.Contains(server, "://") {
		server = "http://" + server
	}
	u, err := url.Parse(server)
	if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
		return nil, lb.Errorf(lb.ErrInvalid, "server %q is not a URL such as http://127.0.0.1:9180", o.Server)
	}
	if u.User != nil || u.RawQuery != "" || u.Fragment != "" {
		return nil, lb.Errorf(lb.ErrInvalid, "server %q must be a scheme, a host and a port", u.Redacted())
	}
	u.Path = strings.TrimSuffix(u.Path, "/")
	c := &Client{base: u, token: o.Token, http: o.HTTPClient, agent: o.UserAgent}
	if c.http == nil {
		c.http = &http.Client{Transport: &http.Transport{
			Proxy:               http.ProxyFromEnvironment,
			DialContext:         (&net.Dialer{Timeout: 5 * time.Second}).DialContext,
			TLSHandshakeTimeout: 5 * time.Second,
			ForceAttemptHTTP2:   true,
			IdleConnTimeout:     30 * time.Second,
			MaxIdleConnsPerHost: 8,
		}}
	}
	if c.agent == "" {
		c.agent = "difylb"
	}
	return c, nil
}

// Close closes idle connections.
func (c *Client) Close() { c.http.CloseIdleConnections() }

// CallOption makes a write conditional.
type CallOption func(*http.Request)

// IfRevision lets the write happen only while the object is at the revision;
// otherwise the error is lb.ErrConflict.
func IfRevision(revision int64) CallOption {
	return func(r *http.Request) { r.Header.Set("If-Match", ETag(revision)) }
}

// IfAbsent lets a Put happen only where the object does not exist.
func IfAbsent() CallOption {
	return func(r *http.Request) { r.Header.Set("If-None-Match", "*") }
}

// IfExists lets a write happen only where the object exists.
func IfExists() CallOption {
	return func(r *http.Request) { r.Header.Set("If-Match", "*") }
}

// MaxMoved refuses a change that moves more than this share, 0 to 1, of the
// application's users. Draining, activating, disabling and deleting instances
// take it.
func MaxMoved(share float64) CallOption {
	return func(r *http.Request) {
		q := r.URL.Query()
		q.Set("max_moved", strconv.FormatFloat(share, 'g', -1, 64))
		r.URL.RawQuery = q.Encode()
	}
}

// Applications returns every application, by name.
func (c *Client) Applications(ctx context.Context) ([]Application, error) {
	return all[Application](ctx, c, "/apps")
}

// Application returns one application.
func (c *Client) Application(ctx context.Context, name string) (*Application, error) {
	return object[Application](ctx, c, http.MethodGet, "/apps/"+url.PathEscape(name), nil)
}

// CreateApplication creates an application; its name stands in the body, which
// may be JSON or YAML in a []byte, an lb type (sent with its secrets), or
// anything that encodes to the JSON of a declaration.
func (c *Client) CreateApplication(ctx context.Context, body any) (*Application, error) {
	return object[Application](ctx, c, http.MethodPost, "/apps", body)
}

// PutApplication creates or replaces an application. A body that does not
// speak of instances or user_tokens leaves those that are stored.
func (c *Client) PutApplication(ctx context.Context, name string, body any, opts ...CallOption) (*Application, error) {
	return object[Application](ctx, c, http.MethodPut, "/apps/"+url.PathEscape(name), body, opts...)
}

// PatchApplication changes what an RFC 7396 merge patch names.
func (c *Client) PatchApplication(ctx context.Context, name string, patch any, opts ...CallOption) (*Application, error) {
	return object[Application](ctx, c, http.MethodPatch, "/apps/"+url.PathEscape(name), patch, opts...)
}

// DeleteApplication deletes an application with its tokens and instances.
func (c *Client) DeleteApplication(ctx context.Context, name string, opts ...CallOption) error {
	_, err := object[struct{}](ctx, c, http.MethodDelete, "/apps/"+url.PathEscape(name), nil, opts...)
	return err
}

func tokensPath(app string) string    { return "/apps/" + url.PathEscape(app) + "/tokens" }
func instancesPath(app string) string { return "/apps/" + url.PathEscape(app) + "/instances" }
func instancePath(app, name string) string {
	return instancesPath(app) + "/" + url.PathEscape(name)
}

// Tokens returns an application's user tokens in their declared order.
func (c *Client) Tokens(ctx context.Context, app string) ([]UserToken, error) {
	return all[UserToken](ctx, c, tokensPath(app))
}

// CreateToken adds a user token. Where the request brings none, the answer
// holds the one that was made; nobody can ask for it again.
func (c *Client) CreateToken(ctx context.Context, app string, r TokenRequest) (*UserToken, error) {
	return object[UserToken](ctx, c, http.MethodPost, tokensPath(app), r)
}

// DeleteToken removes a user token by its id.
func (c *Client) DeleteToken(ctx context.Context, app, id string) error {
	_, err := object[struct{}](ctx, c, http.MethodDelete, tokensPath(app)+"/"+url.PathEscape(id), nil)
	return err
}

// Instances returns an application's instances in their declared order.
func (c *Client) Instances(ctx context.Context, app string) ([]Instance, error) {
	return all[Instance](ctx, c, instancesPath(app))
}

// Instance returns one instance.
func (c *Client) Instance(ctx context.Context, app, name string) (*Instance, error) {
	return object[Instance](ctx, c, http.MethodGet, instancePath(app, name), nil)
}

// CreateInstance adds an instance at the end of the application's list. For
// the body see CreateApplication.
func (c *Client) CreateInstance(ctx context.Context, app string, body any) (*Instance, error) {
	return object[Instance](ctx, c, http.MethodPost, instancesPath(app), body)
}

// PutInstance adds or replaces an instance, in its place in the list. A body
// without a token leaves the one that is stored.
func (c *Client) PutInstance(ctx context.Context, app, name string, body any, opts ...CallOption) (*Instance, error) {
	return object[Instance](ctx, c, http.MethodPut, instancePath(app, name), body, opts...)
}

// PatchInstance changes what an RFC 7396 merge patch names.
func (c *Client) PatchInstance(ctx context.Context, app, name string, patch any, opts ...CallOption) (*Instance, error) {
	return object[Instance](ctx, c, http.MethodPatch, instancePath(app, name), patch, opts...)
}

// DeleteInstance removes an instance.
func (c *Client) DeleteInstance(ctx context.Context, app, name string, opts ...CallOption) error {
	_, err := object[struct{}](ctx, c, http.MethodDelete, instancePath(app, name), nil, opts...)
	return err
}

// DrainInstance gives the instance no new requests. With a positive wait it
// returns when nothing is open any more, or when the wait is over: then
// Drained is false and Open says how many are left; that is no error.
func (c *Client) DrainInstance(ctx context.Context, app, name string, wait time.Duration, opts ...CallOption) (*InstanceState, error) {
	return c.setState(ctx, app, name, verbDrain, wait, opts)
}

// ActivateInstance lets the instance take requests again.
func (c *Client) ActivateInstance(ctx context.Context, app, name string, opts ...CallOption) (*InstanceState, error) {
	return c.setState(ctx, app, name, verbActivate, 0, opts)
}

// DisableInstance takes the instance out; it is not probed either.
func (c *Client) DisableInstance(ctx context.Context, app, name string, wait time.Duration, opts ...CallOption) (*InstanceState, error) {
	return c.setState(ctx, app, name, verbDisable, wait, opts)
}

// The verbs that give an instance its state.
const (
	verbDrain    = "drain"
	verbActivate = "activate"
	verbDisable  = "disable"
)

// PlanState tells what giving the instance the state would do, as a dry run of
// Apply does, and changes nothing.
func (c *Client) PlanState(ctx context.Context, app, name string, state lb.State, opts ...CallOption) (*ApplyResult, error) {
	verb := map[lb.State]string{lb.Draining: verbDrain, lb.Active: verbActivate, lb.Disabled: verbDisable}[state]
	return object[ApplyResult](ctx, c, http.MethodPost, instancePath(app, name)+"/"+verb+"?dry_run=true", nil, opts...)
}

// PlanDeleteInstance is PlanState for removing the instance.
func (c *Client) PlanDeleteInstance(ctx context.Context, app, name string, opts ...CallOption) (*ApplyResult, error) {
	return object[ApplyResult](ctx, c, http.MethodDelete, instancePath(app, name)+"?dry_run=true", nil, opts...)
}

func (c *Client) setState(ctx context.Context, app, name, verb string, wait time.Duration, opts []CallOption) (*InstanceState, error) {
	q := make(url.Values)
	if wait > 0 {
		q.Set("wait", wait.String())
	}
	return object[InstanceState](ctx, c, http.MethodPost, withQuery(instancePath(app, name)+"/"+verb, q), nil, opts...)
}

// ApplyOptions say how a document is applied.
type ApplyOptions struct {
	DryRun bool // tell what would change, and change nothing
	Prune  bool // delete applications that the document does not name
	// MaxMoved, when not nil, refuses a change that moves more than this share,
	// 0 to 1, of any application's users.
	MaxMoved *float64
	// Wait, when positive, is how long to wait for every live proxy to have
	// the result in force.
	Wait time.Duration
}

func (o ApplyOptions) limits(q url.Values) {
	if o.Wait > 0 {
		q.Set("wait", o.Wait.String())
	}
	if o.MaxMoved != nil {
		q.Set("max_moved", strconv.FormatFloat(*o.MaxMoved, 'g', -1, 64))
	}
}

// Apply applies a whole document, JSON or YAML, as one change.
func (c *Client) Apply(ctx context.Context, doc []byte, o ApplyOptions) (*ApplyResult, error) {
	q := make(url.Values)
	setFlag(q, "dry_run", o.DryRun)
	setFlag(q, "prune", o.Prune)
	o.limits(q)
	return object[ApplyResult](ctx, c, http.MethodPost, withQuery("/apply", q), doc)
}

// Format is how an export is written.
type Format string

// The formats of an export.
const (
	JSON Format = "json"
	YAML Format = "yaml"
)

// Export returns the whole document. With secrets, which needs the role admin,
// it restores an empty cluster; without, it applies to one that holds the tokens.
func (c *Client) Export(ctx context.Context, f Format, secrets bool) ([]byte, error) {
	q := make(url.Values)
	setFlag(q, "secrets", secrets)
	if f != "" {
		q.Set("format", string(f))
	}
	resp, err := c.do(ctx, http.MethodGet, withQuery("/export", q), nil)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(resp.Body)
	if err != nil {
		return nil, c.unavailable(err)
	}
	return data, nil
}

// Explain says where a user of an application goes, and why.
func (c *Client) Explain(ctx context.Context, app, user string) (*Explanation, error) {
	q := url.Values{"app": {app}, "user": {user}}
	return object[Explanation](ctx, c, http.MethodGet, withQuery("/explain", q), nil)
}

// ExplainToken is Explain for the application that a user token belongs to.
func (c *Client) ExplainToken(ctx context.Context, token lb.Secret, user string) (*Explanation, error) {
	q := url.Values{"token": {token.Reveal()}, "user": {user}}
	return object[Explanation](ctx, c, http.MethodGet, withQuery("/explain", q), nil)
}

// Nodes returns the live nodes, by role and id.
func (c *Client) Nodes(ctx context.Context) ([]Node, error) { return all[Node](ctx, c, "/nodes") }

// History returns entries, the newest first: at most limit (0: the server's
// choice), older than revision before (0: from the newest).
func (c *Client) History(ctx context.Context, limit int, before int64) ([]HistoryEntry, error) {
	q := make(url.Values)
	if limit > 0 {
		q.Set("limit", strconv.Itoa(limit))
	}
	if before > 0 {
		q.Set("before", strconv.FormatInt(before, 10))
	}
	page, err := object[List[HistoryEntry]](ctx, c, http.MethodGet, withQuery("/history", q), nil)
	if err != nil {
		return nil, err
	}
	return page.Items, nil
}

// HistoryAt returns the entry of one revision.
func (c *Client) HistoryAt(ctx context.Context, revision int64) (*HistoryEntry, error) {
	return object[HistoryEntry](ctx, c, http.MethodGet, "/history/"+strconv.FormatInt(revision, 10), nil)
}

// Rollback returns the configuration to what it was at a revision; that is a
// change like any other and stands in the history itself. Of the options Prune
// means nothing: what did not exist then is deleted.
func (c *Client) Rollback(ctx context.Context, revision int64, o ApplyOptions, opts ...CallOption) (*ApplyResult, error) {
	q := make(url.Values)
	setFlag(q, "dry_run", o.DryRun)
	o.limits(q)
	return object[ApplyResult](ctx, c, http.MethodPost, withQuery("/rollback/"+strconv.FormatInt(revision, 10), q), nil, opts...)
}

// AccessTokens returns the tokens of this API, by name.
func (c *Client) AccessTokens(ctx context.Context) ([]AccessToken, error) {
	return all[AccessToken](ctx, c, "/access")
}

// CreateAccess makes an access token; the answer is the only one to hold it.
func (c *Client) CreateAccess(ctx context.Context, r AccessRequest) (*AccessToken, error) {
	return object[AccessToken](ctx, c, http.MethodPost, "/access", r)
}

// DeleteAccess revokes an access token by its id.
func (c *Client) DeleteAccess(ctx context.Context, id string) error {
	_, err := object[struct{}](ctx, c, http.MethodDelete, "/access/"+url.PathEscape(id), nil)
	return err
}

// Status returns the state of the whole cluster.
func (c *Client) Status(ctx context.Context) (*Status, error) {
	return object[Status](ctx, c, http.MethodGet, "/status", nil)
}

// Check has every proxy connect to each instance, or to those of one application
// (empty: all), and looks at etcd and the clocks. It takes up to 12 s.
func (c *Client) Check(ctx context.Context, app string) (*Check, error) {
	q := make(url.Values)
	if app != "" {
		q.Set("app", app)
	}
	return object[Check](ctx, c, http.MethodPost, withQuery("/check", q), nil)
}

// Health asks whether the server lives.
func (c *Client) Health(ctx context.Context) (*Health, error) {
	return object[Health](ctx, c, http.MethodGet, "/health", nil)
}

// Ready asks whether the server can do its work; where it can't the error is
// lb.ErrUnavailable and says why.
func (c *Client) Ready(ctx context.Context) (*Health, error) {
	return object[Health](ctx, c, http.MethodGet, "/readyz", nil)
}

// Events calls f for every event until ctx is done, the connection breaks
// (lb.ErrUnavailable) or f returns an error, which it returns. The first event
// is an EventReset once the server has begun to listen. f is never called
// twice at a time.
func (c *Client) Events(ctx context.Context, f func(Event) error) error {
	resp, err := c.do(ctx, http.MethodGet, "/events", nil)
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	sc := bufio.NewScanner(resp.Body)
	sc.Buffer(nil, 16<<20)
	var e Event
	for sc.Scan() {
		line := sc.Text()
		if line == "" {
			if e.Type != "" {
				if err := f(e); err != nil {
					return err
				}
			}
			e = Event{ID: e.ID}
			continue
		}
		key, val, _ := strings.Cut(line, ":")
		val = strings.TrimPrefix(val, " ")
		switch key {
		case "id":
			e.ID = val
		case "event":
			e.Type = val
		case "data":
			e.Data = append(e.Data, val...)
		}
	}
	if ctx.Err() != nil {
		return ctx.Err()
	}
	err = sc.Err()
	if err == nil {
		err = io.ErrUnexpectedEOF
	}
	return c.unavailable(err)
}

// all reads every page of a listing.
func all[T any](ctx context.Context, c *Client, path string) ([]T, error) {
	items := []T{}
	q := url.Values{"limit": {"1000"}}
	for {
		page, err := object[List[T]](ctx, c, http.MethodGet, withQuery(path, q), nil)
		if err != nil {
			return nil, err
		}
		items = append(items, page.Items...)
		if page.Continue == "" {
			return items, nil
		}
		q.Set("continue", page.Continue)
	}
}

// object does one call and decodes its answer; 204 leaves T zero.
func object[T any](ctx context.Context, c *Client, method, path string, body any, opts ...CallOption) (*T, error) {
	resp, err := c.do(ctx, method, path, body, opts...)
	if err != nil {
		return nil, err
	}
	defer resp.Body.Close()
	v := new(T)
	if resp.StatusCode == http.StatusNoContent {
		return v, nil
	}
	if err := json.NewDecoder(resp.Body).Decode(v); err != nil {
		return nil, c.unavailable(fmt.Errorf("read answer of %s %s: %w", method, path, err))
	}
	// To the end, so that the connection can be used again.
	_, _ = io.Copy(io.Discard, resp.Body)
	return v, nil
}

// do sends a request and returns an answer of status 2xx; everything else is an error.
func (c *Client) do(ctx context.Context, method, path string, body any, opts ...CallOption) (*http.Response, error) {
	if path != "/health" && path != "/readyz" { // those two are asked without a token, too
		path = Base + path
	}
	data, kind, err := encode(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, method, c.base.String()+path, bytes.NewReader(data))
	if err != nil {
		return nil, lb.Errorf(lb.ErrInvalid, "%s %s: not a request", method, c.base.Redacted())
	}
	if body == nil {
		req.Body = http.NoBody
	} else if method == http.MethodPatch {
		kind = "application/merge-patch+json"
	}
	if kind != "" {
		req.Header.Set("Content-Type", kind)
	}
	req.Header.Set("User-Agent", c.agent)
	req.Header.Set("Accept", "application/json, application/problem+json, */*;q=0.1")
	if c.token != "" {
		req.Header.Set("Authorization", "Bearer "+c.token.Reveal())
	}
	for _, opt := range opts {
		opt(req)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		if ctx.Err() != nil {
			return nil, fmt.Errorf("%s %s: %w", method, c.base.Host, ctx.Err())
		}
		return nil, c.unavailable(err)
	}
	if resp.StatusCode/100 == 2 {
		return resp, nil
	}
	defer resp.Body.Close()
	return nil, problemOf(resp)
}

// encode turns a body into bytes and their media type.
func encode(body any) ([]byte, string, error) {
	var data []byte
	var err error
	switch b := body.(type) {
	case nil:
		return nil, "", nil
	case []byte:
		if json.Valid(b) {
			return b, "application/json", nil
		}
		return b, "application/yaml", nil
	case json.RawMessage:
		data = b
	case *lb.Document:
		data, err = document.MarshalJSON(b, true)
	case *lb.Application:
		data, err = document.MarshalApplication(b, true)
	case *lb.Instance:
		data, err = b.MarshalSecret()
	default:
		data, err = json.Marshal(b)
	}
	if err != nil {
		return nil, "", fmt.Errorf("write request: %w", err)
	}
	return data, "application/json", nil
}

func problemOf(resp *http.Response) error {
	e := &ProblemError{}
	data, _ := io.ReadAll(io.LimitReader(resp.Body, 16<<20))
	kind, _, _ := mime.ParseMediaType(resp.Header.Get("Content-Type"))
	if kind != "application/problem+json" || json.Unmarshal(data, &e.Problem) != nil {
		// Not our server, or something between us and it.
		e.Problem = Problem{Detail: fmt.Sprintf("the server answered %s, and no problem document; is it an lb-admin?", resp.Status)}
	}
	e.Status = resp.StatusCode
	if e.Title == "" {
		e.Title = http.StatusText(resp.StatusCode)
	}
	if s, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && s > 0 {
		e.RetryAfter = time.Duration(s) * time.Second
	}
	return e
}

// unavailable wraps what kept an answer from arriving. The URL that net/http
// puts into its errors is dropped: its query may hold a token.
func (c *Client) unavailable(err error) error {
	var ue *url.Error
	if errors.As(err, &ue) {
		err = ue.Err
	}
	return fmt.Errorf("reach %s: %w: %w", c.base.Redacted(), lb.ErrUnavailable, err)
}

func withQuery(path string, q url.Values) string {
	if len(q) == 0 {
		return path
	}
	return path + "?" + q.Encode()
}

func setFlag(q url.Values, key string, on bool) {
	if on {
		q.Set(key, "true")
	}
}
