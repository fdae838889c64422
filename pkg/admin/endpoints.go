package admin

import (
	"net/http"
)

// endpoint is one call of the API: what runs, who may, and how it is
// described. The router and the OpenAPI document are both made of this table,
// so neither can know a call that the other does not.
type endpoint struct {
	method, path string
	role         AccessRole // at least; "" is open to all
	near         bool       // open to loopback and private addresses without a token
	raw          bool       // the query is the handler's own affair
	summary      string
	query        []param
	conditional  bool // heeds If-Match
	body         any  // a value of the body's type; nil for none
	bodyKind     string
	optionalBody bool
	status       int  // of success; 0 means 200
	plans        bool // takes dry_run and max_moved; a dry run is answered with ApplyResult
	created      bool
	answer       any // a value of the answer's type; nil for no JSON
	answerKind   string
	handle       func(*Server, http.ResponseWriter, *http.Request, *query) error
}

// param is a query parameter.
type param struct {
	name, kind, about string
}

var (
	paging   = []param{{"limit", "integer", "at most so many items; 0 for all"}, {"continue", "string", "the continue of the page before"}}
	waitFor  = param{"wait", "duration", "how long to wait, as 10s; at most 10m"}
	dryRun   = param{"dry_run", "boolean", "tell what would change and change nothing"}
	maxMoved = param{"max_moved", "string", "refuse, with 409, what moves a larger share of an application's users, as 5% or 0.05"}
	planning = []param{dryRun, maxMoved}
	explains = []param{
		{"app", "string", "the application; this or token"},
		{"token", "string", "a user token of the application"},
		{"user", "string", "the user id"},
	}
)

// endpoints is filled by init because handlers look into it, which the
// compiler takes for a cycle.
var endpoints []endpoint

func init() {
	api := []endpoint{
		{method: "GET", path: "/apps", role: RoleViewer, summary: "List applications by name", query: paging, answer: List[Application]{}, handle: (*Server).listApps},
		{method: "POST", path: "/apps", role: RoleAdmin, summary: "Create an application", body: appBody{}, status: 201, answer: Application{}, handle: (*Server).createApp},
		{method: "GET", path: "/apps/{app}", role: RoleViewer, summary: "Read an application", answer: Application{}, handle: (*Server).getApp},
		{method: "PUT", path: "/apps/{app}", role: RoleAdmin, conditional: true, summary: "Create or replace an application; without instances or user_tokens those stay", body: appBody{}, created: true, answer: Application{}, handle: (*Server).putApp},
		{method: "PATCH", path: "/apps/{app}", role: RoleAdmin, conditional: true, summary: "Change an application by an RFC 7396 merge patch", body: appBody{}, bodyKind: mergePatch, answer: Application{}, handle: (*Server).patchApp},
		{method: "DELETE", path: "/apps/{app}", role: RoleAdmin, conditional: true, summary: "Delete an application with its tokens and instances", status: 204, handle: (*Server).deleteApp},

		{method: "GET", path: "/apps/{app}/tokens", role: RoleViewer, summary: "List user tokens", query: paging, answer: List[UserToken]{}, handle: (*Server).listTokens},
		{method: "POST", path: "/apps/{app}/tokens", role: RoleAdmin, summary: "Add a user token; without one in the body it is made and shown once", body: tokenBody{}, optionalBody: true, status: 201, answer: UserToken{}, handle: (*Server).createToken},
		{method: "DELETE", path: "/apps/{app}/tokens/{id}", role: RoleAdmin, conditional: true, summary: "Remove a user token", status: 204, handle: (*Server).deleteToken},

		{method: "GET", path: "/apps/{app}/instances", role: RoleViewer, summary: "List instances in their declared order", query: paging, answer: List[Instance]{}, handle: (*Server).listInstances},
		{method: "POST", path: "/apps/{app}/instances", role: RoleAdmin, summary: "Add an instance", body: instanceBody{}, status: 201, answer: Instance{}, handle: (*Server).createInstance},
		{method: "GET", path: "/apps/{app}/instances/{name}", role: RoleViewer, summary: "Read an instance", answer: Instance{}, handle: (*Server).getInstance},
		{method: "PUT", path: "/apps/{app}/instances/{name}", role: RoleAdmin, conditional: true, summary: "Add or replace an instance; without a token the stored one stays", body: instanceBody{}, created: true, answer: Instance{}, handle: (*Server).putInstance},
		{method: "PATCH", path: "/apps/{app}/instances/{name}", role: RoleAdmin, conditional: true, summary: "Change an instance by an RFC 7396 merge patch", body: instanceBody{}, bodyKind: mergePatch, answer: Instance{}, handle: (*Server).patchInstance},
		{method: "DELETE", path: "/apps/{app}/instances/{name}", role: RoleAdmin, conditional: true, summary: "Remove an instance", query: planning, plans: true, status: 204, handle: (*Server).deleteInstance},
		{method: "POST", path: "/apps/{app}/instances/{name}/drain", role: RoleOperator, conditional: true, summary: "Give the instance no new requests; wait until none is open", query: append([]param{waitFor}, planning...), plans: true, answer: InstanceState{}, handle: (*Server).drain},
		{method: "POST", path: "/apps/{app}/instances/{name}/activate", role: RoleOperator, conditional: true, summary: "Let the instance take requests", query: append([]param{waitFor}, planning...), plans: true, answer: InstanceState{}, handle: (*Server).activate},
		{method: "POST", path: "/apps/{app}/instances/{name}/disable", role: RoleOperator, conditional: true, summary: "Take the instance out; it is not probed either", query: append([]param{waitFor}, planning...), plans: true, answer: InstanceState{}, handle: (*Server).disable},

		{method: "POST", path: "/apply", role: RoleAdmin, conditional: true, summary: "Apply a whole document as one change", query: []param{dryRun, {"prune", "boolean", "delete applications that the document does not name"}, maxMoved, waitFor}, body: documentBody{}, answer: ApplyResult{}, handle: (*Server).apply},
		{method: "GET", path: "/export", role: RoleViewer, summary: "Read the whole document; with secrets for the role admin", query: []param{{"secrets", "boolean", "with tokens; needs the role admin"}, {"format", "string", "json or yaml; default by Accept, else json"}}, answer: documentBody{}, handle: (*Server).export},
		{method: "GET", path: "/explain", role: RoleViewer, summary: "Say where a user goes, and why", query: explains, answer: Explanation{}, handle: (*Server).explain},
		{method: "GET", path: "/nodes", role: RoleViewer, summary: "List live nodes with the configuration that each has in force", query: paging, answer: List[Node]{}, handle: (*Server).listNodes},
		{method: "POST", path: "/check", role: RoleOperator, summary: "Have every proxy connect to each instance, and look at etcd and the clocks", query: []param{{"app", "string", "only this application's instances"}}, answer: Check{}, handle: (*Server).check},
		{method: "POST", path: "/nodes/{node}/accept", role: RoleAdmin, summary: "Have an lb-proxy put in force what it holds back", body: AcceptRequest{}, optionalBody: true, answer: Node{}, handle: (*Server).acceptNode},
		{method: "GET", path: "/events", role: RoleViewer, summary: "Follow configuration, health and node changes", answerKind: "text/event-stream", handle: (*Server).events},
		{method: "GET", path: "/history", role: RoleViewer, summary: "List changes, the newest first", query: []param{{"limit", "integer", "at most so many; default 50"}, {"before", "integer", "only entries of a lower revision"}}, answer: List[HistoryEntry]{}, handle: (*Server).history},
		{method: "GET", path: "/history/{revision}", role: RoleViewer, summary: "Read one change", answer: HistoryEntry{}, handle: (*Server).historyAt},
		{method: "POST", path: "/rollback/{revision}", role: RoleAdmin, conditional: true, summary: "Return to the configuration of a revision", query: []param{dryRun, maxMoved, waitFor}, answer: ApplyResult{}, handle: (*Server).rollback},

		{method: "GET", path: "/access", role: RoleViewer, summary: "List access tokens by name", query: paging, answer: List[AccessToken]{}, handle: (*Server).listAccess},
		{method: "POST", path: "/access", role: RoleAdmin, summary: "Make an access token; it is shown once", body: AccessRequest{}, status: 201, answer: AccessToken{}, handle: (*Server).createAccess},
		{method: "DELETE", path: "/access/{id}", role: RoleAdmin, summary: "Revoke an access token", status: 204, handle: (*Server).deleteAccess},

		{method: "GET", path: "/status", role: RoleViewer, summary: "Read the state of the whole cluster", answer: (*Status)(nil), handle: (*Server).status},
		{method: "GET", path: "/health", role: RoleViewer, summary: "Ask whether the process lives", answer: Health{}, handle: (*Server).health},
		{method: "GET", path: "/readyz", role: RoleViewer, summary: "Ask whether it can do its work", answer: Health{}, handle: (*Server).ready},
		{method: "GET", path: "/openapi.json", summary: "Read this description", answer: map[string]any{}, handle: (*Server).description},
	}
	for i := range api {
		api[i].path = Base + api[i].path
	}
	outside := []endpoint{
		{method: "GET", path: "/status", role: RoleViewer, near: true, summary: "Read the state of the whole cluster", answer: (*Status)(nil), handle: (*Server).status},
		{method: "GET", path: "/health", raw: true, summary: "Ask whether the process lives", answer: Health{}, handle: (*Server).health},
		{method: "GET", path: "/readyz", raw: true, summary: "Ask whether it can do its work", answer: Health{}, handle: (*Server).ready},
		{method: "GET", path: "/openapi.json", summary: "Read this description", answer: map[string]any{}, handle: (*Server).description},
	}
	endpoints = append(api, outside...)
}
