package userid

import (
	"bytes"
	"math/rand/v2"
	"strings"
	"testing"
)

const chatBody = `{"inputs":{},"query":"What are the specs of the iPhone 13 Pro Max?","response_mode":"streaming",` +
	`"conversation_id":"101b4c97-fc2e-463c-90b1-5261a4cdcafb","user":"abc-123","files":[{"type":"image",` +
	`"transfer_method":"remote_url","url":"https://a.b/c.png"}]}`

// benchmark scans the same body again and again with one Scanner, in pieces of 64 KiB as a relay would.
func benchmark(b *testing.B, contentType string, body []byte, want Verdict) {
	b.SetBytes(int64(len(body)))
	b.ReportAllocs()
	s := new(Scanner)
	for b.Loop() {
		if _, err := s.Reset(contentType); err != nil {
			b.Fatal(err)
		}
		v, rest := More, body
		for v == More && len(rest) > 0 {
			n := min(64<<10, len(rest))
			var err error
			if v, err = s.Write(rest[:n]); err != nil {
				b.Fatal(err)
			}
			rest = rest[n:]
		}
		if v, err := s.Finish(); v != want || err != nil {
			b.Fatal(v, err)
		}
	}
}

func BenchmarkJSON_Chat(b *testing.B) { benchmark(b, jsonType, []byte(chatBody), Found) }

func BenchmarkJSON_String10MB(b *testing.B) {
	benchmark(b, jsonType, []byte(`{"query":"`+strings.Repeat("some long text, ", 10<<20/16)+`","user":"u"}`), Found)
}

func BenchmarkJSON_Text10MB(b *testing.B) {
	benchmark(b, jsonType, []byte(`{"query":"`+strings.Repeat(`A line of text as people write it, some 60 bytes of it.\n`, 10<<20/56)+`","user":"u"}`), Found)
}

func BenchmarkJSON_Structure10MB(b *testing.B) {
	benchmark(b, jsonType, []byte(`{"inputs":[`+strings.Repeat(`{"id":12345,"name":"x","tags":[true,null,1.5]},`, 10<<20/48)+`{}],"user":"u"}`), Found)
}

func BenchmarkForm_Small(b *testing.B) {
	benchmark(b, formType, []byte("grant=x&value=some%20text&user=abc-123&last=y"), Found)
}

const webkit = "----WebKitFormBoundary7MA4YWxkTrZu0gW"

func benchmarkFile(b *testing.B, content []byte) {
	webkitPart := func(s string) string { return strings.ReplaceAll(s, "--bound", "--"+webkit) }
	body := []byte(webkitPart(fileHead))
	body = append(body, content...)
	body = append(body, webkitPart("\r\n"+userPart("u")+"--bound--\r\n")...)
	benchmark(b, "multipart/form-data; boundary="+webkit, body, Found)
}

func randomBytes(n int) []byte {
	rng := rand.NewChaCha8([32]byte{1})
	p := make([]byte, n)
	rng.Read(p)
	return p
}

func BenchmarkMultipart_UserBehindFile100MB(b *testing.B) { benchmarkFile(b, randomBytes(100<<20)) }

func BenchmarkMultipart_UserBehindText100MB(b *testing.B) {
	benchmarkFile(b, bytes.Repeat([]byte("A line of text as people write it, some 60 bytes of it.\r\n"), 100<<20/57))
}

func BenchmarkMultipart_UserBehindLineEnds10MB(b *testing.B) {
	benchmarkFile(b, bytes.Repeat([]byte("\r\n"), 5<<20))
}

func BenchmarkMultipart_UserBehindNearMisses10MB(b *testing.B) {
	benchmarkFile(b, bytes.Repeat([]byte("\r\n--"+webkit[:len(webkit)-1]), 10<<20/40))
}

func BenchmarkMultipart_UserBeforeFile100MB(b *testing.B) {
	body := []byte(userPart("u") + fileHead)
	body = append(body, make([]byte, 100<<20)...)
	s := new(Scanner)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := s.Reset(multiType); err != nil {
			b.Fatal(err)
		}
		if v, err := s.Write(body); v != Found || err != nil {
			b.Fatal(v, err)
		}
	}
}

func BenchmarkFromQuery(b *testing.B) {
	b.ReportAllocs()
	for b.Loop() {
		if _, ok := FromQuery("limit=20&last_id=101b4c97&user=abc-123", "user"); !ok {
			b.Fatal()
		}
	}
}
