package dify

import (
	"cmp"
	"math"
	"slices"
	"strconv"
)

// MaxCurrencies is how many currencies one Usage can hold. Each instance names its own, so the number must be bounded.
const MaxCurrencies = 8

// MaxCurrencyLength bounds the name of a currency in bytes.
const MaxCurrencyLength = 8

// Cost is an amount of money.
type Cost struct {
	Currency string
	Nano     int64 // billionths of the currency's unit: exact, as Dify rounds prices to seven decimals
}

// Usage is what runs have cost in tokens and money, of one answer or, added up, of many. The zero value is nothing.
// Two of them are equal (==) if they say the same. Not safe for concurrent use.
//
// No figure is negative, and sums stop at the largest int64 instead of going backwards.
type Usage struct {
	Prompt     int64 // tokens
	Completion int64 // tokens
	Total      int64 // tokens; more than the sum of the two where an answer tells nothing but its total

	// Unpriced counts the costs that were left out because MaxCurrencies others were there before.
	Unpriced int64

	costs [MaxCurrencies]Cost // the first n, by currency
	n     int
}

// Add adds other to u.
func (u *Usage) Add(other *Usage) {
	u.Prompt = saturatingSum(u.Prompt, other.Prompt)
	u.Completion = saturatingSum(u.Completion, other.Completion)
	u.Total = saturatingSum(u.Total, other.Total)
	u.Unpriced = saturatingSum(u.Unpriced, other.Unpriced)
	for _, c := range other.costs[:other.n] {
		u.AddCost(c)
	}
}

// AddCost adds an amount. One that is not positive, has no currency, or one of more than MaxCurrencyLength bytes is
// left out; that of a ninth currency is left out and counted in Unpriced.
func (u *Usage) AddCost(c Cost) {
	if c.Nano <= 0 || c.Currency == "" || len(c.Currency) > MaxCurrencyLength {
		return
	}
	i, found := slices.BinarySearchFunc(u.costs[:u.n], c.Currency, func(have Cost, want string) int {
		return cmp.Compare(have.Currency, want)
	})
	switch {
	case found:
		u.costs[i].Nano = saturatingSum(u.costs[i].Nano, c.Nano)
	case u.n == MaxCurrencies:
		u.Unpriced = saturatingSum(u.Unpriced, 1)
	default:
		copy(u.costs[i+1:], u.costs[i:u.n])
		u.costs[i] = c
		u.n++
	}
}

// Costs returns the amounts, one for each currency, in the order of their names. The slice is the caller's to keep.
func (u *Usage) Costs() []Cost {
	return slices.Clone(u.costs[:u.n])
}

// IsZero says that there is nothing to add.
func (u *Usage) IsZero() bool {
	return *u == Usage{}
}

func saturatingSum(a, b int64) int64 {
	if a > math.MaxInt64-b {
		return math.MaxInt64
	}
	return a + b
}

// ParseNano reads a decimal number, as Dify writes prices: "0.0011450", but also "1E-7", for so Python prints a small
// one. It returns billionths, what is less rounded half up, and false for anything else, a negative number, and one
// that does not fit an int64.
func ParseNano(text []byte) (int64, bool) {
	const places = 9
	digits, fraction, exponent, ok := decimalParts(text)
	if !ok {
		return 0, false
	}
	// The digit at index i of all digits, n of them, stands for billionths times ten to the power of power-i.
	n := 0
	for _, c := range digits {
		if c != '.' {
			n++
		}
	}
	power := n - 1 - fraction + exponent + places
	var sum int64
	for _, c := range digits {
		if c == '.' {
			continue
		}
		d := int64(c - '0')
		if power < 0 {
			// Digits behind the first one dropped cannot change a half up.
			if power == -1 && d >= 5 {
				if sum == math.MaxInt64 {
					return 0, false
				}
				sum++
			}
			return sum, true
		}
		if sum > (math.MaxInt64-d)/10 {
			return 0, false
		}
		sum = sum*10 + d
		power--
	}
	for ; power >= 0 && sum != 0; power-- {
		if sum > math.MaxInt64/10 {
			return 0, false
		}
		sum *= 10
	}
	return sum, true
}

// decimalParts splits a number into its digits with the point, how many of them are behind the point, and the exponent.
func decimalParts(text []byte) (digits []byte, fraction, exponent int, ok bool) {
	// Far beyond what can matter, and far from overflowing.
	const maxExponent = 1 << 20
	i, point, count := 0, -1, 0
	for ; i < len(text); i++ {
		c := text[i]
		if c == '.' && point < 0 {
			point = i
		} else if c >= '0' && c <= '9' {
			count++
		} else {
			break
		}
	}
	if count == 0 {
		return nil, 0, 0, false
	}
	digits = text[:i]
	if point >= 0 {
		fraction = i - point - 1
	}
	if i == len(text) {
		return digits, fraction, 0, true
	}
	if text[i]|0x20 != 'e' {
		return nil, 0, 0, false
	}
	text = text[i+1:]
	negative := false
	if len(text) > 0 && (text[0] == '+' || text[0] == '-') {
		negative = text[0] == '-'
		text = text[1:]
	}
	if len(text) == 0 {
		return nil, 0, 0, false
	}
	for _, c := range text {
		if c < '0' || c > '9' {
			return nil, 0, 0, false
		}
		exponent = min(exponent*10+int(c-'0'), maxExponent)
	}
	if negative {
		exponent = -exponent
	}
	return digits, fraction, exponent, true
}

// FormatNano writes billionths as a decimal number without exponent and trailing zeros, such as "0.001145".
func FormatNano(nano int64) string {
	const unit = 1_000_000_000
	sign := ""
	magnitude := uint64(nano)
	if nano < 0 {
		sign, magnitude = "-", -magnitude
	}
	text := sign + strconv.FormatUint(magnitude/unit, 10)
	rest := magnitude % unit
	if rest == 0 {
		return text
	}
	decimals := strconv.FormatUint(unit+rest, 10)[1:]
	for decimals[len(decimals)-1] == '0' {
		decimals = decimals[:len(decimals)-1]
	}
	return text + "." + decimals
}
