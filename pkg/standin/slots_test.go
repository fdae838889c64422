package standin

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"testing"
	"time"
)

// dial opens a bare connection and sends text.
func (in *instance) dial(text string) (net.Conn, *bufio.Reader) {
	in.t.Helper()
	c, err := net.Dial("tcp", in.addr)
	if err != nil {
		in.t.Fatal(err)
	}
	in.t.Cleanup(func() { c.Close() })
	if _, err := io.WriteString(c, text); err != nil {
		in.t.Fatal(err)
	}
	return c, bufio.NewReader(c)
}

const healthRequest = "GET /health HTTP/1.1\r\nHost: x\r\n\r\n"

// silent reports whether a connection stays without an answer for a while.
func silent(t *testing.T, c net.Conn) bool {
	t.Helper()
	c.SetReadDeadline(time.Now().Add(100 * time.Millisecond))
	defer c.SetReadDeadline(time.Time{})
	_, err := c.Read(make([]byte, 1))
	return errors.Is(err, os.ErrDeadlineExceeded)
}

func TestSlots_BeyondThemConnectionsHang(t *testing.T) {
	for _, control := range []bool{false, true} {
		t.Run(fmt.Sprintf("control %v", control), func(t *testing.T) {
			o := allApps("a")
			o.Slots, o.IdleTimeout, o.Control = 2, time.Hour, control
			in := start(t, o)

			// One slot is taken by a request under way, one by an idle connection.
			s := in.open("POST", "/v1/chat-messages", chatKey, `{"inputs":{"_standin":{"first_ms":600000}},"query":"x","user":"bob","response_mode":"streaming"}`)
			idle, r := in.dial(healthRequest)
			if resp, err := http.ReadResponse(r, nil); err != nil || resp.StatusCode != 200 {
				t.Fatalf("%v %v", resp, err)
			} else {
				io.Copy(io.Discard, resp.Body)
			}

			third, r3 := in.dial(healthRequest)
			fourth, r4 := in.dial("GET /v1/ HTTP/1.1\r\nHost: x\r\n\r\n")
			if !silent(t, third) || !silent(t, fourth) {
				t.Fatal("answered without a slot")
			}
			if control {
				for range 3 { // control passes, as often as it likes
					in.client.CloseIdleConnections()
					in.want(200, "", "GET", "/_standin/counts", "", "")
				}
				if !silent(t, third) {
					t.Fatal("a control connection let another one pass")
				}
			}
			idle.Close()
			if resp, err := http.ReadResponse(r3, nil); err != nil || resp.StatusCode != 200 {
				t.Fatalf("third: %v %v", resp, err)
			}
			if !silent(t, fourth) {
				t.Fatal("two connections got one slot")
			}
			s.resp.Body.Close()
			if resp, err := http.ReadResponse(r4, nil); err != nil || resp.StatusCode != 200 {
				t.Fatalf("fourth: %v %v", resp, err)
			}
		})
	}
}

// TestSlots_BlockingCallKeepsItsSlotWithoutItsClient: the API does not see that the client has gone.
func TestSlots_BlockingCallKeepsItsSlotWithoutItsClient(t *testing.T) {
	o := allApps("a")
	o.Slots = 1
	in := start(t, o)
	body := `{"inputs":{"_standin":{"first_ms":300,"tokens":1}},"query":"x","user":"bob"}`
	c, _ := in.dial(fmt.Sprintf("POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s", chatKey, len(body), body))
	eventually(t, "the run has begun", func() bool { return in.Counts().Runs == 1 })
	begun := time.Now()
	c.Close()
	in.want(200, "", "GET", "/health", "", "")
	if took := time.Since(begun); took < 200*time.Millisecond {
		t.Errorf("the slot was free after %v", took)
	}
	if got := in.Counts().BlockingAbandoned; got != 1 {
		t.Errorf("%d abandoned", got)
	}
}

func TestRun_EndsEverything(t *testing.T) {
	o := allApps("a")
	o.Slots, o.Control = 1, true
	in := start(t, o)
	s := in.open("POST", "/v1/chat-messages", chatKey, `{"inputs":{"_standin":{"first_ms":600000}},"query":"x","user":"bob","response_mode":"streaming"}`)
	parked, _ := in.dial(healthRequest)
	silentOne, _ := in.dial("")
	in.stop()
	if _, err := s.next(); err == nil {
		t.Error("the stream goes on")
	}
	for _, c := range []net.Conn{parked, silentOne} {
		c.SetReadDeadline(time.Now().Add(5 * time.Second))
		if _, err := c.Read(make([]byte, 1)); err == nil || errors.Is(err, os.ErrDeadlineExceeded) {
			t.Errorf("a waiting connection: %v", err)
		}
	}
	if c := in.Counts(); c.StreamsBroken != 1 || c.InFlight != 0 {
		t.Errorf("%+v", c)
	}
}

func TestIdle_ClosedUnannounced(t *testing.T) {
	o := allApps("a")
	o.IdleTimeout = 50 * time.Millisecond
	in := start(t, o)
	c, r := in.dial(healthRequest)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		t.Fatal(err)
	}
	io.Copy(io.Discard, resp.Body)
	if resp.Close || resp.Header.Get("Connection") != "keep-alive" {
		t.Errorf("the close is announced: %v", resp.Header)
	}
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if b, err := io.ReadAll(r); err != nil || len(b) > 0 {
		t.Errorf("%q %v", b, err)
	}
	// A connection that never says anything goes the same way.
	c, r = in.dial("")
	c.SetReadDeadline(time.Now().Add(10 * time.Second))
	if b, err := io.ReadAll(r); err != nil || len(b) > 0 {
		t.Errorf("%q %v", b, err)
	}
}

func TestOptions_DefaultsAreThoseOfDify(t *testing.T) {
	direct, nginx := Options{}.withDefaults(), Options{Front: Nginx}.withDefaults()
	if direct.Slots != 10 || direct.IdleTimeout != 2*time.Second || nginx.IdleTimeout != 65*time.Second || direct.PingInterval != 10*time.Second || nginx.BodyLimitBytes != 100<<20 {
		t.Errorf("%+v\n%+v", direct, nginx)
	}
}
