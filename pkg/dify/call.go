package dify

import "strings"

// Call is what a method and a path say about a request to the Service API. The zero value is a call that is not known.
// Calls may be compared and copied.
type Call struct {
	// Pattern names the call with its ids left out, such as "/v1/messages/{message_id}/feedbacks". It comes from a
	// fixed set and so fits as a metric label; a call is a method and a pattern. "" if the call is not known.
	Pattern string

	// TaskID is the task that a stop call names, as it stands in the path; "" of any other call.
	TaskID string

	// Conversation is the conversation id that the path carries, as it stands there; "" if it carries none.
	Conversation string

	// UserIn is the one place where Dify looks for the end user, always under the name user. (The client libraries
	// send ?user= with some calls that are Nowhere: Dify ignores it.)
	UserIn Place

	// ConversationIn is where, besides the path, the call carries a conversation_id that Dify looks up.
	ConversationIn Place

	// Known says that this is one of Dify's documented calls, legacy spellings that still work included.
	Known bool

	// NeedsUser says that Dify itself refuses the call without a user. Where UserIn is not Nowhere and NeedsUser is
	// false, Dify takes an anonymous user that all such requests share.
	NeedsUser bool

	// Stop marks the three calls that end a running task. Dify answers success to them also where nothing was stopped.
	Stop bool

	// Dataset marks the knowledge API and the list of models, which take a dataset token and know no end users.
	Dataset bool

	// answer is what there is to learn from a JSON answer to this call.
	answer answer
}

// answer is the kind of document with which a call is answered when it succeeds.
type answer uint8

const (
	plainAnswer  answer = iota // nothing in it is of use to a balancer
	runAnswer                  // a run of the app: ids and usage
	uploadAnswer               // a stored file: its id
)

// Classify says which call of the Service API a request is. The path is that of the request target without the query
// and begins with /v1. HEAD counts as GET, and /v1 as /v1/, to which Dify redirects.
//
// Matching is exact, as Dify's router is: a trailing slash, a doubled slash (Dify answers with a redirect or 404), an
// empty, "." or ".." segment, a known path with a method it does not have, and a fixed word that is percent-encoded or
// in other case make a call that is not known. A segment in an id's place may hold anything else, percent-encoded
// bytes but the slash included, and is handed out undecoded; one that is a fixed word in that place is never an id.
//
// Classify does not allocate; the strings of the Call are constants and substrings of path.
func Classify(method, path string) Call {
	m, ok := methodOf(method)
	if !ok {
		return Call{}
	}
	rest, ok := strings.CutPrefix(path, prefix)
	if !ok {
		return Call{}
	}
	var ids [maxIDs]string
	n, found := router, 0
	if rest != "" && rest != "/" {
		for rest != "" {
			if rest[0] != '/' {
				return Call{}
			}
			segment := rest[1:]
			if i := strings.IndexByte(segment, '/'); i >= 0 {
				segment = segment[:i]
			}
			rest = rest[1+len(segment):]
			next := n.word(segment)
			if next == nil {
				if next = n.id; next == nil || !canBeID(segment) {
					return Call{}
				}
				if found < maxIDs {
					ids[found] = segment
					found++
				}
			}
			n = next
		}
	}
	r := n.routes[m]
	if r == nil {
		return Call{}
	}
	call := r.call
	if r.taskID >= 0 {
		call.TaskID = ids[r.taskID]
	}
	if r.conversation >= 0 {
		call.Conversation = ids[r.conversation]
	}
	return call
}

// canBeID refuses what no router takes for one segment: an encoded slash splits the segment where Dify decodes it.
func canBeID(segment string) bool {
	switch segment {
	case "", ".", "..":
		return false
	}
	for {
		i := strings.IndexByte(segment, '%')
		if i < 0 {
			return true
		}
		segment = segment[i+1:]
		if len(segment) >= 2 && segment[0] == '2' && segment[1]|0x20 == 'f' {
			return false
		}
	}
}

const (
	methodGet = iota
	methodPost
	methodPut
	methodPatch
	methodDelete
	methodCount
)

func methodOf(method string) (int, bool) {
	switch method {
	case "GET", "HEAD":
		return methodGet, true
	case "POST":
		return methodPost, true
	case "PUT":
		return methodPut, true
	case "PATCH":
		return methodPatch, true
	case "DELETE":
		return methodDelete, true
	}
	return 0, false
}

// maxIDs is how many ids a path is remembered by; those that are handed out are among the first.
const maxIDs = 4

// node is one position in the tree of paths. Immutable once built.
type node struct {
	words  []word
	id     *node // any segment that is not one of words; nil if none may follow
	routes [methodCount]*route
}

type word struct {
	text string
	next *node
}

// word returns what follows the fixed word text, nil if it is none here. No position has more than some twenty words,
// nearly all of them of different length: comparing beats hashing.
func (n *node) word(text string) *node {
	for i := range n.words {
		if n.words[i].text == text {
			return n.words[i].next
		}
	}
	return nil
}

// route is a call together with which of the path's ids it hands out, -1 for none.
type route struct {
	call         Call
	taskID       int
	conversation int
}
