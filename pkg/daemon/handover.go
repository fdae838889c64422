package daemon

import (
	"errors"
	"time"
)

// Socket names a listening socket by the flag that asked for it and the
// address that was given there, so that two processes mean the same.
type Socket struct {
	Flag    string `json:"flag"`
	Address string `json:"address"`
}

const (
	// handoverStep bounds each answer that one process waits for from the
	// other without having anything to do meanwhile.
	handoverStep = 5 * time.Second
	// HandoverPatience is how long a process that holds the sockets of its
	// predecessor may take to serve on them. After it the predecessor takes its
	// offer back.
	HandoverPatience = time.Minute
)

// ErrHandoverTaken is why no offer can be made at a path: another process
// makes one there.
var ErrHandoverTaken = errors.New("another process offers its sockets there")
