package userid

import (
	"net/http"
	"net/url"
	"strings"
	"testing"
)

func TestFromQuery(t *testing.T) {
	tests := []struct{ query, name, want string }{
		{"", "user", ""},
		{"user=alice", "user", "alice"},
		{"a=1&user=alice&user=bob", "user", "alice"},
		{"user=&user=bob", "user", "bob"},
		{"user&user=bob", "user", "bob"},
		{"user==b=c", "user", "=b=c"},
		{"user_id=alice", "user", ""},
		{"xuser=alice", "user", ""},
		{"User=alice", "user", ""},
		{"user=a%20b+c%2Bd", "user", "a b c+d"},
		{"us%65r=alice", "user", "alice"},
		{"%75%73%65%72=alice", "user", "alice"},
		{"us%65=alice", "user", ""},
		{"us%65rs=alice", "user", ""},
		{"us+er=alice", "us er", "alice"},
		{"user=%E4%BD%A0%e5%a5%bd", "user", "你好"},
		{"user=100%", "user", "100%"},
		{"user=%zz%4", "user", "%zz%4"},
		{"user=%%41", "user", "%A"},
		{"user=a;user=b", "user", "a;user=b"},
		{"a=1;user=b", "user", ""},
		{"&&&user=a&&", "user", "a"},
		{"user=+", "user", " "},
		{"user=%00", "user", "\x00"},
		{"=x", "", "x"},
	}
	for _, tt := range tests {
		got, ok := FromQuery(tt.query, tt.name)
		if got != tt.want || ok != (tt.want != "") {
			t.Errorf("FromQuery(%q, %q) = %q, %v, want %q", tt.query, tt.name, got, ok, tt.want)
		}
	}
}

func TestFromCookie(t *testing.T) {
	tests := []struct{ field, want string }{
		{"", ""},
		{"user_id=alice", "alice"},
		{"a=b; user_id=alice; c=d", "alice"},
		{"a=b;user_id=alice", "alice"},
		{"user_id=; user_id=bob", "bob"},
		{"user_id; user_id=bob", "bob"},
		{"user_id=a; user_id=b", "a"},
		{"\tuser_id=alice \t;", "alice"},
		{`user_id="alice"`, `"alice"`},
		{"user_id=a%20b", "a%20b"},
		{"user_id=a=b=", "a=b="},
		{"USER_ID=alice", ""},
		{"xuser_id=alice", ""},
		{"x=user_id=alice", ""},
		{"user_id =alice", "alice"},
		{"user_id=a, user_id=b", "a, user_id=b"},
		{";;;user_id=a;;", "a"},
	}
	for _, tt := range tests {
		got, ok := FromCookie(tt.field, "user_id")
		if got != tt.want || ok != (tt.want != "") {
			t.Errorf("FromCookie(%q) = %q, %v, want %q", tt.field, got, ok, tt.want)
		}
	}
}

func TestHead_Order(t *testing.T) {
	all := Head{
		UserIDHeaders: []string{"", "h1", "h2"},
		RawQuery:      "user=q&user_id=&user_id=qid",
		Cookies:       []string{"a=b", "user_id=", "user_id=c1", "user_id=c2"},
	}
	type step struct {
		id  string
		src Source
	}
	check := func(h Head, before, after step) {
		t.Helper()
		if id, src := h.Before(); (step{id, src}) != before {
			t.Errorf("%+v: Before = %q, %v, want %v", h, id, src, before)
		}
		if id, src := h.After(); (step{id, src}) != after {
			t.Errorf("%+v: After = %q, %v, want %v", h, id, src, after)
		}
	}
	check(all, step{"h1", Header}, step{"q", QueryUser})
	all.UserIDHeaders = []string{""}
	check(all, step{"qid", QueryUserID}, step{"q", QueryUser})
	all.RawQuery = "user=q"
	check(all, step{"c1", Cookie}, step{"q", QueryUser})
	all.Cookies = nil
	check(all, step{}, step{"q", QueryUser})
	check(Head{}, step{}, step{})
}

func TestHead_DoesNotAllocateWithoutEscapes(t *testing.T) {
	h := Head{RawQuery: "limit=20&a=%20&last_id=x&user=alice", Cookies: []string{"a=b; c=d", "user_id=bob"}}
	n := testing.AllocsPerRun(100, func() {
		if id, _ := h.Before(); id != "bob" {
			t.Error(id)
		}
		if id, _ := h.After(); id != "alice" {
			t.Error(id)
		}
	})
	if n != 0 {
		t.Errorf("%v allocations", n)
	}
}

func TestSource_NamesAreDistinct(t *testing.T) {
	seen := map[string]Source{}
	for s := None; s <= QueryUser; s++ {
		if other, ok := seen[s.String()]; ok || s.String() == "" || s.String() == "unknown" {
			t.Errorf("%d and %d are both %q", s, other, s.String())
		}
		seen[s.String()] = s
	}
	if got := Source(200).String(); got != "unknown" {
		t.Errorf("Source(200) = %q", got)
	}
}

// FuzzFromQuery compares with url.ParseQuery. On purpose we differ where it drops pairs: those with a ';' and those
// with a malformed escape. Such queries are only checked for agreement with the urlencoded Scanner, which shares the rule.
func FuzzFromQuery(f *testing.F) {
	for _, q := range []string{"user=a", "user=a%20b&user=c", "us%65r=+x", "user=%", "user=%4&x", "user=;&user=b", "=&user==", "user=%00%ff", "%=1&user=2"} {
		f.Add(q)
	}
	f.Fuzz(func(t *testing.T, query string) {
		got, ok := FromQuery(query, "user")
		if ok != (got != "") {
			t.Fatalf("FromQuery = %q, %v", got, ok)
		}
		if values, err := url.ParseQuery(query); err == nil {
			want := ""
			for _, v := range values["user"] {
				if v != "" {
					want = v
					break
				}
			}
			if got != want {
				t.Errorf("FromQuery(%q) = %q, url.ParseQuery says %q", query, got, want)
			}
		}
		if trimmed := strings.TrimSpace(got); trimmed != "" && trimmed == got && len(query) <= MaxLength {
			// The Scanner trims, so an earlier blank value would be skipped by it alone.
			if o := scan("application/x-www-form-urlencoded", []byte(query)); o.id != got && !blankUserBefore(query) {
				t.Errorf("FromQuery(%q) = %q, Scanner %+v", query, got, o)
			}
		}
	})
}

// blankUserBefore says whether the first value FromQuery sees is white space only.
func blankUserBefore(query string) bool {
	id, _ := FromQuery(query, "user")
	return strings.TrimSpace(id) == ""
}

// FuzzFromCookie compares with net/http's Request.Cookies. On purpose we differ in values: net/http strips quotes and
// drops cookies whose value has bytes outside of its set, we take them as they are.
func FuzzFromCookie(f *testing.F) {
	for _, c := range []string{"user_id=a", "a=b; user_id=c", "user_id=;user_id=d", `user_id="x"; user_id=y`, " \tuser_id =x", "user_id=\x80;user_id=b", "=;user_id= q"} {
		f.Add(c)
	}
	f.Fuzz(func(t *testing.T, field string) {
		got, ok := FromCookie(field, "user_id")
		if ok != (got != "") {
			t.Fatalf("FromCookie = %q, %v", got, ok)
		}
		if strings.Trim(field, "\r\n") != field {
			return // net/http trims these too; a field value cannot contain them
		}
		r := http.Request{Header: http.Header{"Cookie": {field}}}
		plain := strings.IndexFunc(got, func(r rune) bool { return r < ' ' || r > '~' || r == '"' || r == '\\' }) < 0
		for _, c := range r.CookiesNamed("user_id") {
			if c.Value == "" && !c.Quoted {
				continue
			}
			if plain && got != c.Value {
				if !c.Quoted && strings.ContainsAny(field, "\r\n") {
					return
				}
				t.Errorf("FromCookie(%q) = %q, net/http says %q", field, got, c.Value)
			}
			return
		}
		if plain && got != "" {
			t.Errorf("FromCookie(%q) = %q, net/http finds none", field, got)
		}
	})
}
