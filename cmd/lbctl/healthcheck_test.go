package main

import (
	"bytes"
	"context"
	"net/http"
	"net/http/httptest"
	"testing"
)

func TestHealthcheck_ExitCodes(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/readyz" {
			w.WriteHeader(http.StatusServiceUnavailable)
		}
	}))
	defer srv.Close()
	for url, want := range map[string]int{
		srv.URL + "/readyz": exitDone, srv.URL + "/other": exitRefused, "http://127.0.0.1:1/readyz": exitUnreachable, "readyz": exitUsage,
	} {
		var out, errs bytes.Buffer
		if code := run(context.Background(), []string{"healthcheck", url}, newCLI(&bytes.Buffer{}, &out, &errs)); code != want {
			t.Errorf("%s: exit code %d, want %d: %s", url, code, want, errs.String())
		}
	}
}
