package e2e

import (
	"bufio"
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"difylb/test/testbed"
)

// Whatever bytes come, the proxy answers as promised or closes, goes on
// serving, and its memory stays within a bound.
func TestHostile_TrafficIsRefusedAndTheProxySurvives(t *testing.T) {
	var app application
	var rec *recorder
	c := newPair(t, func(c *cluster) []application {
		var recorders []*recorder
		app, recorders = c.recordedApplication("besieged", 1, unprobed())
		rec = recorders[0]
		return []application{app}
	}, "--max-body", "20m")
	p := c.proxies[0]
	addr := p.url[len("http://"):]
	settled := c.settled(p)
	auth := "Authorization: Bearer " + app.token + "\r\n"
	head := func(more string) string {
		return "POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\n" + auth + "Content-Type: application/json\r\n" + more
	}
	plain := `{"user":"u","query":"q","inputs":{}}`

	for _, tt := range []struct {
		name, request string
		status        []int // any of these; 0: closed without an answer
		code          string
	}{
		{"a body that says it is too large", head("Content-Length: 209715200\r\n\r\n") + "{", []int{413}, "request_too_large"},
		{"a length that is no number", head("Content-Length: 0x10\r\n\r\n"), []int{400}, "bad_request"},
		{"a negative length", head("Content-Length: -1\r\n\r\n"), []int{400}, "bad_request"},
		{"two lengths", head("Content-Length: 36\r\nContent-Length: 37\r\n\r\n") + plain, []int{400}, "bad_request"},
		{"another coding", head("Transfer-Encoding: gzip, chunked\r\n\r\n") + "0\r\n\r\n", []int{400, 501}, ""},
		{"a chunk size that overflows", head("Transfer-Encoding: chunked\r\n\r\n") + "fffffffffffffffff\r\n", []int{400}, "bad_request"},
		{"a chunk without its end", head("Transfer-Encoding: chunked\r\n\r\n") + "3\r\nabcdef\r\n0\r\n\r\n", []int{400}, "bad_request"},
		{"a header without a name", "GET /v1/info HTTP/1.1\r\nHost: x\r\n: y\r\n\r\n", []int{400}, "bad_request"},
		{"a space before the colon", "GET /v1/info HTTP/1.1\r\nHost : x\r\n\r\n", []int{400}, "bad_request"},
		{"no host", "GET /v1/info HTTP/1.1\r\n" + auth + "\r\n", []int{400}, "bad_request"},
		{"two hosts", "GET /v1/info HTTP/1.1\r\nHost: x\r\nHost: y\r\n" + auth + "\r\n", []int{400}, "bad_request"},
		{"a control byte", "GET /v1/info HTTP/1.1\r\nHost: x\r\nA: b\x00c\r\n\r\n", []int{400}, "bad_request"},
		{"no HTTP at all", "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", []int{400}, "bad_request"},
		{"another version", "GET /v1/info HTTP/3.7\r\nHost: x\r\n\r\n", []int{505}, "version_not_supported"},
		{"a target that is too long", "GET /v1/" + strings.Repeat("a", 20<<10) + " HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n", []int{414}, "uri_too_long"},
		{"a head that is too large", "GET /v1/info HTTP/1.1\r\nHost: x\r\nA: " + strings.Repeat("a", 100<<10) + "\r\n\r\n", []int{431}, "header_too_large"},
		{"a thousand headers", "GET /v1/info HTTP/1.1\r\nHost: x\r\n" + strings.Repeat("A: b\r\n", 1000) + "\r\n", []int{431}, "header_too_large"},
		{"an expectation", head("Expect: miracles\r\nContent-Length: 36\r\n\r\n") + plain, []int{417}, "expectation_failed"},
		{"CONNECT", "CONNECT 127.0.0.1:22 HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n", []int{400, 404, 405, 501}, ""},
		{"dot segments", "GET /v1/../admin HTTP/1.1\r\nHost: x\r\n" + auth + "\r\n", []int{400}, "bad_request"},
		{"a repeated token", "GET /v1/info HTTP/1.1\r\nHost: x\r\n" + auth + auth + "\r\n", []int{400, 401}, ""},
		{"JSON that is nothing but depth", jsonRequest(auth, strings.Repeat("[", 100_000)), []int{400}, "bad_request"},
		{"no user anywhere", jsonRequest(auth, `{"query":"q"}`), []int{400}, "user_id_required"},
		{"multipart without a boundary", formRequest(auth, "multipart/form-data", "--x\r\n"), []int{400}, "bad_request"},
		{"multipart with two boundaries", formRequest(auth, "multipart/form-data; boundary=a; boundary=b", "--a--\r\n"), []int{400}, "bad_request"},
		{"multipart that never ends", formRequest(auth, "multipart/form-data; boundary=a", "--a\r\nContent-Disposition: form-data; name=\"user\"\r\n\r\nu"), []int{400}, ""},
	} {
		status, body := raw(t, addr, tt.request)
		ok := false
		for _, s := range tt.status {
			ok = ok || s == status
		}
		if !ok {
			t.Errorf("%s: status %d, want %v: %.200s", tt.name, status, tt.status, body)
			continue
		}
		var m struct {
			Code      string
			Status    int
			Message   string
			Error     string
			RequestID string `json:"request_id"`
		}
		if err := json.Unmarshal(body, &m); err != nil {
			t.Errorf("%s: %s: %.200s", tt.name, err, body)
		} else if m.Status != status || m.Message == "" || m.Error != m.Message || m.RequestID == "" || (tt.code != "" && m.Code != tt.code) {
			t.Errorf("%s: %s, want code %q", tt.name, body, tt.code)
		}
	}
	if got := rec.arrivals(); len(got) > 0 {
		t.Errorf("%d of these reached the instance: %s %s", len(got), got[0].method, got[0].target)
	}

	// Depth below the user is the client's own affair, and must cost nothing.
	deep := `{"user":"u","inputs":` + strings.Repeat(`{"a":`, 100_000) + "1" + strings.Repeat("}", 100_000) + `}`
	if status, body := raw(t, addr, jsonRequest(auth, deep)); status != http.StatusOK && status != http.StatusBadRequest {
		t.Errorf("deep JSON: status %d: %.200s", status, body)
	}
	rec.arrivals()

	// One that promises more than it sends gets nowhere, whatever follows.
	short, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprintf(short, "%s%s", head("Content-Length: 100\r\n\r\n"), plain)
	short.Close()

	c.flood(p, auth)
	idle := question{token: app.token, user: "after all that"}
	if r := idle.ask(t.Context(), p.url); r.failure != "" {
		t.Errorf("afterwards: %s", r)
	}
	if !p.Running() {
		t.Fatal("the proxy has ended")
	}
	settled()
	now, peak := testbed.ResidentBytes(t, p.Pid())
	const bound = 80 << 20
	t.Logf("resident memory of the proxy: %d MiB at its highest, %d MiB now", peak>>20, now>>20)
	if peak > bound {
		t.Errorf("it held %d MiB, want at most %d", peak>>20, bound>>20)
	}
}

// settled returns a function that waits until a proxy holds no more goroutines
// and descriptors than now.
func (c *cluster) settled(p *proxyNode) func() {
	c.t.Helper()
	measure := func() (goroutines float64, files int) {
		clients.CloseIdleConnections()
		goroutines, err := testbed.Metric(p.ops, "go_goroutines")
		if err != nil {
			c.t.Fatal(err)
		}
		return goroutines, testbed.OpenFiles(c.t, p.Pid())
	}
	goroutines, files := measure()
	return func() {
		c.t.Helper()
		testbed.Eventually(c.t, 20*time.Second, p.Name+" lets go of everything", func() error {
			// A few that it keeps: connections to the instances, and this very look.
			if g, f := measure(); g > goroutines+12 || f > files+8 {
				return fmt.Errorf("%v goroutines and %d descriptors, before %v and %d", g, f, goroutines, files)
			}
			return nil
		})
	}
}

// Two readings of where a message ends are how one request is smuggled inside
// another: whatever could be read in two ways is refused, reaches no instance,
// and its connection is closed.
func TestHostile_AmbiguousFramingIsRefused(t *testing.T) {
	var app application
	var rec *recorder
	c := newPair(t, func(c *cluster) []application {
		var recorders []*recorder
		app, recorders = c.recordedApplication("ambiguous", 1, unprobed())
		rec = recorders[0]
		return []application{app}
	})
	addr := c.proxies[0].url[len("http://"):]
	head := "POST /v1/chat-messages?user=u HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + app.token + "\r\n"
	inner := "GET /v1/smuggled HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer " + app.token + "\r\n\r\n"
	for name, request := range map[string]string{
		"length and chunks":             head + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"chunks and length":             head + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
		"chunked twice":                 head + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
		"chunked in two lines":          head + "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"chunked and identity":          head + "Transfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n",
		"a tab before chunked":          head + "Transfer-Encoding:\x0bchunked\r\n\r\n0\r\n\r\n",
		"chunked in HTTP/1.0":           strings.Replace(head, "HTTP/1.1", "HTTP/1.0", 1) + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"a folded coding":               head + "Transfer-Encoding:\r\n chunked\r\n\r\n0\r\n\r\n",
		"a folded header":               head + "A: b\r\n c\r\n\r\n",
		"lengths that differ":           head + "Content-Length: 0\r\nContent-Length: 5\r\n\r\n12345",
		"a list of lengths":             head + "Content-Length: 0, 5\r\n\r\n12345",
		"a length with a sign":          head + "Content-Length: +0\r\n\r\n",
		"a bare line feed in the head":  head + "A: b\nContent-Length: 0\r\n\r\n",
		"a bare carriage return":        head + "A: b\rContent-Length: 5\r\n\r\n",
		"a chunk size with a sign":      head + "Transfer-Encoding: chunked\r\n\r\n+0\r\n\r\n",
		"a bare line feed after a size": head + "Transfer-Encoding: chunked\r\n\r\n0\n\r\n",
		"a line feed in an extension":   head + "Transfer-Encoding: chunked\r\n\r\n0;a\nb\r\n\r\n",
	} {
		if status, closed := rawThen(t, addr, request+inner); status/100 != 4 && status != http.StatusNotImplemented || !closed {
			t.Errorf("%s: status %d, closed %t", name, status, closed)
		}
		for _, a := range rec.arrivals() {
			t.Errorf("%s: %s %s reached the instance", name, a.method, a.target)
		}
	}
}

// flood sends 200 MB bodies in chunks, whose size nobody knows beforehand, to
// be cut at the limit; several at a time, users behind the file or nowhere.
func (c *cluster) flood(p *proxyNode, auth string) {
	c.t.Helper()
	const size = 200 << 20
	heads := []string{
		"Content-Type: application/json\r\n",
		"Content-Type: multipart/form-data; boundary=a\r\n",
		"Content-Type: application/x-www-form-urlencoded\r\n",
		"X-User-ID: u\r\n",
	}
	begins := []string{`{"file":"`, "--a\r\nContent-Disposition: form-data; name=\"file\"; filename=\"f\"\r\n\r\n", "file=", ""}
	var wg sync.WaitGroup
	for i, h := range heads {
		wg.Add(1)
		go func() { // ends with the answer
			defer wg.Done()
			conn, err := net.Dial("tcp", p.url[len("http://"):])
			if err != nil {
				c.t.Error(err)
				return
			}
			defer conn.Close()
			_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
			go func() { // ends when the proxy has enough, or with the connection
				out := bufio.NewWriterSize(conn, 256<<10)
				fmt.Fprintf(out, "POST /v1/files/upload HTTP/1.1\r\nHost: x\r\n%s%sTransfer-Encoding: chunked\r\n\r\n%x\r\n%s\r\n", auth, h, max(len(begins[i]), 1), begins[i]+strings.Repeat("x", max(1-len(begins[i]), 0)))
				block := bytes.Repeat([]byte("x"), 64<<10)
				for sent := 0; sent < size; sent += len(block) {
					if _, err := fmt.Fprintf(out, "%x\r\n%s\r\n", len(block), block); err != nil {
						return
					}
				}
				out.Flush()
			}()
			resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
			if err != nil {
				c.t.Errorf("200 MB, %s: no answer: %s", strings.TrimSpace(h), err)
				return
			}
			resp.Body.Close()
			if resp.StatusCode != http.StatusRequestEntityTooLarge {
				c.t.Errorf("200 MB, %s: status %d, want 413", strings.TrimSpace(h), resp.StatusCode)
			}
		}()
	}
	wg.Wait()
}

func jsonRequest(auth, body string) string {
	return post("/v1/chat-messages", auth, "application/json", body)
}

func formRequest(auth, contentType, body string) string {
	return post("/v1/files/upload", auth, contentType, body)
}

func post(path, auth, contentType, body string) string {
	return fmt.Sprintf("POST %s HTTP/1.1\r\nHost: x\r\n%sContent-Type: %s\r\nContent-Length: %d\r\n\r\n%s", path, auth, contentType, len(body), body)
}

// raw writes bytes and reads one answer.
func raw(t testing.TB, addr, request string) (status int, body []byte) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(15 * time.Second))
	go func() { _, _ = io.WriteString(conn, request) }() // ends with the connection
	resp, err := http.ReadResponse(bufio.NewReader(conn), nil)
	if err != nil {
		return 0, []byte(err.Error())
	}
	defer resp.Body.Close()
	body, err = io.ReadAll(resp.Body)
	if err != nil {
		return resp.StatusCode, []byte(err.Error())
	}
	return resp.StatusCode, body
}

// rawThen is raw for the status, and says whether nothing but the end follows
// the answer.
func rawThen(t testing.TB, addr, request string) (status int, closed bool) {
	t.Helper()
	conn, err := net.Dial("tcp", addr)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	_ = conn.SetDeadline(time.Now().Add(5 * time.Second))
	go func() { _, _ = io.WriteString(conn, request) }() // ends with the connection
	in := bufio.NewReader(conn)
	resp, err := http.ReadResponse(in, nil)
	if err != nil {
		return 0, errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF)
	}
	_, _ = io.Copy(io.Discard, resp.Body)
	resp.Body.Close()
	_, err = in.ReadByte()
	return resp.StatusCode, err != nil && !errors.Is(err, os.ErrDeadlineExceeded)
}
