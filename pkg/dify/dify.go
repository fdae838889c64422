// Package dify holds what a balancer must know of Dify's Service API: which call a method and path are and where it
// carries the user ([Classify]), what an error answer means for the instance that gave it ([ErrorCode], [Busy],
// [ProviderFault], [TokenRejected]), and what can be learnt from an answer while it streams by ([Watcher], [Usage]).
// It refuses to know where bytes come from, what is done with what it finds, and any HTTP engine: it takes strings and
// bytes, keeps nothing back, and never decides that an answer is over.
package dify

// Place is where in a request Dify looks for a value. The zero value is Nowhere.
type Place uint8

const (
	Nowhere Place = iota // the call does not carry it
	Query                // query parameter
	JSON                 // top-level member of a JSON body
	Form                 // field of a multipart body
)

var placeNames = [...]string{Nowhere: "nowhere", Query: "query", JSON: "json", Form: "form"}

// String returns a stable lower-case word for logs and explanations.
func (p Place) String() string {
	if int(p) < len(placeNames) {
		return placeNames[p]
	}
	return "unknown"
}
