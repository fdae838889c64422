package proxy

import (
	"net/http"
	"strings"
	"time"

	"difylb/pkg/lb"
	"difylb/pkg/route"
)

// Answers of Dify hold links such as
// /files/{id}/file-preview?timestamp=…&nonce=…&sign=…, which are good without
// a token, for a few minutes, at the instance that signed them and nowhere
// else. Where an instance writes them relative to the balancer's address they
// come here. Nothing in a link says who signed it; an instance that did not
// refuses it, so they are asked in turn, the one that is remembered first.

const (
	filesPrefix  = "/files/"
	maxOrigins   = 32               // instances asked for one link
	filesTimeout = 30 * time.Second // until one has begun to answer, and between two pieces of a file
	askTimeout   = 10 * time.Second // until this one has
)

// origin is one address that some application has an instance at.
type origin struct {
	key      string // address, and scheme
	upstream *upstream
	instance string
	host     string
}

func originKey(in *route.Instance) string {
	if in.TLS != nil {
		return "https " + in.Address
	}
	return in.Address
}

// origins lists the distinct addresses of a view's instances that are not disabled.
func (v *view) origins() []origin {
	var out []origin
	seen := make(map[string]bool)
	for _, a := range v.apps {
		if a == nil {
			continue
		}
		for i := range a.instances {
			to := &a.app.Instances[i]
			key := originKey(to)
			if seen[key] || to.Decl.State == lb.Disabled || *a.instances[i].health.Load() == lb.Unhealthy {
				continue // of another application it may be usable
			}
			seen[key] = true
			out = append(out, origin{key, a.instances[i].upstream, to.Decl.Name, to.Host})
		}
	}
	return out
}

// serveFile passes a signed link to the instance that signed it.
func (x *exchange) serveFile() *refusal {
	if x.method != http.MethodGet && x.method != http.MethodHead {
		return refuse(lb.ReasonNotFound, "signed links are for GET")
	}
	if ref := x.admit(); ref != nil {
		return ref
	}
	id := fileID(x.path)
	origins := x.v.origins()
	if known, ok := x.p.files.find("", id); ok {
		for i := range origins {
			if origins[i].key == known {
				origins[0], origins[i] = origins[i], origins[0]
			}
		}
	}
	ref := refuse(lb.ReasonNotFound, "no instance knows this link; it may have expired")
	unsure := refuse(lb.ReasonConnectFailed, "no instance knows this link, and one that may have signed it could not be asked")
	for _, o := range origins[:min(len(origins), maxOrigins)] {
		if x.tick().Sub(x.start) > filesTimeout {
			return unsure
		}
		served, status := x.fetchFile(o)
		switch {
		case served:
			x.p.files.learn("", id, o.key, x.now)
			return nil
		case x.line.over():
			return refuse(x.line.reason(), failureMessage(lb.ReasonShutdown))
		case status == 0 || status >= http.StatusInternalServerError:
			ref = unsure
		}
	}
	return ref
}

// fileID takes the id out of /files/{id}/… and /files/tools/{id}.png.
func fileID(path string) string {
	rest := strings.TrimPrefix(strings.TrimPrefix(path, filesPrefix), "tools/")
	if i := strings.IndexAny(rest, "/."); i >= 0 {
		rest = rest[:i]
	}
	if len(rest) > 64 {
		return ""
	}
	return rest
}

// fetchFile asks one instance and passes its answer on, unless that is a
// refusal; then it returns the status, 0 if there was no answer.
func (x *exchange) fetchFile(o origin) (served bool, status int) {
	a := &x.attempt
	a.reset()
	defer a.finish()
	a.up, a.to = o.upstream, target{host: o.host}
	a.read, a.send = askTimeout, askTimeout
	a.span = x.traced.Attempt(time.Now())
	if a.ask(); a.reason != lb.ReasonOK {
		return false, 0
	}
	switch {
	case a.resp.Status == http.StatusSwitchingProtocols: // nobody has asked for it
		return false, 0
	case a.resp.Status >= 400 && a.resp.Status != http.StatusRequestedRangeNotSatisfiable:
		a.hold(errorBound) // to use the connection further
		return false, a.resp.Status
	}
	x.instance = o.instance
	a.read, a.reason = filesTimeout, lb.ReasonOK
	a.relay()
	return true, a.resp.Status
}
