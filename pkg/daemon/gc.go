package daemon

import (
	"context"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"time"
)

const (
	// gcInterval is how often the heap is looked at.
	gcInterval = time.Second
	// calmAllocation is how much a calm process allocates in that time, at most.
	calmAllocation = 1 << 20
	// calmGain is how much must be to be had so that a calm process collects;
	// of a large heap, a part of it.
	calmGain     = 4 << 20
	calmGainPart = 16
)

// TuneGC keeps the garbage collector from running all the time in a process
// that lives on a few megabytes and allocates many: between two collections at
// least floor bytes are allocated. Above that the Go default of doubling
// holds. What a burst of work has left behind is collected, and given back to
// the system, when it is over: a process that allocates next to nothing would
// keep it for minutes. TuneGC blocks until ctx ends, and does nothing where GOGC is
// set: whoever sets that knows better.
func TuneGC(ctx context.Context, floor uint64) error {
	if os.Getenv("GOGC") != "" {
		<-ctx.Done()
		return nil
	}
	before := debug.SetGCPercent(percentFor(0, floor))
	defer debug.SetGCPercent(before)
	tick := time.NewTicker(gcInterval)
	defer tick.Stop()
	last, heap := percentFor(0, floor), newHeapState()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
		heap.read()
		if heap.calm() {
			debug.FreeOSMemory()
			heap.read()
		}
		if p := percentFor(heap.live, floor); p != last {
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

// heapState is the heap at two successive looks at it, in bytes.
type heapState struct {
	samples   []metrics.Sample
	live      uint64 // reachable at the last collection
	objects   uint64 // that, and what was allocated since
	free      uint64 // held, but neither in use nor given back to the system
	allocated uint64 // ever
	before    uint64 // allocated at the look before
}

func newHeapState() *heapState {
	h := &heapState{samples: []metrics.Sample{
		{Name: "/gc/heap/live:bytes"}, {Name: "/memory/classes/heap/objects:bytes"},
		{Name: "/memory/classes/heap/free:bytes"}, {Name: "/gc/heap/allocs:bytes"},
	}}
	h.read()
	return h
}

func (h *heapState) read() {
	metrics.Read(h.samples)
	h.before = h.allocated
	h.live, h.objects, h.free, h.allocated = h.samples[0].Value.Uint64(), h.samples[1].Value.Uint64(), h.samples[2].Value.Uint64(), h.samples[3].Value.Uint64()
}

// calm reports whether collecting now costs nobody anything and is worth it.
func (h *heapState) calm() bool {
	return h.allocated-h.before < calmAllocation && h.objects+h.free > h.live+calmGain+h.live/calmGainPart
}
