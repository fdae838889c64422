//go:build linux && !portable

package proxy

import (
	"testing"
	"time"
)

// However much has come at once, all of it is told, though nothing follows it.
func TestPoller_TellsOfAll(t *testing.T) {
	const n = 3000
	p, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	wires := make([]wire, n)
	for i := range wires {
		server, client := tcpPair(t)
		w := &wires[i]
		w.init(server, server, owned{})
		p.watch(w)
		defer w.close()
		if !w.raw {
			t.Fatal("not watched")
		}
		if _, err := client.Write([]byte{'x'}); err != nil {
			t.Fatal(err)
		}
	}
	p.start()
	eventually(t, "every wire to be told", func() bool {
		for i := range wires {
			if !wires[i].came.Load() {
				return false
			}
		}
		return true
	})
}

// hangs calls a function when its wire's peer has ended its side.
type hangs func()

func (f hangs) hungUp(bool) { f() }
func (hangs) alarm()        {}

// Who is told of something finds noted what has come with it: the end of an idle
// connection, say, which he would have taken to be open.
func TestPoller_NotesAllBeforeItTells(t *testing.T) {
	p, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	wires := make([]wire, 8)
	noted := make(chan int, len(wires))
	for i := range wires {
		server, client := tcpPair(t)
		w := &wires[i]
		w.init(server, server, hangs(func() {
			n := 0
			for i := range wires {
				if wires[i].hup.Load() && wires[i].came.Load() {
					n++
				}
			}
			noted <- n
		}))
		p.watch(w)
		defer w.close()
		if !w.raw {
			t.Fatal("not watched")
		}
		client.Close()
	}
	eventually(t, "every end to have come", func() bool {
		for i := range wires {
			if wires[i].silent() {
				return false
			}
		}
		return true
	})
	p.start()
	if n := <-noted; n != len(wires) {
		t.Errorf("%d of %d ends were noted when the first was told", n, len(wires))
	}
}

// A poller waits by itself while much happens, and Go's poller for it when
// little does. Nothing is lost on the way from one to the other.
func TestPoller_WaitsByItselfWhenMuchHappens(t *testing.T) {
	p, err := newPoller()
	if err != nil {
		t.Fatal(err)
	}
	defer p.close()
	server, client := tcpPair(t)
	var w wire
	w.init(server, server, owned{})
	p.watch(&w)
	defer w.close()
	if !w.raw {
		t.Fatal("not watched")
	}
	p.start()
	buf := make([]byte, 64)
	came := func() bool {
		if !w.came.Swap(false) {
			return false
		}
		for { // to the end, or the next bytes are no event
			if _, err := w.readRaw(buf); err == errAgain {
				return true
			} else if err != nil {
				t.Fatal(err)
			}
		}
	}
	once := func() {
		t.Helper()
		if _, err := client.Write([]byte{'x'}); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(10 * time.Second); !came(); { // at once: a pause would be one for the poller, too
			if time.Now().After(end) {
				t.Fatal("nothing came")
			}
		}
	}
	for range 3 {
		for end := time.Now().Add(20 * time.Second); !p.off.Load(); once() { // also when others took the core
			if time.Now().After(end) {
				t.Fatal("it does not wait by itself")
			}
		}
		time.Sleep(2 * long) // so that the next is long in coming
		once()
		eventually(t, "the bell to be on again", func() bool { return !p.off.Load() })
	}
}
