package dify

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"math"
	"strconv"
)

// finding is everything a Watcher tells of an answer.
type finding struct {
	Seen          Seen
	Events, Pings int64
	Ended         bool
	Failed        bool
	StreamCode    string
	ErrorCode     string
	IDs           foundIDs
	Counted       bool
	Usage         Usage
}

// foundIDs are IDs that outlive their Watcher.
type foundIDs struct{ Task, Conversation, File string }

func findingOf(w *Watcher, seen Seen) (f finding) {
	f.Seen = seen
	f.Events, f.Pings, f.Ended = w.Events(), w.Pings(), w.Ended()
	f.StreamCode, f.Failed = w.StreamError()
	f.ErrorCode = w.ErrorCode()
	ids := w.IDs()
	f.IDs = foundIDs{string(ids.Task), string(ids.Conversation), string(ids.File)}
	f.Usage, f.Counted = w.Usage()
	return f
}

// pair is a member of a JSON object. Values are pairs in their order (objects), []any, string, json.Number, bool, nil.
type pair struct {
	name  string
	value any
}

type object []pair

// parse reads one JSON document with encoding/json, which forgets nothing that is repeated.
func parse(text []byte) (any, bool) {
	if !json.Valid(text) {
		return nil, false
	}
	dec := json.NewDecoder(bytes.NewReader(text))
	dec.UseNumber()
	var value func() (any, error)
	value = func() (any, error) {
		tok, err := dec.Token()
		if err != nil {
			return nil, err
		}
		switch tok {
		case json.Delim('{'):
			obj := object{}
			for dec.More() {
				name, err := dec.Token()
				if err != nil {
					return nil, err
				}
				v, err := value()
				if err != nil {
					return nil, err
				}
				obj = append(obj, pair{name.(string), v})
			}
			_, err := dec.Token()
			return obj, err
		case json.Delim('['):
			for dec.More() {
				if _, err := value(); err != nil {
					return nil, err
				}
			}
			_, err := dec.Token()
			return []any{}, err
		}
		return tok, nil
	}
	v, err := value()
	if err != nil {
		return nil, false
	}
	if _, err := dec.Token(); !errors.Is(err, io.EOF) {
		return nil, false
	}
	return v, true
}

func usableString(v any) (string, bool) {
	s, ok := v.(string)
	if !ok || s == "" || len(s) > 64 {
		return "", false
	}
	for i := range len(s) {
		if s[i] <= ' ' || s[i] > '~' {
			return "", false
		}
	}
	return s, true
}

func usableCount(v any) (int64, bool) {
	number, ok := v.(json.Number)
	if !ok || len(number) > 64 {
		return 0, false
	}
	n, err := strconv.ParseUint(string(number), 10, 64)
	return int64(n), err == nil && n <= math.MaxInt64
}

// oracle finds in whole documents what a Watcher finds in bytes.
type oracle struct {
	f       finding
	seen    map[kind]bool
	counted bool // metadata.usage
	usage   Usage
	total   int64 // data.total_tokens
}

func (o *oracle) id(into *string, v any) {
	if s, ok := usableString(v); ok && *into == "" {
		*into = s
		o.f.Seen |= SawIDs
	}
}

func (o *oracle) topID(p pair) {
	switch p.name {
	case "task_id":
		o.id(&o.f.IDs.Task, p.value)
	case "conversation_id":
		o.id(&o.f.IDs.Conversation, p.value)
	}
}

func (o *oracle) takeUsage(top object) {
	for _, m := range top {
		metadata, _ := m.value.(object)
		if m.name != "metadata" {
			continue
		}
		for _, u := range metadata {
			usage, ok := u.value.(object)
			if u.name != "usage" || !ok {
				continue
			}
			o.counted, o.usage = true, Usage{}
			cost := Cost{}
			for _, p := range usage {
				switch p.name {
				case "prompt_tokens":
					if n, ok := usableCount(p.value); ok {
						o.usage.Prompt = n
					}
				case "completion_tokens":
					if n, ok := usableCount(p.value); ok {
						o.usage.Completion = n
					}
				case "total_tokens":
					if n, ok := usableCount(p.value); ok {
						o.usage.Total = n
					}
				case "total_price":
					text, isString := p.value.(string)
					if number, ok := p.value.(json.Number); ok {
						text, isString = string(number), true
					}
					if nano, ok := ParseNano([]byte(text)); isString && ok && len(text) <= 64 {
						cost.Nano = nano
					}
				case "currency":
					if text, isString := p.value.(string); isString {
						cost.Currency = ""
						if s, ok := usableString(text); ok && len(s) <= MaxCurrencyLength {
							cost.Currency = s
						}
					}
				}
			}
			o.usage.AddCost(cost)
			return
		}
	}
}

func (o *oracle) takeTotal(top object) {
	for _, m := range top {
		data, _ := m.value.(object)
		if m.name != "data" {
			continue
		}
		for _, p := range data {
			if n, ok := usableCount(p.value); ok && p.name == "total_tokens" {
				o.total = n
				o.f.Counted = true
				return
			}
		}
	}
}

func firstCode(top object) string {
	for _, p := range top {
		if s, ok := usableString(p.value); ok && p.name == "code" {
			return s
		}
	}
	return ""
}

// event takes what stands between two empty lines; false if encoding/json does not understand it.
func (o *oracle) event(field kind, data []byte) bool {
	k := field
	var top object
	if blank := len(bytes.Trim(data, " \t\r\n")) == 0; !blank {
		v, ok := parse(data)
		if !ok {
			return false
		}
		top, _ = v.(object)
		named := false
		for _, p := range top {
			name, isString := p.value.(string)
			if p.name == "event" && isString && !named {
				named, k = true, kindOf([]byte(name))
				if o.seen[k] {
					break
				}
			}
			o.topID(p)
		}
	} else if field != kindPing {
		return true
	}
	if k == kindPing {
		o.f.Pings++
		return true
	}
	if o.f.Events++; o.f.Events == 1 {
		o.f.Seen |= SawFirst
	}
	if k != otherKind {
		o.seen[k] = true
	}
	switch k {
	case kindMessageEnd:
		o.takeUsage(top)
	case kindWorkflowFinished:
		o.takeTotal(top)
	case kindError:
		if !o.f.Failed {
			o.f.Failed, o.f.StreamCode = true, firstCode(top)
			o.f.Seen |= SawError
		}
	}
	switch k {
	case kindMessageEnd, kindTTSMessageEnd, kindWorkflowFinished, kindWorkflowPaused, kindError:
		o.f.Ended = true
		o.f.Seen |= SawEnd
	}
	return true
}

func (o *oracle) finish() finding {
	if o.counted {
		o.f.Counted, o.f.Usage = true, o.usage
	}
	if o.f.Counted && o.f.Usage.Total == 0 {
		o.f.Usage.Total = max(o.total, saturatingSum(o.f.Usage.Prompt, o.f.Usage.Completion))
	}
	return o.f
}

// expectStream is what a Watcher shall find in an event stream; false if encoding/json does not understand some event, or
// if the last line is not ended: a Watcher has read part of it.
func expectStream(body []byte) (finding, bool) {
	o := oracle{seen: map[kind]bool{}}
	body = bytes.TrimPrefix(body, []byte("\ufeff"))
	var data []byte
	field, lines := otherKind, 0
	end := func() bool {
		ok := o.event(field, data)
		data, field, lines = nil, otherKind, 0
		return ok
	}
	for {
		line, rest, ended := bytes.Cut(body, []byte("\n"))
		if !ended {
			ok := len(line) == 0 && (lines == 0 || end())
			return o.finish(), ok
		}
		body = rest
		name, value, _ := bytes.Cut(line, []byte(":"))
		if !bytes.Contains(line, []byte(":")) {
			name = bytes.TrimSuffix(name, []byte("\r"))
			if len(name) == 0 {
				if !end() {
					return finding{}, false
				}
				continue
			}
		}
		switch string(name) {
		case "data":
			if lines++; lines > 1 {
				data = append(data, '\n')
			}
			data = append(data, value...)
		case "event":
			value = bytes.TrimPrefix(bytes.TrimSuffix(value, []byte("\r")), []byte(" "))
			field = kindOf(value)
		}
	}
}

// expectDocument is what a Watcher shall find in a JSON document of the mode.
func expectDocument(m mode, body []byte) (finding, bool) {
	v, ok := parse(body)
	if !ok {
		return finding{}, false
	}
	o := oracle{}
	top, _ := v.(object)
	switch m {
	case onRun:
		for _, p := range top {
			o.topID(p)
		}
		o.takeUsage(top)
		o.takeTotal(top)
	case onUpload:
		for _, p := range top {
			if p.name == "id" {
				o.id(&o.f.IDs.File, p.value)
			}
		}
	case onError:
		o.f.ErrorCode = firstCode(top)
	}
	return o.finish(), true
}
