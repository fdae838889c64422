package standin

import (
	"net/http/httptest"
	"strings"
	"testing"
)

func BenchmarkBlockingChat(b *testing.B) {
	s := New(Options{Apps: []App{{Key: chatKey}}, FirstToken: -1, TokenGap: -1, Tokens: 5, Slots: -1})
	benchmark(b, s, chatBody("bob", ""))
}

func BenchmarkStreamEvent(b *testing.B) {
	s := New(Options{Apps: []App{{Key: chatKey}}, FirstToken: -1, TokenGap: -1, Tokens: 1000, Slots: -1})
	benchmark(b, s, chatBody("bob", `,"response_mode":"streaming"`))
	b.ReportMetric(float64(b.Elapsed().Nanoseconds())/float64(s.Counts().Events), "ns/event")
}

// benchmark sends one request after the other, without a network.
func benchmark(b *testing.B, s *Server, body string) {
	h := s.Handler()
	b.ReportAllocs()
	for b.Loop() {
		r := httptest.NewRequest("POST", "/v1/chat-messages", strings.NewReader(body))
		r.Header.Set("Authorization", "Bearer "+chatKey)
		r.Header.Set("Content-Type", "application/json")
		w := httptest.NewRecorder()
		h.ServeHTTP(w, r)
		if w.Code != 200 {
			b.Fatalf("status %d: %s", w.Code, w.Body)
		}
	}
}
