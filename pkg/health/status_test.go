package health

import "testing"

func TestStatusRanges_Parse(t *testing.T) {
	for _, tc := range []struct {
		in, out  string
		yes, not []int
	}{
		{"200-299", "200-299", []int{200, 204, 299}, []int{199, 300, 0, -1, 1000}},
		{"200,204,301-302", "200,204,301-302", []int{200, 204, 301, 302}, []int{201, 303}},
		{" 404 , 200 - 201 ", "200-201,404", []int{200, 201, 404}, []int{202}},
		{"100-599", "100-599", []int{100, 599}, []int{99, 600}},
		{"200,201,201,202", "200-202", []int{200, 201, 202}, nil},
		{"599", "599", []int{599}, []int{598}},
	} {
		r, err := ParseStatusRanges(tc.in)
		if err != nil || r.String() != tc.out {
			t.Errorf("%q: %v, %v; want %s", tc.in, r, err, tc.out)
		}
		for _, code := range tc.yes {
			if !r.Contains(code) {
				t.Errorf("%q does not contain %d", tc.in, code)
			}
		}
		for _, code := range tc.not {
			if r.Contains(code) {
				t.Errorf("%q contains %d", tc.in, code)
			}
		}
	}
	for _, in := range []string{"", " ", ",", "200,", "-", "200-", "-200", "299-200", "2xx", "20", "0200", "99", "600", "200-600", "200-250-299", "+20", "200;201"} {
		if r, err := ParseStatusRanges(in); err == nil {
			t.Errorf("%q is accepted as %v", in, r)
		}
	}
}

func FuzzParseStatusRanges(f *testing.F) {
	for _, s := range []string{"200-299", "200,204,301-302", "", "100-599", "299-200", " 404 , 200 - 201 "} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		r, err := ParseStatusRanges(s)
		if err != nil {
			if r != (StatusRanges{}) {
				t.Fatal("an error and a set")
			}
			return
		}
		n := 0
		for code := -1000; code < 2000; code++ {
			if r.Contains(code) {
				n++
			}
		}
		if n == 0 || n != r.Len() {
			t.Fatalf("%d codes, Len %d", n, r.Len())
		}
		if again, err := ParseStatusRanges(r.String()); err != nil || again != r {
			t.Fatalf("%q reads back as %v, %v", r, again, err)
		}
	})
}
