package e2e

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"mime/multipart"
	"net/http"
	"net/url"
	"strings"
	"testing"
)

// carriers are the ways in which a request names its user.
var carriers = []struct {
	name  string
	build func(t testing.TB, base, user string) *http.Request
}{
	{"header", func(t testing.TB, base, user string) *http.Request {
		r := newRequest(t, "POST", base+"/v1/chat-messages?user_id=not-this-one", "application/json", `{"user":"nor this","query":"x","inputs":{}}`)
		r.Header.Set("X-User-ID", user)
		return r
	}},
	{"query user_id", func(t testing.TB, base, user string) *http.Request {
		return newRequest(t, "GET", base+"/v1/parameters?user_id="+url.QueryEscape(user)+"&user=not-this", "", "")
	}},
	{"cookie", func(t testing.TB, base, user string) *http.Request {
		r := newRequest(t, "GET", base+"/v1/parameters?user=not-this", "", "")
		r.Header.Set("Cookie", "a=b; user_id="+user)
		return r
	}},
	{"JSON", func(t testing.TB, base, user string) *http.Request {
		name, err := json.Marshal(user)
		if err != nil {
			t.Fatal(err)
		}
		return newRequest(t, "POST", base+"/v1/chat-messages", "application/json", `{"inputs":{"user":"nested"},"user":"first","query":"x","user":`+string(name)+`}`)
	}},
	{"multipart, user last", func(t testing.TB, base, user string) *http.Request {
		var b bytes.Buffer
		w := multipart.NewWriter(&b)
		f, err := w.CreateFormFile("file", "a.bin")
		if err != nil {
			t.Fatal(err)
		}
		f.Write(bytes.Repeat([]byte("x\r\n--"), 5000))
		if err := w.WriteField("user", user); err != nil {
			t.Fatal(err)
		}
		w.Close()
		return newRequest(t, "POST", base+"/v1/files/upload", w.FormDataContentType(), b.String())
	}},
	{"urlencoded", func(t testing.TB, base, user string) *http.Request {
		return newRequest(t, "POST", base+"/v1/anything", "application/x-www-form-urlencoded", "a=1&user="+url.QueryEscape(user)+"&b=2")
	}},
	{"query user", func(t testing.TB, base, user string) *http.Request {
		return newRequest(t, "GET", base+"/v1/conversations?limit=3&user="+url.QueryEscape(user), "", "")
	}},
}

func newRequest(t testing.TB, method, target, contentType, body string) *http.Request {
	t.Helper()
	r, err := http.NewRequest(method, target, strings.NewReader(body))
	if err != nil {
		t.Fatal(err)
	}
	if contentType != "" {
		r.Header.Set("Content-Type", contentType)
	}
	return r
}

// askedOf sends the request and returns the name of the instance that answered.
func askedOf(t testing.TB, req *http.Request, token string) (string, error) {
	t.Helper()
	req.Header.Set("Authorization", "bearer "+token) // the scheme's case does not matter
	resp, err := clients.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	if err != nil || resp.StatusCode != http.StatusOK {
		return "", fmt.Errorf("status %d, %v: %s", resp.StatusCode, err, body)
	}
	if m := speaker.FindSubmatch(body); m != nil {
		return string(m[1]), nil
	}
	return "", fmt.Errorf("no instance in %s", body)
}

// Every user lands on the instance that the contract's words name, through
// either proxy, however the request carries him; explain says the same, with
// the same order of those who step in.
func TestPlacement_FollowsTheContract(t *testing.T) {
	var apps []application
	c := newPair(t, func(c *cluster) []application {
		for _, algorithm := range []string{"crc32", "md5", "sha1", "xxhash"} {
			app, _ := c.recordedApplication("ring-"+algorithm, 4, unprobed())
			app.algorithm = algorithm
			app.nodes = 40
			app.instances[1].weight, app.instances[2].weight, app.instances[3].weight = 2, 4, 2
			app.instances[0].weight = 2
			apps = append(apps, app)
		}
		return apps
	})
	all := users("user", 200)
	for i, odd := range []string{"müller", "O'Hara; x", "a b+c&d=e", "用户-7", strings.Repeat("long", 50)} {
		all[i*7] = odd
	}
	explained := 0
	for n, user := range all {
		app := apps[n%len(apps)]
		carrier := carriers[(n/len(apps))%len(carriers)]
		if carrier.name == "cookie" || carrier.name == "header" {
			user = fmt.Sprintf("plain-%d", n) // what these can carry as it is
		}
		want := app.order(t, user)
		for _, p := range c.proxies {
			got, err := askedOf(t, carrier.build(t, p.url, user), app.token)
			if err != nil {
				t.Errorf("%s of %s by %s: %s", user, app.name, carrier.name, err)
			} else if got != want[0] {
				t.Errorf("%s of %s by %s is served by %s, want %s", user, app.name, carrier.name, got, want[0])
			}
		}
		if n%5 != 0 {
			continue
		}
		explained++
		var e struct {
			Owner, Chosen string
			Order         []struct{ Instance string }
		}
		if err := json.Unmarshal([]byte(c.mustLbctl("explain", app.name, user, "-o", "json")), &e); err != nil {
			t.Fatal(err)
		}
		var order []string
		for _, s := range e.Order {
			order = append(order, s.Instance)
		}
		if e.Owner != want[0] || e.Chosen != want[0] || strings.Join(order, " ") != strings.Join(want, " ") {
			t.Errorf("explain %s %s: owner %s, order %v, want %v", app.name, user, e.Owner, order, want)
		}
	}
	t.Logf("%d users through %d proxies, %d explained", len(all), len(c.proxies), explained)
}
