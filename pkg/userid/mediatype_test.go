package userid

import (
	"mime"
	"strings"
	"testing"
)

func TestParameters_Lenient(t *testing.T) {
	tests := []struct{ text, want string }{
		{"", ""},
		{" ;; ", ""},
		{"a=b", "a=b|"},
		{" a = b ; c", "a=b|c=|"},
		{`a="b;c=\"d\\";e=f`, `a=b;c="d\|e=f|`},
		{`a="b" junk;c=d`, "a=b|c=d|"},
		{`a="";b=`, "a=|b=|"},
		{`a="open;b=c`, "a=open;b=c|"},
		{`a="open\`, `a=open\|`},
		{"=x;a=b", "=x|a=b|"},
		{"a=b=c", "a=b=c|"},
	}
	for _, tt := range tests {
		var got strings.Builder
		for params := (parameters{[]byte(tt.text)}); params.more(); {
			name, value := params.next()
			got.WriteString(string(name) + "=" + string(value) + "|")
		}
		if got.String() != tt.want {
			t.Errorf("%q: %q, want %q", tt.text, got.String(), tt.want)
		}
	}
}

// FuzzNewScanner compares the boundary with that of mime.ParseMediaType. On purpose we differ where it finds an error,
// since we read parameters leniently, and where it decodes extended parameters ('*') or keeps a '\'.
func FuzzNewScanner(f *testing.F) {
	for _, s := range []string{"multipart/form-data; boundary=b", `multipart/form-data; a=";boundary=x"; boundary="b c"`, "application/json;", "x/y+json", "multipart/form-data; boundary=b;boundary=b", "multipart/form-data;boundary=a/b"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, contentType string) {
		s, err := NewScanner(contentType)
		if s != nil && err != nil {
			t.Fatalf("both a Scanner and %v", err)
		}
		media, params, mimeErr := mime.ParseMediaType(contentType)
		if mimeErr != nil || strings.ContainsAny(contentType, `*\`) {
			return
		}
		if (media == "multipart/form-data") != (err != nil || s != nil && s.format == formatMultipart) {
			t.Fatalf("%q: %+v, %v", contentType, s, err)
		}
		if s == nil || s.format != formatMultipart {
			return
		}
		if got := string(s.multi.line[4:s.multi.length]); got != params["boundary"] {
			t.Errorf("%q: boundary %q, mime says %q", contentType, got, params["boundary"])
		}
	})
}
