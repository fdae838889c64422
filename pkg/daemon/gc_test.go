package daemon

import (
	"context"
	"runtime/debug"
	"testing"
	"time"
)

func TestHeapState_Calm(t *testing.T) {
	for _, c := range []struct {
		name  string
		state heapState
		want  bool
	}{
		{"garbage and nothing to do", heapState{live: 30 << 20, objects: 50 << 20, allocated: 1000, before: 900}, true},
		{"pages and nothing to do", heapState{live: 30 << 20, objects: 31 << 20, free: 9 << 20, allocated: 1000, before: 900}, true},
		{"too little to be had", heapState{live: 30 << 20, objects: 33 << 20, free: 2 << 20, allocated: 1000, before: 900}, false},
		{"busy", heapState{live: 30 << 20, objects: 50 << 20, free: 50 << 20, allocated: 9 << 20, before: 1 << 20}, false},
		{"fewer objects than were live", heapState{live: 30 << 20, objects: 20 << 20, free: 1 << 20}, false},
	} {
		if got := c.state.calm(); got != c.want {
			t.Errorf("%s: calm %v", c.name, got)
		}
	}
}

var sink []byte

func TestTuneGC_GivesBackWhatABurstLeft(t *testing.T) {
	t.Setenv("GOGC", "") // CI may set it
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	before := debug.SetGCPercent(100)
	debug.SetGCPercent(before)
	go func() { done <- TuneGC(ctx, 256<<20) }()
	for range 64 {
		sink = make([]byte, 1<<20)
	}
	h := newHeapState()
	for deadline := time.Now().Add(30 * time.Second); h.objects+h.free > h.live+calmGain+h.live/calmGainPart; h.read() {
		if time.Now().After(deadline) {
			t.Fatalf("after 30 s %d MiB of objects, %d live, %d free pages are held", h.objects>>20, h.live>>20, h.free>>20)
		}
		time.Sleep(50 * time.Millisecond)
	}
	cancel()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if got := debug.SetGCPercent(before); got != before {
		t.Errorf("GOGC is %d afterwards, was %d", got, before)
	}
}
