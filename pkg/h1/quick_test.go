package h1

import (
	"bytes"
	"reflect"
	"testing"
)

// slowParse is Section.parse without its short cut.
func (s *Section) slowParse(buf []byte, bound, fields int) (n int, err error) {
	for n == 0 && err == nil {
		n, err = s.parseSlowly(buf, bound, fields)
	}
	return n, err
}

// FuzzSection_QuickIsSlow shows that the short cut of parse changes nothing.
func FuzzSection_QuickIsSlow(f *testing.F) {
	for _, section := range []string{
		"Host: a\r\nUser-Agent: b c\r\nContent-Length: 12\r\n\r\n",
		"Host:a\r\nhost:  b \r\nX-Own: c\r\nAccept:\r\nAccept: \r\nAccept:\t\r\n\r\nbody",
		"Via: 1\tx\r\nAge: 0\r\nTE: trailers\r\nE: x\r\n\r\n",
		"Content\rLength: 1\r\n\r\n", "Host: a\r\nDate : b\r\n\r\n", "Host: a\n\r\n", "Host: a\r b\r\n\r\n", "Host: \x7f\r\n\r\n",
		"ETag: \"\xff\x7e\"\r\nETag: \xff~x\r\nX-Forwarded-For: 1.2.3.4\r\nX_Real_IP: 4\r\n\r\n", "Upgrade:", "Range: x\r", " Host: a\r\n\r\n",
		"Proxy-Authentication-Info: abcdefghijklmnopqrstuvwxyz\r\n\r\n", "Proxy-Authentic\r\n:: a\r\n\r\n",
	} {
		f.Add([]byte(section), uint8(0), uint8(20))
		f.Add([]byte(section), uint8(len(section)/2), uint8(2))
	}
	f.Fuzz(func(t *testing.T, section []byte, cut, fields uint8) {
		bounds := []int{1 << 10, len(section) - int(cut)}
		for _, bound := range bounds {
			bound = max(bound, 1)
			var quick, slow Section
			quick.reset(0)
			slow.reset(0)
			for _, upTo := range []int{min(int(cut), len(section)), len(section)} { // in two pieces
				n, err := quick.parse(section[:upTo], bound, int(fields))
				m, want := slow.slowParse(section[:upTo], bound, int(fields))
				if n != m || err != want {
					t.Fatalf("%q, bound %d: %d, %v; want %d, %v", section[:upTo], bound, n, err, m, want)
				}
				if err != nil && err != ErrIncomplete {
					break
				}
				if !reflect.DeepEqual(quick, slow) {
					t.Fatalf("%q, bound %d:\n%+v, want\n%+v", section[:upTo], bound, quick, slow)
				}
				if err == nil {
					break
				}
			}
		}
	})
}

func TestSection_MostLinesTakeTheShortCut(t *testing.T) {
	head := []byte("Host: difylb.example\r\nUser-Agent: python-requests/2.32\r\nAccept: */*\r\nAuthorization: Bearer app-0123456789\r\n" +
		"Content-Type: application/json\r\nContent-Length: 250\r\nX-Request-ID: 0f8fad5b\r\n\r\n{\"inputs\":{}}")
	var s Section
	s.reset(0)
	for s.parseQuickly(head) {
	}
	if !bytes.HasPrefix(head[s.pos:], []byte("\r\n")) {
		t.Errorf("stopped before %q", head[s.pos:])
	}
}
