package dify

import (
	"strings"
	"testing"
)

var sinkSeen Seen

// BenchmarkWatcher shows what watching costs for one event of a stream that has gone on for a while.
func BenchmarkWatcher(b *testing.B) {
	const ids = `"task_id":"900bbd43-dc0b-4383-a372-aa6e6c414227","message_id":"663c5084-a254-4040-8ad3-51f2a3c1a77c",` +
		`"conversation_id":"45701982-8118-4bc5-8e9b-64562b4555f2"`
	compact := `data: {"event":"message",` + ids + `,"answer":" Hello","created_at":1705398420}` + "\n\n"
	nameLast := `data: {` + ids + `,"answer":" Hello","created_at":1705398420,"event":"message"}` + "\n\n"
	end := `data: {"event":"message_end",` + ids + `,"metadata":{"usage":{"prompt_tokens":1033,"prompt_unit_price":"0.001",` +
		`"prompt_price_unit":"0.001","prompt_price":"0.0010330","completion_tokens":135,"completion_unit_price":"0.002",` +
		`"completion_price_unit":"0.001","completion_price":"0.0002700","total_tokens":1168,"total_price":"0.0013030",` +
		`"currency":"USD","latency":1.38}}}` + "\n\n"
	node := `data: {"event":"node_finished",` + ids + `,"data":{"outputs":{"text":"` + strings.Repeat(`say \"hi\" `, 400) + `"}}}` + "\n\n"
	for _, c := range []struct{ name, event string }{
		{"Message", compact},
		{"MessageSpaced", spaced(compact)},
		{"MessageNameLast", nameLast},
		{"MessageEnd", end},
		{"NodeFinished", node},
		{"Unknown", strings.Replace(node, "node_finished", "new_event", 1)},
		{"Audio", `data: {"event":"tts_message",` + ids + `,"audio":"` + strings.Repeat("q", 8192) + `"}` + "\n\n"},
		{"Ping", "event: ping\n\n"},
	} {
		b.Run(c.name, func(b *testing.B) {
			var w Watcher
			w.Reset(eventStream, 200, Call{})
			p := []byte(c.event)
			w.Write(p)
			b.SetBytes(int64(len(p)))
			b.ReportAllocs()
			for b.Loop() {
				sinkSeen = w.Write(p)
			}
		})
	}
	b.Run("Blocking", func(b *testing.B) {
		var w Watcher
		p := []byte(strings.TrimPrefix(end, "data: "))
		b.SetBytes(int64(len(p)))
		b.ReportAllocs()
		for b.Loop() {
			w.Reset(jsonType, 200, run)
			sinkSeen = w.Write(p) | w.Close()
		}
	})
	b.Run("Unwatched", func(b *testing.B) {
		var w Watcher
		b.ReportAllocs()
		for b.Loop() {
			w.Reset("audio/mpeg", 200, run)
			sinkSeen = w.Write(nil) | w.Close()
		}
	})
}
