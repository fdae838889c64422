package daemon

import (
	"errors"
	"fmt"
	"os"
	"sort"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"go.yaml.in/yaml/v3"

	"difylb/pkg/lb"
)

// UsageError is a mistake in how a command was called: an unknown flag, key or
// value. Its exit code is 2 and nothing has been started when it appears.
type UsageError struct{ Err error }

func (e *UsageError) Error() string { return e.Err.Error() }
func (e *UsageError) Unwrap() error { return e.Err }

// Usagef makes a UsageError.
func Usagef(format string, args ...any) error { return &UsageError{fmt.Errorf(format, args...)} }

// ExitCode maps an error to the exit code: 0 none, 2 wrong usage, 1 all else.
func ExitCode(err error) int {
	var usage *UsageError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &usage):
		return 2
	}
	return 1
}

// ConfigFlag names the flag that names the configuration file.
const ConfigFlag = "config"

// notOptions are flags that neither environment nor file may set.
var notOptions = map[string]bool{"help": true, "version": true, ConfigFlag: true}

// Resolve completes flags that were parsed from the command line: what was not
// given there is taken from the environment (PREFIX_FLAG_NAME), then from the
// YAML file that --config names, and keeps its default otherwise. A list flag
// takes a YAML list or text with commas. Errors are UsageErrors that name the
// flag, the value and where it stood.
func Resolve(flags *pflag.FlagSet, envPrefix string, getenv func(string) (string, bool)) error {
	file, err := readFile(flags, envPrefix, getenv)
	if err != nil {
		return err
	}
	var bad error
	flags.VisitAll(func(f *pflag.Flag) {
		if bad != nil || notOptions[f.Name] {
			return
		}
		env := envName(envPrefix, f.Name)
		value, inEnv := getenv(env)
		switch fromFile, inFile := file[f.Name]; {
		case f.Changed:
		case inEnv:
			bad = set(flags, f, []string{value}, "environment variable "+env)
		case inFile:
			bad = set(flags, f, fromFile, fmt.Sprintf("key %s of %s", f.Name, flags.Lookup(ConfigFlag).Value))
		}
	})
	return bad
}

func envName(prefix, flag string) string {
	return prefix + "_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

func set(flags *pflag.FlagSet, f *pflag.Flag, values []string, from string) error {
	var err error
	if list, ok := f.Value.(pflag.SliceValue); ok {
		var all []string
		for _, v := range values {
			if v != "" {
				all = append(all, strings.Split(v, ",")...)
			}
		}
		err = list.Replace(all)
	} else {
		err = f.Value.Set(strings.Join(values, ","))
	}
	if err != nil {
		return Usagef("%s: %q is not a value for --%s: %w", from, strings.Join(values, ","), f.Name, err)
	}
	f.Changed = true
	return nil
}

// readFile returns the file's keys, each with the text of its one value or of
// the items of its list.
func readFile(flags *pflag.FlagSet, envPrefix string, getenv func(string) (string, bool)) (map[string][]string, error) {
	cf := flags.Lookup(ConfigFlag)
	if cf == nil {
		return nil, nil
	}
	if !cf.Changed {
		if v, ok := getenv(envName(envPrefix, ConfigFlag)); ok {
			cf.Value.Set(v)
		}
	}
	path := cf.Value.String()
	if path == "" {
		return nil, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, Usagef("--config: %w", err)
	}
	var root map[string]yaml.Node
	if err := yaml.Unmarshal(data, &root); err != nil {
		return nil, Usagef("--config: %s: %s", path, strings.TrimPrefix(err.Error(), "yaml: "))
	}
	var known []string
	flags.VisitAll(func(f *pflag.Flag) {
		if !notOptions[f.Name] {
			known = append(known, f.Name)
		}
	})
	keys := make([]string, 0, len(root))
	for k := range root {
		keys = append(keys, k)
	}
	sort.Strings(keys)
	out := make(map[string][]string)
	var faults []string
	for _, k := range keys {
		node := root[k]
		name := strings.ReplaceAll(k, "_", "-")
		if f := flags.Lookup(name); f == nil || notOptions[name] {
			faults = append(faults, fmt.Sprintf("line %d: there is no key %q%s", node.Line, k, lb.DidYouMean(name, known)))
			continue
		}
		switch node.Kind {
		case yaml.ScalarNode:
			out[name] = []string{node.Value}
		case yaml.SequenceNode:
			out[name] = []string{}
			for _, item := range node.Content {
				out[name] = append(out[name], item.Value)
			}
		default:
			faults = append(faults, fmt.Sprintf("line %d: key %q takes a value or a list of values", node.Line, k))
		}
	}
	if len(faults) > 0 {
		return nil, Usagef("--config: %s: %s", path, strings.Join(faults, "; "))
	}
	return out, nil
}

// Command prepares a daemon's root command: strict about arguments and flags,
// silent about usage on errors, completed by Resolve before run.
func Command(cmd *cobra.Command, envPrefix string, run func(cmd *cobra.Command) error) *cobra.Command {
	cmd.SilenceErrors, cmd.SilenceUsage = true, true
	cmd.Flags().String(ConfigFlag, "", "YAML file with any of these flags as keys")
	cmd.Version = VersionString()
	cmd.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	cmd.SetFlagErrorFunc(FlagError)
	cmd.Args = func(cmd *cobra.Command, args []string) error {
		if len(args) > 0 {
			return Usagef("%q: %s takes flags only; see %s --help", args[0], cmd.Name(), cmd.Name())
		}
		return nil
	}
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := Resolve(cmd.Flags(), envPrefix, os.LookupEnv); err != nil {
			return err
		}
		return run(cmd)
	}
	return cmd
}

// FlagError makes a mistyped flag a UsageError that names the nearest one.
func FlagError(cmd *cobra.Command, err error) error {
	var names []string
	cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, "--"+f.Name) })
	msg := err.Error()
	if word, ok := strings.CutPrefix(msg, "unknown flag: "); ok {
		msg += lb.DidYouMean(word, names)
	}
	return Usagef("%s", msg)
}

// Main runs a root command and turns its error into the exit code, with one
// line on standard error.
func Main(cmd *cobra.Command) int {
	err := cmd.Execute()
	if err != nil {
		fmt.Fprintf(os.Stderr, "%s: %s\n", cmd.Name(), err)
	}
	return ExitCode(err)
}
