package dataplane

import (
	"context"
	"encoding/json"
	"errors"
	"net/http"
	"net/http/pprof"
	"time"

	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// maxScrapes bounds the scrapes of metrics at one time; further ones get 503.
const maxScrapes = 4

// serveOps serves what operators and their tools ask: never client traffic.
func (p *Plane) serveOps(ctx context.Context) error {
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(p.metrics(), promhttp.HandlerOpts{MaxRequestsInFlight: maxScrapes}))
	mux.HandleFunc("GET /health", p.health)
	mux.HandleFunc("GET /readyz", p.readyz)
	mux.HandleFunc("/debug/pprof/", pprof.Index)
	mux.HandleFunc("/debug/pprof/cmdline", pprof.Cmdline)
	mux.HandleFunc("/debug/pprof/profile", pprof.Profile)
	mux.HandleFunc("/debug/pprof/symbol", pprof.Symbol)
	mux.HandleFunc("/debug/pprof/trace", pprof.Trace)
	srv := &http.Server{Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	stopped := make(chan struct{})
	go func() { // ends with ctx
		defer close(stopped)
		<-ctx.Done()
		srv.Close()
	}()
	err := srv.Serve(p.ops)
	<-stopped
	if errors.Is(err, http.ErrServerClosed) {
		return nil
	}
	return err
}

// health says that the process lives.
func (p *Plane) health(w http.ResponseWriter, _ *http.Request) {
	writeJSON(w, http.StatusOK, map[string]any{"status": "ok", "timestamp": time.Now().UTC().Format(time.RFC3339)})
}

// readyz says whether clients should be sent here. A configuration that can't
// be brought up to date is shown and is no reason: serving on what is known is
// what a proxy is for.
func (p *Plane) readyz(w http.ResponseWriter, _ *http.Request) {
	f := p.apply.facts.Load()
	st := p.store.Status()
	body := map[string]any{
		"status": "ready", "revision": f.ConfigRevision,
		"config_stale_seconds": p.store.Lag().Seconds(), "etcd_connected": st.Connected,
	}
	if st.LastError != "" {
		body["etcd_error"] = st.LastError
	}
	if f.Refused != "" {
		body["refused"] = f.Refused
	}
	status := http.StatusOK
	switch {
	case p.proxy.Draining():
		status, body["status"] = http.StatusServiceUnavailable, "draining"
	case p.proxy.Table() == nil:
		status, body["status"] = http.StatusServiceUnavailable, "no configuration"
	}
	writeJSON(w, status, body)
}

func writeJSON(w http.ResponseWriter, status int, body any) {
	w.Header().Set("Content-Type", "application/json")
	w.Header().Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	_ = json.NewEncoder(w).Encode(body)
}
