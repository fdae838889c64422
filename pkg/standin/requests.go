package standin

import (
	"net/http"
	"strings"
	"sync"
	"time"
)

// Request is one request as it arrived, for tests of what a balancer makes of
// heads and bodies. Names of headers are in canonical form, as net/http has them.
type Request struct {
	Time       time.Time           `json:"time"`
	Connection uint64              `json:"connection"` // number of the connection, from 1; 0 if not served by Run
	Sequence   uint64              `json:"sequence"`   // number of the request on it, from 1
	Method     string              `json:"method"`
	Path       string              `json:"path"` // as sent, still escaped
	Query      string              `json:"query"`
	Proto      string              `json:"proto"`
	Host       string              `json:"host"`
	Header     map[string][]string `json:"header"` // Authorization keeps its scheme, the kind of key and the last 4 characters only

	ContentLength    int64    `json:"content_length"` // as announced; -1: not
	TransferEncoding []string `json:"transfer_encoding,omitempty"`

	// Known once the request has ended.
	Done         bool   `json:"done"`
	Status       int    `json:"status"` // 0: never answered
	BodyBytes    int64  `json:"body_bytes"`
	BodySHA256   string `json:"body_sha256"`
	BodyComplete bool   `json:"body_complete"` // the body arrived to its end
}

const keepRequests = 100

type requestLog struct {
	mu   sync.Mutex
	last []*Request // guarded by mu, contents included; oldest first
}

func (l *requestLog) begin(r *http.Request, connection, sequence uint64) *Request {
	q := &Request{
		Time: time.Now(), Connection: connection, Sequence: sequence, Method: r.Method, Path: r.URL.EscapedPath(), Query: r.URL.RawQuery, Proto: r.Proto, Host: r.Host,
		Header: make(map[string][]string, len(r.Header)), ContentLength: r.ContentLength, TransferEncoding: r.TransferEncoding,
	}
	for name, values := range r.Header {
		values = append([]string(nil), values...)
		if name == "Authorization" {
			for i, v := range values {
				values[i] = redact(v)
			}
		}
		q.Header[name] = values
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if len(l.last) >= keepRequests {
		l.last = append(l.last[:0], l.last[1:]...)
	}
	l.last = append(l.last, q)
	return q
}

func (l *requestLog) end(q *Request, status int, n int64, sum string, complete bool) {
	l.mu.Lock()
	defer l.mu.Unlock()
	q.Done, q.Status, q.BodyBytes, q.BodySHA256, q.BodyComplete = true, status, n, sum, complete
}

func (l *requestLog) list() []Request {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Request, len(l.last))
	for i, q := range l.last {
		out[i] = *q
	}
	return out
}

// redact shortens a credential to what tells keys apart in a test: "Bearer app-…1234".
func redact(value string) string {
	scheme, token, ok := strings.Cut(value, " ")
	if !ok {
		return "…"
	}
	kind := ""
	for _, k := range []string{"app-", "dataset-"} {
		if strings.HasPrefix(token, k) {
			kind = k
		}
	}
	tail := token[len(kind):]
	if len(tail) < 8 { // too short to show any of it
		return scheme + " " + kind + "…"
	}
	return scheme + " " + kind + "…" + tail[len(tail)-4:]
}
