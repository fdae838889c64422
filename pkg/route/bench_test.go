package route

import (
	"fmt"
	"testing"

	"difylb/pkg/lb"
)

func big(apps, tokens, instances int) *lb.Snapshot {
	s := &lb.Snapshot{Revision: 1}
	for i := range apps {
		var toks, ins []string
		for j := range tokens {
			toks = append(toks, fmt.Sprintf("user-token-%d-%d", i, j))
		}
		for j := range instances {
			ins = append(ins, fmt.Sprintf("dify-%d", j))
		}
		s.Applications = append(s.Applications, app(fmt.Sprintf("app-%05d", i), toks, ins...))
	}
	return s
}

// BenchmarkBuild_Whole compiles 10,000 applications with 100,000 tokens and
// 50,000 instances from nothing.
func BenchmarkBuild_Whole(b *testing.B) {
	s := big(10_000, 10, 5)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Build(s, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBuild_OneInstance compiles the same size after one instance changed
// its weight.
func BenchmarkBuild_OneInstance(b *testing.B) {
	s := big(10_000, 10, 5)
	t, err := Build(s, nil)
	if err != nil {
		b.Fatal(err)
	}
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		next := *s
		next.Applications = append([]*lb.Application(nil), s.Applications...)
		a := s.Applications[n*7919%10_000].Clone()
		a.Instances[n%5].Weight = 1 + n%3
		next.Applications[n*7919%10_000] = a
		s = &next
		if t, err = Build(s, t); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkBuild_Application compiles one application of 100 instances.
func BenchmarkBuild_Application(b *testing.B) {
	s := big(1, 1, 100)
	b.ReportAllocs()
	for b.Loop() {
		if _, err := Build(s, nil); err != nil {
			b.Fatal(err)
		}
	}
}

// BenchmarkLookup is what a request costs here: token to application, user to
// instance.
func BenchmarkLookup(b *testing.B) {
	t, err := Build(big(1000, 10, 100), nil)
	if err != nil {
		b.Fatal(err)
	}
	var hashes []lb.TokenHash
	var users []string
	for i := range 4096 {
		hashes = append(hashes, lb.Secret(fmt.Sprintf("user-token-%d-%d", i*31%1000, i%10)).Hash())
		users = append(users, fmt.Sprintf("user-%d@example.com", i*7919))
	}
	conds := make([]Condition, 100)
	b.ReportAllocs()
	n := 0
	for b.Loop() {
		n++
		a, _ := t.ByToken(hashes[n&4095])
		if i, _ := a.Choose(a.Point(users[n&4095]), nil, func(i int) Condition { return conds[i] }); i < 0 {
			b.Fatal("nobody")
		}
	}
}
