package admin

import (
	"fmt"
	"testing"
	"time"

	"difylb/pkg/document"
	"difylb/pkg/lb"
	"difylb/pkg/route"
)

// largeDocument is the size that we promise: 10,000 applications, 50,000
// instances, 100,000 tokens.
func largeDocument(apps int) *lb.Document {
	doc := &lb.Document{Applications: make(map[string]*lb.Application)}
	for i := range apps {
		a := lb.NewApplication(fmt.Sprintf("app-%05d", i))
		for j := range 5 {
			in := lb.Instance{Name: fmt.Sprint("dify", j), Host: fmt.Sprintf("10.0.%d.%d", i%250, j), Port: 80, Token: lb.Secret(fmt.Sprintf("app-token-%d-%d", i, j))}
			in.SetDefaults()
			a.Instances = append(a.Instances, in)
		}
		for j := range 10 {
			a.UserTokens = append(a.UserTokens, lb.NewUserToken(lb.Secret(fmt.Sprintf("user-token-%d-%d", i, j)), "", false))
		}
		doc.Applications[a.Name] = a
	}
	return doc
}

func BenchmarkApply(b *testing.B) {
	for _, apps := range []int{1_000, 10_000} {
		b.Run(fmt.Sprint(apps, " applications"), func(b *testing.B) { benchmarkApply(b, apps) })
	}
}

func benchmarkApply(b *testing.B, apps int) {
	var table *route.Table
	f := newFixture(b, func(o *Options) { o.Table = func() *route.Table { return table } })
	doc := largeDocument(apps)
	apply := func(b *testing.B, o ApplyOptions) *ApplyResult {
		b.StopTimer()
		raw, err := document.MarshalJSON(doc, true)
		if err != nil {
			b.Fatal(err)
		}
		b.SetBytes(int64(len(raw)))
		b.StartTimer()
		res, err := f.admin.Apply(ctx, raw, o)
		b.StopTimer()
		if err != nil {
			b.Fatal(err)
		}
		if table, err = route.Build(f.store.Current(), table); err != nil {
			b.Fatal(err)
		}
		b.StartTimer()
		return res
	}
	start := time.Now()
	if res := apply(b, ApplyOptions{}); len(res.Created) != apps {
		b.Fatalf("%d created", len(res.Created))
	}
	b.Logf("%d applications created and compiled in %s", apps, time.Since(start))
	for _, dry := range []bool{false, true} {
		name := map[bool]string{false: "one changed", true: "one changed, dry run"}[dry]
		b.Run(name, func(b *testing.B) {
			for b.Loop() {
				a := doc.Applications["app-00007"]
				a.Instances[0].Weight = 1 + (a.Instances[0].Weight % 50)
				if res := apply(b, ApplyOptions{DryRun: dry}); len(res.Changed) != 1 || res.Moved["app-00007"] == 0 {
					b.Fatalf("%+v", res.Changed)
				}
			}
		})
	}
	b.Run("one instance patched", func(b *testing.B) {
		i := 0
		for b.Loop() {
			i++
			if _, err := f.admin.PatchInstance(ctx, "app-00007", "dify1", map[string]int{"weight": 1 + i%50}); err != nil {
				b.Fatal(err)
			}
		}
	})
}
