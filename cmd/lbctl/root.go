package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"difylb/pkg/lb"
)

// cli is one run of lbctl: where it reads and writes, and the flags that every
// command has.
type cli struct {
	in  io.Reader
	out io.Writer
	err io.Writer

	getenv func(string) string
	// interactive: a person sits at both ends and can be asked.
	interactive bool
	// color: out is a terminal that wants colours.
	color bool
	// width of the terminal in columns; 0 when out is none.
	width func() int
	// height of the terminal in lines; 0 when out is none.
	height func() int

	server      string
	token       string
	tokenFile   string
	contextName string
	configFile  string
	caFile      string
	certFile    string
	keyFile     string
	output      string
	timeout     time.Duration

	flags *pflag.FlagSet // the global ones, to ask which were given
	// tokenFrom says where the access token came from, for messages.
	tokenFrom string
}

func newCLI(in io.Reader, out, err io.Writer) *cli {
	c := &cli{in: in, out: out, err: err, getenv: os.Getenv}
	c.interactive = isTerminal(in) && isTerminal(err)
	c.color = isTerminal(out) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb"
	c.width = func() int { w, _ := terminalSize(out); return w }
	c.height = func() int { _, h := terminalSize(out); return h }
	return c
}

// run executes the arguments and returns the exit code.
func run(ctx context.Context, args []string, c *cli) int {
	root := c.rootCommand()
	root.SetArgs(append([]string{}, args...)) // nil would mean os.Args
	root.SetIn(c.in)
	root.SetOut(c.out)
	root.SetErr(c.err)
	err := checkArgs(root, args)
	if err == nil {
		err = root.ExecuteContext(ctx)
	}
	return c.report(err)
}

func (c *cli) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "lbctl",
		Short: "Command line of the difylb load balancer",
		Long: `lbctl talks to an lb-admin. It finds it in --server or LBCTL_SERVER, and its access
token in --token, --token-file, LBCTL_TOKEN, LBCTL_TOKEN_FILE, the current context
(lbctl context), or last in ./data/lb-admin/admin.token.

Every global flag has an environment variable, --token-file is LBCTL_TOKEN_FILE;
flags beat the environment, which beats the context.

Exit codes: 0 done, 1 the server refused or failed, 2 wrong usage, 3 not reachable.`,
		Example: `  lbctl app add customer_service --token usertoken--customer-service-v1 \
    --instance name=dify1,url=http://172.20.62.200:80,token=app-…,weight=1
  lbctl apply -f difylb.yaml --dry-run
  lbctl instance drain customer_service dify1 --wait 60s
  lbctl explain customer_service user-42
  lbctl status --watch`,
		SilenceErrors: true,
		SilenceUsage:  true,
		RunE:          func(cmd *cobra.Command, _ []string) error { return cmd.Help() },
		Args:          noVerb,
	}
	root.SetFlagErrorFunc(flagError)
	root.Version = currentVersion().Version
	root.SetVersionTemplate("{{.Name}} {{.Version}}\n")
	root.SetHelpCommand(&cobra.Command{
		Use: "help [COMMAND]", Short: "Help about any command",
		Example: "  lbctl help instance drain",
		RunE: func(_ *cobra.Command, args []string) error {
			cmd, rest, err := root.Find(args)
			if err != nil {
				return usagef("%s", err)
			}
			if err := noVerb(cmd, rest); err != nil {
				return err
			}
			return cmd.Help()
		},
	})

	f := root.PersistentFlags()
	f.StringVar(&c.server, "server", "", "lb-admin's `URL` (default "+defaultServer+")")
	f.StringVar(&c.token, "token", "", "access `token`; prefer --token-file, which other users of this machine cannot see")
	f.StringVar(&c.tokenFile, "token-file", "", "`file` that holds the access token")
	f.StringVar(&c.contextName, "context", "", "`name` of the context to use instead of the current one")
	f.StringVar(&c.configFile, "config", "", "contexts `file` (default ~/.config/lbctl/config.yaml)")
	f.StringVar(&c.caFile, "ca", "", "PEM `file` of the authority that signed lb-admin's certificate")
	f.StringVar(&c.certFile, "cert", "", "PEM `file` of the client certificate, for mTLS")
	f.StringVar(&c.keyFile, "key", "", "PEM `file` of the client certificate's key")
	f.StringVarP(&c.output, "output", "o", "table", "`format`: table, json or yaml")
	f.DurationVar(&c.timeout, "timeout", 30*time.Second, "how long a call may take")
	c.flags = f
	_ = root.RegisterFlagCompletionFunc("output", cobra.FixedCompletions([]string{"table", "json", "yaml"}, cobra.ShellCompDirectiveNoFileComp))
	_ = root.RegisterFlagCompletionFunc("context", c.completeContexts)
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return c.settle() }

	root.AddCommand(
		c.appCommand(),
		c.tokenCommand(),
		c.instanceCommand(),
		c.applyCommand(),
		c.planCommand(),
		c.diffCommand(),
		c.exportCommand(),
		c.validateCommand(),
		c.importCommand(),
		c.verifyPlacementCommand(),
		c.statusCommand(),
		c.topCommand(),
		c.nodeCommand(),
		c.explainCommand(),
		c.doctorCommand(),
		c.eventsCommand(),
		c.historyCommand(),
		c.rollbackCommand(),
		c.accessCommand(),
		c.contextCommand(),
		c.completionCommand(),
		c.upCommand(),
		c.standinCommand(),
		c.healthcheckCommand(),
		c.versionCommand(),
	)
	return root
}

// settle takes from the environment what no flag said, and checks the values
// that every command shares, before anything is done.
func (c *cli) settle() error {
	var err error
	c.flags.VisitAll(func(f *pflag.Flag) {
		if f.Changed || err != nil {
			return
		}
		// Where they come from matters later: see settings.
		if f.Name == "server" || f.Name == "token" || f.Name == "token-file" {
			return
		}
		name := envName(f.Name)
		if v := c.getenv(name); v != "" {
			if e := f.Value.Set(v); e != nil {
				err = usagef("%s: %q: %v", name, v, e)
			}
		}
	})
	if err != nil {
		return err
	}
	switch c.output {
	case "table", "json", "yaml":
	default:
		return usagef("-o %q: it is table, json or yaml%s", c.output, lb.DidYouMean(c.output, []string{"table", "json", "yaml"}))
	}
	if c.timeout <= 0 {
		return usagef("--timeout %s: it must be more than 0", c.timeout)
	}
	return nil
}

func envName(flag string) string {
	return "LBCTL_" + strings.ToUpper(strings.ReplaceAll(flag, "-", "_"))
}

// group makes a command that only holds verbs.
func group(use, short, example string, verbs ...*cobra.Command) *cobra.Command {
	cmd := &cobra.Command{
		Use:     use,
		Short:   short,
		Example: example,
		Args:    noVerb,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return usagef("%s needs one of %s", cmd.CommandPath(), strings.Join(verbNames(cmd), ", "))
		},
	}
	cmd.AddCommand(verbs...)
	return cmd
}

func verbNames(cmd *cobra.Command) []string {
	var names []string
	for _, sub := range cmd.Commands() {
		if sub.IsAvailableCommand() {
			names = append(names, sub.Name())
		}
	}
	return names
}

// noVerb refuses what stands where a verb belongs.
func noVerb(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return nil
	}
	names := verbNames(cmd)
	hint := lb.DidYouMean(args[0], names)
	if hint == "" {
		hint = "; there are " + strings.Join(names, ", ")
	}
	return usagef("%s has no command %q%s", cmd.CommandPath(), args[0], hint)
}

// checkArgs sees to two things that parsing alone gets wrong: a misspelt verb
// followed by its flags is a misspelt verb, not an unknown flag; and an access
// token before a verb whose own --token means another token must not become
// that.
func checkArgs(root *cobra.Command, args []string) error {
	if len(args) > 0 && strings.HasPrefix(args[0], "__complete") {
		return nil
	}
	root.InitDefaultHelpCmd() // which Execute would do too late for Find
	cmd, rest, err := root.Find(args)
	if err != nil {
		return usagef("%s", err)
	}
	if cmd.HasSubCommands() {
		if word := firstWord(cmd, rest); word != "" {
			return noVerb(cmd, []string{word})
		}
		return nil
	}
	own := cmd.LocalNonPersistentFlags().Lookup("token")
	if own == nil {
		return nil
	}
	for _, a := range args {
		if a == cmd.Name() || cmd.HasAlias(a) {
			return nil
		}
		if a == "--token" || strings.HasPrefix(a, "--token=") {
			return usagef("--token before %q: %s has a --token of its own (%s); give the access token with LBCTL_TOKEN or --token-file", cmd.Name(), cmd.CommandPath(), strings.ReplaceAll(own.Usage, "`", ""))
		}
	}
	return nil
}

// firstWord returns the first argument that is neither a flag nor a flag's value.
func firstWord(cmd *cobra.Command, args []string) string {
	for i := 0; i < len(args); i++ {
		a := args[i]
		switch {
		case a == "--" || a == "":
			return ""
		case a[0] != '-':
			return a
		case strings.HasPrefix(a, "--"):
			f := cmd.Root().PersistentFlags().Lookup(a[2:])
			if f != nil && f.NoOptDefVal == "" {
				i++
			}
		case len(a) == 2:
			f := cmd.Root().PersistentFlags().ShorthandLookup(a[1:])
			if f != nil && f.NoOptDefVal == "" {
				i++
			}
		}
	}
	return ""
}

// flagError says what is wrong with a flag, and which was meant.
func flagError(cmd *cobra.Command, err error) error {
	if err == pflag.ErrHelp {
		return err
	}
	msg := err.Error()
	if name, ok := strings.CutPrefix(msg, "unknown flag: --"); ok {
		var names []string
		cmd.Flags().VisitAll(func(f *pflag.Flag) { names = append(names, f.Name) })
		return usagef("%s has no flag --%s%s", cmd.CommandPath(), name, lb.DidYouMean(name, names))
	}
	return usagef("%s", msg)
}

// exactly demands as many arguments as there are names.
func exactly(names ...string) cobra.PositionalArgs { return between(len(names), names...) }

// between demands at least so many of the named arguments, and at most all of them.
func between(least int, names ...string) cobra.PositionalArgs {
	return func(cmd *cobra.Command, args []string) error {
		if len(args) < least {
			return usagef("%s needs %s; see %s --help", cmd.CommandPath(), strings.Join(names[len(args):least], " and "), cmd.CommandPath())
		}
		if len(args) > len(names) {
			return usagef("%s: nothing belongs where %q stands; see %s --help", cmd.CommandPath(), args[len(names)], cmd.CommandPath())
		}
		for i, a := range args {
			if a == "" {
				return usagef("%s: %s is empty", cmd.CommandPath(), names[i])
			}
		}
		return nil
	}
}

// confirm asks a person before something is done that cannot be taken back.
// Scripts are not asked.
func (c *cli) confirm(yes bool, format string, args ...any) error {
	if yes || !c.interactive {
		return nil
	}
	fmt.Fprintf(c.err, format+" [y/N] ", args...)
	var answer string
	_, _ = fmt.Fscanln(c.in, &answer)
	switch strings.ToLower(answer) {
	case "y", "yes":
		return nil
	}
	return fmt.Errorf("nothing was done")
}
