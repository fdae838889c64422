package proxy

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/rs/zerolog"

	"difylb/pkg/lb"
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

func testCall(t testing.TB, path string) *call {
	p := New(Options{})
	t.Cleanup(p.Close)
	return &call{p: p, id: "id", method: "GET", path: path, start: time.Now()}
}

func TestAccessLog_ReopensAfterRotation(t *testing.T) {
	path := filepath.Join(t.TempDir(), "access.log")
	l, err := OpenAccessLog(AccessLogOptions{Path: path, Log: zerolog.Nop()})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() { defer close(done); l.Run(ctx) }()
	has := func(name, word string) func() bool {
		return func() bool { b, _ := os.ReadFile(name); return strings.Contains(string(b), word) }
	}
	l.write(testCall(t, "/one"), time.Now())
	eventually(t, "the first line", has(path, `"path":"/one"`))
	os.Rename(path, path+".1")
	l.Reopen()
	l.write(testCall(t, "/two"), time.Now())
	eventually(t, "the second line in the new file", has(path, `"path":"/two"`))
	l.write(testCall(t, "/three\xff\"\n"), time.Now())
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
	c := testCall(t, "/"+strings.Repeat("x", 1000))
	begin := time.Now()
	for range 12000 { // over twice the bound
		l.write(c, begin)
	}
	if n := len(l.shards[0].buf); l.Dropped() == 0 || n > l.shardBound()+4096 {
		t.Errorf("%d lines dropped, %d bytes wait", l.Dropped(), n)
	}
	close(out)
	cancel()
	<-done
}

// logged is what a log with the options writes of the calls, by line.
func logged(t *testing.T, opts AccessLogOptions, calls ...*call) []map[string]any {
	t.Helper()
	l, err := newLog(opts)
	if err != nil {
		t.Fatal(err)
	}
	var out bytes.Buffer
	l.out = &out
	for _, c := range calls {
		l.write(c, c.start.Add(1234567*time.Microsecond))
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ctx); err != nil {
		t.Fatal(err)
	}
	var lines []map[string]any
	for line := range strings.Lines(out.String()) {
		var m map[string]any
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		lines = append(lines, m)
	}
	return lines
}

func TestAccessLog_LineOfATypicalCall(t *testing.T) {
	c := typicalCall(t, nil)
	c.start = time.Date(2026, 5, 6, 7, 8, 9, 10_000_000, time.FixedZone("", 3600))
	m := logged(t, AccessLogOptions{}, c)[0]
	sum := sha256.Sum256([]byte("0123456789abcdef0123456789abcdef\x00user-0001-of-many"))
	want := map[string]any{
		"time": "2026-05-06T06:08:10.244Z", "request_id": c.id, "remote": "172.20.62.17", "method": "POST", "path": "/v1/chat-messages",
		"status": 200.0, "reason": "ok", "dur_ms": 1234.567, "first_byte_ms": 56.789, "bytes_in": 117.0, "bytes_out": 4242.0,
		"app": "customer_service", "revision": 4711.0, "token_label": "web", "user_hash": hex.EncodeToString(sum[:8]), "user_source": "json",
		"instance": "dify1", "attempts": 1.0, "events": 17.0,
	}
	if !reflect.DeepEqual(m, want) {
		t.Errorf("got  %v\nwant %v", m, want)
	}
	if m := logged(t, AccessLogOptions{Users: true}, c)[0]; m["user"] != c.user || m["user_hash"] != want["user_hash"] {
		t.Errorf("with users: %v", m)
	}
}

func TestAccessLog_SeedNamesWhatTheOldBalancerNamed(t *testing.T) {
	c := typicalCall(t, nil)
	c.start = time.Date(2026, 5, 6, 7, 8, 9, 10_000_000, time.UTC)
	c.user = "al\"ice\n你"
	want := map[string]any{
		"time": "2026-05-06T07:08:10.244Z", "remote_addr": "172.20.62.17", "request_method": "POST", "uri": "/v1/chat-messages",
		"status": 200.0, "body_bytes_sent": 4242.0, "request_time": 1.235, "upstream_header_time": 0.057,
		"app_type": "customer_service", "user_id": c.user, "hash_key": "customer_service:" + c.user, "backend_instance": "dify1",
		"request_id": c.id, "reason": "ok",
	}
	if m := logged(t, AccessLogOptions{Format: FormatSeed, Users: true}, c)[0]; !reflect.DeepEqual(m, want) {
		t.Errorf("got  %v\nwant %v", m, want)
	}
	m := logged(t, AccessLogOptions{Format: FormatSeed}, c)[0]
	hash, _ := m["user_id"].(string)
	if len(hash) != 16 || m["hash_key"] != "customer_service:"+hash || m["user_id_hashed"] != true || strings.Contains(fmt.Sprint(m), "你") {
		t.Errorf("without users: %v", m)
	}
	bare := &call{p: c.p, id: "x", method: "GET", path: "/", start: c.start, reason: lb.ReasonUnauthorized, status: 401}
	m = logged(t, AccessLogOptions{Format: FormatSeed, Users: true}, bare)[0]
	for _, key := range []string{"remote_addr", "app_type", "user_id", "hash_key", "backend_instance"} {
		if m[key] != "-" {
			t.Errorf("%s of a call that was refused is %v", key, m[key])
		}
	}
}

func TestAccessLog_Samples(t *testing.T) {
	const n = 4000
	base := typicalCall(t, nil)
	var calls []*call
	add := func(edit func(*call)) {
		c := *base
		c.shard = uint32(len(calls))
		c.id = fmt.Sprintf("request-%d", len(calls))
		edit(&c)
		calls = append(calls, &c)
	}
	for range n {
		add(func(*call) {})
	}
	slow := 3 * time.Second
	add(func(c *call) { c.path, c.reason, c.status = "/refused", lb.ReasonRateLimited, 429 })
	add(func(c *call) { c.path, c.reason, c.status = "/gone", lb.ReasonClientGone, 499 })
	add(func(c *call) { c.path, c.status = "/missing", 404 })
	add(func(c *call) { c.path, c.firstByte = "/slow", slow })
	opts := AccessLogOptions{Sample: 0.1, Slow: slow}
	lines := logged(t, opts, calls...)
	var sum float64
	always := 0
	for _, m := range lines {
		w, _ := m["weight"].(float64)
		sum += w
		if m["path"] != "/v1/chat-messages" {
			always++
			if w != 1 {
				t.Errorf("%v weighs %v", m["path"], w)
			}
		} else if w != 10 {
			t.Errorf("a line of the sample weighs %v", w)
		}
	}
	if always != 4 || sum < n*0.85 || sum > n*1.15 {
		t.Errorf("%d lines, %d of those that are always logged; together they stand for %v requests", len(lines), always, sum)
	}
	if again := logged(t, opts, calls...); !reflect.DeepEqual(again, lines) {
		t.Error("another proxy would choose others")
	}
	if got := len(logged(t, AccessLogOptions{Slow: slow}, calls...)); got != len(calls) {
		t.Errorf("%d lines without sampling, want %d", got, len(calls))
	}
	for _, bad := range []AccessLogOptions{{Sample: -1}, {Sample: 1.1}, {Sample: math.NaN()}, {Format: "sead"}} {
		if _, err := newLog(bad); !errors.Is(err, lb.ErrInvalid) {
			t.Errorf("%+v: %v", bad, err)
		}
	}
}

func TestAccessLog_ShardsJoin(t *testing.T) {
	var out bytes.Buffer
	l := newAccessLog(&out, zerolog.Nop())
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); l.Run(ctx) }()
	const each = 500
	var wg sync.WaitGroup
	base := typicalCall(t, nil)
	for shard := range uint32(2 * accessLogShards) {
		wg.Go(func() {
			c := *base
			c.shard = shard
			for i := range each {
				c.id = fmt.Sprintf("%d-%d", shard, i)
				l.write(&c, time.Now())
			}
		})
	}
	wg.Wait()
	cancel()
	<-done
	ids := make(map[string]bool)
	for line := range strings.Lines(out.String()) {
		var m struct {
			ID string `json:"request_id"`
		}
		if err := json.Unmarshal([]byte(line), &m); err != nil {
			t.Fatalf("%q: %v", line, err)
		}
		ids[m.ID] = true
	}
	if len(ids)+int(l.Dropped()) != 2*accessLogShards*each {
		t.Errorf("%d lines, %d dropped", len(ids), l.Dropped())
	}
}

func TestAccessLog_WritesWithoutAllocating(t *testing.T) {
	l, c, now := newAccessLog(io.Discard, zerolog.Nop()), typicalCall(t, nil), time.Now()
	l.shards[0].buf = make([]byte, 0, l.shardBound())
	for _, format := range []string{FormatJSON, FormatSeed} {
		l.opts.Format = format
		if n := testing.AllocsPerRun(100, func() { l.write(c, now) }); n != 0 {
			t.Errorf("%s: %v allocations for a line", format, n)
		}
	}
}

func TestAppendThousandths_RoundsAsTheStandardLibrary(t *testing.T) {
	for _, d := range []time.Duration{0, 1, 499, 500, 501, 999_499, 999_500, 999_999, time.Millisecond, 1_234_567_890, 999_999_500, time.Hour, 60*time.Hour + 1} {
		for _, unit := range []time.Duration{time.Millisecond, time.Second} {
			got := string(appendThousandths(nil, d, unit))
			q, r := d/(unit/1000), d%(unit/1000)
			if r*2 >= unit/1000 {
				q++
			}
			if want := fmt.Sprintf("%d.%03d", q/1000, q%1000); got != want {
				t.Errorf("%d in %s: %s, want %s", d, unit, got, want)
			}
		}
	}
	if got := string(appendThousandths(nil, -time.Second, time.Second)); got != "0.000" {
		t.Errorf("a clock that went back: %s", got)
	}
}

// A disk that is full loses lines, and tears none of those that it takes later.
func TestAccessLog_FullDisk(t *testing.T) {
	said := new(syncBuffer)
	disk := &fullDisk{}
	l := newAccessLog(disk, zerolog.New(said))
	line := func(n int) []byte { return fmt.Appendf(nil, "{\"n\":%d}\n", n) }
	l.put(line(1))
	disk.room = len(line(1)) + 4 // it takes a part of the second
	disk.full = true
	l.put(append(line(2), line(3)...))
	disk.room = 0
	l.put(line(4))
	l.put(line(5))
	disk.full = false
	l.put(line(6))
	l.put(line(7))
	if want := "{\"n\":1}\n{\"n\"\n{\"n\":6}\n{\"n\":7}\n"; string(disk.holds) != want {
		t.Errorf("it holds\n%q, want\n%q", disk.holds, want)
	}
	if l.Dropped() != 4 {
		t.Errorf("%d lines are counted as lost, want 4", l.Dropped())
	}
	for _, message := range []string{"access log not written", "access log written again"} {
		if n := strings.Count(said.String(), message); n != 1 {
			t.Errorf("%q was said %d times:\n%s", message, n, said)
		}
	}
}

// fullDisk takes no more than it has room for while it is full.
type fullDisk struct {
	holds []byte
	full  bool
	room  int
}

func (d *fullDisk) Write(p []byte) (int, error) {
	if !d.full {
		d.holds = append(d.holds, p...)
		return len(p), nil
	}
	n := max(0, min(len(p), d.room-len(d.holds)))
	d.holds = append(d.holds, p[:n]...)
	return n, syscall.ENOSPC
}
