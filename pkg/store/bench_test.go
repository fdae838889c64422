package store_test

import (
	"slices"
	"testing"
	"time"

	"difylb/pkg/store"
	"difylb/pkg/store/storetest"
)

// One instance changes, of 1,000 applications; measured until another store
// shows it. The server is in the same process and does not sync its disk.
func BenchmarkUpdate_UntilSeenElsewhere(b *testing.B) {
	end, prefix := storetest.Etcd(b), storetest.Prefix(b)
	s, other := storetest.OpenAt(b, end, prefix), storetest.OpenAt(b, end, prefix)
	put(b, s, many(1000)...)
	var took []time.Duration
	for n := 0; b.Loop(); n++ {
		begin := time.Now()
		res := update(b, s, func(d *store.Draft) {
			app := d.Application("app-00500").Clone()
			app.Instances[1].MaxInFlight = n + 1
			d.Put(app)
		})
		await(b, other, res.Revision)
		took = append(took, time.Since(begin))
	}
	slices.Sort(took)
	b.ReportMetric(float64(took[len(took)*99/100].Microseconds()), "p99-µs")
}
