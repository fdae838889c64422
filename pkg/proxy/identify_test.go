package proxy

import (
	"bufio"
	"bytes"
	"crypto/rand"
	"crypto/sha256"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"difylb/pkg/lb"
)

// userSeen returns the user id that the proxy placed a request by, by way of
// what debug headers tell the instance.
func userSeen() http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.Copy(io.Discard, r.Body)
		io.WriteString(w, r.Header.Get("X-User-Id-Used"))
	})
}

func TestIdentify_SourcesInOrder(t *testing.T) {
	r := newRig(t, func(o *Options, _ *lb.Application) { o.DebugHeaders = true }, userSeen(), userSeen())
	const form, js, multi = "application/x-www-form-urlencoded", "application/json", "multipart/form-data; boundary=B"
	part := func(name, value string) string {
		return "--B\r\nContent-Disposition: form-data; name=\"" + name + "\"\r\n\r\n" + value + "\r\n"
	}
	for _, tc := range []struct {
		name, target, head, ctype, body, want string
	}{
		{"header first", "?user_id=q&user=u", "X-User-ID: h\r\nCookie: user_id=c\r\n", js, `{"user":"b"}`, "h"},
		{"then query user_id", "?user=u&user_id=q", "Cookie: user_id=c\r\n", js, `{"user":"b"}`, "q"},
		{"then cookie", "?user=u", "Cookie: x=1; user_id=c\r\n", js, `{"user":"b"}`, "c"},
		{"then body", "?user=u", "", js, `{"user":"b"}`, "b"},
		{"last query user", "?user=u", "", js, `{"query":"x"}`, "u"},
		{"empty header is none", "?user_id=q", "X-User-ID: \r\n", js, `{}`, "q"},
		{"first header that is not empty", "", "X-User-ID: \r\nX-User-ID: two\r\nX-User-ID: three\r\n", js, `{}`, "two"},
		{"query decoded", "?user_id=a%20b%2Bc+d", "", js, `{}`, "a b+c d"},
		{"first query that is not empty", "?user_id=&user_id=2&user_id=3", "", js, `{}`, "2"},
		{"cookie as it is", "", "Cookie: user_id=a%20b\r\n", js, `{}`, "a%20b"},
		{"second cookie header", "", "Cookie: a=b\r\nCookie: user_id=z\r\n", js, `{}`, "z"},
		{"JSON number is its text", "", "", js, `{"user":1e3}`, "1e3"},
		{"JSON boolean", "", "", js, `{"user":true}`, "true"},
		{"JSON null is none", "?user=u", "", js, `{"user":null}`, "u"},
		{"JSON object is none", "?user=u", "", js, `{"user":{"a":1}}`, "u"},
		{"JSON last key counts", "", "", js, `{"user":"1","user":"2"}`, "2"},
		{"JSON escapes", "", "", js, `{"\u0075ser":"\u0041"}`, "A"},
		{"JSON nested is none", "?user=u", "", js, `{"inputs":{"user":"in"}}`, "u"},
		{"JSON with charset", "", "", "application/json; charset=utf-8", `{"user":"b"}`, "b"},
		{"urlencoded", "", "", form, "a=1&user=+x+y+", "x y"},
		{"multipart trimmed", "", "", multi, part("a", "1") + part("user", " m ") + "--B--\r\n", "m"},
		{"multipart without user", "?user=u", "", multi, part("a", "1") + "--B--\r\n", "u"},
		{"text body", "?user=u", "", "text/plain", "user=nobody", "u"},
		{"underscored header is none", "?user=u", "X_User_ID: evil\r\n", js, `{}`, "u"},
	} {
		for _, chunked := range []bool{false, true} {
			t.Run(fmt.Sprint(tc.name, " chunked=", chunked), func(t *testing.T) {
				r.t = t
				head := "POST /v1/chat-messages" + tc.target + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Bearer user-token-shop\r\nContent-Type: " + tc.ctype + "\r\n" + tc.head
				if chunked {
					head += "Transfer-Encoding: chunked\r\n\r\n"
					for _, c := range tc.body {
						head += "1\r\n" + string(c) + "\r\n"
					}
					head += "0\r\n\r\n"
				} else {
					head += fmt.Sprintf("Content-Length: %d\r\n\r\n%s", len(tc.body), tc.body)
				}
				got := r.raw(head)
				if !strings.HasPrefix(got, "HTTP/1.1 200 ") || !strings.HasSuffix(got, "\r\n\r\n"+tc.want) {
					t.Errorf("want user %q, got\n%s", tc.want, got)
				}
			})
		}
	}
}

func TestIdentify_UserBehindALargeFileIsSpooled(t *testing.T) {
	var sum atomic.Value
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		d := sha256.New()
		io.Copy(d, r.Body)
		sum.Store(fmt.Sprintf("%x", d.Sum(nil)))
		io.WriteString(w, r.Header.Get("X-User-Id-Used"))
	})
	dir := t.TempDir()
	r := newRig(t, func(o *Options, _ *lb.Application) { o.DebugHeaders, o.SpoolDir = true, dir }, h, h)
	var body bytes.Buffer
	mw := multipart.NewWriter(&body)
	fw, _ := mw.CreateFormFile("file", "big.bin")
	io.CopyN(fw, rand.Reader, 20<<20)
	mw.WriteField("user", "late-user")
	mw.Close()
	want := fmt.Sprintf("%x", sha256.Sum256(body.Bytes()))
	for _, length := range []int64{int64(body.Len()), -1} {
		req, _ := http.NewRequest("POST", r.url+"/v1/files/upload", bytes.NewReader(body.Bytes()))
		req.ContentLength = length
		req.Header.Set("Authorization", "Bearer user-token-shop")
		req.Header.Set("Content-Type", mw.FormDataContentType())
		resp, err := http.DefaultClient.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		got, _ := io.ReadAll(resp.Body)
		resp.Body.Close()
		if string(got) != "late-user" || sum.Load() != want {
			t.Errorf("length %d: user %q, body %v, want %s", length, got, sum.Load(), want)
		}
	}
	if left, _ := os.ReadDir(dir); len(left) != 0 {
		t.Errorf("left in the spool directory: %v", left)
	}
}

func TestIdentify_UserInTheHeadLetsTheBodyStream(t *testing.T) {
	first := make(chan struct{}, 1)
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		io.ReadFull(r.Body, make([]byte, 10))
		first <- struct{}{}
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(w, n+10)
	})
	r := newRig(t, nil, h)
	pr, pw := io.Pipe()
	go func() {
		pw.Write(make([]byte, 1000))
		select {
		case <-first: // before the last byte was sent
		case <-time.After(10 * time.Second):
			pw.CloseWithError(io.ErrClosedPipe)
		}
		pw.Write(make([]byte, 1<<20))
		pw.Close()
	}()
	req, _ := http.NewRequest("POST", r.url+"/v1/files/upload", pr)
	req.Header.Set("Authorization", "Bearer user-token-shop")
	req.Header.Set("X-User-ID", "u")
	req.Header.Set("Content-Type", "multipart/form-data; boundary=b")
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, _ := io.ReadAll(resp.Body); string(b) != fmt.Sprint(1000+1<<20) {
		t.Errorf("instance got %s bytes", b)
	}
}

func TestIdentify_BodiesThatCannotBe(t *testing.T) {
	var touched atomic.Int64
	h := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		touched.Add(1)
		io.Copy(io.Discard, r.Body)
	})
	r := newRig(t, func(_ *Options, a *lb.Application) { a.MaxBody = 100 << 10 }, h)
	const head = "POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user-token-shop\r\nConnection: close\r\n"
	const js = "Content-Type: application/json\r\n"
	deep := strings.Repeat("[", 40000)
	for _, tc := range []struct {
		name, rest, status, has string
	}{
		{"declared too large", js + "Content-Length: 200000\r\n\r\n", "413", "request_too_large"},
		{"chunked too large", js + "Transfer-Encoding: chunked\r\n\r\n" + strings.Repeat("8000\r\n"+strings.Repeat(" ", 0x8000)+"\r\n", 5) + "0\r\n\r\n", "413", "larger than 100k"},
		{"broken JSON", js + "Content-Length: 5\r\n\r\n{\"a\":", "400", "bad_request"},
		{"deep JSON without an end", js + fmt.Sprintf("Content-Length: %d\r\n\r\n", len(deep)) + deep, "400", "bad_request"},
		{"no boundary", "Content-Type: multipart/form-data\r\nContent-Length: 3\r\n\r\nabc", "400", "boundary"},
		{"doubled boundary", "Content-Type: multipart/form-data; boundary=a; boundary=b\r\nContent-Length: 3\r\n\r\nabc", "400", "boundary"},
		{"two content types", js + "Content-Type: text/plain\r\nContent-Length: 2\r\n\r\n{}", "400", "malformed"},
		{"bad chunk", js + "Transfer-Encoding: chunked\r\n\r\nzz\r\n{}\r\n0\r\n\r\n", "400", "bad_request"},
		{"two lengths", js + "Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}a", "400", "bad_request"},
		{"user too long", js + "Content-Length: 9012\r\n\r\n{\"user\":\"" + strings.Repeat("u", 9001) + "\"}", "400", "too long"},
		{"no user", js + "Content-Length: 2\r\n\r\n{}", "400", "user_id_required"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			r.t = t
			got := r.raw(head + tc.rest)
			if !strings.HasPrefix(got, "HTTP/1.1 "+tc.status+" ") || !strings.Contains(got, tc.has) || !strings.Contains(got, `"request_id"`) {
				t.Errorf("want %s with %q, got\n%s", tc.status, tc.has, got)
			}
		})
	}
	if n := touched.Load(); n != 0 {
		t.Errorf("the instance saw %d requests", n)
	}
	deepUser := strings.Repeat(`[`, 40000) + strings.Repeat(`]`, 40000)
	resp, _ := r.do("POST", "/v1/chat-messages", "", `{"user":"u","x":`+deepUser+`}`)
	if resp.StatusCode != 200 {
		t.Errorf("deep but valid JSON: %d", resp.StatusCode)
	}
}

func TestIdentify_JSONNestedAHundredThousandDeep(t *testing.T) {
	r := newRig(t, nil, echo("a"))
	resp, _ := r.do("POST", "/v1/chat-messages", "", `{"x":`+strings.Repeat("[", 100000)+strings.Repeat("]", 100000)+`,"user":"u"}`)
	if resp.StatusCode != 200 {
		t.Errorf("%d", resp.StatusCode)
	}
}

func TestIdentify_BodyShorterThanDeclared(t *testing.T) {
	for _, user := range []string{"", "X-User-ID: u\r\n"} {
		complete := make(chan error, 1)
		r := newRig(t, nil, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			_, err := io.Copy(io.Discard, r.Body)
			complete <- err
		}))
		c := r.dial()
		fmt.Fprintf(c, "POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user-token-shop\r\n%sContent-Type: application/json\r\nContent-Length: 50\r\n\r\n{}", user)
		c.CloseWrite()
		b, _ := io.ReadAll(c)
		if !strings.HasPrefix(string(b), "HTTP/1.1 400 ") || !strings.Contains(string(b), "before its declared length") {
			t.Errorf("user %q: %s", user, b)
		}
		select {
		case err := <-complete:
			if err == nil {
				t.Error("the instance took the body for complete")
			}
		default:
			if user != "" {
				if err := <-complete; err == nil {
					t.Error("the instance took the body for complete")
				}
			}
		}
	}
}

func TestIdentify_StreamedBodyOverTheLimitIsAborted(t *testing.T) {
	end := make(chan error, 1)
	r := newRig(t, func(_ *Options, a *lb.Application) { a.MaxBody = 300 << 10 }, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.Copy(io.Discard, r.Body)
		end <- err
	}))
	c := r.dial()
	fmt.Fprintf(c, "POST /v1/files/upload HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer user-token-shop\r\nX-User-ID: u\r\nTransfer-Encoding: chunked\r\n\r\n")
	go func() {
		for range 100 {
			if _, err := fmt.Fprintf(c, "4000\r\n%s\r\n", strings.Repeat("x", 0x4000)); err != nil {
				return
			}
		}
	}()
	resp, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil || resp.StatusCode != 413 {
		t.Fatalf("%v %v", resp, err)
	}
	c.Close()
	if err := <-end; err == nil {
		t.Error("the instance took the body for complete")
	}
	eventually(t, "one line in the access log", func() bool { return len(r.lines("reason", "request_too_large")) == 1 })
}

func TestIdentify_ExpectContinue(t *testing.T) {
	r := newRig(t, nil, echo("a"))
	head := "POST /v1/chat-messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Type: application/json\r\nContent-Length: 12\r\nExpect: 100-continue\r\n\r\n"
	c := r.dial()
	fmt.Fprintf(c, head, "user-token-shop")
	br := bufio.NewReader(c)
	if line, _ := br.ReadString('\n'); !strings.HasPrefix(line, "HTTP/1.1 100 ") {
		t.Fatalf("%q", line)
	}
	br.ReadString('\n')
	io.WriteString(c, `{"user":"u"}`)
	resp, err := http.ReadResponse(br, nil)
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v %v", resp, err)
	}
	resp.Body.Close()
	if got := r.raw(fmt.Sprintf(head, "wrong")); !strings.HasPrefix(got, "HTTP/1.1 401 ") {
		t.Errorf("a body that is not wanted was asked for: %s", got)
	}
}

func TestIdentify_MissingUser(t *testing.T) {
	for _, tc := range []struct {
		missing      lb.MissingUser
		method, path string
		want         int
	}{
		{lb.MissingUserAuto, "GET", "/v1/info", 200},
		{lb.MissingUserAuto, "GET", "/v1/parameters", 200},
		{lb.MissingUserAuto, "GET", "/v1/workflows/run/123", 200},
		{lb.MissingUserAuto, "GET", "/v1/datasets", 200},
		{lb.MissingUserAuto, "POST", "/v1/chat-messages", 400},
		{lb.MissingUserAuto, "GET", "/v1/unheard-of", 400},
		{lb.MissingUserReject, "GET", "/v1/info", 400},
		{lb.MissingUserSpread, "POST", "/v1/chat-messages", 200},
	} {
		r := newRig(t, func(_ *Options, a *lb.Application) { a.MissingUser = tc.missing }, echo("a"), echo("b"))
		resp, body := r.do(tc.method, tc.path, "", "")
		if resp.StatusCode != tc.want || (tc.want == 400 && !strings.Contains(body, "user_id_required")) {
			t.Errorf("%s %s %s: %d %s", tc.missing, tc.method, tc.path, resp.StatusCode, body)
		}
	}
	r := newRig(t, func(_ *Options, a *lb.Application) { a.MissingUser = lb.MissingUserSpread }, echo("a"), echo("b"))
	seen := map[string]bool{}
	for range 60 {
		_, body := r.do("GET", "/v1/info", "", "")
		seen[body[:1]] = true
	}
	if len(seen) != 2 {
		t.Errorf("spread over %v", seen)
	}
}
