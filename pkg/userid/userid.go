// Package userid finds the user id in a request: in its head (header, query, cookie) and in its body, which it reads
// as the bytes stream by, whatever their number. It refuses to know what the id is for, where a body comes from or is
// kept meanwhile, and any HTTP engine: values come as strings and bytes, so that every engine can use it.
package userid

import "errors"

// MaxLength bounds a user id in bytes; a longer one in a body is [ErrTooLong]. Ids in a request head are bounded by
// the limit that its reader puts on the head; [Head] hands them out as long as they are.
const MaxLength = 8192

// ErrTooLong is what a [Scanner] reports, with the offset of the value in the body, of a user id over [MaxLength].
// A form value is measured before white space is trimmed off it, a JSON value even if a later key would replace it.
var ErrTooLong = errors.New("user id is too long")

// Source says where in a request the user id stood. The constants are in the order in which the places are looked at.
// The zero value is None.
type Source uint8

const (
	None        Source = iota // no user id
	Header                    // header X-User-ID
	QueryUserID               // query parameter user_id
	Cookie                    // cookie user_id
	JSON                      // top-level member user of a JSON body
	Form                      // field user of a form body, multipart or urlencoded
	QueryUser                 // query parameter user, where Dify's own GET calls carry it
)

var sourceNames = [...]string{
	None:        "none",
	Header:      "header",
	QueryUserID: "query_user_id",
	Cookie:      "cookie",
	JSON:        "json",
	Form:        "form",
	QueryUser:   "query_user",
}

// String returns a stable lower-case word, fit for a log field, a metric label and the answer of an explanation.
func (s Source) String() string {
	if int(s) < len(sourceNames) {
		return sourceNames[s]
	}
	return "unknown"
}

// Head holds the parts of a request head that may carry the user id. Ids found are substrings of its strings where
// nothing had to be decoded. The zero value carries none.
type Head struct {
	UserIDHeaders []string // all values of X-User-ID, in order, without the white space around a field value
	RawQuery      string   // what follows the first '?' of the request-target, still encoded
	Cookies       []string // all values of Cookie, in order
}

// Before returns the user id that stands before the body in the order of sources: the first X-User-ID that is not
// empty, query user_id, cookie user_id; "" and None if there is none.
func (h *Head) Before() (id string, src Source) {
	for _, id := range h.UserIDHeaders {
		if id != "" {
			return id, Header
		}
	}
	if id, ok := FromQuery(h.RawQuery, "user_id"); ok {
		return id, QueryUserID
	}
	for _, field := range h.Cookies {
		if id, ok := FromCookie(field, "user_id"); ok {
			return id, Cookie
		}
	}
	return "", None
}

// After returns the user id that counts only if the body has none: query user; "" and None if there is none.
func (h *Head) After() (id string, src Source) {
	if id, ok := FromQuery(h.RawQuery, "user"); ok {
		return id, QueryUser
	}
	return "", None
}
