package cluster

import (
	"maps"
	"slices"
	"strconv"

	"difylb/pkg/stats"
	pb "difylb/proto"
)

// UsageStatus is what answers have cost. It is immutable.
type UsageStatus struct {
	PromptTokens     uint64 `json:"prompt_tokens"`     // of questions, as the instances said it
	CompletionTokens uint64 `json:"completion_tokens"` // of answers, as the instances said it
	TotalTokens      uint64 `json:"total_tokens"`      // of both, as the instances said it; of workflows all that they say
	Answers          uint64 `json:"answers"`           // answers that told their usage
	// Cost is by currency, as a decimal number without exponent: exact, which
	// a JSON number need not be for its reader.
	Cost map[string]string `json:"cost"`
	// Unpriced is how many costs are not part of Cost, because their currency
	// was one too many or had no proper name.
	Unpriced uint64 `json:"unpriced,omitempty"`
}

// LabelStatus is the user tokens of one label. It is immutable.
type LabelStatus struct {
	Requests uint64       `json:"requests"`        // begun, ever
	Usage    *UsageStatus `json:"usage,omitempty"` // nil: none
}

// usageStatus returns nil when there is nothing to show.
func usageStatus(u *stats.Usage) *UsageStatus {
	if u.IsZero() {
		return nil
	}
	s := &UsageStatus{
		PromptTokens: u.Prompt, CompletionTokens: u.Completion, TotalTokens: u.Total,
		Answers: u.Answers, Unpriced: u.Unpriced, Cost: make(map[string]string, len(u.Costs)),
	}
	for _, c := range u.Costs {
		s.Cost[c.Currency] = string(stats.AppendNano(nil, c.Nano))
	}
	return s
}

// counts is the way back from usageStatus.
func (s *UsageStatus) counts() stats.Usage {
	if s == nil {
		return stats.Usage{}
	}
	u := stats.Usage{Prompt: s.PromptTokens, Completion: s.CompletionTokens, Total: s.TotalTokens, Answers: s.Answers, Unpriced: s.Unpriced}
	for currency, amount := range s.Cost {
		if nano, ok := stats.ParseNano([]byte(amount)); ok {
			u.AddCost(stats.Cost{Currency: currency, Nano: nano})
		}
	}
	return u
}

// plus returns the sum.
func (s *UsageStatus) plus(u *stats.Usage) *UsageStatus {
	sum := s.counts()
	sum.Add(u)
	return usageStatus(&sum)
}

// raised returns s with every figure lifted to at least old's.
func (s *UsageStatus) raised(old *UsageStatus) *UsageStatus {
	if old == nil || s.equal(old) {
		return s
	}
	if s == nil {
		return old
	}
	now, floor := s.counts(), old.counts()
	now.Max(&floor)
	return usageStatus(&now)
}

func (s *UsageStatus) equal(o *UsageStatus) bool {
	if s == nil || o == nil {
		return s == o
	}
	return s.PromptTokens == o.PromptTokens && s.CompletionTokens == o.CompletionTokens && s.TotalTokens == o.TotalTokens &&
		s.Answers == o.Answers && s.Unpriced == o.Unpriced && maps.Equal(s.Cost, o.Cost)
}

// raised is UsageStatus.raised for a label.
func (s *LabelStatus) raised(old *LabelStatus) *LabelStatus {
	if old == nil || s == old {
		return s
	}
	return &LabelStatus{Requests: max(s.Requests, old.Requests), Usage: s.Usage.raised(old.Usage)}
}

func (s *LabelStatus) equal(o *LabelStatus) bool {
	return s.Requests == o.Requests && s.Usage.equal(o.Usage)
}

// appendUsage writes the member "usage", nothing when there is none.
func appendUsage(b []byte, s *UsageStatus) []byte {
	if s == nil {
		return b
	}
	b = append(b, `,"usage":{"prompt_tokens":`...)
	b = strconv.AppendUint(b, s.PromptTokens, 10)
	b = append(b, `,"completion_tokens":`...)
	b = strconv.AppendUint(b, s.CompletionTokens, 10)
	b = append(b, `,"total_tokens":`...)
	b = strconv.AppendUint(b, s.TotalTokens, 10)
	b = append(b, `,"answers":`...)
	b = strconv.AppendUint(b, s.Answers, 10)
	b = append(b, `,"cost":{`...)
	for i, currency := range sortedNames(s.Cost) {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, currency)
		b = append(b, ':')
		b = appendString(b, s.Cost[currency])
	}
	b = append(b, '}')
	if s.Unpriced > 0 {
		b = append(b, `,"unpriced":`...)
		b = strconv.AppendUint(b, s.Unpriced, 10)
	}
	return append(b, '}')
}

// appendLabels writes the member "token_labels", nothing when there are none.
func appendLabels(b []byte, labels map[string]*LabelStatus) []byte {
	if len(labels) == 0 {
		return b
	}
	b = append(b, `,"token_labels":{`...)
	for i, name := range sortedNames(labels) {
		if i > 0 {
			b = append(b, ',')
		}
		b = appendString(b, name)
		b = append(b, `:{"requests":`...)
		b = strconv.AppendUint(b, labels[name].Requests, 10)
		b = appendUsage(b, labels[name].Usage)
		b = append(b, '}')
	}
	return append(b, '}')
}

// usageToWire returns nil for nothing.
func usageToWire(u *stats.Usage) *pb.Usage {
	if u.IsZero() {
		return nil
	}
	w := &pb.Usage{
		PromptTokens: u.Prompt, CompletionTokens: u.Completion, TotalTokens: u.Total,
		Answers: u.Answers, Unpriced: u.Unpriced,
	}
	for _, c := range u.Costs {
		w.Costs = append(w.Costs, &pb.Cost{Currency: c.Currency, Nano: c.Nano})
	}
	return w
}

// usageFromWire reads foreign figures; what it returns is within the bounds
// of a stats.Usage.
func usageFromWire(w *pb.Usage) stats.Usage {
	var u stats.Usage
	if w == nil {
		return u
	}
	for _, c := range w.GetCosts() {
		u.AddCost(stats.Cost{Currency: c.GetCurrency(), Nano: c.GetNano()})
	}
	u.Max(&stats.Usage{
		Prompt: w.GetPromptTokens(), Completion: w.GetCompletionTokens(), Total: w.GetTotalTokens(),
		Answers: w.GetAnswers(), Unpriced: w.GetUnpriced(),
	})
	return u
}

func usageStatusToWire(s *UsageStatus) *pb.Usage {
	u := s.counts()
	return usageToWire(&u)
}

func usageStatusFromWire(w *pb.Usage) *UsageStatus {
	u := usageFromWire(w)
	return usageStatus(&u)
}

func labelToWire(app, label string, s *LabelStatus) *pb.LabelStatus {
	return &pb.LabelStatus{App: app, Label: label, Requests: s.Requests, Usage: usageStatusToWire(s.Usage)}
}

func labelFromWire(w *pb.LabelStatus) *LabelStatus {
	return &LabelStatus{Requests: w.GetRequests(), Usage: usageStatusFromWire(w.GetUsage())}
}

// labelView is one label in a view. It is immutable.
type labelView struct {
	status  *LabelStatus
	wire    *pb.LabelStatus
	version uint64 // of the view in which it became what it is
}

// labels brings an application's labels up to date. They are shown once the
// application has any usage: without it the document is that of a cluster
// which knows of none. h.mu is held.
func (h *Hub) labels(app string, a *ApplicationStatus, old map[string]*labelView) map[string]*labelView {
	names := h.ledger.labels[app]
	if a.Usage == nil || len(names) == 0 {
		return nil
	}
	views := make(map[string]*labelView, len(names))
	a.TokenLabels = make(map[string]*LabelStatus, len(names))
	for _, name := range names {
		var t stats.Totals
		h.ledger.sum(stats.LabelKey(app, name), &t)
		s := &LabelStatus{Requests: t.Requests, Usage: usageStatus(&t.Usage)}
		v := old[name]
		if v != nil {
			s = s.raised(v.status)
		}
		if v == nil || !s.equal(v.status) {
			v = &labelView{status: s, wire: labelToWire(app, name, s), version: h.version}
		}
		views[name], a.TokenLabels[name] = v, v.status
	}
	return views
}

// takeLabels merges the labels of an update; fresh are the applications whose
// shown state has been made by this update and may still be changed.
func (d *document) takeLabels(labels []*pb.LabelStatus, fresh map[string]bool, own *stats.Registry) {
	for _, w := range labels {
		app, label := d.apps[w.GetApp()], w.GetLabel()
		if app == nil || app.shown == nil {
			continue
		}
		if !fresh[w.GetApp()] {
			shown := *app.shown
			shown.TokenLabels = maps.Clone(shown.TokenLabels)
			app.shown, fresh[w.GetApp()] = &shown, true
		}
		if app.shown.TokenLabels == nil {
			app.shown.TokenLabels = make(map[string]*LabelStatus)
		}
		said := labelFromWire(w).raised(app.shown.TokenLabels[label])
		app.shown.TokenLabels[label] = said
		if app.labels == nil {
			app.labels = make(map[string]knownLabel)
		}
		t, _ := own.Totals(stats.LabelKey(w.GetApp(), label))
		app.labels[label] = knownLabel{said, countsOf(&t)}
	}
}

// ownLabels returns an application's labels as this proxy can tell them alone.
func (known *shownApp) ownLabels(app string, r *stats.Registry) map[string]*LabelStatus {
	out := make(map[string]*LabelStatus)
	for _, name := range slices.Concat(sortedNames(known.labels), r.Labels(app)) {
		if out[name] != nil {
			continue
		}
		t, _ := r.Totals(stats.LabelKey(app, name))
		before := known.labels[name]
		since := countsOf(&t).less(before.own)
		s := &LabelStatus{}
		if before.cluster != nil {
			*s = *before.cluster
		}
		s.Requests += since.requests
		s.Usage = s.Usage.plus(&since.usage)
		if s.Requests > 0 || s.Usage != nil { // otherwise a label that has only been declared
			out[name] = s
		}
	}
	return out
}
