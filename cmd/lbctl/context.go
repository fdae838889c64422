package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"difylb/pkg/admin"
	"difylb/pkg/lb"
)

// contexts is the contexts file: clusters that a person works with, by name.
type contexts struct {
	Current  string                `yaml:"current-context,omitempty"`
	Contexts map[string]*apiServer `yaml:"contexts,omitempty"`
}

// apiServer is one of them.
type apiServer struct {
	Server    string `yaml:"server,omitempty"`
	Token     string `yaml:"token,omitempty"`
	TokenFile string `yaml:"token_file,omitempty"`
	CA        string `yaml:"ca,omitempty"`
}

func (s *apiServer) hasToken() bool { return s.Token != "" || s.TokenFile != "" }

func (f *contexts) names() []string {
	var names []string
	for n := range f.Contexts {
		names = append(names, n)
	}
	sort.Strings(names)
	return names
}

// contextsPath returns the file, and whether someone named it.
func (c *cli) contextsPath() (path string, named bool) {
	if c.configFile != "" {
		return c.configFile, true
	}
	dir := c.getenv("XDG_CONFIG_HOME")
	if dir == "" {
		home := c.getenv("HOME")
		if home == "" {
			return "", false
		}
		dir = filepath.Join(home, ".config")
	}
	return filepath.Join(dir, "lbctl", "config.yaml"), false
}

// readContexts reads the file. One that is not there is empty, unless it was
// named and must exist.
func (c *cli) readContexts(mustExist bool) (*contexts, string, error) {
	path, named := c.contextsPath()
	f := &contexts{Contexts: make(map[string]*apiServer)}
	if path == "" {
		return f, "", nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		if errors.Is(err, fs.ErrNotExist) && !(named && mustExist) {
			return f, path, nil
		}
		return nil, path, usagef("read contexts: %s", reason(err))
	}
	if err := parseContexts(data, path, f); err != nil {
		return nil, path, err
	}
	return f, path, nil
}

// parseContexts is strict: a misspelt token_file must not send nothing quietly.
func parseContexts(data []byte, path string, f *contexts) error {
	var root yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil {
		return usagef("%s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	if root.Kind == 0 {
		return nil
	}
	check := func(n *yaml.Node, what string, known ...string) error {
		if n.Kind != yaml.MappingNode {
			return usagef("%s:%d: %s is not a mapping", path, n.Line, what)
		}
		for i := 0; i < len(n.Content); i += 2 {
			k := n.Content[i].Value
			ok := len(known) == 0
			for _, name := range known {
				ok = ok || k == name
			}
			if !ok {
				hint := lb.DidYouMean(k, known)
				if hint == "" {
					hint = "; there are " + strings.Join(known, ", ")
				}
				return usagef("%s:%d: %s has no key %q%s", path, n.Content[i].Line, what, k, hint)
			}
		}
		return nil
	}
	top := root.Content[0]
	if err := check(top, "the contexts file", "current-context", "contexts"); err != nil {
		return err
	}
	for i := 0; i < len(top.Content); i += 2 {
		if top.Content[i].Value != "contexts" {
			continue
		}
		list := top.Content[i+1]
		if list.ShortTag() == "!!null" {
			continue
		}
		if err := check(list, "contexts"); err != nil {
			return err
		}
		for j := 0; j < len(list.Content); j += 2 {
			what := fmt.Sprintf("context %q", list.Content[j].Value)
			if err := check(list.Content[j+1], what, "server", "token", "token_file", "ca"); err != nil {
				return err
			}
		}
	}
	if err := root.Decode(f); err != nil {
		// A type error quotes values, and one of them may be a token.
		return usagef("%s: a value is not plain text", path)
	}
	if f.Contexts == nil {
		f.Contexts = make(map[string]*apiServer)
	}
	for name, s := range f.Contexts {
		if s.Token != "" && s.TokenFile != "" {
			return usagef("%s: context %q has both token and token_file; one is enough", path, name)
		}
		if s.TokenFile != "" && !filepath.IsAbs(s.TokenFile) {
			s.TokenFile = filepath.Join(filepath.Dir(path), s.TokenFile)
		}
		if s.CA != "" && !filepath.IsAbs(s.CA) {
			s.CA = filepath.Join(filepath.Dir(path), s.CA)
		}
	}
	return nil
}

// activeContext returns the context in use, an empty one when there is none.
func (c *cli) activeContext() (string, *apiServer, error) {
	f, path, err := c.readContexts(true)
	if err != nil {
		return "", nil, err
	}
	name := c.contextName
	if name == "" {
		name = f.Current
	}
	if name == "" {
		return "", &apiServer{}, nil
	}
	s := f.Contexts[name]
	if s == nil {
		return "", nil, noContext(f, path, name)
	}
	return name, s, nil
}

func noContext(f *contexts, path, name string) error {
	hint := lb.DidYouMean(name, f.names())
	if hint == "" && len(f.Contexts) > 0 {
		hint = "; there are " + strings.Join(f.names(), ", ")
	}
	return usagef("%s holds no context %q%s", path, name, hint)
}

// write stores the file whole or not at all; it may hold tokens.
func (f *contexts) write(path string) error {
	data, err := yaml.Marshal(f)
	if err != nil {
		return err
	}
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(dir, ".config-*") // made with mode 0600
	if err != nil {
		return err
	}
	_, err = tmp.Write(data)
	if e := tmp.Close(); err == nil {
		err = e
	}
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		os.Remove(tmp.Name())
	}
	return err
}

func (c *cli) contextCommand() *cobra.Command {
	return group("context", "Clusters to work with, by name", `  lbctl context set prod --server https://lb.example.com:9180 --token-file ~/prod.token
  lbctl context use prod
  lbctl context list`,
		c.contextListCommand(), c.contextUseCommand(), c.contextSetCommand(), c.contextRemoveCommand())
}

func (c *cli) contextListCommand() *cobra.Command {
	return &cobra.Command{
		Use: "list", Aliases: []string{"ls"}, Short: "List the contexts",
		Example: "  lbctl context list",
		Args:    exactly(),
		RunE: func(*cobra.Command, []string) error {
			f, _, err := c.readContexts(true)
			if err != nil {
				return err
			}
			type row struct {
				Name    string `json:"name"`
				Current bool   `json:"current"`
				Server  string `json:"server"`
				Token   string `json:"token_from,omitempty"` // never the token
				CA      string `json:"ca,omitempty"`
			}
			rows := []row{}
			for _, name := range f.names() {
				s := f.Contexts[name]
				r := row{Name: name, Current: name == f.Current, Server: s.Server, CA: s.CA, Token: s.TokenFile}
				if s.Token != "" {
					r.Token = "this file"
				}
				rows = append(rows, r)
			}
			return c.print(admin.List[row]{Items: rows}, func(t *table) {
				t.header("", "NAME", "SERVER", "TOKEN FROM")
				for _, r := range rows {
					mark := ""
					if r.Current {
						mark = "*"
					}
					t.row(mark, r.Name, r.Server, r.Token)
				}
			})
		},
	}
}

func (c *cli) contextUseCommand() *cobra.Command {
	return &cobra.Command{
		Use: "use NAME", Short: "Make a context the current one",
		Example:           "  lbctl context use prod",
		Args:              exactly("NAME"),
		ValidArgsFunction: c.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			f, path, err := c.readContexts(true)
			if err != nil {
				return err
			}
			if f.Contexts[args[0]] == nil {
				return noContext(f, path, args[0])
			}
			f.Current = args[0]
			if err := f.write(path); err != nil {
				return err
			}
			return c.say("context %s is in use", args[0])
		},
	}
}

func (c *cli) contextSetCommand() *cobra.Command {
	return &cobra.Command{
		Use: "set NAME", Short: "Make or change a context",
		Long: `Makes or changes a context out of the global flags --server, --token, --token-file and
--ca; what is not given stays. The first context becomes the current one.`,
		Example: `  lbctl context set prod --server https://lb.example.com:9180 --token-file ~/prod.token --ca ca.pem`,
		Args:    exactly("NAME"),
		RunE: func(_ *cobra.Command, args []string) error {
			f, path, err := c.readContexts(false)
			if err != nil {
				return err
			}
			if path == "" {
				return usagef("there is no home directory to keep contexts in; use --config FILE")
			}
			if c.token != "" && c.tokenFile != "" {
				return usagef("--token and --token-file are both given; one is enough")
			}
			s := f.Contexts[args[0]]
			if s == nil {
				s = &apiServer{Server: defaultServer}
				f.Contexts[args[0]] = s
			}
			if c.server != "" {
				if _, err := admin.NewClient(admin.ClientOptions{Server: c.server}); err != nil {
					return usagef("--server: %s", err)
				}
				s.Server = c.server
			}
			if c.token != "" {
				s.Token, s.TokenFile = c.token, ""
			}
			for _, p := range []struct {
				from string
				to   *string
			}{{c.tokenFile, &s.TokenFile}, {c.caFile, &s.CA}} {
				if p.from == "" {
					continue
				}
				if *p.to, err = filepath.Abs(p.from); err != nil {
					return err
				}
			}
			if c.tokenFile != "" {
				s.Token = ""
			}
			if f.Current == "" {
				f.Current = args[0]
			}
			if err := f.write(path); err != nil {
				return err
			}
			return c.say("context %s points to %s", args[0], s.Server)
		},
	}
}

func (c *cli) contextRemoveCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME", Short: "Forget a context",
		Example:           "  lbctl context rm staging",
		Args:              exactly("NAME"),
		ValidArgsFunction: c.completeContexts,
		RunE: func(_ *cobra.Command, args []string) error {
			f, path, err := c.readContexts(true)
			if err != nil {
				return err
			}
			if f.Contexts[args[0]] == nil {
				return noContext(f, path, args[0])
			}
			delete(f.Contexts, args[0])
			if f.Current == args[0] {
				f.Current = ""
			}
			if err := f.write(path); err != nil {
				return err
			}
			return c.say("context %s is forgotten", args[0])
		},
	}
}
