package dashboard

import (
	"encoding/json"
	"io/fs"
	"maps"
	"net/http"
	"net/http/httptest"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
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

func texts(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := fs.WalkDir(assets, "assets", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		data, err := assets.ReadFile(name)
		all[name] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestHandler_ServesPageAndParts(t *testing.T) {
	for _, c := range []struct {
		method, path string
		status       int
		kind         string
	}{
		{"GET", "/", 200, "text/html; charset=utf-8"},
		{"HEAD", "/", 200, "text/html; charset=utf-8"},
		{"GET", "/assets/style.css", 200, "text/css; charset=utf-8"},
		{"GET", "/assets/js/main.js", 200, "text/javascript; charset=utf-8"},
		{"GET", "/assets/icon.svg", 200, "image/svg+xml"},
		{"GET", "/index.html", 404, "application/problem+json"},
		{"GET", "/assets/index.html", 404, "application/problem+json"},
		{"GET", "/assets/", 404, "application/problem+json"},
		{"GET", "/assets/js", 404, "application/problem+json"},
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
	first := ask(t, "GET", "/assets/style.css")
	tag := first.Header.Get("ETag")
	if tag == "" || first.Header.Get("Cache-Control") != "no-cache" {
		t.Fatalf("header %v", first.Header)
	}
	if res := ask(t, "GET", "/assets/style.css", "If-None-Match", tag); res.StatusCode != http.StatusNotModified {
		t.Errorf("known tag: %d", res.StatusCode)
	}
	if res := ask(t, "GET", "/", "If-None-Match", tag); res.StatusCode != http.StatusOK {
		t.Errorf("another file's tag: %d", res.StatusCode)
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

// The namespace of SVG is a name, not an address.
func TestAssets_AskNoOtherServer(t *testing.T) {
	for name, text := range texts(t) {
		text = strings.ReplaceAll(text, "http://www.w3.org/2000/svg", "")
		if found := outside.FindString(text); found != "" {
			t.Errorf("%s names %s", name, found)
		}
		if strings.Contains(text, "@import") || strings.Contains(text, "url(") {
			t.Errorf("%s loads something by CSS", name)
		}
	}
}

// What the policy would refuse, and what would turn data into markup.
var banned = regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|document\.write|DOMParser|createContextualFragment|\beval\(|new Function|\bstyle=|\bstyle: "[a-z-]+:|setHTML`)

func TestAssets_NeverTakeDataForMarkup(t *testing.T) {
	for name, text := range texts(t) {
		if path.Ext(name) == ".css" {
			continue
		}
		if found := banned.FindString(text); found != "" {
			t.Errorf("%s has %s", name, found)
		}
	}
	page := texts(t)["assets/index.html"]
	if inline := regexp.MustCompile(`<script(?:[^>]*)>[^<]|<style| on[a-z]+=`).FindString(page); inline != "" {
		t.Errorf("the page has inline code: %s", inline)
	}
}

// The token is for the Authorization field and for sessionStorage.
func TestAssets_KeepTokenOutOfURLsAndDisk(t *testing.T) {
	for name, text := range texts(t) {
		for _, line := range strings.Split(text, "\n") {
			if strings.Contains(line, "tokenKey") && strings.Contains(line, "remember(") && !strings.Contains(line, `"sessionStorage"`) {
				t.Errorf("%s keeps the token elsewhere: %s", name, line)
			}
			if strings.Contains(line, "#token") && !regexp.MustCompile(`^\s*(#token;|this\.#token = token;|headers: .*Authorization.*)$`).MatchString(line) {
				t.Errorf("%s uses the token otherwise: %s", name, line)
			}
		}
	}
}

var references = regexp.MustCompile(`(?:href|src)="([^"#]+)"|(?:from|import) "([^"]+)"|src: "([^"]+)"`)

func TestAssets_AllReferencedExist(t *testing.T) {
	all := texts(t)
	used := map[string]bool{"assets/index.html": true}
	for name, text := range all {
		for _, m := range references.FindAllStringSubmatch(text, -1) {
			target := path.Join("assets", path.Dir(strings.TrimPrefix(name, "assets/")), m[2])
			if m[2] == "" {
				target = path.Clean(m[1] + m[3]) // of the page, which is served at /
			}
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

func table(t *testing.T, lang string) map[string]string {
	t.Helper()
	_, body, ok := strings.Cut(texts(t)["assets/js/"+lang+".js"], "export default ")
	if !ok {
		t.Fatalf("%s.js has no table", lang)
	}
	var m map[string]string
	if err := json.Unmarshal([]byte(strings.TrimSuffix(strings.TrimSpace(body), ";")), &m); err != nil {
		t.Fatalf("%s.js: %v", lang, err)
	}
	return m
}

var hole = regexp.MustCompile(`\{\w+\}`)

func TestLanguages_SayTheSame(t *testing.T) {
	en, zh := table(t, "en"), table(t, "zh")
	for _, key := range slices.Sorted(maps.Keys(en)) {
		text, ok := zh[key]
		if !ok || text == "" {
			t.Errorf("zh has no %s", key)
			continue
		}
		a, b := hole.FindAllString(en[key], -1), hole.FindAllString(text, -1)
		slices.Sort(a)
		slices.Sort(b)
		if !slices.Equal(slices.Compact(a), slices.Compact(b)) {
			t.Errorf("%s: en fills in %v, zh %v", key, a, b)
		}
	}
	for key := range zh {
		if en[key] == "" {
			t.Errorf("en has no %s", key)
		}
	}
}

var (
	// t("key" or a choice of two; t(`prefix.${…}`); word("prefix", …).
	fixedKeys  = regexp.MustCompile(`"([a-z]+(?:\.[a-z_.]+)?)"`)
	textCalls  = regexp.MustCompile(`\bt\(("[^)]*)`)
	choices    = regexp.MustCompile(`\bt\([^")` + "`" + `]*\? ("[a-z.]+") : ("[a-z.]+")`)
	prefixes   = regexp.MustCompile("\\bt\\(`([a-z]+\\.(?:no\\.)?)\\$\\{")
	wordGroups = regexp.MustCompile(`\b(?:word|pill)\("([a-z]+)"`)
)

func TestLanguages_HaveWhatThePageSays(t *testing.T) {
	en := table(t, "en")
	used := make(map[string]bool)
	for name, text := range texts(t) {
		if path.Ext(name) != ".js" || path.Base(name) == "en.js" || path.Base(name) == "zh.js" {
			continue
		}
		var called []string
		for _, m := range textCalls.FindAllStringSubmatch(text, -1) {
			called = append(called, fixedKeys.FindStringSubmatch(m[1])[1])
		}
		for _, m := range choices.FindAllStringSubmatch(text, -1) {
			called = append(called, strings.Trim(m[1], `"`), strings.Trim(m[2], `"`))
		}
		for _, key := range called {
			if en[key] == "" {
				t.Errorf("%s says %q, for which there are no words", name, key)
			}
		}
		// Keys are also handed on, as in names("rollback.created", …).
		for _, m := range fixedKeys.FindAllStringSubmatch(text, -1) {
			used[m[1]] = true
		}
		for _, m := range prefixes.FindAllStringSubmatch(text, -1) {
			used[m[1]+"*"] = true
		}
		for _, m := range wordGroups.FindAllStringSubmatch(text, -1) {
			used[m[1]+".*"] = true
		}
	}
	for key := range en {
		group, _, _ := strings.Cut(key, ".")
		if !used[key] && !used[group+".*"] {
			t.Errorf("nothing says %s", key)
		}
	}
	for star := range used {
		if prefix, ok := strings.CutSuffix(star, "*"); ok && !slices.ContainsFunc(slices.Collect(maps.Keys(en)), func(k string) bool { return strings.HasPrefix(k, prefix) }) {
			t.Errorf("the page says %s…, for which there are no words", prefix)
		}
	}
}

// Words that the page says stand in quotes where h is called, or in an attribute
// that is read out. Class names and the names of header fields look like words.
var (
	spoken   = regexp.MustCompile(`(?:placeholder|title|alt|"aria-label"): "([^"]*)"`)
	literals = regexp.MustCompile(`"([^"\\\n]*)"|` + "`" + `([^` + "`" + `]*)` + "`" + `|//[^\n]*|/\*[\s\S]*?\*/`)
	holes    = regexp.MustCompile(`\$\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}`)
	sentence = regexp.MustCompile(`\p{L}{2,}[^\p{L}]* \p{L}{2,}|^\p{Lu}\p{Ll}+\b|\p{Han}`)
	headers  = regexp.MustCompile(`^(?:Authorization|Content-Type|Retry-After|X-Config-Stale|If-Match|Accept|Bearer )$`)
	unsaid   = regexp.MustCompile(`throw new Error\([^)]*\)|class: (?:"[^"]*"|` + "`" + `[^` + "`" + `]*` + "`" + `|[^,}]*\? [^,}]*)`)
)

func TestLanguages_HoldAllWords(t *testing.T) {
	for name, text := range texts(t) {
		if path.Ext(name) != ".js" {
			continue
		}
		switch path.Base(name) {
		case "en.js", "zh.js":
			continue
		case "i18n.js": // the languages' own names
			text = strings.NewReplacer(`"English"`, "", `"中文"`, "").Replace(text)
		}
		for _, m := range spoken.FindAllStringSubmatch(text, -1) {
			if strings.ContainsFunc(m[1], unicode.IsLetter) {
				t.Errorf("%s says %q, whatever the language", name, m[0])
			}
		}
		for _, m := range literals.FindAllStringSubmatch(unsaid.ReplaceAllString(text, ""), -1) {
			if words := holes.ReplaceAllString(m[1]+m[2], ""); sentence.MatchString(words) && !headers.MatchString(words) {
				t.Errorf("%s says %q, whatever the language", name, words)
			}
		}
	}
}
