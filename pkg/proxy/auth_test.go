package proxy

import (
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"

	"difylb/pkg/lb"
)

func TestAuth_RefusesWithAChallenge(t *testing.T) {
	r := newRig(t, func(_ *Options, a *lb.Application) {
		a.UserTokens = append(a.UserTokens, lb.NewUserToken("user-token-disabled", "old", true))
	}, echo("a"))
	for _, tc := range []struct{ name, fields string }{
		{"missing", ""},
		{"empty", "Authorization: \r\n"},
		{"no token", "Authorization: Bearer\r\n"},
		{"spaces only", "Authorization: Bearer    \r\n"},
		{"other scheme", "Authorization: Basic user-token-shop\r\n"},
		{"no scheme", "Authorization: user-token-shop\r\n"},
		{"two tokens", "Authorization: Bearer user-token-shop user-token-shop\r\n"},
		{"list", "Authorization: Bearer user-token-shop, Bearer x\r\n"},
		{"repeated", "Authorization: Bearer user-token-shop\r\nAuthorization: Bearer user-token-shop\r\n"},
		{"unknown", "Authorization: Bearer user-token-shoe\r\n"},
		{"disabled", "Authorization: Bearer user-token-disabled\r\n"},
		{"overlong", "Authorization: Bearer " + strings.Repeat("x", 10000) + "\r\n"},
		{"other case of the token", "Authorization: Bearer USER-TOKEN-SHOP\r\n"},
		{"the instance's own", "Authorization: Bearer app-a-secret-token\r\n"},
		{"in the query", "X-Api-Key: user-token-shop\r\n"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r.t = t
			got := r.raw("GET /v1/info HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + tc.fields + "\r\n")
			if !strings.HasPrefix(got, "HTTP/1.1 401 ") || !strings.Contains(got, "\r\nWWW-Authenticate: Bearer") || !strings.Contains(got, `"code":"unauthorized"`) {
				t.Error(got)
			}
		})
	}
	for _, scheme := range []string{"Bearer", "bearer", "BEARER", "bEaReR", "Bearer  "} {
		got := r.raw("GET /v1/info HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: " + scheme + " user-token-shop\r\n\r\n")
		if !strings.HasPrefix(got, "HTTP/1.1 200 ") {
			t.Errorf("%q: %s", scheme, got)
		}
	}
}

// The rig's own log holds the access log and what the proxy logs, at debug level.
func TestAuth_SecretsGoNowhere(t *testing.T) {
	leaky := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		for _, v := range r.Header {
			for _, v := range v {
				if strings.Contains(v, "user-token") {
					t.Error("the user's token reached the instance")
				}
			}
		}
		w.Header().Set("Authorization", r.Header.Get("Authorization"))
		w.Header().Set("Trailer", "Authorization")
		switch r.URL.Path {
		case "/v1/reject":
			w.Header().Set("WWW-Authenticate", "Bearer "+r.Header.Get("Authorization"))
			w.WriteHeader(401)
			io.WriteString(w, "Access token is invalid: "+r.Header.Get("Authorization"))
		case "/v1/break":
			panic(http.ErrAbortHandler)
		case "/v1/error":
			w.WriteHeader(503)
		case "/v1/hint":
			w.Header().Set("Authorization", r.Header.Get("Authorization"))
			w.WriteHeader(103)
			fmt.Fprint(w, "ok")
		default:
			fmt.Fprint(w, "data: {}\n\n")
			w.Header().Set("Authorization", r.Header.Get("Authorization"))
		}
	})
	r := newRig(t, func(o *Options, _ *lb.Application) { o.DebugHeaders = true }, leaky, leaky)
	answers := ""
	for _, path := range []string{"/v1/ok", "/v1/reject", "/v1/break", "/v1/error", "/v1/hint", "/v1/x/%2e%2e/y", "/nowhere", "/status", "/health"} {
		for _, token := range []string{"user-token-shop", "user-token-canary-unknown"} {
			answers += r.raw("POST " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\nTE: trailers\r\nX-User-ID: canary-user-id\r\nAuthorization: Bearer " + token + "\r\nContent-Length: 0\r\n\r\n")
		}
	}
	eventually(t, "the access log", func() bool { return strings.Count(r.log.String(), "\n") >= 18 })
	for _, secret := range []string{"user-token", "secret-token", "app-a", "app-b"} {
		if strings.Contains(answers, secret) {
			t.Errorf("an answer holds %q:\n%s", secret, answers)
		}
		if strings.Contains(r.log.String(), secret) {
			t.Errorf("a log holds %q:\n%s", secret, r.log)
		}
	}
	if strings.Contains(r.log.String(), "canary-user-id") {
		t.Error("a log holds the user id")
	}
}
