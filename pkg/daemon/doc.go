// Package daemon is the life of a process around its real work: options from
// flags, environment, file and defaults; the logger; signals; the version; the
// ops listener; the listening sockets that it passes to its successor. It
// refuses to know what the process is for. Imported by the mains and the planes
// only.
package daemon
