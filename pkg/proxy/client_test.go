package proxy

import (
	"bufio"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"runtime"
	"strings"
	"sync/atomic"
	"testing"

	"difylb/pkg/lb"
)

const goodHead = "Host: x\r\nAuthorization: Bearer user-token-shop\r\nX-User-ID: u\r\n"

// What two readers could understand in two ways is refused, closes the
// connection, and reaches no instance.
func TestClient_RefusesWhatIsAmbiguous(t *testing.T) {
	var asked atomic.Int64 // by requests whose head was refused
	r := newRig(t, nil, http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		if r.URL.Path != "/v1/late" { // its body is at fault, which shows late
			asked.Add(1)
		}
	}))
	for name, request := range map[string]string{
		"length and chunked":           "POST /v1/info HTTP/1.1\r\n" + goodHead + "Content-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"chunked and length":           "POST /v1/info HTTP/1.1\r\n" + goodHead + "Transfer-Encoding: chunked\r\nContent-Length: 5\r\n\r\n0\r\n\r\n",
		"chunked twice":                "POST /v1/info HTTP/1.1\r\n" + goodHead + "Transfer-Encoding: chunked, chunked\r\n\r\n0\r\n\r\n",
		"chunked in HTTP/1.0":          "POST /v1/info HTTP/1.0\r\n" + goodHead + "Transfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
		"two lengths":                  "POST /v1/info HTTP/1.1\r\n" + goodHead + "Content-Length: 0\r\nContent-Length: 1\r\n\r\n",
		"length with sign":             "POST /v1/info HTTP/1.1\r\n" + goodHead + "Content-Length: +1\r\n\r\nx",
		"folded line":                  "GET /v1/info HTTP/1.1\r\n" + goodHead + "X-A: b\r\n c\r\n\r\n",
		"bare line feed":               "GET /v1/info HTTP/1.1\n" + goodHead + "\r\n",
		"space before colon":           "GET /v1/info HTTP/1.1\r\n" + goodHead + "X-A : b\r\n\r\n",
		"two hosts":                    "GET /v1/info HTTP/1.1\r\nHost: y\r\n" + goodHead + "\r\n",
		"no host":                      "GET /v1/info HTTP/1.1\r\n\r\n",
		"authority is not host":        "GET http://y/v1/info HTTP/1.1\r\n" + goodHead + "\r\n",
		"HTTP/2 without TLS":           "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
		"garbage":                      "\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
		"bad chunk size":               "POST /v1/late HTTP/1.1\r\n" + goodHead + "Transfer-Encoding: chunked\r\n\r\n0x5\r\nhello\r\n0\r\n\r\n",
		"line feed in chunk extension": "POST /v1/late HTTP/1.1\r\n" + goodHead + "Transfer-Encoding: chunked\r\n\r\n5;a\nhello\r\n0\r\n\r\n",
	} {
		got := r.raw(request)
		code, _, _ := strings.Cut(strings.TrimPrefix(got, "HTTP/1.1 "), " ")
		if (code != "400" && code != "505") || !strings.Contains(got, "Connection: close") || strings.Count(got, "HTTP/1.1 ") != 1 || !strings.Contains(got, `"request_id"`) {
			t.Errorf("%s: %s", name, got)
		}
	}
	if n := asked.Load(); n != 0 {
		t.Errorf("an instance was asked %d times", n)
	}
}

func TestClient_AnswersWhatCameBeforeFirst(t *testing.T) {
	r := newRig(t, nil, echo("a"))
	good := "POST /v1/info HTTP/1.1\r\n" + goodHead + "Content-Length: 2\r\n\r\nhi"
	got := r.raw(good + good + "GET /v1/info HTTP/1.1\r\nBad Name: x\r\n\r\n" + good)
	if strings.Count(got, "HTTP/1.1 200 OK") != 2 || strings.Count(got, "HTTP/1.1 ") != 3 || !strings.Contains(got[strings.LastIndex(got, "HTTP/1.1"):], "HTTP/1.1 400 ") {
		t.Error(got)
	}
}

// However the bytes are cut, the same comes of them.
func TestClient_AnySplitGivesTheSame(t *testing.T) {
	r := newRig(t, nil, echo("a"))
	rnd := rand.New(rand.NewPCG(5, 6))
	length := "POST /v1/info HTTP/1.1\r\n" + goodHead + "Content-Length: 11\r\n\r\nhello world"
	chunked := "POST /v1/info HTTP/1.1\r\n" + goodHead + "Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n6\r\n world\r\n0\r\nX-T: 1\r\n\r\n"
	none := "GET /v1/info HTTP/1.1\r\n" + goodHead + "\r\n"
	bad := "GET /v1/info HTTP/1.1\r\nHost : x\r\n\r\n"
	for range 200 {
		stream, want := "", ""
		for range 1 + rnd.IntN(6) {
			k := rnd.IntN(3)
			stream += []string{length, chunked, none}[k]
			want += []string{"a POST /v1/info Bearer app-a-secret-token hello world;", "a POST /v1/info Bearer app-a-secret-token hello world;", "a GET /v1/info Bearer app-a-secret-token ;"}[k]
		}
		c := r.dial()
		done := make(chan struct{})
		go func() {
			defer close(done)
			for rest := stream + bad + none; rest != ""; {
				n := 1 + rnd.IntN(min(len(rest), 200))
				if _, err := io.WriteString(c, rest[:n]); err != nil {
					return
				}
				rest = rest[n:]
				if rnd.IntN(3) == 0 {
					runtime.Gosched()
				}
			}
		}()
		br, got := bufio.NewReader(c), ""
		last := 0
		for {
			resp, err := http.ReadResponse(br, nil)
			if err != nil {
				break
			}
			body, err := io.ReadAll(resp.Body)
			if err != nil {
				t.Fatal(err)
			}
			if last = resp.StatusCode; last == 200 {
				got += string(body) + ";"
			}
		}
		c.Close()
		<-done
		if got != want || last != 400 {
			t.Fatalf("status %d at the end\n%s\nwant\n%s", last, got, want)
		}
	}
}

func TestClient_LimitsHaveTheirStatus(t *testing.T) {
	r := newRig(t, nil, echo("a"))
	many := strings.Builder{}
	for i := range 200 {
		fmt.Fprintf(&many, "X-%d: y\r\n", i)
	}
	for request, want := range map[string]lb.Reason{
		"GET /v1/" + strings.Repeat("x", 20<<10) + " HTTP/1.1\r\n" + goodHead + "\r\n":            lb.ReasonURITooLong,
		"GET /v1/info HTTP/1.1\r\n" + goodHead + many.String() + "\r\n":                           lb.ReasonHeaderTooLarge,
		"GET /v1/info HTTP/1.1\r\n" + goodHead + "X: " + strings.Repeat("y", 70<<10) + "\r\n\r\n": lb.ReasonHeaderTooLarge,
		"GET /v1/info HTTP/1.1\r\n" + goodHead + "Expect: tea\r\n\r\n":                            lb.ReasonExpectationFailed,
		"GET /v1/info HTTP/3.0\r\n" + goodHead + "\r\n":                                           lb.ReasonVersionNotSupported,
		"POST /v1/info HTTP/1.1\r\n" + goodHead + "Transfer-Encoding: gzip\r\n\r\n":               lb.ReasonNotImplemented,
	} {
		if got := r.raw(request); !strings.HasPrefix(got, fmt.Sprintf("HTTP/1.1 %d ", want.Status())) || !strings.Contains(got, `"code":"`+want.Code()+`"`) {
			t.Errorf("%.40q: want %v, got %s", request, want, got)
		}
	}
}
