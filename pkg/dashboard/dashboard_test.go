package dashboard

import (
	"compress/gzip"
	"encoding/json"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
)

func ask(t *testing.T, method, target string, header ...string) *http.Response {
	t.Helper()
	r := httptest.NewRequest(method, target, nil)
	for i := 0; i < len(header); i += 2 {
		r.Header.Set(header[i], header[i+1])
	}
	w := httptest.NewRecorder()
	Handler().ServeHTTP(w, r)
	return w.Result()
}

// served are the embedded files, by their paths below assets/.
func served(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := fs.WalkDir(assets, "assets", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := assets.ReadFile(name)
		all[strings.TrimPrefix(name, "assets/")] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// asset is the path at which the one file with the ending is served.
func asset(t *testing.T, ending string) string {
	t.Helper()
	found := ""
	for name := range served(t) {
		if strings.HasSuffix(name, ending) {
			if found != "" {
				t.Fatalf("both %s and %s", found, name)
			}
			found = "/assets/" + name
		}
	}
	if found == "" {
		t.Fatalf("there is no *%s", ending)
	}
	return found
}

func TestHandler_ServesPageAndParts(t *testing.T) {
	for _, c := range []struct {
		method, path string
		status       int
		kind         string
	}{
		{"GET", "/", 200, "text/html; charset=utf-8"},
		{"HEAD", "/", 200, "text/html; charset=utf-8"},
		{"GET", asset(t, ".css"), 200, "text/css; charset=utf-8"},
		{"GET", asset(t, ".js"), 200, "text/javascript; charset=utf-8"},
		{"GET", "/assets/icon.svg", 200, "image/svg+xml"},
		{"GET", "/assets/licences.txt", 200, "text/plain; charset=utf-8"},
		{"GET", "/index.html", 404, "application/problem+json"},
		{"GET", "/assets/index.html", 404, "application/problem+json"},
		{"GET", "/assets/", 404, "application/problem+json"},
		{"GET", "/assets/app.js", 404, "application/problem+json"},
		{"GET", "/assets/../dashboard.go", 404, "application/problem+json"},
		{"GET", "/apps", 404, "application/problem+json"},
		{"POST", "/", 405, "application/problem+json"},
	} {
		res := ask(t, c.method, c.path)
		if res.StatusCode != c.status || res.Header.Get("Content-Type") != c.kind {
			t.Errorf("%s %s: %d %s, want %d %s", c.method, c.path, res.StatusCode, res.Header.Get("Content-Type"), c.status, c.kind)
		}
		if got := res.Header.Get("Content-Security-Policy"); got != Policy {
			t.Errorf("%s %s: policy %q", c.method, c.path, got)
		}
		if res.StatusCode >= 400 {
			var p struct{ Status int }
			if err := json.NewDecoder(res.Body).Decode(&p); err != nil || p.Status != c.status {
				t.Errorf("%s %s: problem %+v, %v", c.method, c.path, p, err)
			}
		}
	}
}

func TestHandler_TellsWhatIsUnchanged(t *testing.T) {
	for _, at := range []string{"/", "/assets/icon.svg"} {
		first := ask(t, "GET", at)
		tag := first.Header.Get("ETag")
		if tag == "" || first.Header.Get("Cache-Control") != "no-cache" {
			t.Fatalf("%s: header %v", at, first.Header)
		}
		if res := ask(t, "GET", at, "If-None-Match", tag); res.StatusCode != http.StatusNotModified {
			t.Errorf("%s: known tag: %d", at, res.StatusCode)
		}
		if res := ask(t, "GET", at, "If-None-Match", `"other"`); res.StatusCode != http.StatusOK {
			t.Errorf("%s: another file's tag: %d", at, res.StatusCode)
		}
	}
	// What has another name when it changes need not be asked for again.
	for _, at := range []string{asset(t, ".css"), asset(t, ".js")} {
		if got := ask(t, "GET", at).Header.Get("Cache-Control"); got != "public, max-age=31536000, immutable" {
			t.Errorf("%s: Cache-Control %q", at, got)
		}
	}
}

func TestHandler_PacksForWhomTakesIt(t *testing.T) {
	at := asset(t, ".js")
	plain := ask(t, "GET", at)
	want, err := io.ReadAll(plain.Body)
	if err != nil || plain.Header.Get("Content-Encoding") != "" || plain.Header.Get("Vary") != "Accept-Encoding" {
		t.Fatalf("header %v, %v", plain.Header, err)
	}
	for accept, packed := range map[string]bool{
		"gzip": true, "gzip, deflate, br, zstd": true, "br, GZIP;q=0.5": true,
		"": false, "br": false, "gzip;q=0": false, "gzip; q=0.000": false, "identity": false, "x-gzip-not": false,
	} {
		res := ask(t, "GET", at, "Accept-Encoding", accept, "Range", "bytes=0-9")
		if !packed {
			if res.StatusCode != http.StatusPartialContent || res.Header.Get("Content-Encoding") != "" {
				t.Errorf("%q: %d %v", accept, res.StatusCode, res.Header)
			}
			continue
		}
		if res.StatusCode != http.StatusOK || res.Header.Get("Content-Encoding") != "gzip" || res.Header.Get("ETag") == plain.Header.Get("ETag") {
			t.Errorf("%q: %d %v", accept, res.StatusCode, res.Header)
			continue
		}
		r, err := gzip.NewReader(res.Body)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := io.ReadAll(r); err != nil || string(got) != string(want) {
			t.Errorf("%q: unpacked there are %d bytes of %d, %v", accept, len(got), len(want), err)
		}
		if res := ask(t, "GET", at, "Accept-Encoding", accept, "If-None-Match", res.Header.Get("ETag")); res.StatusCode != http.StatusNotModified {
			t.Errorf("%q: known tag: %d", accept, res.StatusCode)
		}
	}
}

func TestPolicy_AllowsOwnOriginOnly(t *testing.T) {
	for _, directive := range []string{"default-src 'none'", "script-src 'self'", "style-src 'self'", "connect-src 'self'", "img-src 'self' data:", "frame-ancestors 'none'"} {
		if !slices.Contains(strings.Split(Policy, "; "), directive) {
			t.Errorf("the policy has no %s", directive)
		}
	}
	if strings.Contains(Policy, "unsafe") || strings.Contains(Policy, "*") || strings.Contains(Policy, "http") {
		t.Errorf("the policy is loose: %s", Policy)
	}
}

var outside = regexp.MustCompile(`(?i)(https?:|wss?:)?//[a-z0-9-]+\.[a-z0-9.-]+`)

// The namespaces of XML are names, not addresses.
var namespaces = regexp.MustCompile(`http://www\.w3\.org/(1999/xhtml|2000/svg|1998/Math/MathML)`)

func TestAssets_AskNoOtherServer(t *testing.T) {
	for name, text := range served(t) {
		if name == "licences.txt" {
			continue
		}
		if found := outside.FindString(namespaces.ReplaceAllString(text, "")); found != "" {
			t.Errorf("%s names %s", name, found)
		}
		if strings.Contains(text, "@import") || strings.Contains(text, "url(") || strings.Contains(text, "sourceMappingURL") {
			t.Errorf("%s loads something else", name)
		}
	}
}

// What the policy would refuse: code in the page, and code made out of text.
func TestAssets_KeepToThePolicy(t *testing.T) {
	all := served(t)
	if inline := regexp.MustCompile(`<script(?:[^>]*)>[^<]|<style| style=| on[a-z]+=`).FindString(all["index.html"]); inline != "" {
		t.Errorf("the page has inline code: %s", inline)
	}
	for name, text := range all {
		if found := regexp.MustCompile(`\beval\(|new Function|insertAdjacentHTML|document\.write\(`).FindString(text); path.Ext(name) == ".js" && found != "" {
			t.Errorf("%s has %s", name, found)
		}
	}
}

func TestAssets_NameTheirLibraries(t *testing.T) {
	text := served(t)["licences.txt"]
	for library := range dependencies(t) {
		if !regexp.MustCompile(`(?m)^` + library + ` \d+\.\d+\.\d+$`).MatchString(text) {
			t.Errorf("licences.txt does not name %s", library)
		}
	}
	if n := strings.Count(text, "Permission is hereby granted, free of charge"); n != len(dependencies(t)) {
		t.Errorf("licences.txt holds %d licences of %d libraries", n, len(dependencies(t)))
	}
}

var references = regexp.MustCompile(`(?:href|src)(?:=|:)"(assets/[^"#]+)"`)

func TestAssets_AllReferencedExist(t *testing.T) {
	all := served(t)
	used := map[string]bool{"index.html": true, "licences.txt": true}
	for name, text := range all {
		for _, m := range references.FindAllStringSubmatch(text, -1) {
			target := strings.TrimPrefix(m[1], "assets/")
			if _, ok := all[target]; !ok {
				t.Errorf("%s refers to %s, which is not there", name, target)
			}
			used[target] = true
		}
	}
	for name := range all {
		if !used[name] {
			t.Errorf("nothing refers to %s", name)
		}
	}
}
