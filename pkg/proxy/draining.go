package proxy

// SetDraining says whether this proxy is on its way out: GET /health then
// answers 503, so that balancers before it look elsewhere. Requests are served
// all the same.
func (p *Proxy) SetDraining(on bool) { p.draining.Store(on) }

// Draining reports what SetDraining said.
func (p *Proxy) Draining() bool { return p.draining.Load() }
