package lb

import "net/http"

// Reason says why a request ended. Every ended request has exactly one; it
// gives the error code and status that the client sees, the field of the
// access log and the label of metrics.
type Reason uint8

// The reasons.
const (
	ReasonOK Reason = iota // the instance answered, whatever its status below 500

	// The client's doing.
	ReasonClientGone          // went away before the answer was complete
	ReasonBadRequest          // malformed HTTP or a body that can't be read for its user id
	ReasonUserIDRequired      // contract rule: no user id where one is needed
	ReasonUnauthorized        // user token missing, malformed, repeated, unknown or disabled
	ReasonNotFound            // a path that is not routed
	ReasonForbidden           // may not ask this (status from outside --status-allow)
	ReasonTooLarge            // body over max_body
	ReasonURITooLong          //
	ReasonHeaderTooLarge      //
	ReasonExpectationFailed   //
	ReasonNotImplemented      // transfer coding or method that no proxy supports
	ReasonVersionNotSupported //
	ReasonRequestTimeout      // the client was too slow
	ReasonRateLimited         //

	// The cluster's doing.
	ReasonNoInstance   // no instance may take the request
	ReasonQueueFull    // the instance's queue holds as many as it may
	ReasonQueueTimeout // waited its time in the queue
	ReasonShutdown     // cut when the grace of a shutdown was over
	ReasonInternal     // a fault of ours

	// The instance's doing.
	ReasonConnectFailed   // no connection could be made
	ReasonUpstreamBroke   // the connection broke off before the answer was complete
	ReasonUpstreamInvalid // spoke nonsense
	ReasonUpstreamTimeout // no byte within timeouts.read
	ReasonUpstreamError   // answered 500 or above
	ReasonTokenRejected   // refused its own token
	ReasonBusy            // answered 429 too_many_requests, its own concurrency cap
	ReasonProviderError   // 400 for a fault of its model or credentials
	ReasonStreamError     // an error event inside a stream

	NumReasons // their number; not a reason
)

// reasons is the one table: label, what the proxy answers when it answers by
// itself, and whose doing it is.
var reasons = [NumReasons]struct {
	label  string
	status int
	code   string
	fault  fault
}{
	ReasonOK:                  {"ok", 200, "", nobody},
	ReasonClientGone:          {"client_gone", 499, "client_gone", client},
	ReasonBadRequest:          {"bad_request", http.StatusBadRequest, "bad_request", client},
	ReasonUserIDRequired:      {"user_id_required", http.StatusBadRequest, "user_id_required", client},
	ReasonUnauthorized:        {"unauthorized", http.StatusUnauthorized, "unauthorized", client},
	ReasonNotFound:            {"not_found", http.StatusNotFound, "not_found", client},
	ReasonForbidden:           {"forbidden", http.StatusForbidden, "forbidden", client},
	ReasonTooLarge:            {"request_too_large", http.StatusRequestEntityTooLarge, "request_too_large", client},
	ReasonURITooLong:          {"uri_too_long", http.StatusRequestURITooLong, "uri_too_long", client},
	ReasonHeaderTooLarge:      {"header_too_large", http.StatusRequestHeaderFieldsTooLarge, "header_too_large", client},
	ReasonExpectationFailed:   {"expectation_failed", http.StatusExpectationFailed, "expectation_failed", client},
	ReasonNotImplemented:      {"not_implemented", http.StatusNotImplemented, "not_implemented", client},
	ReasonVersionNotSupported: {"version_not_supported", http.StatusHTTPVersionNotSupported, "version_not_supported", client},
	ReasonRequestTimeout:      {"request_timeout", http.StatusRequestTimeout, "request_timeout", client},
	ReasonRateLimited:         {"rate_limited", http.StatusTooManyRequests, "rate_limited", client},
	ReasonNoInstance:          {"no_instance", http.StatusServiceUnavailable, "no_instance_available", cluster},
	ReasonQueueFull:           {"queue_full", http.StatusServiceUnavailable, "no_instance_available", cluster},
	ReasonQueueTimeout:        {"queue_timeout", http.StatusServiceUnavailable, "no_instance_available", cluster},
	ReasonShutdown:            {"shutdown", http.StatusServiceUnavailable, "no_instance_available", cluster},
	ReasonInternal:            {"internal", http.StatusInternalServerError, "internal_server_error", cluster},
	ReasonConnectFailed:       {"connect_failed", http.StatusBadGateway, "bad_gateway", instance},
	ReasonUpstreamBroke:       {"upstream_broke", http.StatusBadGateway, "bad_gateway", instance},
	ReasonUpstreamInvalid:     {"upstream_invalid", http.StatusBadGateway, "bad_gateway", instance},
	ReasonUpstreamTimeout:     {"upstream_timeout", http.StatusGatewayTimeout, "gateway_timeout", instance},
	ReasonUpstreamError:       {"upstream_error", http.StatusBadGateway, "bad_gateway", instance},
	ReasonTokenRejected:       {"token_rejected", http.StatusBadGateway, "bad_gateway", instance},
	ReasonBusy:                {"busy", http.StatusTooManyRequests, "too_many_requests", instance},
	ReasonProviderError:       {"provider_error", http.StatusBadRequest, "provider_error", instance},
	ReasonStreamError:         {"stream_error", http.StatusOK, "stream_error", instance},
}

type fault uint8

const (
	nobody fault = iota
	client
	cluster
	instance
)

// String returns the label: what logs and metrics show.
func (r Reason) String() string {
	if r >= NumReasons {
		return "unknown"
	}
	return reasons[r].label
}

// ParseReason returns the reason of a label.
func ParseReason(label string) (Reason, bool) {
	for r := range reasons {
		if reasons[r].label == label {
			return Reason(r), true
		}
	}
	return 0, false
}

// Status returns the HTTP status that the proxy answers when it answers by itself.
func (r Reason) Status() int { return reasons[r].status }

// Code returns the field "code" of the answer that the proxy makes by itself.
func (r Reason) Code() string { return reasons[r].code }

// IsError reports whether the request counts as an error of the service:
// the cluster's or an instance's doing, not the client's.
func (r Reason) IsError() bool { return reasons[r].fault >= cluster }

// IsInstanceError reports whether it counts as an error of the instance.
func (r Reason) IsInstanceError() bool { return reasons[r].fault == instance }
