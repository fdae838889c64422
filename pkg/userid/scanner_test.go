package userid

import (
	"errors"
	"math/rand/v2"
	"strings"
	"testing"
)

// outcome is all that a body can lead to; comparable.
type outcome struct {
	verdict Verdict
	id      string
	src     Source
	err     string
}

// scan pushes the pieces through a new Scanner.
func scan(contentType string, pieces ...[]byte) outcome {
	s, err := NewScanner(contentType)
	if err != nil {
		return outcome{err: "content type: " + err.Error()}
	}
	if s == nil {
		return outcome{err: "content type: no scanner"}
	}
	return push(s, pieces...)
}

func push(s *Scanner, pieces ...[]byte) outcome {
	for _, p := range pieces {
		v, err := s.Write(p)
		if v != More || err != nil {
			break
		}
	}
	v, err := s.Finish()
	o := outcome{verdict: v, id: s.UserID(), src: s.Source()}
	if err != nil {
		o.err = err.Error()
	}
	return o
}

func found(id string, src Source) outcome { return outcome{verdict: Found, id: id, src: src} }

var absent = outcome{verdict: Absent}

// checkSplits checks that no way to cut the body changes the outcome: bytewise, at every single place, and at random.
func checkSplits(t *testing.T, contentType string, body []byte, want outcome) {
	t.Helper()
	bytewise := make([][]byte, len(body))
	for i := range body {
		bytewise[i] = body[i : i+1]
	}
	if got := scan(contentType, bytewise...); got != want {
		t.Errorf("byte by byte: %+v, want %+v", got, want)
	}
	step := 1 + len(body)/512
	for i := 0; i <= len(body); i += step {
		if got := scan(contentType, body[:i], body[i:]); got != want {
			t.Errorf("cut at %d: %+v, want %+v", i, got, want)
		}
	}
	rng := rand.New(rand.NewPCG(1, uint64(len(body))))
	for range 10 {
		var pieces [][]byte
		for rest := body; len(rest) > 0; {
			n := min(len(rest), rng.IntN(1+rng.IntN(20)))
			pieces, rest = append(pieces, rest[:n]), rest[n:]
		}
		if got := scan(contentType, pieces...); got != want {
			t.Errorf("cut into %q: %+v, want %+v", pieces, got, want)
		}
	}
}

func TestNewScanner_ContentType(t *testing.T) {
	json, form := `{"user":"u"}`, "user=u"
	multi := "--b\r\nContent-Disposition: form-data; name=user\r\n\r\nu\r\n--b--"
	tests := []struct {
		contentType string
		body        string // "" if there is no Scanner
		err         string
	}{
		{"application/json", json, ""},
		{"Application/JSON; charset=utf-8", json, ""},
		{" application/json ;", json, ""},
		{"application/problem+json", json, ""},
		{"application/vnd.x+JSON;v=1", json, ""},
		{"+json", "", ""},
		{"/+json", json, ""},
		{"json", "", ""},
		{"application/jsonx", "", ""},
		{"application/j\u017fon", "", ""},
		{"", "", ""},
		{"application/octet-stream", "", ""},
		{"text/plain", "", ""},
		{"multipart/mixed; boundary=b", "", ""},
		{"application/x-www-form-urlencoded", form, ""},
		{"APPLICATION/x-www-form-urlencoded;charset=UTF-8", form, ""},
		{"multipart/form-data; boundary=b", multi, ""},
		{`Multipart/Form-Data;charset=x;BOUNDARY="b"`, multi, ""},
		{`multipart/form-data; boundary="\b"; x`, multi, ""},
		{"multipart/form-data; boundary = b ;", multi, ""},
		{"multipart/form-data; boundary*=x; boundary=b", multi, ""},
		{"multipart/form-data", "", "no boundary"},
		{"multipart/form-data; charset=utf-8", "", "no boundary"},
		{"multipart/form-data; boundary", "", "empty boundary"},
		{"multipart/form-data; boundary=", "", "empty boundary"},
		{`multipart/form-data; boundary=""`, "", "empty boundary"},
		{`multipart/form-data; boundary="b "`, "", "ends in a space"},
		{"multipart/form-data; boundary=b\x01", "", "control byte"},
		{"multipart/form-data; boundary=\"b\r\"", "", "control byte"},
		{"multipart/form-data; boundary=b; boundary=b", "", "more than one"},
		{"multipart/form-data; boundary=b; Boundary=c", "", "more than one"},
		{"multipart/form-data; boundary=" + strings.Repeat("b", 71), "", "more than 70"},
	}
	for _, tt := range tests {
		s, err := NewScanner(tt.contentType)
		if tt.err != "" {
			if s != nil || err == nil || !strings.Contains(err.Error(), tt.err) {
				t.Errorf("NewScanner(%q) = %v, %v, want error %q", tt.contentType, s, err, tt.err)
			}
			continue
		}
		if err != nil || (s != nil) != (tt.body != "") {
			t.Errorf("NewScanner(%q) = %v, %v", tt.contentType, s, err)
			continue
		}
		if s == nil {
			continue
		}
		if got := push(s, []byte(tt.body)); got.verdict != Found || got.id != "u" {
			t.Errorf("%q: %+v", tt.contentType, got)
		}
	}
}

func TestNewScanner_BoundaryCharacters(t *testing.T) {
	for _, b := range []string{"'()+_,-./:=?", "----=_Part_1_2.3", "a b", "-", "--", strings.Repeat("-", 70), strings.Repeat("Z", 70), "{x}", `q"uo\te`, "é"} {
		quoted := `"` + strings.NewReplacer(`"`, `\"`, `\`, `\\`).Replace(b) + `"`
		body := []byte("--" + b + "\r\nContent-Disposition: form-data; name=user\r\n\r\nu\r\n--" + b + "--")
		if got := scan("multipart/form-data; boundary="+quoted, body); got != found("u", Form) {
			t.Errorf("boundary %q: %+v", b, got)
		}
	}
}

func TestScanner_EmptyBodyIsAbsent(t *testing.T) {
	for _, ct := range []string{"application/json", "multipart/form-data; boundary=b", "application/x-www-form-urlencoded"} {
		if got := scan(ct); got != absent {
			t.Errorf("%s: %+v", ct, got)
		}
		if got := scan(ct, nil, []byte{}); got != absent {
			t.Errorf("%s, empty writes: %+v", ct, got)
		}
	}
}

func TestScanner_ZeroValueIsAbsent(t *testing.T) {
	var s Scanner
	if v, err := s.Write([]byte("user=x")); v != Absent || err != nil {
		t.Errorf("Write = %v, %v", v, err)
	}
	if got := push(new(Scanner)); got != absent {
		t.Errorf("Finish: %+v", got)
	}
}

func TestScanner_OutcomeIsSticky(t *testing.T) {
	tests := []struct {
		contentType, body string
		want              outcome
	}{
		{"application/x-www-form-urlencoded", "user=a&", found("a", Form)},
		{"multipart/form-data; boundary=b", "--b--", absent},
		{"application/json", "{]", outcome{err: `malformed JSON body at byte 1: ']' where a string or '}' is expected`}},
	}
	for _, tt := range tests {
		s, _ := NewScanner(tt.contentType)
		v1, err1 := s.Write([]byte(tt.body))
		v2, err2 := s.Write([]byte("user=zzz&"))
		if v1 != tt.want.verdict || v2 != v1 || err1 != err2 {
			t.Errorf("%s: Write = %v, %v, then %v, %v", tt.body, v1, err1, v2, err2)
		}
		for range 2 {
			if got := push(s); got != tt.want {
				t.Errorf("%s: Finish: %+v", tt.body, got)
			}
		}
	}
}

func TestScanner_ErrorsHaveTypes(t *testing.T) {
	s, _ := NewScanner("application/json")
	_, err := s.Write([]byte(`{"a":`))
	if err != nil {
		t.Fatal(err)
	}
	_, err = s.Write([]byte(`1,}`))
	var syntax *SyntaxError
	if !errors.As(err, &syntax) || syntax.Offset != 7 || syntax.Format != "JSON" {
		t.Errorf("error %#v", err)
	}
	s, _ = NewScanner("application/x-www-form-urlencoded")
	_, err = s.Write([]byte("user=" + strings.Repeat("x", MaxLength+1)))
	if !errors.Is(err, ErrTooLong) {
		t.Errorf("error %v", err)
	}
}

func TestScanner_ResetReuses(t *testing.T) {
	s := new(Scanner)
	steps := []struct {
		contentType, body string
		want              outcome
	}{
		{"application/json", `{"user":"one"}`, found("one", JSON)},
		{"multipart/form-data; boundary=b", "--b\r\nContent-Disposition: form-data; name=user\r\n\r\ntwo\r\n--b--", found("two", Form)},
		{"application/json", strings.Repeat("[", 200), outcome{err: "malformed JSON body at byte 200: ends where a value or ']' is expected"}},
		{"application/json", `[{"user":"x"}]`, absent},
		{"application/x-www-form-urlencoded", "user=three", found("three", Form)},
		{"application/json", `{}`, absent},
	}
	var ids []string
	for range 3 {
		for _, step := range steps {
			if ok, err := s.Reset(step.contentType); !ok || err != nil {
				t.Fatalf("Reset(%q) = %v, %v", step.contentType, ok, err)
			}
			got := push(s, []byte(step.body))
			if got != step.want {
				t.Errorf("%s: %+v, want %+v", step.body, got, step.want)
			}
			if got.id != "" {
				ids = append(ids, got.id)
			}
		}
		if ok, err := s.Reset("text/plain"); ok || err != nil {
			t.Errorf("Reset(text/plain) = %v, %v", ok, err)
		}
		if got := push(s, []byte("user=x&")); got != absent {
			t.Errorf("text/plain: %+v", got)
		}
		if ok, err := s.Reset("multipart/form-data"); ok || err == nil {
			t.Errorf("Reset without boundary = %v, %v", ok, err)
		}
		if got := push(s, []byte("\n--\r\nContent-Disposition: form-data; name=user\r\n\r\nx\n----")); got != absent {
			t.Errorf("after a Reset in vain: %+v", got)
		}
	}
	if got := strings.Join(ids, ","); got != "one,two,three,one,two,three,one,two,three" {
		t.Errorf("ids changed after Reset: %s", got)
	}
}

func TestScanner_SteadyStateAllocatesTheIDOnly(t *testing.T) {
	bodies := []struct{ contentType, body string }{
		{"application/json", `{"inputs":{"a":[1,2,{"b":null}]},"query":"h\u00e9","user":"abc-123"}`},
		{"multipart/form-data; boundary=----x", "------x\r\nContent-Disposition: form-data; name=\"user\"\r\n\r\nabc-123\r\n------x--\r\n"},
		{"application/x-www-form-urlencoded", "a=b&user=abc-123"},
	}
	s := new(Scanner)
	for _, b := range bodies {
		body := []byte(b.body)
		n := testing.AllocsPerRun(100, func() {
			if ok, err := s.Reset(b.contentType); !ok || err != nil {
				t.Fatal(err)
			}
			s.Write(body)
			if v, _ := s.Finish(); v != Found || s.UserID() != "abc-123" {
				t.Error(v, s.UserID())
			}
		})
		if n > 1 {
			t.Errorf("%s: %v allocations", b.contentType, n)
		}
	}
}
