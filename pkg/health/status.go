package health

import (
	"fmt"
	"math/bits"
	"strconv"
	"strings"
)

const (
	minStatus = 100
	maxStatus = 599
)

// StatusRanges is a set of HTTP status codes. The zero value is empty. Comparable.
type StatusRanges struct {
	set [(maxStatus-minStatus)/64 + 1]uint64
}

// ParseStatusRanges reads codes and ranges of codes separated by commas, such as "200-299" or "200,204,301-302". White
// space around them is ignored. Codes lie between 100 and 599.
func ParseStatusRanges(s string) (StatusRanges, error) {
	var r StatusRanges
	for part := range strings.SplitSeq(s, ",") {
		first, last, isRange := strings.Cut(part, "-")
		lo, err := parseStatus(first)
		if err != nil {
			return StatusRanges{}, err
		}
		hi := lo
		if isRange {
			if hi, err = parseStatus(last); err != nil {
				return StatusRanges{}, err
			}
		}
		if hi < lo {
			return StatusRanges{}, fmt.Errorf("status range %q runs backwards", strings.TrimSpace(part))
		}
		for code := lo; code <= hi; code++ {
			r.set[(code-minStatus)/64] |= 1 << ((code - minStatus) % 64)
		}
	}
	return r, nil
}

func parseStatus(s string) (int, error) {
	s = strings.TrimSpace(s)
	code, err := strconv.Atoi(s)
	if err != nil || len(s) != 3 || code < minStatus || code > maxStatus {
		return 0, fmt.Errorf("%q is not a status code from %d to %d", s, minStatus, maxStatus)
	}
	return code, nil
}

// Contains reports whether code is in the set.
func (r StatusRanges) Contains(code int) bool {
	return code >= minStatus && code <= maxStatus && r.set[(code-minStatus)/64]&(1<<((code-minStatus)%64)) != 0
}

// Len returns how many codes are in the set.
func (r StatusRanges) Len() int {
	n := 0
	for _, word := range r.set {
		n += bits.OnesCount64(word)
	}
	return n
}

// String returns the set in the form that ParseStatusRanges reads, in order and as short as can be.
func (r StatusRanges) String() string {
	var parts []string
	for code := minStatus; code <= maxStatus; code++ {
		if !r.Contains(code) {
			continue
		}
		first := code
		for r.Contains(code + 1) {
			code++
		}
		if first == code {
			parts = append(parts, strconv.Itoa(first))
		} else {
			parts = append(parts, fmt.Sprintf("%d-%d", first, code))
		}
	}
	return strings.Join(parts, ",")
}
