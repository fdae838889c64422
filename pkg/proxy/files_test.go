package proxy

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/http/httptest"
	"net/textproto"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"difylb/pkg/lb"
)

const filesPattern = "GET /files/"

// upload stores a file for a user through the proxy and returns its signed link.
func (e *estate) upload(user, content string) string {
	e.t.Helper()
	var form bytes.Buffer
	w := multipart.NewWriter(&form)
	w.WriteField("user", user)
	part, _ := w.CreatePart(textproto.MIMEHeader{"Content-Disposition": {`form-data; name="file"; filename="a.txt"`}, "Content-Type": {"text/plain"}})
	io.WriteString(part, content)
	w.Close()
	resp, body := e.do("POST", "/v1/files/upload", "", form.String(), "Content-Type", w.FormDataContentType())
	var answer struct {
		SourceURL string `json:"source_url"`
	}
	if err := json.Unmarshal([]byte(body), &answer); err != nil || resp.StatusCode != 201 || !strings.HasPrefix(answer.SourceURL, "/files/") {
		e.t.Fatalf("upload: %d %s", resp.StatusCode, body)
	}
	return answer.SourceURL
}

// fetch asks for a link as a browser would: without a token of ours.
func (r *rig) fetch(method, path string, fields ...string) (*http.Response, string) {
	r.t.Helper()
	req, err := http.NewRequest(method, r.url+path, nil)
	if err != nil {
		r.t.Fatal(err)
	}
	for i := 0; i+1 < len(fields); i += 2 {
		req.Header.Set(fields[i], fields[i+1])
	}
	resp, err := http.DefaultClient.Do(req)
	if err != nil {
		r.t.Fatal(err)
	}
	defer resp.Body.Close()
	b, err := io.ReadAll(resp.Body)
	if err != nil {
		r.t.Fatal(err)
	}
	return resp, string(b)
}

func filesOn(o *Options, _ *lb.Application) { o.FilesRoute = true }

func TestFiles_OffByDefault(t *testing.T) {
	e := newEstate(t, nil, "a")
	link := e.upload("u", "content")
	if resp, body := e.fetch("GET", link); resp.StatusCode != 404 || !strings.Contains(body, `"request_id"`) {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	e.wantAsked("nobody", filesPattern, "a=0")
}

func TestFiles_LinkLeadsToWhoSignedIt(t *testing.T) {
	e := newEstate(t, filesOn, "a", "b", "c")
	for _, signer := range []string{"a", "b", "c"} {
		link := e.upload(e.userOf(signer), "content of "+signer)
		asked := e.asked(filesPattern)
		if resp, body := e.fetch("GET", link); resp.StatusCode != 200 || body != "content of "+signer || resp.Header.Get("Content-Type") != "text/plain" || resp.Header.Get("X-Request-Id") == "" {
			t.Errorf("%s: %d %v %s", signer, resp.StatusCode, resp.Header, body)
		}
		// Its upload passed here, so nobody else is asked.
		e.wantAsked("the signer of "+signer, filesPattern, strings.Replace(asked, signer+"=0", signer+"=1", 1))
	}

	// A proxy that did not see the upload asks around, once.
	s := &estate{rig: newRig(t, func(o *Options, app *lb.Application) {
		o.FilesRoute, app.Instances = true, e.app.Clone().Instances
	}), dify: e.dify}
	link := e.upload(e.userOf("c"), "late")
	for range 3 {
		if resp, body := s.fetch("GET", link); resp.StatusCode != 200 || body != "late" {
			t.Errorf("%d %s", resp.StatusCode, body)
		}
	}
	s.wantAsked("a and b once, then c alone", filesPattern, "a=2 b=2 c=4")
	eventually(t, "three lines say ok", func() bool { return len(s.lines("reason", "ok")) == 3 })
	for _, l := range s.lines("reason", "ok") {
		if l["instance"] != "c" || l["status"] != float64(200) {
			t.Errorf("access log %v", l)
		}
	}
}

func TestFiles_ForgedAndForeignLinks(t *testing.T) {
	e := newEstate(t, filesOn, "a", "b")
	link := e.upload("u", "content")
	id := fileID(link)
	for what, path := range map[string]string{
		"forged":     link + "x",
		"expired":    "/files/" + id + "/file-preview?timestamp=1700000000&nonce=0&sign=none",
		"unsigned":   "/files/" + id + "/file-preview",
		"no file":    "/files/" + nowhere + "/file-preview?timestamp=1&nonce=0&sign=x",
		"other path": "/files/",
	} {
		resp, body := e.fetch("GET", path)
		if resp.StatusCode != 404 || !strings.Contains(body, `"code":"not_found"`) || strings.Contains(body, "app-") {
			t.Errorf("%s: %d %s", what, resp.StatusCode, body)
		}
	}
	for _, method := range []string{"POST", "PUT", "DELETE", "OPTIONS"} {
		if resp, _ := e.fetch(method, link); resp.StatusCode != 404 {
			t.Errorf("%s: %d", method, resp.StatusCode)
		}
	}
	for _, path := range []string{"/files/../v1/info", "/files/%2e%2e/v1/info"} {
		if got := e.raw("GET " + path + " HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"); !strings.HasPrefix(got, "HTTP/1.1 400 ") {
			t.Errorf("%s: %.100s", path, got)
		}
	}
	if resp, body := e.fetch("GET", link); resp.StatusCode != 200 || body != "content" {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
}

func TestFiles_RangeHeadAndFields(t *testing.T) {
	const content = "0123456789"
	var mu sync.Mutex
	var heads []http.Header
	r := newRig(t, filesOn, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		mu.Lock()
		heads = append(heads, r.Header.Clone())
		mu.Unlock()
		w.Header().Set("Authorization", "Bearer echoed")
		http.ServeContent(w, r, "a.txt", time.Unix(1700000000, 0), strings.NewReader(content))
	}))
	const link = "/files/x/file-preview?timestamp=1&nonce=%2B&sign=a%3D"
	secret := []string{"Authorization", "Bearer user-token-shop", "Connection", "Upgrade", "Upgrade", "websocket"}
	resp, body := r.fetch("GET", link, append(secret, "Range", "bytes=2-4")...)
	if resp.StatusCode != 206 || body != "234" || resp.Header.Get("Content-Range") != "bytes 2-4/10" || resp.Header.Get("Authorization") != "" {
		t.Errorf("range: %d %v %s", resp.StatusCode, resp.Header, body)
	}
	if resp, _ := r.fetch("GET", link, "Range", "bytes=20-"); resp.StatusCode != 416 || resp.Header.Get("Content-Range") != "bytes */10" {
		t.Errorf("beyond the end: %d %v", resp.StatusCode, resp.Header)
	}
	resp, body = r.fetch("HEAD", link)
	if resp.StatusCode != 200 || body != "" || resp.ContentLength != 10 {
		t.Errorf("HEAD: %d %v %q", resp.StatusCode, resp.Header, body)
	}
	if resp, _ := r.fetch("GET", link, "If-Modified-Since", resp.Header.Get("Last-Modified")); resp.StatusCode != 304 {
		t.Errorf("not modified: %d", resp.StatusCode)
	}
	mu.Lock()
	defer mu.Unlock()
	for _, h := range heads {
		if h.Get("Authorization") != "" || h.Get("Upgrade") != "" || strings.Contains(fmt.Sprint(h), "secret-token") {
			t.Errorf("the instance got %v", h)
		}
	}
	if h := heads[0]; h.Get("X-Forwarded-For") == "" || h.Get("X-Request-Id") == "" || h.Get("Range") != "bytes=2-4" {
		t.Errorf("the instance got %v", h)
	}
}

// One link must not become a request to everybody.
func TestFiles_OriginsAreBounded(t *testing.T) {
	r := newRig(t, filesOn)
	var all [maxOrigins + 8]atomic.Int64
	for i := range all {
		s := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if all[i].Add(1); i == len(all)-1 && r.URL.Path == "/files/mine/file-preview" {
				io.WriteString(w, "here")
				return
			}
			http.NotFound(w, r)
		}))
		defer s.Close()
		r.app.Instances = append(r.app.Instances, instanceAt(fmt.Sprint("j", i), s.URL))
	}
	r.apply()
	if resp, body := r.fetch("GET", "/files/mine/file-preview"); resp.StatusCode != 404 {
		t.Errorf("%d %s", resp.StatusCode, body)
	}
	n := int64(0)
	for i := range all {
		n += all[i].Load()
	}
	if n != maxOrigins {
		t.Errorf("%d instances were asked, want %d", n, maxOrigins)
	}
	// One that is remembered is asked wherever it stands.
	r.p.files.learn("", "mine", originKey(&r.p.Table().App("shop").Instances[len(all)-1]), time.Now())
	if resp, body := r.fetch("GET", "/files/mine/file-preview"); resp.StatusCode != 200 || body != "here" || all[0].Load() != 1 {
		t.Errorf("remembered: %d %s", resp.StatusCode, body)
	}
}

// Instances of several applications at one address are one origin, and those
// that can't serve are left out.
func TestFiles_Origins(t *testing.T) {
	var n [3]atomic.Int64
	r := newRig(t, filesOn, answering(&n[0], 404, ""), answering(&n[1], 404, ""), answering(&n[2], 500, ""))
	double := r.app.Instances[0]
	double.Name = "again"
	r.app.Instances = append(r.app.Instances, double)
	r.apply()
	if resp, body := r.fetch("GET", "/files/x/file-preview"); resp.StatusCode != 502 || n[0].Load() != 1 || n[1].Load() != 1 || n[2].Load() != 1 {
		t.Errorf("one could not say: %d %s, asked %d %d %d", resp.StatusCode, body, n[0].Load(), n[1].Load(), n[2].Load())
	}
	r.app.Instances[1].State, r.app.Instances[2].State = lb.Draining, lb.Disabled
	r.apply()
	if resp, body := r.fetch("GET", "/files/x/file-preview"); resp.StatusCode != 404 || n[0].Load() != 2 || n[1].Load() != 2 || n[2].Load() != 1 {
		t.Errorf("%d %s, asked %d %d %d", resp.StatusCode, body, n[0].Load(), n[1].Load(), n[2].Load())
	}
}

// A file that breaks off must not look complete.
func TestFiles_BrokenAnswerIsBrokenOff(t *testing.T) {
	r := newRig(t, filesOn, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Length", "100000")
		w.Write(make([]byte, 50000))
		http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}))
	resp, err := http.Get(r.url + "/files/x/file-preview")
	if err != nil {
		t.Fatal(err)
	}
	defer resp.Body.Close()
	if b, err := io.ReadAll(resp.Body); err == nil {
		t.Errorf("%d bytes without an error", len(b))
	}
	eventually(t, "the reason is logged", func() bool { return len(r.lines("reason", "upstream_broke")) == 1 })
}

func TestFiles_IDs(t *testing.T) {
	for path, want := range map[string]string{
		"/files/abc/file-preview":   "abc",
		"/files/tools/abc.png":      "abc",
		"/files/abc":                "abc",
		"/files/":                   "",
		"/files/" + longID + "/x":   "",
		"/files/abc/image-preview/": "abc",
	} {
		if got := fileID(path); got != want {
			t.Errorf("%s: %q, want %q", path, got, want)
		}
	}
}

var longID = strings.Repeat("x", 65)
