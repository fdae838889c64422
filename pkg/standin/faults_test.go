package standin

import (
	"bufio"
	"errors"
	"io"
	"net/http"
	"strings"
	"syscall"
	"testing"
	"time"
)

func (in *instance) fault(f ...Fault) {
	in.t.Helper()
	in.Faults().Clear()
	if err := in.Faults().Add(f...); err != nil {
		in.t.Fatal(err)
	}
}

const streamingBody = `{"inputs":{},"query":"x","user":"bob","response_mode":"streaming"}`

func TestFaults_OfTheWholeAnswer(t *testing.T) {
	in := start(t, allApps("a"))
	post := func() (answer, error) {
		return in.do(in.request("POST", "/v1/chat-messages", chatKey, chatBody("bob", "")))
	}
	broken := func(t *testing.T, a answer, err error) {
		if err == nil && a.err == nil {
			t.Errorf("answered %d %s", a.status, a.body)
		}
	}
	status := func(want int, code string) func(*testing.T, answer, error) {
		return func(t *testing.T, a answer, err error) {
			if err != nil || a.status != want || code != "" && a.text(t, "code") != code {
				t.Errorf("%d %s %v, want %d %s", a.status, a.body, err, want, code)
			}
		}
	}
	tests := []struct {
		fault Fault
		check func(*testing.T, answer, error)
	}{
		{Fault{Kind: Status, Status: 503}, status(503, "service_unavailable")},
		{Fault{Kind: Status, Status: 429}, status(429, "too_many_requests")},
		{Fault{Kind: Status, Status: 502}, func(t *testing.T, a answer, err error) {
			if status(502, "")(t, a, err); !strings.Contains(string(a.body), "<center>nginx</center>") || a.header.Get("X-Version") != "" {
				t.Errorf("%v %s", a.header, a.body)
			}
		}},
		{Fault{Kind: Provider400}, status(400, "provider_quota_exceeded")},
		{Fault{Kind: Provider400, Code: "completion_request_error"}, status(400, "completion_request_error")},
		{Fault{Kind: BadToken}, status(401, "unauthorized")},
		{Fault{Kind: Reset}, func(t *testing.T, a answer, err error) {
			if !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("%d %v, want a reset", a.status, err)
			}
		}},
		{Fault{Kind: Close}, func(t *testing.T, a answer, err error) {
			if !errors.Is(err, io.EOF) {
				t.Errorf("%d %v, want EOF", a.status, err)
			}
		}},
		{Fault{Kind: Garbage}, broken},
		{Fault{Kind: ShortBody, After: 3}, func(t *testing.T, a answer, err error) {
			if err != nil || !errors.Is(a.err, io.ErrUnexpectedEOF) {
				t.Errorf("%v %v", err, a.err)
			}
		}},
		{Fault{Kind: Trickle, Duration: time.Microsecond}, status(200, "")},
		{Fault{Kind: CloseAfter}, status(200, "")},
	}
	for _, tt := range tests {
		t.Run(string(tt.fault.Kind)+tt.fault.Code, func(t *testing.T) {
			in.client.CloseIdleConnections() // or the client would try again on another one
			tt.fault.Count = 1
			in.fault(tt.fault)
			a, err := post()
			tt.check(t, a, err)
			if left := in.Faults().List(); len(left) != 0 {
				t.Errorf("left over: %v", left)
			}
			in.client.CloseIdleConnections() // it may not have seen yet that its connection was closed
			if a, err := post(); err != nil || a.status != 200 {
				t.Errorf("afterwards: %d %v", a.status, err)
			}
		})
	}
}

func TestFaults_OfConnections(t *testing.T) {
	in := start(t, allApps("a"))
	exchange := func(r *bufio.Reader, w io.Writer) (*http.Response, error) {
		io.WriteString(w, healthRequest)
		resp, err := http.ReadResponse(r, nil)
		if err == nil {
			io.Copy(io.Discard, resp.Body)
		}
		return resp, err
	}
	t.Run("close on reuse", func(t *testing.T) {
		in.fault(Fault{Kind: CloseOnReuse})
		c, r := in.dial("")
		if resp, err := exchange(r, c); err != nil || resp.StatusCode != 200 {
			t.Fatalf("first: %v", err)
		}
		if _, err := exchange(r, c); !errors.Is(err, io.ErrUnexpectedEOF) && !errors.Is(err, io.EOF) {
			t.Errorf("second: %v", err)
		}
	})
	t.Run("close after", func(t *testing.T) {
		in.fault(Fault{Kind: CloseAfter})
		c, r := in.dial("")
		if resp, err := exchange(r, c); err != nil || resp.Close {
			t.Fatalf("%v %v", resp, err)
		}
		if b, err := io.ReadAll(r); err != nil || len(b) > 0 {
			t.Errorf("%q %v", b, err)
		}
	})
	t.Run("surplus", func(t *testing.T) {
		in.fault(Fault{Kind: SurplusBytes})
		c, r := in.dial("")
		if _, err := exchange(r, c); err != nil {
			t.Fatal(err)
		}
		if line, err := r.ReadString('\n'); err != nil || line != "HTTP/1.1 200 OK\r\n" {
			t.Errorf("%q %v", line, err)
		}
		c.Close()
	})
	t.Run("hang and delay", func(t *testing.T) {
		in.fault(Fault{Kind: Hang, Path: "/health", Count: 1}, Fault{Kind: Delay, Path: "/v1/", Duration: 30 * time.Millisecond, Count: 1})
		begun := time.Now()
		in.want(200, "", "GET", "/v1/", "", "") // the path of the other fault
		if took := time.Since(begun); took < 30*time.Millisecond {
			t.Errorf("answered after %v", took)
		}
		c, _ := in.dial(healthRequest)
		if !silent(t, c) {
			t.Error("answered")
		}
		c.Close()
		eventually(t, "the hanging request ends with its client", func() bool { return in.Counts().InFlight == 0 })
		in.want(200, "", "GET", "/health", "", "")
	})
}

func TestFaults_OfStreams(t *testing.T) {
	in := start(t, allApps("a"))
	tests := []struct {
		fault  Fault
		events int
		check  func(err error) bool
	}{
		{Fault{Kind: ResetMidStream, After: 3}, 3, func(err error) bool { return errors.Is(err, syscall.ECONNRESET) }},
		{Fault{Kind: CutMidStream, After: 2}, 2, func(err error) bool { return errors.Is(err, io.ErrUnexpectedEOF) }},
		{Fault{Kind: EndMidStream, After: 4}, 4, func(err error) bool { return err == nil }},
		{Fault{Kind: EndMidStream}, 0, func(err error) bool { return err == nil }},
		{Fault{Kind: StreamError, After: 2, Code: "provider_quota_exceeded"}, 3, func(err error) bool { return err == nil }},
	}
	for _, tt := range tests {
		t.Run(string(tt.fault.Kind), func(t *testing.T) {
			in.fault(tt.fault)
			// Blocking calls are not streams.
			in.want(200, "", "POST", "/v1/chat-messages", chatKey, chatBody("bob", ""))
			before := in.Counts()
			events, err := in.open("POST", "/v1/chat-messages", chatKey, streamingBody).rest()
			// A reset may overtake bytes that the client has not read yet.
			if !tt.check(err) || len(events) != tt.events && tt.fault.Kind != ResetMidStream || len(events) > tt.events {
				t.Errorf("%d events, %v", len(events), err)
			}
			if tt.fault.Kind == StreamError {
				if e := events[2]; e["event"] != "error" || e["code"] != "provider_quota_exceeded" {
					t.Errorf("%v", e)
				}
			} else {
				eventually(t, "it counts as broken", func() bool { return in.Counts().StreamsBroken == before.StreamsBroken+1 })
			}
		})
	}
	t.Run("ping only", func(t *testing.T) {
		in.fault(Fault{Kind: PingOnly})
		s := in.open("POST", "/v1/chat-messages", chatKey, `{"inputs":{"_standin":{"ping_ms":5}},"query":"x","user":"bob","response_mode":"streaming"}`)
		for range 5 {
			if f, err := s.frame(); f != "event: ping" || err != nil {
				t.Fatalf("%q %v", f, err)
			}
		}
	})
	t.Run("by selector", func(t *testing.T) {
		in.Faults().Clear()
		s := in.open("POST", "/v1/chat-messages", chatKey, `{"inputs":{},"query":"x #standin tokens=9 cut_after=7","user":"bob","response_mode":"streaming"}`)
		if events, err := s.rest(); len(events) != 7 || !errors.Is(err, io.ErrUnexpectedEOF) {
			t.Errorf("%d events, %v", len(events), err)
		}
		in.want(429, "too_many_requests", "POST", "/v1/chat-messages", chatKey, `{"inputs":{"_standin":{"reject":"too_many_requests"}},"query":"x","user":"bob"}`)
	})
}

func TestFaults_CountAndProbability(t *testing.T) {
	in := start(t, allApps("a"))
	in.fault(Fault{Kind: Status, Status: 500, Path: "/v1/info", Count: 2}, Fault{Kind: Status, Status: 503, Path: "/v1/site", Probability: 0.5})
	for _, want := range []int{500, 500, 200} {
		in.want(want, "", "GET", "/v1/info", chatKey, "")
	}
	hit := 0
	for range 200 {
		if in.call("GET", "/v1/site", chatKey, "").status == 503 {
			hit++
		}
	}
	if hit < 50 || hit > 150 { // nine standard deviations and a half
		t.Errorf("%d of 200 hit", hit)
	}
	if got := in.Counts().Of("GET /v1/site", 200); got != uint64(200-hit) {
		t.Errorf("%d counted as good", got)
	}
	for _, bad := range []Fault{{}, {Kind: "no such"}, {Kind: Status}, {Kind: Delay, Probability: 2}, {Kind: Delay, Count: -1}} {
		if err := in.Faults().Add(bad); err == nil {
			t.Errorf("accepted %+v", bad)
		}
	}
}
