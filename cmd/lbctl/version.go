package main

import (
	"runtime"
	"runtime/debug"

	"github.com/spf13/cobra"

	"difylb/pkg/daemon"
)

type versionInfo struct {
	Version  string `json:"version"`
	Revision string `json:"revision,omitempty"`
	Go       string `json:"go"`
	Platform string `json:"platform"`
}

// currentVersion is what the linker set, or what the Go tool wrote into the binary.
func currentVersion() versionInfo {
	v := versionInfo{daemon.Version, daemon.Revision, runtime.Version(), runtime.GOOS + "/" + runtime.GOARCH}
	if info, ok := debug.ReadBuildInfo(); ok && v.Revision == "" {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" {
				v.Revision = s.Value
			}
		}
	}
	return v
}

func (c *cli) versionCommand() *cobra.Command {
	return &cobra.Command{
		Use: "version", Short: "Print the version of lbctl",
		Example: "  lbctl version\n  lbctl version -o json",
		Args:    exactly(),
		RunE: func(*cobra.Command, []string) error {
			v := currentVersion()
			text := "lbctl " + v.Version
			if v.Revision != "" {
				text += " (" + v.Revision + ")"
			}
			return c.printOr(v, "%s, %s, %s", text, v.Go, v.Platform)
		},
	}
}
