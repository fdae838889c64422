package dify

import (
	"fmt"
	"math"
	"math/big"
	"math/rand/v2"
	"regexp"
	"slices"
	"testing"
)

func TestParseNano_Values(t *testing.T) {
	for _, c := range []struct {
		text string
		want int64
		ok   bool
	}{
		{"0", 0, true},
		{"0E-7", 0, true},
		{"0E+99999999999999999999", 0, true},
		{"1E-7", 100, true},
		{"1e3", 1000e9, true},
		{"1.5E+2", 150e9, true},
		{"0.0013030", 1303000, true},
		{"2.378", 2378000000, true},
		{"000012", 12e9, true},
		{".5", 5e8, true},
		{"5.", 5e9, true},
		{"0.0000000004", 0, true},
		{"0.0000000005", 1, true},
		{"0.00000000049999", 0, true},
		{"0.9999999999", 1e9, true},
		{"1E-99999999999999999999", 0, true},
		{"9223372036.854775807", math.MaxInt64, true},
		{"9223372036.8547758074", math.MaxInt64, true},
		{"9223372036.8547758075", 0, false},
		{"9223372036.854775808", 0, false},
		{"1E+30", 0, false},
		{"1E+99999999999999999999", 0, false},
		{"", 0, false},
		{".", 0, false},
		{"-1", 0, false},
		{"+1", 0, false},
		{"1.2.3", 0, false},
		{"1e", 0, false},
		{"1e+", 0, false},
		{"1e1.5", 0, false},
		{"1 ", 0, false},
		{"NaN", 0, false},
		{"Infinity", 0, false},
		{"0x10", 0, false},
		{"null", 0, false},
	} {
		if got, ok := ParseNano([]byte(c.text)); got != c.want || ok != c.ok {
			t.Errorf("%q: got %d %v, want %d %v", c.text, got, ok, c.want, c.ok)
		}
	}
}

var decimal = regexp.MustCompile(`^([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]{1,3})?$`)

func FuzzParseNano(f *testing.F) {
	for _, s := range []string{"0.0013030", "1E-7", "0E-7", "9223372036.8547758075", "12345678901234567890e-12", ".5", "-1", "1e"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, text string) {
		got, ok := ParseNano([]byte(text))
		if !decimal.MatchString(text) {
			return
		}
		exact, valid := new(big.Rat).SetString(text)
		if !valid {
			t.Fatalf("%q is no number to math/big", text)
		}
		exact.Mul(exact, big.NewRat(1e9, 1))
		exact.Add(exact, big.NewRat(1, 2))
		want := new(big.Int).Quo(exact.Num(), exact.Denom())
		if ok != want.IsInt64() || ok && got != want.Int64() {
			t.Fatalf("%q: got %d %v, want %v", text, got, ok, want)
		}
		if ok {
			if again, ok := ParseNano([]byte(FormatNano(got))); !ok || again != got {
				t.Fatalf("%d is written %q and read %d", got, FormatNano(got), again)
			}
		}
	})
}

func TestFormatNano_Values(t *testing.T) {
	for nano, want := range map[int64]string{
		0: "0", 1: "0.000000001", 1303000: "0.001303", 1e9: "1", 2378000000: "2.378", -5e8: "-0.5",
		math.MaxInt64: "9223372036.854775807", math.MinInt64: "-9223372036.854775808",
	} {
		if got := FormatNano(nano); got != want {
			t.Errorf("%d: got %q, want %q", nano, got, want)
		}
	}
}

func TestUsage_AddIsExactInAnyOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	currencies := []string{"USD", "RMB", "EUR", "JPY", "CHF", "GBP", "SEK", "INR"}
	var parts []Usage
	want := map[string]int64{}
	var tokens int64
	for range 200 {
		u := Usage{Prompt: rng.Int64N(1000), Completion: rng.Int64N(1000)}
		u.Total = u.Prompt + u.Completion
		tokens += u.Total
		c := Cost{currencies[rng.IntN(len(currencies))], 1 + rng.Int64N(1e12)}
		u.AddCost(c)
		want[c.Currency] += c.Nano
		parts = append(parts, u)
	}
	sum := func() (s Usage) {
		for i := range parts {
			s.Add(&parts[i])
		}
		return s
	}
	first := sum()
	rng.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
	if second := sum(); first != second {
		t.Errorf("the order of adding shows:\n%+v\n%+v", first, second)
	}
	if first.Total != tokens || first.Prompt+first.Completion != tokens || first.Unpriced != 0 {
		t.Errorf("got %+v, want %d tokens", first, tokens)
	}
	costs := first.Costs()
	if len(costs) != len(want) || !slices.IsSortedFunc(costs, func(a, b Cost) int { return cmpString(a.Currency, b.Currency) }) {
		t.Errorf("costs %v", costs)
	}
	for _, c := range costs {
		if want[c.Currency] != c.Nano {
			t.Errorf("%s: got %d, want %d", c.Currency, c.Nano, want[c.Currency])
		}
	}
	if first.IsZero() || !(&Usage{}).IsZero() {
		t.Error("IsZero")
	}
}

func cmpString(a, b string) int {
	switch {
	case a < b:
		return -1
	case a > b:
		return 1
	}
	return 0
}

func TestUsage_IsBounded(t *testing.T) {
	var u Usage
	for i := range MaxCurrencies + 3 {
		u.AddCost(Cost{fmt.Sprintf("C%02d", 90-i), 7})
	}
	if len(u.Costs()) != MaxCurrencies || u.Unpriced != 3 {
		t.Errorf("%d currencies, %d unpriced", len(u.Costs()), u.Unpriced)
	}
	before := u
	for _, c := range []Cost{{"", 5}, {"USD", 0}, {"USD", -5}, {"123456789", 5}} {
		u.AddCost(c)
	}
	if u != before {
		t.Errorf("took what is no cost: %v", u.Costs())
	}
	u.AddCost(Cost{"C90", math.MaxInt64})
	u.Add(&Usage{Prompt: math.MaxInt64, Completion: 1, Total: math.MaxInt64})
	u.Add(&Usage{Prompt: 1, Completion: 1, Total: math.MaxInt64})
	if u.Prompt != math.MaxInt64 || u.Completion != 2 || u.Total != math.MaxInt64 {
		t.Errorf("a sum went backwards: %+v", u)
	}
	if c := u.Costs()[MaxCurrencies-1]; c != (Cost{"C90", math.MaxInt64}) {
		t.Errorf("a cost went backwards: %v", c)
	}
}

func TestUsage_CostsIsACopy(t *testing.T) {
	var u Usage
	u.AddCost(Cost{"USD", 1})
	u.Costs()[0].Nano = 5
	if u.Costs()[0].Nano != 1 {
		t.Error("the slice is shared")
	}
}
