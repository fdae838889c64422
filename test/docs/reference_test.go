package docs

import (
	commandline "flag" // a flag is one of the programs here
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
)

var update = commandline.Bool("update", false, "write docs/reference anew")

// generated stands at the head of each page of docs/reference.
const generated = "<!-- Made by `make generate` from the programs. Do not edit. -->\n\n"

// checkReference compares a page of docs/reference with what it should be, or
// writes it.
func checkReference(t *testing.T, name, want string) {
	t.Helper()
	file := filepath.Join(root, "docs/reference", name)
	want = generated + strings.TrimRight(want, "\n") + "\n"
	if *update {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	data, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(data) == want {
		return
	}
	is, should := strings.Split(string(data), "\n"), strings.Split(want, "\n")
	for i := range should {
		if i >= len(is) || is[i] != should[i] {
			t.Fatalf("docs/reference/%s is not current; run `make generate`\nline %d should be\n%s", name, i+1, should[i])
		}
	}
	t.Fatalf("docs/reference/%s is not current; run `make generate`: it goes on after line %d", name, len(should))
}

// table writes rows as Markdown; columns in which every cell is empty are left
// away.
func table(out *strings.Builder, head []string, rows [][]string) {
	if len(rows) == 0 {
		return
	}
	var columns []int
	for i := range head {
		if i == 0 || slices.ContainsFunc(rows, func(row []string) bool { return row[i] != "" }) {
			columns = append(columns, i)
		}
	}
	line := func(cells []string) {
		for _, i := range columns {
			out.WriteString("| " + strings.ReplaceAll(cells[i], "|", `\|`) + " ")
		}
		out.WriteString("|\n")
	}
	line(head)
	out.WriteString(strings.Repeat("|---", len(columns)) + "|\n")
	for _, row := range rows {
		line(row)
	}
	out.WriteString("\n")
}

// quoted is s as code, or "" if it is empty.
func quoted(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

var markup = strings.NewReplacer("<", `\<`, "*", `\*`)

// prose is plain text as Markdown shows it unchanged.
func prose(s string) string { return markup.Replace(s) }

func linkTo(heading string) string { return "[" + heading + "](#" + slug(heading) + ")" }

// The Chinese quick start is a translation: what is typed, and what comes of
// it, is the same.
func TestQuickstart_IsTheSameInChinese(t *testing.T) {
	en, zh := readPage(t, "docs/quickstart.md"), readPage(t, "docs/quickstart.zh-CN.md")
	if len(en.blocks) != len(zh.blocks) {
		t.Fatalf("quickstart.md has %d blocks, quickstart.zh-CN.md has %d", len(en.blocks), len(zh.blocks))
	}
	run := 0
	for i, b := range en.blocks {
		z := zh.blocks[i]
		switch {
		case b.lang != z.lang || b.marked != z.marked:
			t.Errorf("quickstart.zh-CN.md:%d: another kind of block than at line %d of quickstart.md", z.line, b.line)
		case b.lang == "yaml": // comments are translated
			if uncommented(b.text) != uncommented(z.text) {
				t.Errorf("quickstart.zh-CN.md:%d: not the document at line %d of quickstart.md", z.line, b.line)
			}
		case b.text != z.text:
			t.Errorf("quickstart.zh-CN.md:%d: not what stands at line %d of quickstart.md", z.line, b.line)
		}
		if b.lang == "sh" {
			run++
		}
	}
	if run < 5 {
		t.Errorf("only %d blocks of commands compared", run)
	}
	if a, b := firstCells(en, ""), firstCells(zh, ""); !slices.Equal(a, b) {
		t.Errorf("the tables name %q in English and %q in Chinese", a, b)
	}
}

func uncommented(yaml string) string {
	var out []string
	for line := range strings.SplitSeq(yaml, "\n") {
		line, _, _ = strings.Cut(line, " #")
		out = append(out, strings.TrimRight(line, " "))
	}
	return strings.Join(out, "\n")
}
