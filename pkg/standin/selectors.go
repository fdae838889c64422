package standin

import (
	"encoding/json"
	"strings"
	"time"
)

// selectors say how one request is to be answered. They start as the server's
// options, are changed by what the client asks for, and last by faults in force.
type selectors struct {
	Tokens     int    `json:"tokens"`
	TokenBytes int    `json:"token_bytes"`
	FirstMS    int    `json:"first_ms"`
	GapMS      int    `json:"gap_ms"`
	PingMS     int    `json:"ping_ms"`
	DelayMS    int    `json:"delay_ms"`
	Answer     string `json:"answer"`
	Reject     string `json:"reject"`
	Error      string `json:"error"`
	ErrorAfter int    `json:"error_after"`
	Fail       bool   `json:"fail"`
	Pause      bool   `json:"pause"`
	PingOnly   bool   `json:"ping_only"`
	ResetAfter int    `json:"reset_after"`
	CutAfter   int    `json:"cut_after"`

	firstToken, tokenGap, ping time.Duration // of the options; finer than the milliseconds above
}

const (
	maxTokens     = 100_000
	maxTokenBytes = 1 << 20
	maxMS         = 20 * 60 * 1000
)

func (o Options) selectors() selectors {
	return selectors{Tokens: o.Tokens, FirstMS: -1, GapMS: -1, firstToken: o.FirstToken, tokenGap: o.TokenGap, ping: o.PingInterval}
}

func (sel selectors) first() time.Duration {
	if sel.FirstMS >= 0 {
		return milliseconds(sel.FirstMS)
	}
	return sel.firstToken
}

func (sel selectors) gap() time.Duration {
	if sel.GapMS >= 0 {
		return milliseconds(sel.GapMS)
	}
	return sel.tokenGap
}

func (sel selectors) pingInterval() time.Duration {
	if sel.PingMS > 0 {
		return milliseconds(sel.PingMS)
	}
	return sel.ping
}

func milliseconds(n int) time.Duration { return time.Duration(n) * time.Millisecond }

const selectorKey = "_standin"

// read takes what a client asks for. Anything of the wrong type is left out, as a
// real instance would leave all of it out.
func (sel *selectors) read(inputs map[string]any, query string) {
	if m, ok := inputs[selectorKey].(map[string]any); ok {
		for k, v := range m {
			sel.set(k, v)
		}
	}
	if _, words, ok := strings.Cut(query, "#standin "); ok {
		line, _, _ := strings.Cut(words, "\n")
		for _, word := range strings.Fields(line) {
			if k, v, ok := strings.Cut(word, "="); ok {
				var value any = v
				if json.Valid([]byte(v)) {
					value = json.RawMessage(v)
				}
				sel.set(k, value)
			}
		}
	}
	sel.Tokens = clamp(sel.Tokens, 1, maxTokens)
	sel.TokenBytes = clamp(sel.TokenBytes, 0, maxTokenBytes)
	sel.ErrorAfter = clamp(sel.ErrorAfter, 0, maxTokens)
	for _, ms := range []*int{&sel.FirstMS, &sel.GapMS, &sel.PingMS, &sel.DelayMS} {
		*ms = clamp(*ms, -1, maxMS)
	}
}

// set changes one field by its JSON name; a value that does not fit changes nothing.
func (sel *selectors) set(name string, value any) {
	one, err := json.Marshal(map[string]any{name: value})
	if err != nil {
		return
	}
	changed := *sel
	if json.Unmarshal(one, &changed) == nil {
		*sel = changed
	}
}

func clamp(n, low, high int) int { return min(max(n, low), high) }

// withoutSelectors returns the inputs a real app would see.
func withoutSelectors(inputs map[string]any) map[string]any {
	out := make(map[string]any, len(inputs))
	for k, v := range inputs {
		if k != selectorKey {
			out[k] = v
		}
	}
	return out
}
