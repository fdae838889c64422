// Package proto holds the messages that travel between proxies and lb-admins
// and into the counters of the store, and the Go code generated from them. It
// knows nothing of what they mean: pkg/cluster turns them into values of
// pkg/stats and pkg/lb at the edge, and nobody else imports it.
package proto

//go:generate ./generate.sh
