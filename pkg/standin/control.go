package standin

import (
	"encoding/json"
	"io"
	"net/http"
	"strings"
)

const (
	controlPrefix = "/_standin/"
	upgradePath   = "/v1/_standin/upgrade"
)

// serveControl answers the control endpoints; see the package comment. The
// connection is closed afterwards, because it need not have a slot.
func (s *Server) serveControl(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("Connection", "close")
	switch r.Method + " " + r.URL.Path {
	case "GET /_standin/counts":
		s.controlJSON(w, s.Counts())
	case "GET /_standin/requests":
		s.controlJSON(w, s.Requests())
	case "GET /_standin/faults":
		s.controlJSON(w, s.faults.List())
	case "POST /_standin/faults":
		s.setFaults(w, r)
	default:
		http.Error(w, "no such control endpoint", http.StatusNotFound)
	}
}

func (s *Server) setFaults(w http.ResponseWriter, r *http.Request) {
	var change struct {
		Clear bool    `json:"clear"`
		Add   []Fault `json:"add"`
	}
	dec := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<20))
	dec.DisallowUnknownFields()
	if err := dec.Decode(&change); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for _, f := range change.Add {
		if err := f.check(); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	if change.Clear {
		s.faults.Clear()
	}
	s.faults.Add(change.Add...) // checked above
	s.controlJSON(w, s.faults.List())
}

func (s *Server) controlJSON(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v)
}

// serveUpgrade switches to a protocol in which every byte comes back, until the
// client closes its side.
func (s *Server) serveUpgrade(x *exchange) error {
	c := &call{s: s, w: x, r: x.r}
	if err := s.authorize(c, appKey); err != nil {
		return err
	}
	protocol := x.r.Header.Get("Upgrade")
	if protocol == "" || !strings.Contains(strings.ToLower(x.r.Header.Get("Connection")), "upgrade") {
		return &apiError{status: 426, code: "upgrade_required", message: "This is an endpoint for Upgrade."}
	}
	rw, buffered := x.takeBuffered()
	defer rw.Close()
	x.status = http.StatusSwitchingProtocols
	if _, err := io.WriteString(rw, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: "+protocol+"\r\nX-Version: "+s.opts.Version+"\r\n\r\n"); err != nil {
		return nil
	}
	n, _ := io.Copy(rw, buffered)
	x.in += n
	x.out += n
	return nil
}

// takeBuffered is take for those who go on reading: some bytes may have been read already.
func (x *exchange) takeBuffered() (io.WriteCloser, io.Reader) {
	c, rw, err := http.NewResponseController(x.w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	x.hijacked = true
	return c, io.MultiReader(io.LimitReader(rw.Reader, int64(rw.Reader.Buffered())), c)
}
