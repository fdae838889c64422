package daemon

import (
	"time"

	"github.com/spf13/pflag"

	"difylb/pkg/names"
)

// ResolverOptions are the flags by which both daemons find instances.
type ResolverOptions struct {
	Servers []string
	Valid   time.Duration
}

// AddFlags declares the flags.
func (o *ResolverOptions) AddFlags(f *pflag.FlagSet) {
	f.StringSliceVar(&o.Servers, "resolver", nil, "name server for instances' names, as `ADDRESS[:PORT]`, the first before the others; repeatable (default: the system's)")
	f.DurationVar(&o.Valid, "resolver-valid", names.Valid, "how long an answer of a name server is used before it is asked again")
}

// Names checks the flags. Errors are UsageErrors that name the flag.
func (o *ResolverOptions) Names() (names.Options, error) {
	out := names.Options{Valid: o.Valid}
	for _, s := range o.Servers {
		a, err := names.ParseServer(s)
		if err != nil {
			return out, Usagef("--resolver: %w", err)
		}
		out.Servers = append(out.Servers, a)
	}
	if o.Valid < time.Second || o.Valid > time.Hour {
		return out, Usagef("--resolver-valid: %s is out of range; 1s to 1h", o.Valid)
	}
	return out, nil
}
