package e2e

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// clients is what users' programs use: connections are kept alive.
var clients = &http.Client{Transport: &http.Transport{
	MaxIdleConnsPerHost: 200,
	DialContext:         (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
}}

// strangers take a new connection for each request.
var strangers = &http.Client{Transport: &http.Transport{
	DisableKeepAlives: true,
	DialContext:       (&net.Dialer{Timeout: 2 * time.Second}).DialContext,
}}

// question is one chat message.
type question struct {
	token  string
	user   string
	stream bool
	tokens int // text events of the answer
	gap    time.Duration
	fresh  bool // on a connection of its own
}

// reply is what became of it.
type reply struct {
	question
	begun, ended time.Time
	proxy        string
	status       int
	instance     string // by its own account, in the text of the answer
	events       int
	// failure is empty where all went well, else a word for the kind.
	failure string
	detail  string
}

func (r reply) String() string {
	return fmt.Sprintf("%s of %s, instance %q, after %s: %s: %s", map[bool]string{false: "call", true: "stream"}[r.stream], r.user, r.instance, r.ended.Sub(r.begun).Round(time.Millisecond), r.failure, r.detail)
}

// body is the JSON that asks for it. What is in `_standin` only a stand-in heeds.
func (q question) body() []byte {
	mode := "blocking"
	if q.stream {
		mode = "streaming"
	}
	data, err := json.Marshal(map[string]any{
		"query": "hello", "user": q.user, "response_mode": mode,
		"inputs": map[string]any{"_standin": map[string]any{"tokens": max(q.tokens, 1), "gap_ms": q.gap.Milliseconds(), "first_ms": q.gap.Milliseconds()}},
	})
	if err != nil {
		panic(err) // strings and numbers always marshal
	}
	return data
}

var speaker = regexp.MustCompile(`\[([a-z0-9_-]+)\]`)

// ask sends the question to one proxy, or as a balancer in front of several
// would, to the next one where a connection is refused.
func (q question) ask(ctx context.Context, proxies ...string) (r reply) {
	r = reply{question: q, begun: time.Now()}
	defer func() { r.ended = time.Now() }()
	var resp *http.Response
	var err error
	client := clients
	if q.fresh {
		client = strangers
	}
	for _, r.proxy = range proxies {
		req, newErr := http.NewRequestWithContext(ctx, http.MethodPost, r.proxy+"/v1/chat-messages", bytes.NewReader(q.body()))
		if newErr != nil {
			panic(newErr)
		}
		req.Header.Set("Authorization", "Bearer "+q.token)
		req.Header.Set("Content-Type", "application/json")
		if resp, err = client.Do(req); err == nil || !errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
	}
	if err != nil {
		return r.failed("no answer", err.Error())
	}
	defer resp.Body.Close()
	r.status = resp.StatusCode
	if resp.StatusCode != http.StatusOK {
		body, _ := io.ReadAll(resp.Body)
		return r.failed(fmt.Sprintf("status %d", resp.StatusCode), string(body))
	}
	if q.stream {
		return r.read(resp.Body)
	}
	body, err := io.ReadAll(resp.Body)
	if err != nil {
		return r.failed("answer broke off", err.Error())
	}
	var m struct{ Answer string }
	if err := json.Unmarshal(body, &m); err != nil {
		return r.failed("not JSON", err.Error())
	}
	return r.from(m.Answer)
}

func (r reply) failed(kind, detail string) reply {
	r.failure, r.detail = kind, strings.TrimSpace(detail)
	return r
}

func (r reply) from(text string) reply {
	if m := speaker.FindStringSubmatch(text); m != nil {
		r.instance = m[1]
		return r
	}
	return r.failed("no instance", text)
}

// read takes the events of a stream to its end.
func (r reply) read(body io.Reader) reply {
	in := bufio.NewScanner(body)
	ended := false
	for in.Scan() {
		data, ok := strings.CutPrefix(in.Text(), "data: ")
		if !ok {
			continue
		}
		var e struct{ Event, Answer, Message string }
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			return r.failed("not JSON", err.Error())
		}
		r.events++
		switch e.Event {
		case "message":
			if r.instance == "" {
				if r = r.from(e.Answer); r.failure != "" {
					return r
				}
			}
		case "message_end":
			ended = true
		case "error":
			return r.failed("error event", e.Message)
		}
	}
	switch {
	case in.Err() != nil:
		return r.failed("stream broke off", in.Err().Error())
	case !ended:
		return r.failed("stream ended early", "")
	}
	return r
}
