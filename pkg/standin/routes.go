package standin

import (
	"net/http"
	"net/url"
	"slices"
	"strings"
)

// place is where an endpoint looks for the end user: exactly one, always by the name "user".
type place int

const (
	nowhere place = iota
	inQuery
	inJSON
	inForm
)

// keyKind is the kind of key an endpoint wants.
type keyKind int

const (
	appKey keyKind = iota
	datasetKey
	noKey
)

// endpoint is one operation of the API.
type endpoint struct {
	method  string
	pattern string // "{x}" is any segment, "{x:uuid}" a UUID; a segment that is none does not match
	key     keyKind
	user    place
	must    bool // the user is required
	serve   func(*Server, *call) error

	segments []string
}

// route finds the endpoint of a request. When the path is known but not the method, it returns the
// methods that are.
func (s *Server) route(method, path string) (*endpoint, map[string]string, []string) {
	segments := strings.Split(strings.TrimPrefix(path, "/"), "/")
	var allow []string
	var found *endpoint
	var params map[string]string
	for _, e := range s.endpoints[len(segments)] {
		p, ok := matchSegments(e.segments, segments)
		if !ok {
			continue
		}
		allow = append(allow, e.method)
		if found == nil && (e.method == method || method == http.MethodHead && e.method == http.MethodGet) {
			found, params = e, p
		}
	}
	if slices.Contains(allow, http.MethodGet) {
		allow = append(allow, http.MethodHead)
	}
	if len(allow) > 0 {
		allow = append(allow, http.MethodOptions)
	}
	slices.Sort(allow)
	return found, params, slices.Compact(allow)
}

func matchSegments(pattern, segments []string) (map[string]string, bool) {
	var params map[string]string
	for i, p := range pattern {
		if !strings.HasPrefix(p, "{") {
			if p != segments[i] {
				return nil, false
			}
			continue
		}
		value, err := url.PathUnescape(segments[i])
		if err != nil || value == "" {
			return nil, false
		}
		name, kind, _ := strings.Cut(strings.Trim(p, "{}"), ":")
		if kind == "uuid" {
			id, ok := parseUUID(value)
			if !ok {
				return nil, false
			}
			value = id
		}
		if params == nil {
			params = make(map[string]string)
		}
		params[name] = value
	}
	return params, true
}

// endpointsByLength returns the whole table, split by number of segments. Literal
// paths stand before those with parameters.
func endpointsByLength() map[int][]*endpoint {
	table := slices.Concat(appEndpoints(), datasetEndpoints())
	byLength := make(map[int][]*endpoint)
	for i := range table {
		e := &table[i]
		e.segments = strings.Split(strings.TrimPrefix(e.pattern, "/"), "/")
		byLength[len(e.segments)] = append(byLength[len(e.segments)], e)
	}
	for _, list := range byLength {
		slices.SortStableFunc(list, func(a, b *endpoint) int {
			return strings.Count(a.pattern, "{") - strings.Count(b.pattern, "{")
		})
	}
	return byLength
}

func appEndpoints() []endpoint {
	const get, post, put, del = http.MethodGet, http.MethodPost, http.MethodPut, http.MethodDelete
	return []endpoint{
		{method: get, pattern: "/v1/", key: noKey, serve: (*Server).serveIndex},
		{method: get, pattern: "/v1/info", serve: (*Server).serveInfo},
		{method: get, pattern: "/v1/parameters", serve: (*Server).serveParameters},
		{method: get, pattern: "/v1/meta", serve: (*Server).serveMeta},
		{method: get, pattern: "/v1/site", serve: (*Server).serveSite},

		{method: post, pattern: "/v1/chat-messages", user: inJSON, must: true, serve: (*Server).serveChat},
		{method: post, pattern: "/v1/chat-messages/{task}/stop", user: inJSON, must: true, serve: (*Server).stopChat},
		{method: post, pattern: "/v1/completion-messages", user: inJSON, must: true, serve: (*Server).serveCompletion},
		{method: post, pattern: "/v1/completion-messages/{task}/stop", user: inJSON, must: true, serve: (*Server).stopCompletion},
		{method: post, pattern: "/v1/workflows/run", user: inJSON, must: true, serve: (*Server).serveWorkflow},
		{method: post, pattern: "/v1/workflows/{workflow}/run", user: inJSON, must: true, serve: (*Server).serveWorkflow},
		{method: get, pattern: "/v1/workflows/run/{run}", serve: (*Server).serveRun},
		{method: post, pattern: "/v1/workflows/tasks/{task}/stop", user: inJSON, must: true, serve: (*Server).stopWorkflow},
		{method: get, pattern: "/v1/workflows/logs", serve: (*Server).serveLogs},
		{method: get, pattern: "/v1/workflow/{run}/events", user: inQuery, must: true, serve: (*Server).serveRunEvents},
		{method: get, pattern: "/v1/form/human_input/{token}", serve: (*Server).serveForm},
		{method: post, pattern: "/v1/form/human_input/{token}", user: inJSON, must: true, serve: (*Server).submitForm},

		{method: post, pattern: "/v1/files/upload", user: inForm, serve: (*Server).serveUpload},
		{method: get, pattern: "/v1/files/{file:uuid}/preview", user: inQuery, serve: (*Server).servePreview},

		{method: get, pattern: "/v1/messages", user: inQuery, serve: (*Server).serveMessages},
		{method: post, pattern: "/v1/messages/{message:uuid}/feedbacks", user: inJSON, must: true, serve: (*Server).serveFeedback},
		{method: get, pattern: "/v1/messages/{message:uuid}/suggested", user: inQuery, must: true, serve: (*Server).serveSuggested},
		{method: get, pattern: "/v1/app/feedbacks", serve: (*Server).serveFeedbacks},
		{method: get, pattern: "/v1/conversations", user: inQuery, serve: (*Server).serveConversations},
		{method: del, pattern: "/v1/conversations/{conversation:uuid}", user: inJSON, serve: (*Server).deleteConversation},
		{method: post, pattern: "/v1/conversations/{conversation:uuid}/name", user: inJSON, serve: (*Server).renameConversation},
		{method: get, pattern: "/v1/conversations/{conversation:uuid}/variables", user: inQuery, serve: (*Server).serveVariables},
		{method: put, pattern: "/v1/conversations/{conversation:uuid}/variables/{variable:uuid}", user: inJSON, serve: (*Server).setVariable},

		{method: post, pattern: "/v1/audio-to-text", user: inForm, serve: (*Server).serveAudioToText},
		{method: post, pattern: "/v1/text-to-audio", user: inJSON, serve: (*Server).serveTextToAudio},

		{method: get, pattern: "/v1/end-users/{user:uuid}", serve: (*Server).serveEndUser},
		{method: get, pattern: "/v1/apps/annotations", serve: (*Server).serveAnnotations},
		{method: post, pattern: "/v1/apps/annotations", serve: (*Server).addAnnotation},
		{method: put, pattern: "/v1/apps/annotations/{annotation:uuid}", serve: (*Server).setAnnotation},
		{method: del, pattern: "/v1/apps/annotations/{annotation:uuid}", serve: (*Server).deleteAnnotation},
		{method: post, pattern: "/v1/apps/annotation-reply/{action}", serve: (*Server).startAnnotationJob},
		{method: get, pattern: "/v1/apps/annotation-reply/{action}/status/{job:uuid}", serve: (*Server).serveAnnotationJob},
	}
}
