package main

import (
	"context"
	"errors"
	"fmt"
	"net/http"

	"difylb/pkg/admin"
	"difylb/pkg/lb"
)

// The exit codes.
const (
	exitDone        = 0
	exitRefused     = 1 // the server refused or failed
	exitUsage       = 2
	exitUnreachable = 3
)

// usageError is what the caller did wrong; nothing was started.
type usageError struct{ message string }

func (e *usageError) Error() string { return e.message }

func usagef(format string, args ...any) error {
	return &usageError{fmt.Sprintf(format, args...)}
}

// errDiffers ends diff with exit code 1 and without a message.
var errDiffers = errors.New("differs")

// documentError is every fault of one or several files.
type documentError struct {
	what   string // what was attempted
	faults []placedFault
	usage  bool // they stand on the command line, not in a file
}

// commandFaults turns faults of what the command line says into an error.
func commandFaults(what string, fs lb.Faults) error {
	if len(fs) == 0 {
		return nil
	}
	if len(fs) == 1 {
		return usagef("%s: %s", what, fs[0])
	}
	e := &documentError{what: what, usage: true}
	for _, f := range fs {
		e.faults = append(e.faults, placedFault{Fault: f})
	}
	return e
}

// placedFault is a fault and the file it stands in.
type placedFault struct {
	lb.Fault
	file string // empty when it is not known
}

func (e *documentError) Error() string {
	n := "1 fault"
	if len(e.faults) != 1 {
		n = fmt.Sprintf("%d faults", len(e.faults))
	}
	return e.what + ": " + n
}

func (f placedFault) String() string {
	switch {
	case f.file == "":
		return f.Fault.String()
	case f.Line == 0:
		return f.file + ": " + f.Fault.String()
	}
	return fmt.Sprintf("%s:%d: %s", f.file, f.Line, f.Fault)
}

// report writes what went wrong, and what to do about it, and returns the exit
// code. It is the only place that maps errors to codes.
func (c *cli) report(err error) int {
	if err == nil {
		return exitDone
	}
	if errors.Is(err, errDiffers) {
		return exitRefused
	}
	say := func(format string, args ...any) { fmt.Fprintln(c.err, clean(fmt.Sprintf(format, args...))) }
	var usage *usageError
	var doc *documentError
	var problem *admin.ProblemError
	var unreachable *unreachableError
	switch {
	case errors.As(err, &usage):
		say("lbctl: %s", err)
		return exitUsage
	case errors.As(err, &doc):
		say("lbctl: %s", err)
		for _, f := range doc.faults {
			say("  %s", f)
		}
		if doc.usage {
			return exitUsage
		}
		return exitRefused
	case errors.As(err, &unreachable):
		say("lbctl: %s", err)
		return exitUnreachable
	case errors.As(err, &problem):
		c.reportProblem(err, problem, say)
		return exitRefused
	case errors.Is(err, context.Canceled):
		say("lbctl: interrupted")
		return exitRefused
	case errors.Is(err, context.DeadlineExceeded):
		say("lbctl: no answer within --timeout %s", c.timeout)
		say("  is lb-admin running? say where it is with --server or LBCTL_SERVER, or give it more --timeout")
		return exitUnreachable
	case errors.Is(err, lb.ErrUnavailable):
		say("lbctl: %s", err)
		say("  is lb-admin running? say where it is with --server or LBCTL_SERVER")
		return exitUnreachable
	}
	say("lbctl: %s", err)
	return exitRefused
}

// orSee is the hint, or where there is none what lists the right answers.
func orSee(hint, list string) string {
	if hint == "" {
		return "; see " + list
	}
	return hint
}

func (c *cli) reportProblem(err error, p *admin.ProblemError, say func(string, ...any)) {
	if len(p.Faults) > 1 {
		say("lbctl: the server refused it: %d faults; nothing was changed", len(p.Faults))
		for _, f := range p.Faults {
			say("  %s", f)
		}
	} else {
		say("lbctl: %s", err)
	}
	switch {
	case p.Status == http.StatusUnauthorized && c.tokenFrom == "":
		say("  there is no access token: use --token-file FILE or LBCTL_TOKEN; the first start of lb-admin writes <data-dir>/%s", tokenFileName)
	case p.Status == http.StatusUnauthorized:
		say("  the token came from %s; --token-file FILE or LBCTL_TOKEN give another", c.tokenFrom)
	case p.Status == http.StatusPreconditionFailed:
		say("  someone changed it meanwhile; look again and repeat")
	case p.RetryAfter > 0:
		say("  try again in %s", lb.Duration(p.RetryAfter))
	}
}
