package admin

import "time"

// Status is the document of the whole cluster as /status answers it. Counters
// are sums over every proxy that has ever reported and never go backwards.
type Status struct {
	Status       string                       `json:"status"`
	Timestamp    time.Time                    `json:"timestamp"`
	Revision     int64                        `json:"revision"`
	Complete     bool                         `json:"complete"` // false while some proxy's figures are missing
	Nodes        StatusNodes                  `json:"nodes"`
	Applications map[string]StatusApplication `json:"applications"`
}

// StatusNodes counts live nodes, and the proxies among them whose figures are in.
type StatusNodes struct {
	Proxies   int `json:"proxies"`
	Admins    int `json:"admins"`
	Reporting int `json:"reporting"`
}

// StatusApplication sums up one application.
type StatusApplication struct {
	TotalRequests int64                     `json:"total_requests"`
	Errors        int64                     `json:"errors"`
	Active        int64                     `json:"active"`
	Instances     map[string]StatusInstance `json:"instances"`
}

// StatusInstance sums up one instance. Latencies are in milliseconds.
type StatusInstance struct {
	Requests  int64              `json:"requests"`
	Errors    int64              `json:"errors"`
	Retries   int64              `json:"retries"`
	Active    int64              `json:"active"`
	Streams   int64              `json:"streams"`
	Status    string             `json:"status"`
	State     string             `json:"state"`
	Latency   map[string]float64 `json:"latency_ms"`
	FirstByte map[string]float64 `json:"first_byte_ms"`
	BytesIn   int64              `json:"bytes_in"`
	BytesOut  int64              `json:"bytes_out"`
	LastError *string            `json:"last_error"`
	Since     time.Time          `json:"since"`
}
