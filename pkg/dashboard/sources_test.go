package dashboard

import (
	"bufio"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"slices"
	"strings"
	"testing"
	"unicode"
)

// sources are all files of ui but the libraries, by their paths below this package.
func sources(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	err := fs.WalkDir(os.DirFS("."), "ui", func(name string, d fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case name == "ui/node_modules":
			return fs.SkipDir
		case d.IsDir():
			return nil
		}
		data, err := os.ReadFile(name)
		all[name] = string(data)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// code are the sources of the page in TypeScript.
func code(t *testing.T) map[string]string {
	t.Helper()
	all := make(map[string]string)
	for name, text := range sources(t) {
		if strings.HasPrefix(name, "ui/src/") && (path.Ext(name) == ".ts" || path.Ext(name) == ".tsx") {
			all[name] = text
		}
	}
	return all
}

// dependencies are the libraries in the page, with their versions.
func dependencies(t *testing.T) map[string]string {
	t.Helper()
	var p struct{ Dependencies map[string]string }
	if err := json.Unmarshal([]byte(sources(t)["ui/package.json"]), &p); err != nil || len(p.Dependencies) == 0 {
		t.Fatalf("package.json names no libraries: %v", err)
	}
	return p.Dependencies
}

// SHA256SUMS is written by the build, of all that it read and all that it made.
// Where there is npm, `make ui` also builds anew and compares.
func TestAssets_BelongToTheirSources(t *testing.T) {
	want := make(map[string]string)
	for name, text := range sources(t) {
		sum := sha256.Sum256([]byte(text))
		want[name] = hex.EncodeToString(sum[:])
	}
	for name, text := range served(t) {
		sum := sha256.Sum256([]byte(text))
		want["assets/"+name] = hex.EncodeToString(sum[:])
	}
	f, err := os.Open("SHA256SUMS")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	got := make(map[string]string)
	for lines := bufio.NewScanner(f); lines.Scan(); {
		sum, name, _ := strings.Cut(lines.Text(), "  ")
		got[name] = sum
	}
	for name := range maps.Keys(want) {
		if got[name] != want[name] {
			t.Errorf("%s is not as when the assets were built; run `make dashboard`", name)
		}
	}
	for name := range got {
		if want[name] == "" {
			t.Errorf("%s was there when the assets were built, and is not any more; run `make dashboard`", name)
		}
	}
}

func TestSources_PinTheirLibraries(t *testing.T) {
	var lock struct {
		Packages map[string]struct{ Version, Resolved string }
	}
	var p struct{ Dependencies, DevDependencies map[string]string }
	for name, into := range map[string]any{"ui/package-lock.json": &lock, "ui/package.json": &p} {
		if err := json.Unmarshal([]byte(sources(t)[name]), into); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
	}
	maps.Copy(p.Dependencies, p.DevDependencies)
	for name, version := range p.Dependencies {
		if got := lock.Packages["node_modules/"+name].Version; got != version || !regexp.MustCompile(`^\d+\.\d+\.\d+$`).MatchString(version) {
			t.Errorf("%s: package.json says %q, the lock %q", name, version, got)
		}
	}
	for name, l := range lock.Packages {
		if l.Resolved != "" && !strings.HasPrefix(l.Resolved, "https://registry.npmjs.org/") {
			t.Errorf("%s comes from %s", name, l.Resolved)
		}
	}
}

// What would turn data into markup, or what the policy would refuse.
var banned = regexp.MustCompile(`innerHTML|outerHTML|insertAdjacentHTML|dangerouslySetInnerHTML|document\.write|DOMParser|createContextualFragment|\beval\(|new Function|\bstyle=|setHTML`)

func TestSources_NeverTakeDataForMarkup(t *testing.T) {
	for name, text := range code(t) {
		if found := banned.FindString(text); found != "" {
			t.Errorf("%s has %s", name, found)
		}
	}
}

// The token is for the Authorization field and for sessionStorage.
func TestSources_KeepTokenOutOfURLsAndDisk(t *testing.T) {
	for name, text := range code(t) {
		for line := range strings.Lines(text) {
			line = strings.TrimSpace(line)
			if strings.Contains(line, "tokenKey") && strings.Contains(line, "remember(") && !strings.Contains(line, `"sessionStorage"`) {
				t.Errorf("%s keeps the token elsewhere: %s", name, line)
			}
			if strings.Contains(line, "#token") && !regexp.MustCompile(`^(#token: string;|this\.#token = token;|headers: .*Authorization.*)$`).MatchString(line) {
				t.Errorf("%s uses the token otherwise: %s", name, line)
			}
		}
	}
}

func texts(t *testing.T, lang string) map[string]string {
	t.Helper()
	var m map[string]string
	if err := json.Unmarshal([]byte(sources(t)["ui/src/i18n/"+lang+".json"]), &m); err != nil || len(m) == 0 {
		t.Fatalf("%s.json: %v", lang, err)
	}
	return m
}

var hole = regexp.MustCompile(`\{\w+\}`)

func TestLanguages_SayTheSame(t *testing.T) {
	en, zh := texts(t, "en"), texts(t, "zh")
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

// That every key which the page asks for exists is what the TypeScript compiler
// checks; that every key is asked for is checked here.
var (
	fixedKeys  = regexp.MustCompile(`"([a-z]+(?:\.[a-z0-9_.]+)?)"`)
	prefixes   = regexp.MustCompile("\\bt\\(`([a-z]+)\\.\\$\\{([^}]*)\\}([a-z.]*)`")
	wordGroups = regexp.MustCompile(`(?:\bword\(|group=)"([a-z]+)"`)
)

func TestLanguages_HoldNothingUnsaid(t *testing.T) {
	en := texts(t, "en")
	said := make(map[string]bool)
	for _, text := range code(t) {
		for _, m := range fixedKeys.FindAllStringSubmatch(text, -1) {
			said[m[1]] = true
		}
		for _, m := range prefixes.FindAllStringSubmatch(text, -1) {
			said[m[1]+".*"+m[3]] = true
		}
		for _, m := range wordGroups.FindAllStringSubmatch(text, -1) {
			said[m[1]+".*"] = true
		}
	}
	for key := range en {
		group, rest, _ := strings.Cut(key, ".")
		_, ending, found := strings.Cut(rest, ".")
		if !said[key] && !said[group+".*"] && !(found && said[group+".*."+ending]) {
			t.Errorf("nothing says %s", key)
		}
	}
	for star := range said {
		group, ending, ok := strings.Cut(star, "*")
		if ok && !slices.ContainsFunc(slices.Collect(maps.Keys(en)), func(k string) bool { return strings.HasPrefix(k, group) && strings.HasSuffix(k, ending) }) {
			t.Errorf("the page says %s, for which there are no words", star)
		}
	}
}

// Words stand between tags, in attributes that are read out, or in quotes.
var (
	comments = regexp.MustCompile(`(?m)(?:^|\s)//[^\n]*|/\*[\s\S]*?\*/`)
	between  = regexp.MustCompile(`>([^<>{}()=;&|]*\p{L}{2}[^<>{}()=;&|]*)</`)
	spoken   = regexp.MustCompile(`(?:placeholder|title|alt|aria-label)="([^"]*\p{L}[^"]*)"`)
	literals = regexp.MustCompile(`"([^"\\\n]*)"|` + "`" + `([^` + "`" + `]*)` + "`")
	holes    = regexp.MustCompile(`\$\{[^{}]*(?:\{[^{}]*\}[^{}]*)*\}`)
	sentence = regexp.MustCompile(`\p{L}{2,}[^\p{L}]* \p{L}{2,}|^\p{Lu}\p{Ll}+\b|\p{Han}`)
	unsaid   = regexp.MustCompile(`class=(?:"[^"]*"|\{` + "`" + `[^` + "`" + `]*` + "`" + `\}|\{[^}]*\})|querySelector(?:<\w+>)?\([^)]*\)|viewBox="[^"]*"|from "[^"]*"|font: [^,]*,|new Error\([^)]*\)|super\([^)]*\)`)
	names    = regexp.MustCompile(`^(?:Authorization|Content-Type|X-Config-Stale|If-Match|Accept|Bearer |GET|POST|DELETE)$|^[MLHVZa-z0-9 .-]*[0-9][MLHVZa-z0-9 .-]*$|^\(prefers-`)
)

func TestLanguages_HoldAllWords(t *testing.T) {
	for name, text := range code(t) {
		if path.Base(name) == "i18n.ts" { // the languages' own names
			text = strings.NewReplacer(`"English"`, "", `"中文"`, "").Replace(text)
		}
		text = comments.ReplaceAllString(text, " ")
		for _, m := range between.FindAllStringSubmatch(text, -1) {
			if words := strings.TrimSpace(m[1]); words != "difylb" {
				t.Errorf("%s says %q, whatever the language", name, words)
			}
		}
		for _, m := range spoken.FindAllStringSubmatch(text, -1) {
			t.Errorf("%s says %q, whatever the language", name, m[0])
		}
		for _, m := range literals.FindAllStringSubmatch(unsaid.ReplaceAllString(text, ""), -1) {
			words := holes.ReplaceAllString(m[1]+m[2], "")
			if sentence.MatchString(words) && !names.MatchString(words) && strings.ContainsFunc(words, unicode.IsLetter) {
				t.Errorf("%s says %q, whatever the language", name, words)
			}
		}
	}
}
