package proxy

import (
	"encoding/binary"
	"encoding/json"
	"math"
	"math/rand/v2"
	"time"

	"difylb/pkg/lb"
)

// errorBody writes an error in Dify's own shape, so that Dify's SDKs
// understand it, with two fields more.
func errorBody(reason lb.Reason, message, requestID string) []byte {
	b, err := json.Marshal(struct {
		Code      string `json:"code"`
		Message   string `json:"message"`
		Status    int    `json:"status"`
		Error     string `json:"error"`
		RequestID string `json:"request_id"`
	}{reason.Code(), message, reason.Status(), message, requestID})
	if err != nil {
		panic(err) // strings and a number always marshal
	}
	return append(b, '\n')
}

const bearerChallenge = `Bearer realm="difylb"`

// retryAfterSeconds rounds up: a client that waits so long is let in.
func retryAfterSeconds(d time.Duration) int {
	return max(1, int(math.Ceil(math.Min(d.Seconds(), 86400))))
}

// newRequestID returns 128 random bits in hexadecimal digits. They are good
// for telling requests apart; nothing rests on nobody guessing them.
func newRequestID() (b [idLength]byte) {
	for i := 0; i < len(b); i += 16 {
		v := rand.Uint64()
		binary.LittleEndian.PutUint64(b[i:], inHex(uint32(v)))
		binary.LittleEndian.PutUint64(b[i+8:], inHex(uint32(v>>32)))
	}
	return b
}

// idLength is that of a request id of ours.
const idLength = 32

// inHex returns the eight hexadecimal digits of v, the lowest first.
func inHex(v uint32) uint64 {
	w := uint64(v)
	w = (w | w<<16) & 0x0000ffff0000ffff
	w = (w | w<<8) & 0x00ff00ff00ff00ff
	w = (w | w<<4) & 0x0f0f0f0f0f0f0f0f
	letters := (w + 0x0606060606060606) >> 4 & 0x0101010101010101 // 1 where a digit is a to f
	return w + 0x3030303030303030 + letters*('a'-10-'0')
}

// validRequestID reports whether a client's X-Request-ID may be kept: short,
// and nothing that needs escaping anywhere it will be written.
func validRequestID(id string) bool {
	if id == "" || len(id) > 128 {
		return false
	}
	for i := range len(id) {
		switch c := id[i]; {
		case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z', c >= '0' && c <= '9', c == '-', c == '_', c == '.', c == ':', c == '/', c == '+', c == '=':
		default:
			return false
		}
	}
	return true
}
