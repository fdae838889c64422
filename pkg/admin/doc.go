// Package admin is lb-admin's REST API, and the Client that speaks it: both
// sides change together. It turns HTTP into calls of the store, the route
// table and the cluster's hub, and what they say into JSON and RFC 9457
// problems. What a declaration means, where a user goes and how a change
// reaches the proxies it refuses to know: pkg/lb, pkg/route, pkg/store and
// pkg/cluster do.
package admin
