package health

import (
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"strings"
	"testing"
)

// Scripts: one letter for each observation (s success, f failure, t token rejected, i inconclusive, R retest), and the
// health after each (? unknown, H healthy, U unhealthy, T token rejected).
func TestThreshold_Scripts(t *testing.T) {
	for _, tc := range []struct {
		name       string
		start      Health
		rise, fall int
		in, want   string
	}{
		{"first success", Unknown, 2, 3, "s", "H"},
		{"new and dead", Unknown, 2, 3, "ffff", "??UU"},
		{"new, late", Unknown, 2, 3, "ffs", "??H"},
		{"new, wrong token", Unknown, 2, 3, "ttt", "??T"},
		{"fall", Healthy, 2, 3, "fff", "HHU"},
		{"rise", Unhealthy, 2, 3, "ss", "UH"},
		{"rise from wrong token", TokenRejected, 2, 3, "ss", "TH"},
		{"one success resets", Healthy, 2, 3, "ffsffsfff", "HHHHHHHHU"},
		{"one failure resets", Unhealthy, 3, 3, "ssfssfsss", "UUUUUUUUH"},
		{"mixed, last one names it", Healthy, 2, 3, "ftf", "HHU"},
		{"mixed, last one names it 2", Healthy, 2, 3, "fft", "HHT"},
		{"out, other kind needs a run of its own", Unhealthy, 2, 3, "ttfttt", "UUUUUT"},
		{"out, other kind needs a run of its own 2", TokenRejected, 2, 3, "fftfff", "TTTTTU"},
		{"out, kinds in turn", Unhealthy, 2, 2, "tftftf", "UUUUUU"},
		{"inconclusive counts nowhere", Healthy, 2, 2, "fiiif", "HHHHU"},
		{"inconclusive is no success", Unhealthy, 2, 2, "siiis", "UUUUH"},
		{"inconclusive leaves unknown", Unknown, 1, 1, "iii", "???"},
		{"thresholds below 1", Healthy, 0, -1, "fs", "UH"},
		{"retest keeps healthy until disproved", Healthy, 2, 3, "ffRfff", "HHHHHU"},
		{"retest: one success is enough", Unhealthy, 2, 3, "Rs", "UH"},
		{"retest: one success is enough, also late", TokenRejected, 3, 3, "Rfts", "TTTH"},
		{"retest: that was once", Unhealthy, 2, 1, "Rsfs", "UHUU"},
		{"retest: a verdict of its own ends it", TokenRejected, 2, 2, "Rffs", "TTUU"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			var th Threshold
			th.Restore(tc.start)
			got := ""
			for _, c := range tc.in {
				before := th.Health()
				changed := false
				if c == 'R' {
					th.Retest()
				} else {
					changed = th.Observe(map[rune]Outcome{'s': Success, 'f': Failure, 't': Rejection, 'i': Inconclusive}[c], tc.rise, tc.fall)
				}
				if changed != (th.Health() != before) {
					t.Errorf("after %q: changed = %v from %s to %s", got, changed, before, th.Health())
				}
				got += map[Health]string{Unknown: "?", Healthy: "H", Unhealthy: "U", TokenRejected: "T"}[th.Health()]
			}
			if want := strings.ReplaceAll(tc.want, " ", ""); got != want {
				t.Errorf("%s from %s: %s, want %s", tc.in, tc.start, got, want)
			}
		})
	}
}

func TestThreshold_ZeroValueIsUnknown(t *testing.T) {
	var th Threshold
	if th.Health() != Unknown || !th.Health().Usable() || !Health("").Usable() {
		t.Error("unknown must be usable")
	}
	if Unhealthy.Usable() || TokenRejected.Usable() || !Healthy.Usable() {
		t.Error("usable is wrong")
	}
}

func TestThreshold_FlappingNeverFlips(t *testing.T) {
	for _, start := range []Health{Healthy, Unhealthy, TokenRejected} {
		for _, bad := range []Outcome{Failure, Rejection} {
			var th Threshold
			th.Restore(start)
			for i := range 1000 {
				o := Success
				if i%2 == 1 {
					o = bad
				}
				if th.Observe(o, 2, 3) {
					t.Fatalf("%s flipped to %s on observation %d", start, th.Health(), i)
				}
			}
		}
	}
}

// Whatever comes, a change to Healthy ends rise successes, and a change away from it fall observations without one.
func TestThreshold_ChangesAreEarned(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 1))
	for range 2000 {
		rise, fall := 1+rng.IntN(4), 1+rng.IntN(4)
		var th Threshold
		th.Restore([]Health{Unknown, Healthy, Unhealthy, TokenRejected}[rng.IntN(4)])
		var past []Outcome
		for range 60 {
			o := Outcome(rng.IntN(4))
			if o != Inconclusive {
				past = append(past, o)
			}
			before := th.Health()
			if !th.Observe(o, rise, fall) {
				continue
			}
			need, of := fall, []Outcome{Failure, Rejection}
			switch {
			case th.Health() == Healthy && before == Unknown:
				need, of = 1, []Outcome{Success}
			case th.Health() == Healthy:
				need, of = rise, []Outcome{Success}
			case !before.Usable():
				of = []Outcome{o}
			}
			if len(past) < need {
				t.Fatalf("%s to %s after %v, rise %d, fall %d", before, th.Health(), past, rise, fall)
			}
			for _, p := range past[len(past)-need:] {
				if p != of[0] && p != of[len(of)-1] {
					t.Fatalf("%s to %s after %v, rise %d, fall %d", before, th.Health(), past, rise, fall)
				}
			}
		}
	}
}

func TestToken_NeverShowsItself(t *testing.T) {
	const secret = "app-very-secret"
	tg := Target{App: "a", Token: secret}
	js, err := json.Marshal(tg)
	if err != nil {
		t.Fatal(err)
	}
	printed := string(js) + tg.Token.String()
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d", "%t"} {
		printed += fmt.Sprintf(verb+verb, tg, tg.Token)
	}
	for _, form := range []string{secret, fmt.Sprintf("%x", secret)} {
		if strings.Contains(printed, form) {
			t.Errorf("the token shows in %s", printed)
		}
	}
	if tg.Token.Reveal() != secret {
		t.Error("Reveal must give the secret")
	}
}
