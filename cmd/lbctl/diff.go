package main

import (
	"encoding/json"
	"fmt"
	"strings"

	"difylb/pkg/admin"
	"difylb/pkg/document"
)

// changeDiffs shows, per object, what it was and what it becomes. Tokens are
// not in it; a change that shows in nothing else is one of the token.
func changeDiffs(t *table, changes []admin.Change) error {
	for _, ch := range changes {
		before, err := yamlLines(ch.Before)
		if err != nil {
			return err
		}
		after, err := yamlLines(ch.After)
		if err != nil {
			return err
		}
		title := strings.TrimSpace(ch.Kind + " " + changeName(ch))
		if ch.Before == nil && ch.After == nil {
			// A server that tells less.
			t.colored(bold, "%s %s", title, ch.Action)
			continue
		}
		if !diffTable(t, title, before, after) {
			t.colored(bold, "%s", title)
			t.colored(yellow, "~ its token changes")
		}
	}
	return nil
}

// yamlLines returns an object as lines of YAML, none for one that is not
// there. Its revision is left out: it changes with every change.
func yamlLines(object json.RawMessage) ([]string, error) {
	if object == nil || string(object) == "null" {
		return nil, nil
	}
	data, err := document.JSONToYAML(object)
	if err != nil {
		return nil, fmt.Errorf("read object: %w", err)
	}
	var out []string
	for _, line := range strings.Split(strings.TrimSuffix(string(data), "\n"), "\n") {
		if !strings.HasPrefix(line, "revision: ") {
			out = append(out, line)
		}
	}
	return out, nil
}

// diffContext is how many equal lines stand around a difference.
const diffContext = 3

// diffTable adds the differences of two texts, and reports whether there are any.
func diffTable(t *table, title string, before, after []string) bool {
	edits := editsOf(before, after)
	last := -1 // the last line that was written
	begun := false
	for i, e := range edits {
		if e.op == ' ' {
			continue
		}
		if !begun {
			begun = true
			t.colored(bold, "%s", title)
		}
		for j := max(i-diffContext, last+1); j < i; j++ {
			if j == max(i-diffContext, last+1) && j > last+1 {
				t.line("  …")
			}
			t.line("  %s", edits[j].text)
		}
		color := green
		if e.op == '-' {
			color = red
		}
		t.colored(color, "%c %s", e.op, e.text)
		last = i
		for j := i + 1; j < len(edits) && j <= i+diffContext && edits[j].op == ' '; j++ {
			t.line("  %s", edits[j].text)
			last = j
		}
	}
	if begun && last < len(edits)-1 {
		t.line("  …")
	}
	return begun
}

type edit struct {
	op   byte // ' ', '-' or '+'
	text string
}

// maxDiffCells bounds the memory of comparing what is left between equal
// beginnings and ends; more than that is shown as replaced as a whole.
const maxDiffCells = 1 << 24

// editsOf returns how to get from before to after, by a longest common subsequence.
func editsOf(before, after []string) []edit {
	var out []edit
	for len(before) > 0 && len(after) > 0 && before[0] == after[0] {
		out = append(out, edit{' ', before[0]})
		before, after = before[1:], after[1:]
	}
	n, m := len(before), len(after)
	for n > 0 && m > 0 && before[n-1] == after[m-1] {
		n, m = n-1, m-1
	}
	tail := before[n:]
	before, after = before[:n], after[:m]
	if (n+1)*(m+1) > maxDiffCells {
		for _, s := range before {
			out = append(out, edit{'-', s})
		}
		for _, s := range after {
			out = append(out, edit{'+', s})
		}
	} else {
		out = append(out, subsequence(before, after)...)
	}
	for _, s := range tail {
		out = append(out, edit{' ', s})
	}
	return out
}

func subsequence(before, after []string) []edit {
	n, m := len(before), len(after)
	// length[i*(m+1)+j] is that of before[i:] and after[j:].
	length := make([]int32, (n+1)*(m+1))
	at := func(i, j int) *int32 { return &length[i*(m+1)+j] }
	for i := n - 1; i >= 0; i-- {
		for j := m - 1; j >= 0; j-- {
			if before[i] == after[j] {
				*at(i, j) = *at(i+1, j+1) + 1
			} else {
				*at(i, j) = max(*at(i+1, j), *at(i, j+1))
			}
		}
	}
	var out []edit
	i, j := 0, 0
	for i < n || j < m {
		switch {
		case i < n && j < m && before[i] == after[j]:
			out = append(out, edit{' ', before[i]})
			i, j = i+1, j+1
		case i < n && (j == m || *at(i+1, j) >= *at(i, j+1)):
			out = append(out, edit{'-', before[i]})
			i++
		default:
			out = append(out, edit{'+', after[j]})
			j++
		}
	}
	return out
}
