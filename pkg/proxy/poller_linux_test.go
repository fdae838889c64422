//go:build linux && !portable

package proxy

import "testing"

// However much has come at once, all of it is told, though nothing follows it.
func TestPoller_TellsOfAll(t *testing.T) {
	const n = 3 * 64 * mostBatches
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
