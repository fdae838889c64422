package main

import (
	"context"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"difylb/pkg/admin"
)

// completionTimeout bounds how long a shell may hang on the tab key.
const completionTimeout = 2 * time.Second

// completeNames returns names from the server; one that does not answer
// completes nothing and says nothing.
func (c *cli) completeNames(cmd *cobra.Command, list func(context.Context, *admin.Client) ([]string, error)) ([]string, cobra.ShellCompDirective) {
	if c.settle() != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	cl, err := c.client()
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	defer cl.Close()
	ctx := cmd.Context()
	if ctx == nil {
		ctx = context.Background()
	}
	ctx, cancel := context.WithTimeout(ctx, completionTimeout)
	defer cancel()
	names, err := list(ctx, cl)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return names, cobra.ShellCompDirectiveNoFileComp
}

// completeApp completes an application as the first argument.
func (c *cli) completeApp(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.completeNames(cmd, func(ctx context.Context, cl *admin.Client) ([]string, error) {
		apps, err := cl.Applications(ctx)
		var names []string
		for _, a := range apps {
			names = append(names, a.Name)
		}
		return names, err
	})
}

// completeInstance completes an application, then one of its instances.
func (c *cli) completeInstance(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return c.completeApp(cmd, args, prefix)
	}
	if len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.completeNames(cmd, func(ctx context.Context, cl *admin.Client) ([]string, error) {
		instances, err := cl.Instances(ctx, args[0])
		var names []string
		for _, in := range instances {
			names = append(names, in.Name)
		}
		return names, err
	})
}

// completeToken completes an application, then the id of one of its tokens.
func (c *cli) completeToken(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
	if len(args) == 0 {
		return c.completeApp(cmd, args, prefix)
	}
	if len(args) > 1 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.completeNames(cmd, func(ctx context.Context, cl *admin.Client) ([]string, error) {
		tokens, err := cl.Tokens(ctx, args[0])
		var names []string
		for _, t := range tokens {
			names = append(names, cobra.CompletionWithDesc(t.ID, t.Label))
		}
		return names, err
	})
}

// completeAccess completes the name of an access token.
func (c *cli) completeAccess(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return c.completeNames(cmd, func(ctx context.Context, cl *admin.Client) ([]string, error) {
		tokens, err := cl.AccessTokens(ctx)
		var names []string
		for _, t := range tokens {
			names = append(names, cobra.CompletionWithDesc(t.Name, string(t.Role)))
		}
		return names, err
	})
}

// completeRevision completes a revision of the history, the newest first.
func (c *cli) completeRevision(cmd *cobra.Command, args []string, _ string) ([]string, cobra.ShellCompDirective) {
	if len(args) > 0 {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	revisions, directive := c.completeNames(cmd, func(ctx context.Context, cl *admin.Client) ([]string, error) {
		entries, err := cl.History(ctx, 20, 0)
		var out []string
		for _, e := range entries {
			out = append(out, cobra.CompletionWithDesc(strconv.FormatInt(e.Revision, 10), timeText(&e.Time)+" "+e.Action+" by "+e.Who))
		}
		return out, err
	})
	return revisions, directive | cobra.ShellCompDirectiveKeepOrder
}

func (c *cli) completeContexts(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	f, _, err := c.readContexts(false)
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	return f.names(), cobra.ShellCompDirectiveNoFileComp
}

// completionCommand prints the scripts. It stands in for cobra's own, so that
// it reads and fails as the other commands do.
func (c *cli) completionCommand() *cobra.Command {
	shells := []string{"bash", "zsh", "fish", "powershell"}
	return &cobra.Command{
		Use: "completion SHELL", Short: "Print the completion script of a shell: bash, zsh, fish or powershell",
		Long: `Prints a script that completes commands and flags, and asks the server for the names
of applications, instances and tokens.`,
		Example: `  source <(lbctl completion bash)
  lbctl completion zsh > "${fpath[1]}/_lbctl"`,
		Args:      exactly("SHELL"),
		ValidArgs: shells,
		RunE: func(cmd *cobra.Command, args []string) error {
			root := cmd.Root()
			switch args[0] {
			case "bash":
				return root.GenBashCompletionV2(c.out, true)
			case "zsh":
				return root.GenZshCompletion(c.out)
			case "fish":
				return root.GenFishCompletion(c.out, true)
			case "powershell":
				return root.GenPowerShellCompletionWithDesc(c.out)
			}
			return usagef("there is no completion for %q; there is bash, zsh, fish and powershell", args[0])
		},
	}
}
