package proxy

import (
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/rs/zerolog"
)

func FuzzAppendJSONString(f *testing.F) {
	for _, s := range []string{"", "plain", `"\`, "\x00\x1f\x7f", "\xff\xc3", "ü\u2028", "</script>"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		var got string
		b := appendJSONString(nil, s)
		if err := json.Unmarshal(b, &got); err != nil {
			t.Fatalf("%q: %v", b, err)
		}
		var want string
		std, _ := json.Marshal(s)
		json.Unmarshal(std, &want)
		if got != want || !utf8.Valid(b) {
			t.Errorf("%q became %q, want %q", s, got, want)
		}
	})
}

func testCall(path string) *call {
	return &call{p: New(Options{}), id: "id", method: "GET", path: path, start: time.Now()}
}

func TestAccessLog_ReopensAfterRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	l, err := OpenAccessLog(path, zerolog.Nop())
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); l.Run(ctx) }()
	has := func(name, word string) func() bool {
		return func() bool { b, _ := os.ReadFile(name); return strings.Contains(string(b), word) }
	}
	l.write(testCall("/one"), time.Now())
	eventually(t, "the first line", has(path, `"path":"/one"`))
	os.Rename(path, path+".1")
	l.Reopen()
	l.write(testCall("/two"), time.Now())
	eventually(t, "the second line in the new file", has(path, `"path":"/two"`))
	l.write(testCall("/three\xff\"\n"), time.Now())
	cancel()
	<-done
	b, _ := os.ReadFile(path)
	for line := range strings.Lines(string(b)) {
		if !json.Valid([]byte(line)) {
			t.Errorf("%q", line)
		}
	}
	if !strings.Contains(string(b), "/three") {
		t.Error("what was appended last was not written")
	}
}

// stuck is a disk that never finishes until it is let.
type stuck chan struct{}

func (s stuck) Write(p []byte) (int, error) { <-s; return len(p), nil }

func TestAccessLog_SlowWriterCostsLinesNotTime(t *testing.T) {
	out := make(stuck)
	l := newAccessLog(out, zerolog.Nop())
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); l.Run(ctx) }()
	c := testCall("/" + strings.Repeat("x", 1000))
	begin := time.Now()
	for range 12000 { // over twice the bound
		l.write(c, begin)
	}
	if l.Dropped() == 0 || len(l.buf) > accessLogBound+4096 {
		t.Errorf("%d lines dropped, %d bytes wait", l.Dropped(), len(l.buf))
	}
	close(out)
	cancel()
	<-done
}
