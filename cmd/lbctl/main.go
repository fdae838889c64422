// Command lbctl is the command line of the load balancer, for people and
// scripts. It reads flags, files and the environment, asks an lb-admin over
// REST, and prints what came back. What a declaration means it leaves to
// pkg/lb, how one is read to pkg/document, and everything that is decided to
// the server; only the import of the OpenResty balancer's configuration lives
// here, because nobody else needs it.
package main

import (
	"context"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	code := run(ctx, os.Args[1:], newCLI(os.Stdin, os.Stdout, os.Stderr))
	stop()
	os.Exit(code)
}
