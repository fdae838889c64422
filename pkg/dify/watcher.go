package dify

import (
	"bytes"
	"strings"
)

// Seen says what a piece of an answer brought that the Watcher had not seen before. It is a set of bits.
type Seen uint8

const (
	SawFirst Seen = 1 << iota // the first event that is not a ping: the answer has begun
	SawIDs                    // ids: IDs has grown
	SawError                  // the stream's first error event: StreamError is set
	SawEnd                    // an event that may be the stream's last: Ended is true
)

// IDs are the ids under which an instance knows what it has answered; empty where none was found. Ids of more than 64
// bytes or with other bytes than visible ASCII are passed over: Dify's are UUIDs.
type IDs struct {
	Task         []byte
	Conversation []byte
	File         []byte // of an upload
}

// Watcher looks at the body of one answer as it streams past, in pieces split anywhere, and remembers what matters to
// a balancer: whether the app has begun to answer, errors inside the stream, ids, and usage. It keeps nothing back,
// changes nothing, holds no piece after Write has returned, and is itself all the memory that it takes (512 bytes),
// whatever the answer's size. Bytes that are not what Dify sends lead to nothing being found, never to a panic.
//
// Server-sent events are read as the WHATWG HTML standard has it ("Interpreting an event stream"), except that a lone
// CR ends no line (Dify never sends one). An event counts when the empty line behind it has come.
//
// The zero value watches nothing; Reset makes it watch an answer, any number of times. A Watcher must not be copied
// while it watches, nor used concurrently.
type Watcher struct {
	mode    mode
	line    line
	closed  bool
	first   bool // still in the body's first line
	whole   bool // a data line of this event has ended
	failed  bool
	ended   bool
	counted bool // usage has been found
	field   kind // what the event's event: line says
	pings   int64
	events  int64

	fieldSize uint8 // of fieldText, more than it has if the text is longer
	fieldText [maxKindLength]byte

	doc      document
	usage    tokens // of the last message_end, or of the document
	priced   bool   // usage has a price
	currency currencyName
	total    int64 // of the last workflow_finished, or of the document
}

// mode is what a Watcher does with the bytes.
type mode uint8

const (
	idle     mode = iota // nothing
	onStream             // text/event-stream
	onRun                // JSON: ids and usage
	onUpload             // JSON: the file's id
	onError              // JSON: the code
)

// line is the part of a line of an event stream that comes next.
type line uint8

const (
	atField   line = iota // the field's name, or the end of an empty line
	inEvent               // the value of event
	inPayload             // the value of data
	inOther               // anything else
)

// Reset forgets everything and begins to watch the body of an answer of that status to call, whose Content-Type field
// is contentType. Event streams are watched whatever the call and status; of JSON documents those of an error (400 and
// above) for their code, and those that answer a run or an upload. Any other answer costs nothing. A body with a
// Content-Encoding cannot be watched: do not call Reset for it, or call it with an empty contentType.
func (w *Watcher) Reset(contentType string, status int, call Call) {
	*w = Watcher{mode: modeOf(contentType, status, call.answer), first: true}
	switch w.mode {
	case idle:
		return
	case onStream:
		w.doc.lacking = 1<<memberEvent | 1<<memberCode | idMembers | usageMembers | dataMembers
	case onRun:
		w.doc.lacking = idMembers | usageMembers | dataMembers
	case onUpload:
		w.doc.lacking = 1 << memberFileID
	case onError:
		w.doc.lacking = 1 << memberCode
	}
	w.doc.begin()
}

func modeOf(contentType string, status int, answer answer) mode {
	const stream, document = "text/event-stream", "application/json"
	mediaType := contentType
	if mediaType != stream && mediaType != document { // else as Dify writes them
		mediaType, _, _ = strings.Cut(contentType, ";")
		mediaType = strings.TrimSpace(mediaType)
	}
	switch {
	case mediaType == stream || strings.EqualFold(mediaType, stream):
		return onStream
	case mediaType != document && !strings.EqualFold(mediaType, document):
		return idle
	case status >= 400:
		return onError
	case status < 200 || status >= 300:
		return idle
	case answer == runAnswer:
		return onRun
	case answer == uploadAnswer:
		return onUpload
	}
	return idle
}

// Write takes the next piece of the body and says what was new in it. It does not block, allocate or keep p.
func (w *Watcher) Write(p []byte) Seen {
	switch {
	case w.mode == idle || w.closed:
		return 0
	case w.mode == onStream:
		return w.writeStream(p)
	case w.doc.done:
		return 0
	}
	if w.doc.read(p); w.doc.done {
		return w.endDocument()
	}
	return 0
}

// Close says that the body is over, complete or not, and what that made known. An event whose data line has ended
// counts also if the empty line is missing: a client that reads by lines has it. What was found stays until Reset.
// Closing again does nothing.
func (w *Watcher) Close() (seen Seen) {
	switch {
	case w.mode == idle || w.closed:
	case w.mode == onStream:
		if w.whole {
			seen = w.endEvent()
		}
		if w.doc.fresh {
			// An id is whole though the event is not.
			w.doc.fresh = false
			seen |= SawIDs
		}
	case !w.doc.done:
		seen = w.endDocument()
	}
	w.closed = true
	return seen
}

func (w *Watcher) writeStream(p []byte) (seen Seen) {
	for len(p) > 0 {
		if w.line == atField {
			if w.fieldSize == 0 && len(p) > 5 && string(p[:5]) == "data:" {
				w.beginPayload()
				p = p[5:]
				continue
			}
			c := p[0]
			p = p[1:]
			switch c {
			case ':':
				w.beginValue()
			case '\n':
				seen |= w.endLine()
			default:
				w.keepField(c)
			}
			continue
		}
		end := bytes.IndexByte(p, '\n')
		piece := p
		if end >= 0 {
			piece = p[:end]
		}
		switch w.line {
		case inPayload:
			if !w.doc.done {
				w.doc.read(piece)
			}
		case inEvent:
			for _, c := range piece {
				w.keepField(c)
			}
		}
		if end < 0 {
			return seen
		}
		seen |= w.endLine()
		p = p[end+1:]
	}
	return seen
}

func (w *Watcher) keepField(c byte) {
	if int(w.fieldSize) < len(w.fieldText) {
		w.fieldText[w.fieldSize] = c
	}
	// One more than there is room for says that it is too long; a count would overflow.
	w.fieldSize = min(w.fieldSize+1, uint8(len(w.fieldText)+1))
}

// takeField returns the name of a field or the value of event that has been kept, nil if it was too long.
func (w *Watcher) takeField() []byte {
	size := int(w.fieldSize)
	w.fieldSize = 0
	if size > len(w.fieldText) {
		return nil
	}
	return w.fieldText[:size]
}

// fieldName is takeField for a name: a byte order mark may stand before the stream's first.
func (w *Watcher) fieldName() []byte {
	name := w.takeField()
	if w.first {
		w.first = false
		name = bytes.TrimPrefix(name, []byte("\ufeff"))
	}
	return name
}

// beginValue is called at the colon behind a field's name.
func (w *Watcher) beginValue() {
	switch string(w.fieldName()) {
	case "data":
		w.beginPayload()
	case "event":
		w.line = inEvent
	default:
		w.line = inOther
	}
}

func (w *Watcher) beginPayload() {
	w.line, w.first = inPayload, false
	if w.whole {
		// The lines of one event make one document, with a line feed between them.
		w.doc.read([]byte{'\n'})
	}
}

// endLine is called at a line feed.
func (w *Watcher) endLine() (seen Seen) {
	switch w.line {
	case inPayload:
		w.whole = true
	case inEvent:
		value := bytes.TrimPrefix(bytes.TrimSuffix(w.takeField(), []byte("\r")), []byte(" "))
		w.field = kindOf(value)
	case atField:
		if int(w.fieldSize) > len(w.fieldText) {
			// Too long for a name, so it is not an empty line either.
			w.takeField()
			w.first = false
			break
		}
		switch string(bytes.TrimSuffix(w.fieldName(), []byte("\r"))) {
		case "":
			seen = w.endEvent()
		case "data":
			w.beginPayload()
			w.whole = true
		case "event":
			w.field = otherKind
		}
	}
	w.line = atField
	return seen
}

// endEvent counts what has been read since the last empty line and prepares for the next event.
func (w *Watcher) endEvent() (seen Seen) {
	d := &w.doc
	k := w.field
	if d.named {
		k = d.kind
	}
	switch {
	case k == kindPing:
		w.pings++
	case d.filled:
		seen = w.endAnswer(k)
	default:
		// Comments, or fields that carry nothing.
	}
	if d.fresh {
		d.fresh = false
		seen |= SawIDs
	}
	w.field, w.whole = otherKind, false
	if !w.failed {
		d.code.n = 0
	}
	d.begin()
	return seen
}

// endAnswer counts an event that is no ping.
func (w *Watcher) endAnswer(k kind) (seen Seen) {
	d := &w.doc
	if w.events++; w.events == 1 {
		seen |= SawFirst
	}
	if k != otherKind {
		d.seen |= k.bit()
	}
	switch {
	case k == kindMessageEnd && d.usable:
		w.takeUsage()
	case k == kindWorkflowFinished && d.total >= 0:
		w.takeTotal()
	case k == kindError && !w.failed:
		w.failed = true
		d.lacking &^= 1 << memberCode
		seen |= SawError
	}
	if !w.ended && lastWords&k.bit() != 0 {
		w.ended = true
		seen |= SawEnd
	}
	return seen
}

// endDocument takes what a JSON document has told.
func (w *Watcher) endDocument() (seen Seen) {
	d := &w.doc
	d.done = true
	if d.usable {
		w.takeUsage()
	}
	if d.total >= 0 {
		w.takeTotal()
	}
	if d.fresh {
		d.fresh = false
		seen = SawIDs
	}
	return seen
}

func (w *Watcher) takeUsage() {
	w.usage, w.priced, w.currency, w.counted = w.doc.usage, w.doc.priced, w.doc.currency, true
}

func (w *Watcher) takeTotal() {
	w.total, w.counted = w.doc.total, true
}

// Events returns how many events of a stream have passed, pings apart.
func (w *Watcher) Events() int64 {
	return w.events
}

// Pings returns how many pings have passed: Dify sends one for every 10 s of work, and they say nothing of its outcome.
func (w *Watcher) Pings() int64 {
	return w.pings
}

// Ended says that an event has passed after which a stream may well be over: message_end, tts_message_end,
// workflow_finished, workflow_paused or error. A stream that breaks off before was cut. It is a hint for accounting
// only: other events may follow, and the stream ends when the instance ends it.
func (w *Watcher) Ended() bool {
	return w.ended
}

// StreamError returns the code of the stream's first error event, "" if that had none, and whether there was one.
func (w *Watcher) StreamError() (code string, ok bool) {
	if !w.failed {
		return "", false
	}
	return intern(w.doc.code.bytes()), true
}

// ErrorCode returns the code of a JSON error answer, "" if none was found or the answer is none.
func (w *Watcher) ErrorCode() string {
	if w.mode != onError || w.doc.code.n == 0 {
		return ""
	}
	return intern(w.doc.code.bytes())
}

// IDs returns the ids found so far; once found they do not change. They are parts of the Watcher, good until Reset.
func (w *Watcher) IDs() IDs {
	ids := &w.doc.ids
	of := func(m member) []byte {
		at := ids.spans[m]
		return ids.text[at.from:][:at.n:at.n]
	}
	return IDs{Task: of(memberTaskID), Conversation: of(memberConversationID), File: of(memberFileID)}
}

// Usage returns what the run has cost, and whether the answer has said so yet: with metadata.usage of a chat or
// completion app, with data.total_tokens of a workflow. Of an answer that has both, as a chatflow's stream, the former
// counts; the latter stands in for a total of zero.
func (w *Watcher) Usage() (u Usage, ok bool) {
	if !w.counted {
		return Usage{}, false
	}
	u.Prompt, u.Completion, u.Total = w.usage.prompt, w.usage.completion, w.usage.total
	if u.Total == 0 {
		u.Total = max(w.total, saturatingSum(u.Prompt, u.Completion))
	}
	if w.priced {
		u.AddCost(Cost{Currency: intern(w.currency.bytes()), Nano: w.usage.nano})
	}
	return u, true
}
