package proxy

import (
	"bytes"
	"net/http"
	"strings"
	"testing"
)

// A refused request's body was not read; the connection must serve the next
// request all the same.
func TestProxy_UnreadBodyLeavesTheConnectionUsable(t *testing.T) {
	r := newRig(t, nil, echo("a"))
	client := &http.Client{Transport: &http.Transport{MaxConnsPerHost: 1}}
	defer client.CloseIdleConnections()
	for i := range 200 {
		req, err := http.NewRequest("POST", r.url+"/v1/chat-messages", strings.NewReader(`{"user":"u"}`))
		if err != nil {
			t.Fatal(err)
		}
		if i%2 == 0 {
			req.Body, req.ContentLength = http.NoBody, 0
			big := bytes.Repeat([]byte("x"), 1+i*1000)
			req, _ = http.NewRequest("POST", r.url+"/v1/chat-messages", bytes.NewReader(big))
			req.Header.Set("Authorization", "Bearer wrong")
		} else {
			req.Header.Set("Authorization", "Bearer user-token-shop")
		}
		req.Header.Set("Content-Type", "application/json")
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(i, err)
		}
		resp.Body.Close()
		if want := []int{401, 200}[i%2]; resp.StatusCode != want {
			t.Fatal(i, resp.StatusCode)
		}
	}
}
