package docs

import (
	"regexp"
	"strings"
	"testing"
)

// helpText is what cobra prints of a command, taken apart.
type helpText struct {
	about, usage, aliases, examples string
	commands                        [][2]string // name, what it does
	flags, global                   []helpFlag
}

type helpFlag struct {
	name, short, takes, def, about string
}

var (
	helpSection = regexp.MustCompile(`(?m)^(Usage|Aliases|Examples|Available Commands|Flags|Global Flags):\n`)
	helpCommand = regexp.MustCompile(`(?m)^  (\S+) +(.*)$`)
	helpOption  = regexp.MustCompile(`(?m)^ +(?:-(\w), )?--([a-z0-9-]+)(?: (\S+))?(?: {2,}(.*))?$`)
	// pflag writes what a flag means without a value as [="x"].
	noValue    = regexp.MustCompile(`\[=.*\]$`)
	helpSuffix = regexp.MustCompile(` *\(default ([^)]*(?:\([^)]*\))?[^)]*)\)$`)
)

func readHelp(t *testing.T, name string, words ...string) helpText {
	t.Helper()
	text := run(t, name, append(words, "--help")...)
	text, _, _ = strings.Cut(text, "\nUse \"")
	at := helpSection.FindAllStringSubmatchIndex(text, -1)
	if len(at) == 0 {
		t.Fatalf("%s %v --help has no sections: %s", name, words, text)
	}
	h := helpText{about: strings.TrimSpace(text[:at[0][0]])}
	for i, m := range at {
		end := len(text)
		if i+1 < len(at) {
			end = at[i+1][0]
		}
		body := strings.Trim(text[m[1]:end], "\n")
		switch text[m[2]:m[3]] {
		case "Usage":
			h.usage = dedent(body)
		case "Aliases":
			h.aliases = strings.TrimSpace(body)
		case "Examples":
			h.examples = dedent(body)
		case "Available Commands":
			for _, c := range helpCommand.FindAllStringSubmatch(body, -1) {
				h.commands = append(h.commands, [2]string{c[1], c[2]})
			}
		case "Flags":
			h.flags = readOptions(t, body)
		case "Global Flags":
			h.global = readOptions(t, body)
		}
	}
	return h
}

func readOptions(t *testing.T, body string) []helpFlag {
	t.Helper()
	var out []helpFlag
	for line := range strings.SplitSeq(body, "\n") {
		m := helpOption.FindStringSubmatch(line)
		if m == nil {
			t.Fatalf("not read as a flag: %q", line)
		}
		f := helpFlag{name: m[2], short: m[1], takes: noValue.ReplaceAllString(m[3], ""), about: m[4]}
		if d := helpSuffix.FindStringSubmatchIndex(f.about); d != nil {
			f.def = strings.Trim(f.about[d[2]:d[3]], `"[]`)
			f.about = f.about[:d[0]]
		}
		if f.name == "node-id" { // this machine's
			f.def = "host name"
		}
		if f.name != "help" && f.name != "version" {
			out = append(out, f)
		}
	}
	return out
}

// dedent takes the indentation of the first line away from all of them.
func dedent(s string) string {
	indent := s[:len(s)-len(strings.TrimLeft(s, " "))]
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimPrefix(lines[i], indent)
	}
	return strings.Join(lines, "\n")
}

func flagTable(out *strings.Builder, flags []helpFlag, env string) {
	var rows [][]string
	for _, f := range flags {
		name := "`--" + f.name + "`"
		if f.short != "" {
			name += ", `-" + f.short + "`"
		}
		def := quoted(f.def)
		if f.name == "node-id" {
			def = f.def
		}
		variable := ""
		if env != "" {
			variable = "`" + env + strings.ToUpper(strings.ReplaceAll(f.name, "-", "_")) + "`"
		}
		rows = append(rows, []string{name, quoted(f.takes), variable, def, prose(f.about)})
	}
	table(out, []string{"flag", "takes", "environment", "default", "meaning"}, rows)
}

// describe writes what the help says, flags aside.
func (h *helpText) describe(out *strings.Builder) {
	out.WriteString(prose(h.about) + "\n\n```text\n" + h.usage + "\n```\n\n")
	if _, others, ok := strings.Cut(h.aliases, ", "); ok {
		out.WriteString("Also: `" + strings.ReplaceAll(others, ", ", "`, `") + "`\n\n")
	}
	if h.examples != "" {
		out.WriteString("Examples:\n\n```text\n" + h.examples + "\n```\n\n")
	}
}

func TestReferences_CLI(t *testing.T) {
	var out strings.Builder
	out.WriteString(`# Reference: commands

Every command of the three programs with its flags, as ` + "`--help`" + ` tells them. Explained, with what they print:
[cli.md](../cli.md); how flags, environment and files go together: [configuration.md](../configuration.md#how-a-flag-is-given).
A flag without "takes" is a switch. Every command also has ` + "`--help`, every program `--version`" + `.

`)
	for _, daemon := range [][2]string{{"lb-admin", "LB_ADMIN_"}, {"lb-proxy", "LB_PROXY_"}} {
		h := readHelp(t, daemon[0])
		if len(h.flags) < 15 || h.about == "" || h.examples == "" {
			t.Fatalf("%s --help: %+v", daemon[0], h)
		}
		out.WriteString("## " + daemon[0] + "\n\n")
		h.describe(&out)
		flagTable(&out, h.flags, daemon[1])
	}

	top := readHelp(t, "lbctl")
	out.WriteString("## lbctl\n\n")
	top.describe(&out)
	out.WriteString("These flags go with every command; where a command has a flag of the same name, that one is meant:\n\n")
	flagTable(&out, top.flags, "LBCTL_")
	n := 0
	var walk func(words []string, h helpText)
	walk = func(words []string, h helpText) {
		if len(words) > 0 {
			out.WriteString("### lbctl " + strings.Join(words, " ") + "\n\n")
			h.describe(&out)
		}
		if len(h.commands) == 0 {
			n++
			flagTable(&out, h.flags, "") // of its own; the global ones stand above
			return
		}
		var rows [][]string
		for _, c := range h.commands {
			rows = append(rows, []string{linkTo("lbctl " + strings.Join(append(words[:len(words):len(words)], c[0]), " ")), prose(c[1])})
		}
		table(&out, []string{"command", "does"}, rows)
		for _, c := range h.commands {
			next := append(words[:len(words):len(words)], c[0])
			walk(next, readHelp(t, "lbctl", next...))
		}
	}
	walk(nil, top)
	if n < 30 {
		t.Errorf("only %d commands found", n)
	}
	checkReference(t, "cli.md", out.String())
}
