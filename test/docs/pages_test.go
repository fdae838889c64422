// Package docs checks that the documentation says what the programs do: its
// commands are run against a real cluster, and what it says of flags,
// defaults, fields, calls, metrics, reasons and packages is compared with the
// code. It knows nothing of how any of that works.
package docs

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// page is one Markdown file, by its path from the root of the project.
type page struct {
	name   string
	text   string
	blocks []block
}

// block is a fenced block.
type block struct {
	lang string
	text string
	line int // of the opening fence, from 1
	// notRun is the reason given in a comment "not run: …" in the line before.
	notRun string
	marked bool
	// want is the text block that follows, wantLine its line; 0: none does.
	want     string
	wantLine int
}

const root = "../.."

func pages(t *testing.T) []page {
	t.Helper()
	var names []string
	for _, pattern := range []string{"*.md", "docs/*.md", "docs/*/*.md"} {
		found, err := filepath.Glob(filepath.Join(root, pattern))
		if err != nil {
			t.Fatal(err)
		}
		names = append(names, found...)
	}
	if len(names) < 15 {
		t.Fatalf("only %d pages found: %q", len(names), names)
	}
	var out []page
	for _, name := range names {
		out = append(out, readPage(t, strings.TrimPrefix(filepath.ToSlash(name), root+"/")))
	}
	return out
}

func readPage(t *testing.T, name string) page {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		t.Fatal(err)
	}
	p := page{name: name, text: string(data)}
	if p.blocks, err = blocksOf(p.text); err != nil {
		t.Fatalf("%s: %s", name, err)
	}
	return p
}

var (
	fence  = regexp.MustCompile("^```([a-z]*)$")
	notRun = regexp.MustCompile(`^<!-- not run:(.*)-->$`)
)

func blocksOf(text string) ([]block, error) {
	var out []block
	lines := strings.Split(text, "\n")
	last := -1 // index of the line that closed the block before
	for i := 0; i < len(lines); i++ {
		m := fence.FindStringSubmatch(lines[i])
		if m == nil {
			if strings.HasPrefix(strings.TrimSpace(lines[i]), "```") {
				return nil, fmt.Errorf("line %d: a fence that is not ``` and a word", i+1)
			}
			continue
		}
		b := block{lang: m[1], line: i + 1}
		if i > 0 {
			if r := notRun.FindStringSubmatch(lines[i-1]); r != nil {
				b.marked, b.notRun = true, strings.TrimSpace(r[1])
			}
		}
		end := i + 1
		for ; end < len(lines) && lines[end] != "```"; end++ {
		}
		if end == len(lines) {
			return nil, fmt.Errorf("line %d: the block does not end", i+1)
		}
		b.text = strings.Join(lines[i+1:end], "\n")
		follows := last >= 0 && strings.TrimSpace(strings.Join(lines[last+1:i], "")) == ""
		if n := len(out); b.lang == "text" && follows && out[n-1].lang == "sh" {
			out[n-1].want, out[n-1].wantLine = b.text, b.line
		}
		out = append(out, b)
		i, last = end, end
	}
	return out, nil
}

// expectation turns the text that a page shows into a pattern: … matches
// anything, white space any white space.
func expectation(text string) *regexp.Regexp {
	var parts []string
	for piece := range strings.SplitSeq(text, "…") {
		words := strings.Fields(piece)
		for i := range words {
			words[i] = regexp.QuoteMeta(words[i])
		}
		p := strings.Join(words, `\s+`)
		if piece != "" && len(words) > 0 {
			if strings.TrimLeft(piece, " \t\n") != piece {
				p = `\s*` + p
			}
			if strings.TrimRight(piece, " \t\n") != piece {
				p += `\s*`
			}
		}
		parts = append(parts, p)
	}
	return regexp.MustCompile(`(?s)` + strings.Join(parts, `.*?`))
}

// rows returns the tables of a page, each row as its cells, below the heading
// whose text is given up to the next one of its rank; "" means everywhere.
func (p *page) rows(heading string) [][]string {
	var out [][]string
	in := heading == ""
	rank := 0
	for line := range strings.SplitSeq(p.text, "\n") {
		if strings.HasPrefix(line, "#") {
			level := len(line) - len(strings.TrimLeft(line, "#"))
			switch {
			case heading == "":
			case strings.TrimSpace(strings.TrimLeft(line, "#")) == heading:
				in, rank = true, level
			case in && level <= rank:
				in = false
			}
		}
		if !in || !strings.HasPrefix(line, "|") {
			continue
		}
		cells := strings.Split(strings.TrimSuffix(strings.TrimPrefix(line, "|"), "|"), "|")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		out = append(out, cells)
	}
	return out
}

var code = regexp.MustCompile("`([^`]*)`")

// codes returns what stands in backticks.
func codes(s string) []string {
	var out []string
	for _, m := range code.FindAllStringSubmatch(s, -1) {
		out = append(out, m[1])
	}
	return out
}

func TestPages_BlocksAreRead(t *testing.T) {
	text := "# x\n\n```sh\na\nb\n```\n\n```text\nA…\n```\n\n<!-- not run: no etcd -->\n```sh\nc\n```\nwords\n```text\nalone\n```\n"
	got, err := blocksOf(text)
	if err != nil {
		t.Fatal(err)
	}
	if len(got) != 4 || got[0].text != "a\nb" || got[0].line != 3 || got[0].want != "A…" || got[0].wantLine != 8 {
		t.Errorf("blocks: %+v", got)
	}
	if !got[2].marked || got[2].notRun != "no etcd" || got[2].want != "" || got[0].marked {
		t.Errorf("marks: %+v", got)
	}
	if _, err := blocksOf("```sh\nnever ends"); err == nil {
		t.Error("a block without end is not noticed")
	}
}

func TestPages_ExpectationIsLooseWhereItSaysSo(t *testing.T) {
	for _, c := range []struct {
		shown, output string
		matches       bool
	}{
		{"a  b", "x a b y", true},
		{"a b", "a c b", false},
		{"a … b", "a 1\n2 b", true},
		{"a … b", "a b", true},
		{`{"n":…}`, `{"n":42}`, true},
		{`{"n":…}`, `{"m":42}`, false},
		{"…\nend", "anything\nend", true},
		{"1.5 (x)", "135 (x)", false},
	} {
		if got := expectation(c.shown).MatchString(c.output); got != c.matches {
			t.Errorf("%q against %q: %v", c.shown, c.output, got)
		}
	}
}

func TestPages_BlocksThatAreNotRunAreRareAndSayWhy(t *testing.T) {
	run, not := 0, 0
	for _, p := range pages(t) {
		for _, b := range p.blocks {
			switch {
			case b.lang != "sh":
				if b.marked {
					t.Errorf("%s:%d: only sh blocks are run at all", p.name, b.line)
				}
			case b.marked:
				not++
				if len(b.notRun) < 10 {
					t.Errorf("%s:%d: give the reason: <!-- not run: … -->", p.name, b.line)
				}
			default:
				run++
			}
		}
	}
	if not*5 > run {
		t.Errorf("%d blocks are run and %d are not: too many to trust the pages", run, not)
	}
}

var (
	link    = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	heading = regexp.MustCompile(`(?m)^#{1,6} +(.*)$`)
	noSlug  = regexp.MustCompile(`[^\p{L}\p{N} _-]`)
)

// slug is the anchor that a heading gets.
func slug(text string) string {
	return strings.ReplaceAll(noSlug.ReplaceAllString(strings.ToLower(text), ""), " ", "-")
}

func TestPages_LinksLeadSomewhere(t *testing.T) {
	anchors := make(map[string][]string)
	all := pages(t)
	for _, p := range all {
		for _, m := range heading.FindAllStringSubmatch(p.text, -1) {
			anchors[p.name] = append(anchors[p.name], slug(m[1]))
		}
	}
	for _, p := range all {
		for _, m := range link.FindAllStringSubmatch(p.text, -1) {
			if strings.Contains(m[1], "://") {
				continue
			}
			file, anchor, _ := strings.Cut(m[1], "#")
			target := p.name
			if file != "" {
				target = filepath.ToSlash(filepath.Join(filepath.Dir(p.name), file))
			}
			if _, err := os.Stat(filepath.Join(root, target)); err != nil {
				t.Errorf("%s: the link %s leads nowhere: %s", p.name, m[1], err)
			} else if anchor != "" && !slices.Contains(anchors[target], anchor) {
				t.Errorf("%s: %s has no heading for the link %s", p.name, target, m[1])
			}
		}
	}
	index := readPage(t, "docs/README.md")
	for _, p := range all {
		if rest, ok := strings.CutPrefix(p.name, "docs/"); ok && rest != "README.md" && !strings.Contains(index.text, "("+rest+")") {
			t.Errorf("docs/README.md does not name %s", p.name)
		}
	}
}
