package proxy

import (
	"runtime"
	"sync"
)

// Cores returns how many cores traffic is spread over: GOMAXPROCS as it was
// when the first proxy of the process was made, or at the first call of this.
// What is kept per core should be made for so many, since a proxy may raise
// GOMAXPROCS (see New).
var Cores = sync.OnceValue(func() int { return runtime.GOMAXPROCS(0) })
