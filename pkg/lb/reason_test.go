package lb

import "testing"

func TestReason_TableIsComplete(t *testing.T) {
	seen := make(map[string]bool)
	for r := Reason(0); r < NumReasons; r++ {
		if r.String() == "" || r.Status() == 0 || seen[r.String()] {
			t.Errorf("reason %d: label %q, status %d", r, r, r.Status())
		}
		seen[r.String()] = true
		if back, ok := ParseReason(r.String()); !ok || back != r {
			t.Errorf("%q parses as %v", r.String(), back)
		}
		if r.Status() == 502 && r.Code() != "bad_gateway" {
			t.Errorf("%v: 502 with code %q", r, r.Code())
		}
	}
	if Reason(NumReasons).String() != "unknown" {
		t.Error("an unknown reason has no label")
	}
}
