package main

import (
	"encoding/json"
	"fmt"
	"io"
	"os"
	"strings"
	"unicode"

	"golang.org/x/term"

	"difylb/pkg/cluster"
	"difylb/pkg/document"
)

// print writes what the API answered: as it is in JSON or YAML, which are
// stable, or as a table for people.
func (c *cli) print(v any, fill func(*table)) error {
	switch c.output {
	case "json":
		return c.printJSON(v)
	case "yaml":
		data, err := json.Marshal(v)
		if err != nil {
			return err
		}
		if data, err = document.JSONToYAML(data); err != nil {
			return err
		}
		_, err = c.out.Write(data)
		return err
	}
	t := &table{color: c.color}
	fill(t)
	_, err := io.WriteString(c.out, t.render(0))
	return err
}

func (c *cli) printJSON(v any) error {
	enc := json.NewEncoder(c.out)
	enc.SetIndent("", "  ")
	enc.SetEscapeHTML(false)
	return enc.Encode(v)
}

// say tells a person what was done; scripts that asked for JSON or YAML are
// not told.
func (c *cli) say(format string, args ...any) error {
	if c.output != "table" {
		return nil
	}
	_, err := fmt.Fprintln(c.out, clean(fmt.Sprintf(format, args...)))
	return err
}

// printOr prints v for scripts and the sentence for people.
func (c *cli) printOr(v any, format string, args ...any) error {
	if c.output == "table" {
		return c.say(format, args...)
	}
	return c.print(v, nil)
}

// table lays out text in columns. Lines before and between rows span them all.
type table struct {
	color bool
	lines []tableLine
	right []bool // of a column: numbers, to the right
}

// tableLine is a row of cells, or a cell that spans them all.
type tableLine struct {
	cells []cell
	span  cell
}

// cell is one field; color is applied after padding, so that escape sequences
// do not count as width.
type cell struct {
	text  string
	color string
}

const (
	red    = "31"
	green  = "32"
	yellow = "33"
	bold   = "1"
)

func (t *table) header(names ...string) {
	t.right = make([]bool, len(names))
	var l tableLine
	for i, n := range names {
		// A name that begins with > heads a column of numbers.
		n, t.right[i] = strings.CutPrefix(n, ">")
		l.cells = append(l.cells, cell{n, bold})
	}
	t.lines = append(t.lines, l)
}

// row adds a row; a cell is a cell, or anything that prints.
func (t *table) row(cells ...any) {
	var l tableLine
	for _, v := range cells {
		c, ok := v.(cell)
		if !ok {
			c.text = fmt.Sprint(v)
		}
		c.text = clean(c.text)
		l.cells = append(l.cells, c)
	}
	t.lines = append(t.lines, l)
}

// line adds a line that keeps to no column.
func (t *table) line(format string, args ...any) { t.colored("", format, args...) }

func (t *table) colored(color, format string, args ...any) {
	t.lines = append(t.lines, tableLine{span: cell{clean(fmt.Sprintf(format, args...)), color}})
}

// render returns the table; limit, when positive, cuts lines to so many columns.
func (t *table) render(limit int) string {
	var widths []int
	for _, l := range t.lines {
		for i, c := range l.cells {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			widths[i] = max(widths[i], textWidth(c.text))
		}
	}
	var out strings.Builder
	for _, l := range t.lines {
		parts := []cell{l.span}
		if l.cells != nil {
			parts = t.padded(l.cells, widths)
		}
		left := limit
		for _, p := range parts {
			if limit > 0 && left <= 0 {
				break
			}
			text := p.text
			if limit > 0 {
				text = cut(text, left)
				left -= textWidth(p.text)
			}
			out.WriteString(t.paint(text, p.color))
		}
		out.WriteByte('\n')
	}
	return trimRight(out.String())
}

// padded puts spaces around cells, so that they stand in their columns.
func (t *table) padded(cells []cell, widths []int) []cell {
	var parts []cell
	for i, c := range cells {
		pad := cell{text: strings.Repeat(" ", widths[i]-textWidth(c.text))}
		if i > 0 {
			parts = append(parts, cell{text: "  "})
		}
		if i < len(t.right) && t.right[i] {
			parts = append(parts, pad, c)
		} else {
			parts = append(parts, c, pad)
		}
	}
	return parts
}

// trimRight drops the spaces that empty last cells leave at the ends of lines.
func trimRight(s string) string {
	lines := strings.Split(s, "\n")
	for i := range lines {
		lines[i] = strings.TrimRight(lines[i], " ")
	}
	return strings.Join(lines, "\n")
}

func (t *table) paint(s, color string) string {
	if !t.color || color == "" || s == "" {
		return s
	}
	return "\x1b[" + color + "m" + s + "\x1b[0m"
}

// statusCell colours the status of an instance.
func statusCell(s string) cell {
	switch s {
	case cluster.StatusHealthy:
		return cell{s, green}
	case cluster.StatusUnhealthy, cluster.StatusTokenRejected, cluster.StatusEjected:
		return cell{s, red}
	case cluster.StatusDraining, cluster.StatusDisabled:
		return cell{s, yellow}
	}
	return cell{text: s}
}

// clean drops control characters: text that came over the network must not
// steer the terminal.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.IsControl(r) || unicode.Is(unicode.Bidi_Control, r) {
			return ' '
		}
		return r
	}, s)
}

// cut shortens s to so many columns; 0 leaves it.
func cut(s string, columns int) string {
	if columns <= 0 || textWidth(s) <= columns {
		return s
	}
	width := 0
	for i, r := range s {
		width += runeWidth(r)
		if width > columns-1 {
			return s[:i] + "…"
		}
	}
	return s
}

func textWidth(s string) int {
	n := 0
	for _, r := range s {
		n += runeWidth(r)
	}
	return n
}

// runeWidth returns how many columns terminals give a character: two to the
// wide ones of East Asia, none to marks that combine.
func runeWidth(r rune) int {
	switch {
	case r < 0x300:
		return 1
	case unicode.In(r, unicode.Mn, unicode.Me, unicode.Cf):
		return 0
	case r >= 0x1100 && r <= 0x115f, r >= 0x2e80 && r <= 0xa4cf, r >= 0xac00 && r <= 0xd7a3,
		r >= 0xf900 && r <= 0xfaff, r >= 0xfe30 && r <= 0xfe6f, r >= 0xff00 && r <= 0xff60,
		r >= 0xffe0 && r <= 0xffe6, r >= 0x1f300 && r <= 0x1faff, r >= 0x20000 && r <= 0x3fffd:
		return 2
	}
	return 1
}

func isTerminal(v any) bool {
	f, ok := v.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

// terminalSize returns the columns and lines of the terminal, 0 when it is none.
func terminalSize(v any) (columns, lines int) {
	f, ok := v.(*os.File)
	if !ok {
		return 0, 0
	}
	columns, lines, err := term.GetSize(int(f.Fd()))
	if err != nil {
		return 0, 0
	}
	return columns, lines
}
