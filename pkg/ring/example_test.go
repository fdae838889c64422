package ring_test

import (
	"fmt"

	"difylb/pkg/ring"
)

func ExampleRing_OwnerIn() {
	r, err := ring.New(ring.CRC32, 150, []ring.Member{{Name: "dify1", Weight: 1}, {Name: "dify2", Weight: 1}, {Name: "dify3", Weight: 1}})
	if err != nil {
		fmt.Println(err)
		return
	}
	p := r.Hasher("customer_service").Point("u2@example.com")
	fmt.Println("hash", r.Raw(p), "owner", r.Name(r.Owner(p)))

	ejected := r.Owner(p)
	next := r.OwnerIn(p, func(i int) bool { return i != ejected })
	fmt.Println("meanwhile", r.Name(next))

	w := r.Walk(p)
	for i, ok := w.Next(); ok; i, ok = w.Next() {
		fmt.Println("order", r.Name(i))
	}
	// Output:
	// hash -1733979733 owner dify2
	// meanwhile dify1
	// order dify2
	// order dify1
	// order dify3
}
