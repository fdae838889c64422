package docs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var madeTarget = regexp.MustCompile(`^make ([a-z]+)\b`)

// onlyMake reports whether a block holds nothing but calls of make. They are
// recognised and not run again: the cluster is what `make up` runs, and this
// test is part of `make test`. The targets must be there.
func onlyMake(t *testing.T, text, makefile string) bool {
	t.Helper()
	only := true
	for line := range strings.SplitSeq(text, "\n") {
		line = strings.TrimSpace(line)
		if line == "" || strings.HasPrefix(line, "#") {
			continue
		}
		m := madeTarget.FindStringSubmatch(line)
		if m == nil {
			only = false
			continue
		}
		if !strings.Contains(makefile, "\n"+m[1]+":") {
			t.Errorf("the Makefile has no target %s", m[1])
		}
	}
	return only
}

func TestCommands_DoWhatThePagesShow(t *testing.T) {
	c := startedCluster(t)
	makefile, err := os.ReadFile(filepath.Join(root, "Makefile"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(makefile), "\tbin/"+strings.Join(c.cmd.Args[0:1], "")[len("bin/"):]+" "+strings.Join(c.cmd.Args[1:], " ")+"\n") {
		t.Errorf("`make up` does not run %q any more", c.cmd.Args)
	}
	for _, p := range pages(t) {
		t.Run(p.name, func(t *testing.T) {
			state := filepath.Join(t.TempDir(), "exported")
			for _, b := range p.blocks {
				if b.lang != "sh" || b.marked || onlyMake(t, b.text, string(makefile)) {
					continue
				}
				out, err := c.shell(b.text, state)
				if err != nil {
					t.Fatalf("%s:%d: %s\n%s\n--- output\n%s", p.name, b.line, err, b.text, out)
				}
				if b.wantLine > 0 && !expectation(b.want).MatchString(out) {
					t.Errorf("%s:%d: the output is not what line %d shows\n--- output\n%s\n--- shown\n%s", p.name, b.line, b.wantLine, out, b.want)
				}
			}
		})
	}
}
