package daemon

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

// gcInterval is how often the live heap is looked at.
const gcInterval = time.Second

// TuneGC keeps the garbage collector from running all the time in a process
// that lives on a few megabytes and allocates many: between two collections at
// least floor bytes are allocated. Above that the Go default of doubling
// holds. It blocks until ctx ends, and does nothing where GOGC is set: whoever
// sets that knows better.
func TuneGC(ctx context.Context, floor uint64) error {
	if os.Getenv("GOGC") != "" {
		<-ctx.Done()
		return nil
	}
	before := debug.SetGCPercent(percentFor(0, floor))
	defer debug.SetGCPercent(before)
	tick := time.NewTicker(gcInterval)
	defer tick.Stop()
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}}
	last := percentFor(0, floor)
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		metrics.Read(live)
		if p := percentFor(live[0].Value.Uint64(), floor); p != last {
			debug.SetGCPercent(p)
			last = p
		}
	}
}

// percentFor returns GOGC for a live heap. Steps of 50, so that it does not
// change with every breath: changing it stops the world.
func percentFor(live, floor uint64) int {
	const most = 800 // of the 4 MiB that an empty heap counts as
	if live == 0 {
		return most
	}
	return int(min(max(floor*100/live/50*50, 100), most))
}
