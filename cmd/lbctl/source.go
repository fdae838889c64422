package main

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"difylb/pkg/document"
	"difylb/pkg/lb"
)

// maxSourceBytes is what the server takes in one document.
const maxSourceBytes = 64 << 20

// source is one file of declarations.
type source struct {
	name string // as it is shown: the path, or <stdin>
	data []byte
	root *yaml.Node   // to find the lines of paths; nil when it cannot be read
	doc  *lb.Document // nil when it cannot be read
	errs lb.Faults    // what could not be read
}

func sourcesFlag(cmd *cobra.Command) *[]string {
	f := cmd.Flags().StringArrayP("file", "f", nil, "`file` with declarations, YAML or JSON; - is standard input; repeatable")
	_ = cmd.MarkFlagFilename("file", "yaml", "yml", "json")
	return f
}

// readSources reads the files. A file that is not there is wrong usage, one
// that holds faults is not: those are kept in it.
func (c *cli) readSources(cmd *cobra.Command, files, args []string) ([]*source, error) {
	files = append(files, args...)
	if len(files) == 0 {
		return nil, usagef("%s needs -f FILE (- for standard input)", cmd.CommandPath())
	}
	var out []*source
	seen := make(map[string]bool)
	for _, file := range files {
		if seen[file] {
			return nil, usagef("-f %s is given twice", file)
		}
		seen[file] = true
		s, err := c.readSource(file)
		if err != nil {
			return nil, err
		}
		out = append(out, s)
	}
	return out, nil
}

func (c *cli) readSource(file string) (*source, error) {
	s := &source{name: file}
	var r io.Reader
	if file == "-" {
		s.name, r = "<stdin>", c.in
	} else {
		f, err := os.Open(file)
		if err != nil {
			return nil, usagef("-f %s", reason(err))
		}
		defer f.Close()
		r = f
	}
	data, err := io.ReadAll(io.LimitReader(r, maxSourceBytes+1))
	if err != nil {
		return nil, usagef("-f %s: %s", s.name, reason(err))
	}
	if len(data) > maxSourceBytes {
		return nil, usagef("-f %s is larger than %s", s.name, lb.Size(maxSourceBytes))
	}
	s.parse(data)
	return s, nil
}

func (s *source) parse(data []byte) {
	s.data = data
	doc, err := document.Parse(data)
	s.doc = doc
	errors.As(err, &s.errs)
	if doc == nil {
		return
	}
	// It has been read with bounds on depth and aliases before.
	var root yaml.Node
	if yaml.Unmarshal(data, &root) == nil && root.Kind == yaml.DocumentNode {
		s.root = root.Content[0]
	}
}

// place gives faults the file, and the line where they have none.
func (s *source) place(fs lb.Faults) []placedFault {
	out := make([]placedFault, len(fs))
	for i, f := range fs {
		if f.Line == 0 && f.Path != "" && s.root != nil {
			f.Line = lineOf(s.root, f.Path)
		}
		out[i] = placedFault{f, s.name}
	}
	sort.SliceStable(out, func(i, j int) bool { return out[i].Line < out[j].Line })
	return out
}

// lineOf returns the line of the longest part of the path that is in the
// document. Keys may hold dots themselves, so the longest key that fits is taken.
func lineOf(n *yaml.Node, path string) int {
	line := n.Line
	for path != "" {
		if n.Kind == yaml.AliasNode {
			n = n.Alias
		}
		next, rest, at := step(n, path)
		if next == nil {
			return line
		}
		n, path, line = next, rest, at
	}
	return line
}

// step follows one key or index of a path.
func step(n *yaml.Node, path string) (next *yaml.Node, rest string, line int) {
	switch n.Kind {
	case yaml.MappingNode:
		best := -1
		for i := 0; i+1 < len(n.Content); i += 2 {
			k := n.Content[i]
			tail, ok := strings.CutPrefix(path, k.Value)
			if ok && len(k.Value) > best && (tail == "" || tail[0] == '.' || tail[0] == '[') {
				best = len(k.Value)
				next, rest, line = n.Content[i+1], strings.TrimPrefix(tail, "."), k.Line
			}
		}
	case yaml.SequenceNode:
		var i int
		if _, err := fmt.Sscanf(path, "[%d]", &i); err != nil || i < 0 || i >= len(n.Content) {
			return nil, "", 0
		}
		_, tail, _ := strings.Cut(path, "]")
		next = n.Content[i]
		rest, line = strings.TrimPrefix(tail, "."), next.Line
	}
	return next, rest, line
}

// unreadable returns the faults of everything that could not be read.
func unreadable(sources []*source) []placedFault {
	var out []placedFault
	for _, s := range sources {
		out = append(out, s.place(s.errs)...)
	}
	return out
}

// merge makes one document of several files. An application, or the settings,
// may stand in one of them only. Parts that could not be read are taken along
// as far as they go; a file that is no YAML at all ends it.
func merge(what string, sources []*source) (*source, error) {
	if slices.ContainsFunc(sources, func(s *source) bool { return s.doc == nil }) {
		return nil, &documentError{what: what, faults: faultsOffline(sources, true)}
	}
	if len(sources) == 1 {
		return sources[0], nil
	}
	apps := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	root := &yaml.Node{Kind: yaml.MappingNode, Tag: "!!map"}
	root.Content = append(root.Content, textNode("applications"), apps)
	first := make(map[string]placedFault)
	e := &documentError{what: what}
	once := func(s *source, path string, key *yaml.Node) bool {
		before, twice := first[path]
		here := placedFault{lb.Fault{Path: path, Line: key.Line}, s.name}
		if twice {
			here.Message = fmt.Sprintf("stands in %s, line %d already", before.file, before.Line)
			e.faults = append(e.faults, here)
			return false
		}
		first[path] = here
		return true
	}
	for _, s := range sources {
		if s.root == nil || s.root.Kind != yaml.MappingNode {
			continue
		}
		for i := 0; i+1 < len(s.root.Content); i += 2 {
			k, v := s.root.Content[i], s.root.Content[i+1]
			if k.Value != "applications" {
				if once(s, k.Value, k) {
					root.Content = append(root.Content, k, v)
				}
				continue
			}
			if v.Kind == yaml.AliasNode {
				v = v.Alias
			}
			for j := 0; v.Kind == yaml.MappingNode && j+1 < len(v.Content); j += 2 {
				if once(s, "applications."+v.Content[j].Value, v.Content[j]) {
					apps.Content = append(apps.Content, v.Content[j], v.Content[j+1])
				}
			}
		}
	}
	unread := unreadable(sources)
	if len(e.faults) > 0 {
		e.faults = append(e.faults, unread...)
		return nil, e
	}
	var out bytes.Buffer
	enc := yaml.NewEncoder(&out)
	if err := enc.Encode(root); err != nil {
		return nil, err
	}
	names := make([]string, len(sources))
	for i, s := range sources {
		names[i] = s.name
	}
	all := &source{name: strings.Join(names, " + ")}
	all.parse(out.Bytes())
	if len(all.errs) > 0 && len(unread) == 0 {
		return nil, fmt.Errorf("%s: the files cannot be put together: %w", what, all.errs)
	}
	return all, nil
}

func textNode(s string) *yaml.Node {
	n := &yaml.Node{}
	n.SetString(s)
	return n
}

// placeIn finds the file of a fault in a merged document.
func placeIn(sources []*source, fs lb.Faults) []placedFault {
	if len(sources) == 1 {
		return sources[0].place(fs)
	}
	var out []placedFault
	for _, f := range fs {
		p := placedFault{Fault: f}
		p.Line = 0
		for _, s := range sources {
			if s.root != nil && holds(s, f.Path) {
				p.file, p.Line = s.name, lineOf(s.root, f.Path)
				break
			}
		}
		out = append(out, p)
	}
	return out
}

// holds reports whether the application, or the block, of the path stands in the file.
func holds(s *source, path string) bool {
	if rest, ok := strings.CutPrefix(path, "applications."); ok {
		for name := range s.doc.Applications {
			tail, ok := strings.CutPrefix(rest, name)
			if ok && (tail == "" || tail[0] == '.' || tail[0] == '[') {
				return true
			}
		}
		return false
	}
	return strings.HasPrefix(path, "settings") && s.doc.Settings != nil
}
