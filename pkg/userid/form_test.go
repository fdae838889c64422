package userid

import (
	"net/url"
	"strings"
	"testing"
)

const formType = "application/x-www-form-urlencoded"

func TestForm_UserID(t *testing.T) {
	tests := []struct {
		body, want string // "" is Absent
	}{
		{"user=alice", "alice"},
		{"a=b&user=alice&user=bob", "alice"},
		{"user=&user=+%20&user=bob", "bob"},
		{"user&user=bob", "bob"},
		{"user=+%0d%0a%C2%A0alice%E3%80%80+", "alice"},
		{"user=a+b%2Bc", "a b+c"},
		{"us%65r=x", "x"}, {"%75%73%65%72=x", "x"}, {"use%7=x", ""}, {"use%72%=x", ""}, {"user%=x", ""}, {"%%&user=x", "x"}, {"%%4&user=x", "x"}, {"use%%72=x", ""}, {"%user=x", ""},
		{"users=x", ""}, {"use=x", ""}, {"User=x", ""}, {"=x", ""}, {"x=user=y", ""}, {"x&user", ""}, {"+user=x", ""},
		{"user=a=b", "a=b"},
		{"user==", "="},
		{"user=100%", "100%"}, {"user=100%&a", "100%"}, {"user=%4", "%4"}, {"user=%4&", "%4"}, {"user=%zz%41%%41%4%41", "%zzA%A%4A"},
		{"user=%4=%c3%A9", "%4=é"},
		{"user=%FF", "\xff"},
		{"a;user=x", ""}, {"user=x;y", "x;y"},
		{"&&user=x&&", "x"}, {"&", ""},
		{"user=" + strings.Repeat("%41", MaxLength), strings.Repeat("A", MaxLength)},
		{"a=" + strings.Repeat("x", 3*MaxLength) + "&user=b", "b"},
	}
	for _, tt := range tests {
		want := absent
		if tt.want != "" {
			want = found(tt.want, Form)
		}
		if got := scan(formType, []byte(tt.body)); got != want {
			t.Errorf("%.200s: %.300v, want %.300v", tt.body, got, want)
			continue
		}
		checkSplits(t, formType, []byte(tt.body), want)
	}
}

func TestForm_FoundWhenThePairIsComplete(t *testing.T) {
	s, _ := NewScanner(formType)
	if v, err := s.Write([]byte("user=&user=x")); v != More || err != nil {
		t.Errorf("before the end of the pair: %v, %v", v, err)
	}
	if v, err := s.Write([]byte("&user=y")); v != Found || err != nil || s.UserID() != "x" || s.Source() != Form {
		t.Errorf("after it: %v, %v, %q", v, err, s.UserID())
	}
}

func TestForm_TooLong(t *testing.T) {
	for _, tail := range []string{"x", "%41", "+", "%", "%4"} {
		body := []byte("a=1&user=" + strings.Repeat("x", MaxLength) + tail)
		got := scan(formType, body)
		if got.verdict != More || !strings.Contains(got.err, "value at byte 9 of the body") {
			t.Errorf("%s: %+v", tail, got)
		}
		checkSplits(t, formType, body, got)
	}
}

// FuzzForm compares with url.ParseQuery. On purpose we differ where it drops pairs: those with a ';' and those with a
// malformed escape, which we take literally; a body with such pairs is compared pair by pair. We also bound ids.
func FuzzForm(f *testing.F) {
	for _, s := range []string{"user=a", "a=b&us%65r=+c+", "user=%&user=%4", "user=%%41", "user=&user=;", "=&=user&user=\xff", "user=%E3%80%80&user=x"} {
		f.Add([]byte(s), uint8(2))
	}
	f.Fuzz(func(t *testing.T, body []byte, cut uint8) {
		got := scan(formType, body)
		at := int(cut) % (len(body) + 1)
		if halves := scan(formType, body[:at], body[at:]); halves != got {
			t.Fatalf("in one piece %+v, cut at %d %+v", got, at, halves)
		}
		if strings.Contains(got.err, ErrTooLong.Error()) {
			return
		}
		want := absent
		for pair := range strings.SplitSeq(string(body), "&") {
			values, err := url.ParseQuery(pair)
			value := values.Get("user")
			if err != nil {
				value, _ = FromQuery(pair, "user")
			}
			if value = strings.TrimSpace(value); value != "" {
				want = found(value, Form)
				break
			}
		}
		if got != want {
			t.Errorf("%q: %+v, want %+v", body, got, want)
		}
	})
}
