package proxy

import (
	"bufio"

	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"difylb/pkg/lb"
)

// markedBody is a body in which every eight bytes or so tell whose it is.
func markedBody(marker string, n int) string { return strings.Repeat(marker+";", n) }

// trickster is an instance that answers in all ways that are right, and breaks
// off or says too much in all ways that are wrong. It keeps what must not be.
type trickster struct {
	mu     sync.Mutex
	faults []string // guarded by mu
	reused atomic.Int64
	tricks [numTricks]atomic.Int64
}

const (
	trickLength = iota
	trickChunked
	trickBytewise
	trickEarly
	trickEarlyClose
	trickResetInHead
	trickResetInBody
	trickSurplus
	trickEndBehind
	trickUntilClose
	trickShort
	trickInterim
	numTricks
)

func (s *trickster) fault(format string, args ...any) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = append(s.faults, fmt.Sprintf(format, args...))
}

func (s *trickster) serve(conn net.Conn) {
	c := conn.(*net.TCPConn)
	defer c.Close()
	c.SetDeadline(time.Now().Add(30 * time.Second))
	br, spoilt := bufio.NewReader(c), ""
	for n := 0; ; n++ {
		req, err := http.ReadRequest(br)
		if err != nil {
			if err != io.EOF && !errors.As(err, new(*net.OpError)) && !errors.Is(err, io.ErrUnexpectedEOF) {
				s.fault("no request: %v", err)
			}
			return
		}
		if spoilt != "" {
			if spoilt != "ended" { // an end and a request may cross
				s.fault("a request on a connection that was %s", spoilt)
			}
			return
		}
		if n > 0 {
			s.reused.Add(1)
		}
		marker := req.Header.Get("X-Marker")
		trick := rand.IntN(numTricks)
		s.tricks[trick].Add(1)
		if trick == trickEarly || trick == trickEarlyClose { // before a byte of the body was read
			io.WriteString(c, lengthAnswer(marker, 3))
			if trick == trickEarlyClose {
				return
			}
		}
		body, err := io.ReadAll(req.Body)
		if err == nil && string(body) != "" && string(body) != markedBody(marker, len(body)/(len(marker)+1)) {
			s.fault("%s got a body of %d bytes that begins with %.80q", marker, len(body), body)
		}
		if err != nil {
			if !errors.Is(err, io.ErrUnexpectedEOF) && !errors.As(err, new(*net.OpError)) {
				s.fault("body of %s: %v", marker, err)
			}
			return
		}
		size := 1 + rand.IntN(4000)
		switch trick {
		case trickLength:
			io.WriteString(c, lengthAnswer(marker, size))
		case trickChunked:
			writeSplit(c, []byte(chunkedAnswer(marker, size)), rand.New(rand.NewPCG(rand.Uint64(), 1)))
		case trickBytewise:
			for _, b := range []byte(chunkedAnswer(marker, 3)) {
				c.Write([]byte{b})
			}
		case trickInterim:
			io.WriteString(c, "HTTP/1.1 103 Early Hints\r\nX-Marker: "+marker+"\r\n\r\n"+lengthAnswer(marker, size))
		case trickResetInHead:
			io.WriteString(c, "HTTP/1.1 200 OK\r\nX-Mar")
			c.SetLinger(0)
			return
		case trickResetInBody:
			a := lengthAnswer(marker, size)
			io.WriteString(c, a[:len(a)-3])
			c.SetLinger(0)
			return
		case trickSurplus:
			io.WriteString(c, lengthAnswer(marker, 3)+"HTTP/1.1 200 OK\r\nX-Marker: evil\r\nContent-Length: 5\r\n\r\nevil;")
			spoilt = "talkative"
		case trickEndBehind:
			io.WriteString(c, lengthAnswer(marker, size))
			return // a request that was quicker than this end is lost
		case trickUntilClose:
			io.WriteString(c, "HTTP/1.1 200 OK\r\nX-Marker: "+marker+"\r\n\r\n"+markedBody(marker, size))
			return
		case trickShort:
			io.WriteString(c, "HTTP/1.1 200 OK\r\nX-Marker: "+marker+"\r\nContent-Length: 1000000\r\n\r\n"+markedBody(marker, size))
			c.CloseWrite()
			spoilt = "incomplete"
		}
	}
}

func lengthAnswer(marker string, n int) string {
	body := markedBody(marker, n)
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nX-Marker: %s\r\nContent-Length: %d\r\n\r\n%s", marker, len(body), body)
}

func chunkedAnswer(marker string, n int) string {
	body := markedBody(marker, n)
	half := len(body) / 2
	return fmt.Sprintf("HTTP/1.1 200 OK\r\nX-Marker: %s\r\nTransfer-Encoding: chunked\r\n\r\n%x;x=y\r\n%s\r\n%x\r\n%s\r\n0\r\n\r\n", marker, half, body[:half], len(body)-half, body[half:])
}

// Whatever clients and instances do, nobody gets a byte of anybody else.
func TestEngine_NobodyGetsAnothersBytes(t *testing.T) {
	clients, rounds := 200, 12
	if testing.Short() {
		clients = 50
	}
	s := new(trickster)
	ln := listen(t, s.serve)
	r := newRig(t, func(o *Options, a *lb.Application) {
		for _, name := range []string{"a", "b"} {
			a.Instances = append(a.Instances, instanceAt(name, "http://"+ln.Addr().String()))
		}
		patient(o, a)
		o.AccessLog = nil
	})
	var complete, broken, refused atomic.Int64
	var wg sync.WaitGroup
	for id := range clients {
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(uint64(id), 3))
			var c *net.TCPConn
			var br *bufio.Reader
			defer func() {
				if c != nil {
					c.Close()
				}
			}()
			for round := range rounds {
				if c == nil {
					conn, err := net.Dial("tcp", r.addr)
					if err != nil {
						t.Error(err)
						return
					}
					c = conn.(*net.TCPConn)
					c.SetDeadline(time.Now().Add(30 * time.Second))
					br = bufio.NewReader(c)
				}
				var request strings.Builder
				var markers []string
				for k := range 1 + rnd.IntN(3) {
					m := fmt.Sprintf("m%d-%d-%d", id, round, k)
					markers = append(markers, m)
					body := markedBody(m, rnd.IntN(200))
					if rnd.IntN(8) == 0 {
						body = markedBody(m, 10000)
					}
					fmt.Fprintf(&request, "%s /v1/info HTTP/1.1\r\n%sX-Marker: %s\r\n", []string{"GET", "POST"}[rnd.IntN(2)], goodHead, m)
					if rnd.IntN(2) == 0 {
						fmt.Fprintf(&request, "Content-Length: %d\r\n\r\n%s", len(body), body)
					} else {
						request.WriteString("Transfer-Encoding: chunked\r\n\r\n")
						if body != "" {
							fmt.Fprintf(&request, "%x;e\r\n%s\r\n", len(body), body)
						}
						request.WriteString("0\r\n\r\n")
					}
				}
				bytes := []byte(request.String())
				if rnd.IntN(6) == 0 { // leaves in the middle, or before the answer
					writeSplit(c, bytes[:rnd.IntN(len(bytes)+1)], rnd)
					if rnd.IntN(2) == 0 {
						c.SetLinger(0)
					}
					c.Close()
					c = nil
					continue
				}
				written := make(chan struct{})
				go func() {
					defer close(written)
					writeSplit(c, bytes, rnd)
				}()
				for _, m := range markers {
					resp, body, err := answerOf(br, "GET")
					if resp == nil {
						err = io.EOF // an answer before has ended the connection
					} else if got := resp.Header.Get("X-Marker"); got == "" {
						if resp.StatusCode != 502 && resp.StatusCode != 503 || !strings.Contains(string(body), resp.Header.Get("X-Request-Id")) {
							t.Errorf("%s: %s %s", m, resp.Status, body)
						}
						refused.Add(1)
					} else {
						want := markedBody(m, len(body)/(len(m)+1)+1)
						if got != m || !strings.HasPrefix(want, string(body)) || err == nil && len(body)%(len(m)+1) != 0 {
							t.Errorf("%s got %s: %.100q", m, got, body)
						}
						if err == nil {
							complete.Add(1)
						} else {
							broken.Add(1)
						}
					}
					if err != nil || resp.Close {
						c.Close()
						break
					}
				}
				<-written
				if _, err := c.Write(nil); err != nil {
					c = nil
				}
			}
		})
	}
	wg.Wait()
	s.mu.Lock()
	faults := s.faults
	s.mu.Unlock()
	for _, f := range faults[:min(len(faults), 10)] {
		t.Error(f)
	}
	if complete.Load() < 100 || broken.Load() == 0 || refused.Load() == 0 || s.reused.Load() == 0 {
		t.Errorf("%d complete, %d broken off, %d refused, %d on used connections: the test shows nothing", complete.Load(), broken.Load(), refused.Load(), s.reused.Load())
	}
	t.Logf("%d complete, %d broken off, %d refused, %d on used connections", complete.Load(), broken.Load(), refused.Load(), s.reused.Load())
	eventually(t, "all connections of clients are gone", func() bool { return r.p.Connections() == 0 })
}
