//go:build race

package proxy

// scribble has the memory of a request's text overwritten when it may be used
// again: what was kept of it too long shows.
const scribble = true
