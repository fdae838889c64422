// Package lb holds the domain types that everything else speaks in:
// applications, instances, user tokens, the snapshot of a cluster's declared
// state, and the few kinds of error that cross package borders. It knows what
// a valid declaration is, and refuses to know how one is stored, served,
// hashed or routed. It imports the standard library only.
package lb
