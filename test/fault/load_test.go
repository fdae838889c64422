package fault

import (
	"bufio"
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net"
	"net/http"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"difylb/test/testbed"
)

// kind is what a request is.
type kind string

const (
	call   kind = "call"   // a chat message, answered in one piece
	stream kind = "stream" // one answered by events
	upload kind = "upload" // a file, with the user's name behind it
)

// mix are the kinds in the order in which they are sent, over and over.
var mix = []kind{call, stream, call, call, upload, call, stream, call, call, stream}

const (
	eventGap   = 100 * time.Millisecond // between two events of a stream
	uploadSize = 48 << 10
	patience   = 45 * time.Second // of a client, for one answer
	// shutdownDelay is the proxies' --shutdown-delay where they end in order.
	shutdownDelay = time.Second
)

// reply is what became of a request.
type reply struct {
	kind         kind
	user         string
	proxy        string // name of the one that took the request
	begun, ended time.Time
	status       int
	instance     string // that answered; by its own account, or for an upload by the proxy's
	failure      string // "": none
	cut          bool   // the answer had begun when it failed
}

func (r reply) String() string {
	return fmt.Sprintf("%s, %s of %s through %s, instance %q, after %s: %s", r.begun.Format("15:04:05.000"), r.kind, r.user, r.proxy, r.instance, r.ended.Sub(r.begun).Round(time.Millisecond), r.failure)
}

// door is a proxy as clients know it.
type door struct{ name, url string }

// client is a program of users: it keeps connections, and goes to the next door
// where one is closed, as a balancer in front of the proxies would. It never
// sends anything twice.
type client struct {
	http    *http.Client
	streams *http.Client // a connection each
	token   string
}

// newClient believes servers with a certificate of the authorities; nil: the system's.
func newClient(t testing.TB, token string, authorities *x509.CertPool) *client {
	// A proxy that ends closes connections that are idle beyond its --shutdown-delay, and those whose stream
	// ends after it. One that is used just then takes the request with it, and nobody can tell whether that
	// has begun: HTTP/1.1 has no word for it.
	tr := &http.Transport{MaxIdleConnsPerHost: 200, IdleConnTimeout: shutdownDelay / 2, DialContext: (&net.Dialer{Timeout: 10 * time.Second}).DialContext,
		TLSClientConfig: &tls.Config{RootCAs: authorities}}
	t.Cleanup(tr.CloseIdleConnections)
	once := tr.Clone()
	once.DisableKeepAlives = true
	return &client{http: &http.Client{Transport: tr}, streams: &http.Client{Transport: once}, token: token}
}

func (c *client) send(k kind, user string, length time.Duration, doors ...door) reply {
	r := reply{kind: k, user: user, begun: time.Now()}
	ctx, cancel := context.WithTimeout(context.Background(), patience+length)
	defer cancel()
	by := c.http
	if k == stream {
		by = c.streams
	}
	path, contentType, body := question(k, user, length)
	var resp *http.Response
	var err error
	for _, d := range doors {
		r.proxy = d.name
		req, newErr := http.NewRequestWithContext(ctx, http.MethodPost, d.url+path, bytes.NewReader(body))
		if newErr != nil {
			panic(newErr) // our own words
		}
		req.Header.Set("Authorization", "Bearer "+c.token)
		req.Header.Set("Content-Type", contentType)
		if resp, err = by.Do(req); err == nil || !errors.Is(err, syscall.ECONNREFUSED) {
			break
		}
	}
	if err == nil {
		r.read(resp)
		resp.Body.Close()
	} else {
		r.failure = err.Error()
	}
	r.ended = time.Now()
	return r
}

func question(k kind, user string, length time.Duration) (path, contentType string, body []byte) {
	if k == upload {
		var form bytes.Buffer
		w := multipart.NewWriter(&form)
		part, _ := w.CreateFormFile("file", "notes.txt") // a buffer takes everything
		part.Write(bytes.Repeat([]byte("all work and no play\n"), uploadSize/21))
		w.WriteField("user", user)
		w.Close()
		return "/v1/files/upload", w.FormDataContentType(), form.Bytes()
	}
	mode, events, gap := "blocking", 2, 20*time.Millisecond
	if k == stream {
		mode, events, gap = "streaming", int(length/eventGap)+1, eventGap
	}
	body, err := json.Marshal(map[string]any{
		"query": "hello", "user": user, "response_mode": mode,
		"inputs": map[string]any{"_standin": map[string]any{"tokens": events, "gap_ms": gap.Milliseconds(), "first_ms": gap.Milliseconds()}},
	})
	if err != nil {
		panic(err) // strings and numbers always marshal
	}
	return "/v1/chat-messages", "application/json", body
}

var speaker = regexp.MustCompile(`\[([a-z0-9-]+)\]`)

// read takes the answer to its end.
func (r *reply) read(resp *http.Response) {
	r.status = resp.StatusCode
	r.instance = resp.Header.Get("X-Dify-Instance")
	switch {
	case resp.StatusCode/100 != 2:
		body, _ := io.ReadAll(resp.Body)
		r.failure = fmt.Sprintf("status %d: %.200s", resp.StatusCode, bytes.TrimSpace(body))
	case r.kind == stream:
		r.readEvents(resp.Body)
	default:
		body, err := io.ReadAll(resp.Body)
		var m struct{ ID, Answer string }
		if err == nil {
			err = json.Unmarshal(body, &m)
		}
		if err != nil {
			r.failure, r.cut = "the answer broke off: "+err.Error(), true
		} else if r.kind == call {
			r.speaks(m.Answer)
		} else if m.ID == "" {
			r.failure = fmt.Sprintf("no id for the file: %.200s", body)
		}
	}
}

// speaks compares who answers by his own account with what the proxy says.
func (r *reply) speaks(text string) {
	m := speaker.FindStringSubmatch(text)
	switch {
	case m == nil:
		r.failure = "an answer that names no instance: " + text
	case m[1] != r.instance:
		r.failure = fmt.Sprintf("%s answers and the proxy says %s", m[1], r.instance)
	}
}

func (r *reply) readEvents(body io.Reader) {
	in := bufio.NewScanner(body)
	events, ended := 0, false
	for in.Scan() {
		data, ok := strings.CutPrefix(in.Text(), "data: ")
		if !ok {
			continue
		}
		var e struct{ Event, Answer, Message string }
		if err := json.Unmarshal([]byte(data), &e); err != nil {
			r.failure, r.cut = "an event that is not JSON: "+data, true
			return
		}
		events++
		switch e.Event {
		case "message":
			if events == 1 {
				r.speaks(e.Answer)
			}
		case "message_end":
			ended = true
		case "error":
			r.failure, r.cut = "an error event: "+e.Message, true
		}
	}
	switch {
	case in.Err() != nil:
		r.failure, r.cut = "the stream broke off: "+in.Err().Error(), true
	case !ended && r.failure == "":
		r.failure, r.cut = "the stream ended early", true
	}
}

// load is an open loop: so many requests a second, whatever becomes of those
// before, by users in turn, through all doors in turn.
type load struct {
	stopSending context.CancelFunc
	sending     sync.WaitGroup

	mu      sync.Mutex
	replies []reply // guarded by mu
	sent    int     // guarded by mu
}

func startLoad(t testing.TB, c *client, users []string, doors []door, rate int) *load {
	ctx, cancel := context.WithCancel(context.Background())
	l := &load{stopSending: cancel}
	l.sending.Add(1)
	go func() { // ends by cancel
		defer l.sending.Done()
		tick := time.NewTicker(time.Second / time.Duration(rate))
		defer tick.Stop()
		for n := 0; ; n++ {
			select {
			case <-ctx.Done():
				return
			case <-tick.C:
			}
			// Neither by n alone: else some users would stream only, or know one door.
			k := mix[(n+n/len(users))%len(mix)]
			turn := (n/len(mix) + n) % len(doors)
			order := slices.Concat(doors[turn:], doors[:turn])
			length := streamLength()
			l.mu.Lock()
			l.sent++
			l.mu.Unlock()
			l.sending.Add(1)
			go func() { // ends with the answer
				defer l.sending.Done()
				r := c.send(k, users[n%len(users)], length, order...)
				l.mu.Lock()
				l.replies = append(l.replies, r)
				l.mu.Unlock()
			}()
		}
	}()
	t.Cleanup(cancel)
	return l
}

// streamLength spreads streams over what is usual.
func streamLength() time.Duration {
	return either(time.Second, 2*time.Second) + rand.N(either(2*time.Second, 28*time.Second))
}

// stop ends the load, waits for the answers still to come, and returns all.
func (l *load) stop() []reply {
	l.stopSending()
	l.sending.Wait()
	return l.so()
}

func (l *load) so() []reply {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.Clone(l.replies)
}

// further waits until n more requests have been answered.
func (l *load) further(t testing.TB, n int) {
	t.Helper()
	want := len(l.so()) + n
	testbed.Within(t, 60*time.Second, fmt.Sprintf("%d further answers", n), func() bool { return len(l.so()) >= want })
}

// rest waits for as much traffic as comes in that time.
func (l *load) rest(t testing.TB, d time.Duration) {
	t.Helper()
	l.mu.Lock()
	from := l.sent
	l.mu.Unlock()
	want := from + int(d.Seconds()*rate)
	testbed.Within(t, d+30*time.Second, fmt.Sprintf("traffic of %s", d), func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return l.sent >= want
	})
}
