// Package cluster is the gRPC link between lb-proxies and lb-admins, both
// sides of it, and the one Status document that both serve. Proxies report
// cumulative figures and which configuration they have in force; lb-admins sum
// them over every boot that ever reported, keep the sums in the store, and
// send the document back. It knows nothing of routing, of probes, or of how
// the store keeps a value.
package cluster
