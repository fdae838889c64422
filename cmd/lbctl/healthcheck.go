package main

import (
	"fmt"
	"io"
	"net/http"
	"net/url"

	"github.com/spf13/cobra"
)

func (c *cli) healthcheckCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "healthcheck URL",
		Short: "Ask a URL whether it is well, for containers that hold no curl",
		Long: `Asks the URL, /readyz of a daemon for example, and exits with 0 if the answer is a 2xx,
with 1 if it is another, with 3 if there is none within --timeout.`,
		Example: "  lbctl healthcheck http://127.0.0.1:9182/readyz",
		Args:    exactly("URL"),
		RunE: func(cmd *cobra.Command, args []string) error {
			u, err := url.Parse(args[0])
			if err != nil || u.Host == "" || (u.Scheme != "http" && u.Scheme != "https") {
				return usagef("URL: %q is not one such as http://127.0.0.1:9182/readyz", args[0])
			}
			client := http.Client{Timeout: c.timeout}
			req, err := http.NewRequestWithContext(cmd.Context(), http.MethodGet, u.String(), nil)
			if err != nil {
				return err
			}
			resp, err := client.Do(req)
			if err != nil {
				return &unreachableError{err}
			}
			defer resp.Body.Close()
			body, err := io.ReadAll(io.LimitReader(resp.Body, 4<<10))
			if err != nil {
				return &unreachableError{err}
			}
			if resp.StatusCode < 200 || resp.StatusCode > 299 {
				return fmt.Errorf("%s answers %s: %s", u, resp.Status, body)
			}
			return nil
		},
	}
}

// unreachableError is no answer from something that is no lb-admin.
type unreachableError struct{ err error }

func (e *unreachableError) Error() string { return "no answer: " + e.err.Error() }
