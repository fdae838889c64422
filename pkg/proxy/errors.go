package proxy

import (
	"crypto/rand"
	"encoding/hex"
	"encoding/json"
	"math"
	"net/http"
	"strconv"
	"time"

	"difylb/pkg/lb"
)

// errorBody writes an error in Dify's own shape, so that Dify's SDKs
// understand it, with two fields more.
func errorBody(reason lb.Reason, message, requestID string) []byte {
	b, err := json.Marshal(struct {
		Code      string `json:"code"`
		Message   string `json:"message"`
		Status    int    `json:"status"`
		Error     string `json:"error"`
		RequestID string `json:"request_id"`
	}{reason.Code(), message, reason.Status(), message, requestID})
	if err != nil {
		panic(err) // strings and a number always marshal
	}
	return append(b, '\n')
}

const bearerChallenge = `Bearer realm="difylb"`

// writeRefusal answers by ourselves.
func writeRefusal(w http.ResponseWriter, ref *refusal, requestID string) (n int64) {
	body := errorBody(ref.reason, ref.message, requestID)
	h := w.Header()
	h.Set("Content-Type", "application/json")
	h.Set("Content-Length", strconv.Itoa(len(body)))
	h.Set("X-Request-Id", requestID)
	switch {
	case ref.reason == lb.ReasonUnauthorized:
		h.Set("WWW-Authenticate", bearerChallenge)
	case ref.reason.Status() == http.StatusServiceUnavailable && ref.retryAfter == 0:
		h.Set("Retry-After", "1")
	}
	if ref.retryAfter > 0 {
		h.Set("Retry-After", strconv.Itoa(retryAfterSeconds(ref.retryAfter)))
	}
	if ref.close {
		h.Set("Connection", "close")
	}
	w.WriteHeader(ref.reason.Status())
	written, _ := w.Write(body)
	return int64(written)
}

// retryAfterSeconds rounds up: a client that waits so long is let in.
func retryAfterSeconds(d time.Duration) int {
	return max(1, int(math.Ceil(math.Min(d.Seconds(), 86400))))
}

// newRequestID returns 128 random bits in hexadecimal digits.
func newRequestID() string {
	var b [16]byte
	rand.Read(b[:])
	return hex.EncodeToString(b[:])
}

// validRequestID reports whether a client's X-Request-ID may be kept: short,
// and nothing that needs escaping anywhere it will be written.
func validRequestID(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for i := range len(id) {
		switch c := id[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.', c == ':', c == '/', c == '+', c == '=':
		default:
			return false
		}
	}
	return true
}
