package h1

import (
	"strings"
	"testing"
)

func TestHead_Writes(t *testing.T) {
	var h Head
	h.Request([]byte("POST"), []byte("/v1/x?y={z}"))
	h.Field("Host", "a")
	h.FieldBytes("X-User-ID", []byte("bl\xc3\xa4\tx"))
	h.FieldInt("Content-Length", 42)
	raw := []byte("GET / HTTP/1.1\r\nhOST: b\r\nX:  spaced \r\nEmpty:\r\n\r\n")
	var r Request
	if _, err := r.Parse(raw, nil); err != nil {
		t.Fatal(err)
	}
	for _, f := range r.Fields[1:] {
		h.Copy(f, raw)
	}
	h.End()
	want := "POST /v1/x?y={z} HTTP/1.1\r\nHost: a\r\nX-User-ID: bl\xc3\xa4\tx\r\nContent-Length: 42\r\nX: spaced\r\nEmpty: \r\n\r\n"
	if string(h.Buf) != want || h.Err != nil {
		t.Errorf("got %q, %v\nwant %q", h.Buf, h.Err, want)
	}
	for _, tt := range []struct {
		code         int
		reason, want string
	}{{200, "", "HTTP/1.1 200 OK\r\n"}, {200, "Fine", "HTTP/1.1 200 Fine\r\n"}, {100, "", "HTTP/1.1 100 Continue\r\n"}, {599, "", "HTTP/1.1 599 \r\n"}, {451, "", "HTTP/1.1 451 \r\n"}} {
		h := Head{Buf: []byte("> ")}
		if h.Status(tt.code, []byte(tt.reason)); string(h.Buf) != "> "+tt.want || h.Err != nil {
			t.Errorf("%d %s: %q, %v", tt.code, tt.reason, h.Buf, h.Err)
		}
	}
}

func TestHead_LetsNothingThrough(t *testing.T) {
	parsed := func(name, value Span) Field { return Field{Name: name, Value: value} }
	for name, write := range map[string]func(*Head){
		"CRLF in a value":         func(h *Head) { h.Field("X", "a\r\nSet-Cookie: b") },
		"LF in a value":           func(h *Head) { h.Field("X", "a\nb") },
		"NUL in a value":          func(h *Head) { h.Field("X", "\x00") },
		"CR in a value of bytes":  func(h *Head) { h.FieldBytes("X", []byte("aaaaaaaaaaaaaaaa\r")) },
		"CRLF in a name":          func(h *Head) { h.Field("X: y\r\nZ", "a") },
		"colon in a name":         func(h *Head) { h.FieldBytes("X:", nil) },
		"empty name":              func(h *Head) { h.Field("", "a") },
		"space in a name":         func(h *Head) { h.FieldInt("X ", 1) },
		"space in a method":       func(h *Head) { h.Request([]byte("GET /evil"), []byte("/")) },
		"empty method":            func(h *Head) { h.Request(nil, []byte("/")) },
		"space in a target":       func(h *Head) { h.Request([]byte("GET"), []byte("/ HTTP/1.1")) },
		"CRLF in a target":        func(h *Head) { h.Request([]byte("GET"), []byte("/\r\nX:y")) },
		"fragment in a target":    func(h *Head) { h.Request([]byte("GET"), []byte("/#")) },
		"UTF-8 in a target":       func(h *Head) { h.Request([]byte("GET"), []byte("/ü")) },
		"empty target":            func(h *Head) { h.Request([]byte("GET"), nil) },
		"CRLF in a reason":        func(h *Head) { h.Status(200, []byte("OK\r\nX: y")) },
		"status below 100":        func(h *Head) { h.Status(99, nil) },
		"status above 599":        func(h *Head) { h.Status(600, nil) },
		"spans of another buffer": func(h *Head) { h.Copy(parsed(span(0, 1), span(1, 5)), []byte("X\r\n\r\n")) },
		"name of another buffer":  func(h *Head) { h.Copy(parsed(span(0, 3), span(3, 4)), []byte("X\r\ny")) },
		"field that is no field":  func(h *Head) { h.Copy(Field{}, []byte("x")) },
	} {
		var h Head
		if write(&h); h.Err != ErrUnsafe || len(h.Buf) != 0 {
			t.Errorf("%s: %q, %v", name, h.Buf, h.Err)
		}
	}
	h := Head{}
	h.Field("X", "\n")
	h.Field("X", "good")
	if h.Err != ErrUnsafe {
		t.Error("a good field has healed a bad one")
	}
}

// Whatever is written comes out of a parser as what was put in, or is refused.
func FuzzHead(f *testing.F) {
	f.Add("GET", "/v1", "X", "y", 200, "OK")
	f.Add("G\r\nX: y", "/ HTTP/1.1\r\n", "A: b\r\nC", "d\r\n\r\n", 99, "\n")
	f.Add("PRI", "/ü", "é", " \t é", 600, "\x7f")
	f.Fuzz(func(t *testing.T, method, target, name, value string, code int, reason string) {
		var h Head
		h.Request([]byte(method), []byte(target))
		h.Field("Host", "a")
		h.Field(name, value)
		h.End()
		if h.Err == nil {
			var r Request
			n, err := r.Parse(h.Buf, &Limits{RequestLine: 1 << 20, Head: 1 << 20})
			if err == ErrIncomplete || err == error(errBareCR) || err == error(errBareLF) || err == error(errControl) || err == error(errFieldName) || err == error(errObsFold) {
				t.Fatalf("%q was written and is %v", h.Buf, err)
			}
			if err == nil {
				if n != len(h.Buf) || string(r.MethodName.In(h.Buf)) != method || string(r.Target.In(h.Buf)) != target || len(r.Fields) != 2 ||
					string(r.Fields[1].Name.In(h.Buf)) != name || string(r.Fields[1].Value.In(h.Buf)) != strings.Trim(value, " \t") {
					t.Fatalf("%q was written from %q %q %q %q", h.Buf, method, target, name, value)
				}
			}
		}
		h = Head{}
		h.Status(code, []byte(reason))
		h.FieldBytes(name, []byte(value))
		h.End()
		if h.Err == nil {
			var r Response
			_, err := r.Parse(h.Buf, MethodHead, &Limits{RequestLine: 1 << 20, Head: 1 << 20})
			if err == nil && (r.Status != code || len(r.Fields) != 1 || reason != "" && string(r.Reason.In(h.Buf)) != reason) {
				t.Fatalf("%q was written from %d %q %q %q", h.Buf, code, reason, name, value)
			}
			if err == ErrIncomplete || err == error(errStatusLine) || err == error(errBareLF) || err == error(errBareCR) {
				t.Fatalf("%q was written and is %v", h.Buf, err)
			}
		}
	})
}

func TestAppendChunkHeader(t *testing.T) {
	for n, want := range map[int]string{1: "1\r\n", 15: "f\r\n", 200: "c8\r\n", 1 << 20: "100000\r\n"} {
		if got := string(AppendChunkHeader([]byte("> "), n)); got != "> "+want {
			t.Errorf("%d: %q", n, got)
		}
	}
	defer func() {
		if recover() == nil {
			t.Error("a chunk without data would end the body")
		}
	}()
	AppendChunkHeader(nil, 0)
}
