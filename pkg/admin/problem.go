package admin

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"strconv"
	"strings"
	"time"

	"difylb/pkg/lb"
)

// failure is an error that knows its answer. Handlers return one where the
// kinds of pkg/lb say too little.
type failure struct {
	status int
	kind   string // last part of the problem's type
	detail string
	faults lb.Faults
	after  time.Duration // Retry-After; 0 for none
	header http.Header   // further fields, may be nil
	cause  error         // for the log; may be nil
}

func (f *failure) Error() string {
	if f.detail == "" && f.cause != nil {
		return f.cause.Error()
	}
	return f.detail
}

func (f *failure) Unwrap() error { return f.cause }

func fail(status int, kind, format string, args ...any) *failure {
	return &failure{status: status, kind: kind, detail: fmt.Sprintf(format, args...)}
}

// typePrefix makes the types of problems URIs that no one can look up: they
// identify, title and detail explain.
const typePrefix = "urn:difylb:problem:"

// retryUnavailable is what a client is asked to wait while the store is away.
// An etcd election is over after about a second.
const retryUnavailable = 2 * time.Second

// failureOf is the one place where kinds of errors become statuses.
func failureOf(err error) *failure {
	var f *failure
	var fs lb.Faults
	var tooLarge *http.MaxBytesError
	switch {
	case errors.As(err, &f):
		return f
	case errors.As(err, &fs):
		return invalid(fs)
	case errors.As(err, &tooLarge):
		return fail(http.StatusRequestEntityTooLarge, "too-large", "the body is larger than %d bytes", tooLarge.Limit)
	case errors.Is(err, lb.ErrInvalid):
		return invalid(lb.Faults{{Message: err.Error()}})
	case errors.Is(err, lb.ErrNotFound):
		return fail(http.StatusNotFound, "not-found", "%s", err)
	case errors.Is(err, lb.ErrExists):
		return fail(http.StatusConflict, "exists", "%s", err)
	case errors.Is(err, lb.ErrConflict):
		return fail(http.StatusConflict, "changed", "%s; nothing was done, try again", err)
	case errors.Is(err, lb.ErrUnavailable), errors.Is(err, context.DeadlineExceeded):
		f := fail(http.StatusServiceUnavailable, "unavailable", "%s", err)
		f.after, f.cause = retryUnavailable, err
		return f
	}
	// What went wrong inside is for the log, not for whoever asked.
	f = fail(http.StatusInternalServerError, "internal", "the server failed; its log says how")
	f.cause = err
	return f
}

func invalid(fs lb.Faults) *failure {
	f := fail(http.StatusUnprocessableEntity, "invalid", "%d faults; nothing was changed", len(fs))
	if len(fs) == 1 {
		f.detail = fs[0].String()
	}
	f.faults = fs
	return f
}

// fewNames is how many names are worth listing.
const fewNames = 8

// notFound names the object that is missing and one of a similar name, or all
// that there are where these are few.
func notFound(kind, name string, have []string) error {
	hint := lb.DidYouMean(name, have)
	switch n := len(have); {
	case hint != "" || n == 0 || n > fewNames:
	case n == 1:
		hint = "; there is " + have[0]
	default:
		hint = "; there are " + strings.Join(have, ", ")
	}
	return fail(http.StatusNotFound, "not-found", "there is no %s %q%s", kind, name, hint)
}

func (f *failure) write(w http.ResponseWriter, r *http.Request) {
	p := Problem{
		Type: typePrefix + f.kind, Title: http.StatusText(f.status), Status: f.status,
		Detail: f.detail, Instance: r.URL.Path, Faults: f.faults,
	}
	h := w.Header()
	for k, v := range f.header {
		h[k] = v
	}
	if f.after > 0 {
		h.Set("Retry-After", strconv.Itoa(int((f.after+time.Second-1)/time.Second)))
	}
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(f.status)
	// An error here is the client's going away.
	_ = json.NewEncoder(w).Encode(p)
}
