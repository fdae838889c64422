// Package stats counts what a proxy does: requests, errors by reason, bytes
// and durations, for every application and instance, and what answers cost in
// tokens and money, by label of user token, too. Writing takes no lock and no
// allocation; reading gives cumulative values that merge across cores,
// processes and restarts and never go backwards. It knows nothing of the
// network, of the status document or of where figures are kept.
package stats
