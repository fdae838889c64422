package dify

import (
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// author writes random streams in the vocabulary that a Watcher looks for, in and out of its place.
type author struct {
	rng *rand.Rand
	out strings.Builder
}

var authorNames = []string{
	"event", "event", "event", "task_id", "conversation_id", "message_id", "workflow_run_id", "code", "id", "data", "data",
	"metadata", "metadata", "metadata", "usage", "usage", "usage", "prompt_tokens", "completion_tokens", "total_tokens",
	"total_tokens", "total_price", "currency", "answer", "", "x\\y", "\"", "über", "an_uncommonly_long_name_that_is_longer_than_anything_that_is_kept_of_a_name",
}

var authorNamesIn = map[string][]string{
	"top":      {"event", "code", "metadata", "data", "task_id"},
	"data":     {"total_tokens"},
	"metadata": {"usage"},
	"usage":    {"prompt_tokens", "completion_tokens", "total_tokens", "total_price", "currency"},
}

var authorStrings = []string{
	"message_end", "message_end", "workflow_finished", "workflow_finished", "error", "message", "ping", "new_event",
	"workflow_paused", "900bbd43-dc0b-4383-a372-aa6e6c414227", "a", "b\\", "\\\"", "}{][", "", " ", "日本", "🙂", "1E-7",
	"0.5", "USD", "RMB", "not_found", "a currency", strings.Repeat("l", 64), strings.Repeat("m", 65), strings.Repeat("\"", 40),
}

var authorScalars = []string{"0", "1", "17", "-0", "-3", "1.5", "1e-7", "9223372036854775807", "9223372036854775808", "true", "false", "null"}

func (a *author) one(list []string) string {
	return list[a.rng.IntN(len(list))]
}

func (a *author) space() {
	for a.rng.IntN(4) == 0 {
		a.out.WriteString(a.one([]string{" ", " ", "\t", "\r", "\ndata:", "\r\ndata: "}))
	}
}

func (a *author) quote(s string) {
	a.out.WriteByte('"')
	for _, r := range s {
		switch {
		case r == '"' || r == '\\':
			a.out.WriteString("\\" + string(r))
		case r < 0x80 && a.rng.IntN(20) == 0:
			fmt.Fprintf(&a.out, `\u%04X`, r)
		case r == '🙂' && a.rng.IntN(2) == 0:
			a.out.WriteString(`\ud83d\ude42`)
		default:
			a.out.WriteRune(r)
		}
	}
	a.out.WriteByte('"')
}

func (a *author) value(depth int) {
	a.space()
	switch n := a.rng.IntN(10); {
	case n < 3 && depth < 5:
		a.object(depth+1, "")
	case n == 3 && depth < 5:
		a.out.WriteByte('[')
		for i := range a.rng.IntN(3) {
			if i > 0 {
				a.out.WriteByte(',')
			}
			a.value(depth + 1)
		}
		a.out.WriteByte(']')
	case n < 6:
		a.out.WriteString(a.one(authorScalars))
	default:
		a.quote(a.one(authorStrings))
	}
	a.space()
}

func (a *author) object(depth int, parent string) {
	a.out.WriteByte('{')
	a.space()
	for i := range a.rng.IntN(7) {
		if i > 0 {
			a.out.WriteByte(',')
		}
		a.space()
		name := a.one(authorNames)
		if fitting := authorNamesIn[parent]; fitting != nil && a.rng.IntN(2) == 0 {
			name = a.one(fitting)
		}
		a.quote(name)
		a.space()
		a.out.WriteByte(':')
		switch {
		case (name == "metadata" || name == "usage" || name == "data") && a.rng.IntN(4) > 0:
			a.object(depth+1, name)
		case name == "event" && a.rng.IntN(4) > 0:
			a.quote(a.one(authorStrings[:9]))
		default:
			a.value(depth)
		}
		a.space()
	}
	a.out.WriteByte('}')
}

func (a *author) stream() string {
	a.out.Reset()
	for range 1 + a.rng.IntN(6) {
		a.out.WriteString(a.one([]string{"", "", "", "", "event: ping\n", "event: message_end\r\n", ": c\n", "id:1\n", "\n", "data: \n"}))
		if a.rng.IntN(8) > 0 {
			a.out.WriteString(a.one([]string{"data:", "data: ", "data:  "}))
			if a.rng.IntN(12) == 0 {
				a.value(0)
			} else {
				a.object(0, "top")
			}
			a.out.WriteString(a.one([]string{"\n", "\r\n"}))
		}
		a.out.WriteString(a.one([]string{"\n", "\r\n"}))
	}
	return a.out.String()
}

func TestWatcher_FindsWhatEncodingJSONFinds(t *testing.T) {
	a := author{rng: rand.New(rand.NewPCG(7, 11))}
	var w Watcher
	var told, counted, failed int
	for range 5_000 {
		text := a.stream()
		want, ok := expectStream([]byte(text))
		if !ok {
			t.Fatalf("the author writes what is no JSON: %q", text)
		}
		for _, size := range []int{len(text), 1, 0} {
			if got := watch(&w, eventStream, 200, Call{}, text, size); got != want {
				t.Fatalf("%q in pieces of %d:\n got %+v\nwant %+v", text, size, got, want)
			}
		}
		if want.IDs != (foundIDs{}) {
			told++
		}
		if want.Counted {
			counted++
		}
		if want.StreamCode != "" {
			failed++
		}
	}
	for range 1_500 {
		a.out.Reset()
		a.object(0, "top")
		text := strings.ReplaceAll(a.out.String(), "data:", "")
		for m, c := range map[mode]struct {
			status int
			call   Call
		}{onRun: {200, run}, onUpload: {201, upload}, onError: {400, run}} {
			want, ok := expectDocument(m, []byte(text))
			if !ok {
				t.Fatalf("the author writes what is no JSON: %q", text)
			}
			for _, size := range []int{len(text), 1, 0} {
				if got := watch(&w, jsonType, c.status, c.call, text, size); got != want {
					t.Fatalf("%q in pieces of %d:\n got %+v\nwant %+v", text, size, got, want)
				}
			}
		}
	}
	// The author must get at what the test is about.
	if told < 1000 || counted < 300 || failed < 30 {
		t.Errorf("%d streams with ids, %d with usage, %d with a code", told, counted, failed)
	}
}
