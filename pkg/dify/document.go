package dify

import (
	"bytes"
	"encoding/binary"
	"math"
	"math/bits"
)

// member is a name in a document that a balancer learns from.
type member uint8

const (
	noMember member = iota
	memberTaskID
	memberConversationID
	memberFileID     // id
	memberCode       // of an error
	memberEvent      // the name
	memberData       // object
	memberDataTotal  // data.total_tokens
	memberMetadata   // object
	memberUsage      // metadata.usage, object
	memberPrompt     // metadata.usage.prompt_tokens
	memberCompletion // metadata.usage.completion_tokens
	memberTotal      // metadata.usage.total_tokens
	memberPrice      // metadata.usage.total_price
	memberCurrency   // metadata.usage.currency
)

// members is a set of them.
type members uint32

func setOf(list ...member) (s members) {
	for _, m := range list {
		s |= 1 << m
	}
	return s
}

func (s members) has(m member) bool {
	return s>>m&1 != 0
}

var (
	idMembers    = setOf(memberTaskID, memberConversationID)
	usageMembers = setOf(memberMetadata, memberUsage, memberPrompt, memberCompletion, memberTotal, memberPrice, memberCurrency)
	dataMembers  = setOf(memberData, memberDataTotal)
)

// place is the innermost object whose members are looked at.
type place uint8

const (
	outside place = iota
	inTop
	inData
	inMetadata
	inUsage
)

// token is what the document's next byte belongs to.
type token uint8

const (
	atToken   token = iota // between tokens
	inSkipped              // a string that nobody needs
	inString               // a string that is kept
	inEscape               // the byte after its '\'
	inHex                  // a digit of its \uXXXX
	inScalar               // a number that is kept
)

// maxKept bounds a string or number that is kept; every name and value of use is shorter.
const maxKept = 64

// kept is a short string of the instance's that outlives the bytes it came in. Empty means none.
type kept struct {
	n uint8
	b [maxKept]byte
}

func (k *kept) bytes() []byte {
	return k.b[:k.n]
}

// set takes over a value that is usable, and refuses others.
func (k *kept) set(value []byte) bool {
	if !usable(value, len(k.b)) {
		return false
	}
	k.n = uint8(copy(k.b[:], value))
	return true
}

// usable reports whether a value is 1 to most bytes of visible ASCII, as all ids and codes are: what an instance sends
// ends up in logs, labels and headers.
func usable(value []byte, most int) bool {
	if len(value) == 0 || len(value) > most {
		return false
	}
	i := 0
	for ; i+8 <= len(value); i += 8 {
		if invisible(binary.LittleEndian.Uint64(value[i:])) != 0 {
			break // for a second look
		}
	}
	for _, c := range value[i:] {
		if c <= ' ' || c > '~' {
			return false
		}
	}
	return true
}

const (
	ones  = 0x0101010101010101
	highs = ones << 7
)

// invisible is non-zero if one of eight bytes is no visible ASCII.
func invisible(w uint64) uint64 {
	return ((w - ones*'!') | (w + ones*(0x7f-'~')) | w) & highs
}

// currencyName is the name of a currency. Empty means none.
type currencyName struct {
	n uint8
	b [MaxCurrencyLength]byte
}

func (c *currencyName) bytes() []byte {
	return c.b[:c.n]
}

// set takes over a value, none instead of one that is not usable.
func (c *currencyName) set(value []byte) {
	c.n = 0
	if usable(value, len(c.b)) {
		c.n = uint8(copy(c.b[:], value))
	}
}

// idSet keeps the ids of members.
type idSet struct {
	end   uint16
	spans [memberFileID + 1]struct{ from, n uint8 }
	text  [2 * maxKept]byte // no answer has more than two of them
}

func (s *idSet) set(m member, value []byte) bool {
	if int(s.end)+len(value) > len(s.text) || !usable(value, maxKept) {
		return false
	}
	s.spans[m].from, s.spans[m].n = uint8(s.end), uint8(len(value))
	s.end += uint16(copy(s.text[s.end:], value))
	return true
}

// document reads JSON piece by piece, in any split, and picks out the few members of use. It is no validator: of valid
// JSON (RFC 8259) it finds what a parser would find, anything else leads to nothing worse than a wrong string of
// harmless form. Of a repeated member the first that is usable counts.
//
// Containers are not kept on a stack. A string is a name or a value by whether a colon stands before it, objects of use
// are at most three deep, and all others are only counted.
type document struct {
	token  token
	place  place
	member member // whose value comes
	value  bool   // a colon was the last thing but white space
	odd    bool   // inSkipped: the bytes so far end in an odd number of '\'
	spoilt bool   // inString, inScalar: too long, or an escape beyond ASCII
	filled bool   // something but white space has come
	named  bool   // the event's name has come
	done   bool   // there is nothing more to learn before the next begin
	priced bool   // usage in reading has a price
	usable bool   // usage is whole
	fresh  bool   // ids have come since the owner last cleared this
	kind   kind
	hexes  uint8
	hex    uint16
	want   members
	depth  int // containers open inside place; those of no use

	usage    tokens
	currency currencyName
	total    int64 // data.total_tokens, -1 if there was none

	size int // of text
	text [maxKept]byte

	// These live longer than one document.
	lacking members // what begin asks for; ids leave it when they are found
	seen    uint64  // kinds of the events before this one
	ids     idSet
	code    kept
}

// tokens are the figures of a usage object.
type tokens struct {
	prompt, completion, total int64
	nano                      int64
}

// begin prepares for the next document.
func (d *document) begin() {
	d.token, d.place, d.member = atToken, outside, noMember
	d.value, d.filled, d.named, d.done, d.usable = false, false, false, false, false
	d.kind = otherKind
	d.want = d.lacking
	d.depth = 0
	d.total = -1
}

// read takes the next piece. It stops looking at bytes once done.
func (d *document) read(p []byte) {
	for i := 0; i < len(p) && !d.done; {
		switch d.token {
		case atToken:
			if d.depth > 0 {
				i = d.skipContainers(p, i)
			} else {
				i = d.readTokens(p, i)
			}
		case inSkipped:
			i = d.skipString(p, i)
		case inScalar:
			i = d.readScalar(p, i)
		default:
			i = d.readString(p, i)
		}
	}
}

// readTokens reads p from i inside an object of use and returns where something begins that is read otherwise.
func (d *document) readTokens(p []byte, i int) int {
	for i < len(p) {
		c := p[i]
		i++
		switch c {
		case ' ', '\t', '\r', '\n':
			continue
		case '"':
			if d.place == outside {
				d.refuse()
				return i
			}
			if i = d.beginString(p, i); d.done || d.token != atToken {
				return i
			}
			if i < len(p) && (p[i] == ':' || p[i] == ',') { // as behind most
				d.value = p[i] == ':'
				i++
			}
		case ':':
			d.value = true
		case ',':
			d.value = false
		case '{', '[':
			if d.open(c == '{'); d.done || d.depth > 0 {
				return i
			}
		case '}', ']':
			if d.close(); d.done {
				return i
			}
		default:
			if d.place == outside {
				if isMark(c) {
					continue
				}
				d.refuse()
				return i
			}
			if d.value && d.want.has(d.member) {
				d.token, d.size, d.spoilt = inScalar, 0, false
				return i - 1
			}
			for i < len(p) && !endsScalar[p[i]] {
				i++
			}
		}
	}
	return i
}

// endsScalar says which bytes stand behind a number, true, false or null.
var endsScalar = [256]bool{',': true, '}': true, ']': true, ':': true, '{': true, '[': true, '"': true, ' ': true, '\t': true, '\r': true, '\n': true}

// isMark says that c is part of a byte order mark (RFC 8259 section 8.1 lets a reader ignore it).
func isMark(c byte) bool {
	return c == 0xEF || c == 0xBB || c == 0xBF
}

// refuse gives up a document that is no object.
func (d *document) refuse() {
	d.filled, d.done = true, true
}

func (d *document) open(object bool) {
	switch {
	case d.place == outside:
		if !object {
			d.refuse()
			return
		}
		d.filled = true
		d.place = inTop
	case object && d.value && d.want.has(d.member) && d.member == memberData:
		d.place = inData
	case object && d.value && d.want.has(d.member) && d.member == memberMetadata:
		d.place = inMetadata
	case object && d.value && d.want.has(d.member) && d.member == memberUsage:
		d.place = inUsage
		d.usage, d.currency.n, d.priced = tokens{}, 0, false
	default:
		d.depth++
	}
	d.value = false
}

func (d *document) close() {
	d.value = false
	switch d.place {
	case outside:
		d.refuse()
	case inTop:
		d.place, d.done = outside, true
	case inData, inMetadata:
		d.place = inTop
	case inUsage:
		d.place, d.usable = inMetadata, true
		d.satisfied(usageMembers)
	}
}

// satisfied takes names off the list of what is still wanted.
func (d *document) satisfied(s members) {
	if d.want &^= s; d.want == 0 {
		d.done = true
	}
}

// beginString reads a string, whose opening quote is before i, at once if p has all of it and it is plain.
func (d *document) beginString(p []byte, i int) int {
	isName := !d.value
	if !isName && !d.want.has(d.member) {
		end := bytes.IndexByte(p[i:], '"')
		if end == 0 || end > 0 && p[i+end-1] != '\\' {
			return i + end + 1
		}
		d.token, d.odd = inSkipped, false
		return i
	}
	if end := plainEnd(p, i); end < len(p) && p[end] == '"' {
		if text := p[i:end]; isName {
			d.member = d.memberOf(text)
		} else {
			d.stringValue(text)
		}
		return end + 1
	}
	d.token, d.size, d.spoilt = inString, 0, false
	return i
}

// plainEnd returns where the first '"' or '\' from i on stands in p, len(p) without one.
func plainEnd(p []byte, i int) int {
	for ; len(p)-i >= 8; i += 8 {
		w := binary.LittleEndian.Uint64(p[i:])
		quote, escape := w^ones*'"', w^ones*'\\'
		if m := ((quote-ones)&^quote | (escape-ones)&^escape) & highs; m != 0 {
			return i + bits.TrailingZeros64(m)/8 // the lowest mark is certain
		}
	}
	for i < len(p) && p[i] != '"' && p[i] != '\\' {
		i++
	}
	return i
}

// skipString moves behind the end of a string that nobody needs.
func (d *document) skipString(p []byte, i int) int {
	for {
		end := bytes.IndexByte(p[i:], '"')
		until := len(p)
		if end >= 0 {
			until = i + end
		}
		run := until
		for run > i && p[run-1] == '\\' {
			run--
		}
		odd := (until-run)&1 != 0
		if run == i {
			odd = odd != d.odd
		}
		if end < 0 {
			d.odd = odd
			return len(p)
		}
		i = until + 1
		if !odd {
			d.token = atToken
			return i
		}
		d.odd = false
	}
}

// skipContainers moves behind the end of a container of no use, or to a string inside it that p has not all of.
func (d *document) skipContainers(p []byte, i int) int {
	for i < len(p) {
		c := p[i]
		i++
		switch c {
		case '"':
			d.token, d.odd = inSkipped, false
			if i = d.skipString(p, i); d.token != atToken {
				return i
			}
		case '{', '[':
			d.depth++
		case '}', ']':
			if d.depth--; d.depth == 0 {
				return i
			}
		}
	}
	return i
}

// readString reads on in a string that is kept, undoing escapes.
func (d *document) readString(p []byte, i int) int {
	for i < len(p) {
		c := p[i]
		i++
		switch d.token {
		case inEscape:
			d.token = inString
			switch c {
			case 'u':
				d.token, d.hexes, d.hex = inHex, 0, 0
			case 'b':
				d.keep('\b')
			case 'f':
				d.keep('\f')
			case 'n':
				d.keep('\n')
			case 'r':
				d.keep('\r')
			case 't':
				d.keep('\t')
			default:
				d.keep(c)
			}
		case inHex:
			digit := hexDigit(c)
			if digit < 0 {
				d.spoilt = true
			}
			d.hex = d.hex<<4 | uint16(digit&0xF)
			if d.hexes++; d.hexes == 4 {
				d.token = inString
				if d.hex < 0x80 {
					d.keep(byte(d.hex))
				} else {
					d.spoilt = true
				}
			}
		default:
			switch c {
			case '\\':
				d.token = inEscape
			case '"':
				d.token = atToken
				d.endString()
				return i
			default:
				d.keep(c)
			}
			if d.spoilt && d.token == inString {
				// What it says is of no use any more: only its end is looked for.
				d.endSpoilt()
				return i
			}
		}
	}
	return i
}

func (d *document) endString() {
	switch {
	case d.spoilt:
		d.endSpoilt()
		d.token = atToken
	case d.value:
		d.stringValue(d.text[:d.size])
	default:
		d.member = d.memberOf(d.text[:d.size])
	}
}

// endSpoilt goes on with a string that is too long or strange as with one that nobody needs.
func (d *document) endSpoilt() {
	d.token, d.odd = inSkipped, false
	if !d.value {
		d.member = noMember
		return
	}
	d.stringValue(nil)
}

func hexDigit(c byte) int {
	switch {
	case '0' <= c && c <= '9':
		return int(c - '0')
	case 'a' <= c|0x20 && c|0x20 <= 'f':
		return int(c|0x20-'a') + 10
	}
	return -1
}

func (d *document) keep(c byte) {
	if d.size == maxKept {
		d.spoilt = true
		return
	}
	d.text[d.size] = c
	d.size++
}

// readScalar reads on in a number, true, false or null that is kept.
func (d *document) readScalar(p []byte, i int) int {
	for ; i < len(p); i++ {
		if endsScalar[p[i]] {
			d.token = atToken
			if !d.spoilt {
				d.scalarValue(d.text[:d.size])
			}
			d.value = false
			return i
		}
		d.keep(p[i])
	}
	return i
}

// memberOf says which member of use name is in the place.
func (d *document) memberOf(name []byte) member {
	switch d.place {
	case inTop:
		switch string(name) {
		case "event":
			return memberEvent
		case "task_id":
			return memberTaskID
		case "conversation_id":
			return memberConversationID
		case "code":
			return memberCode
		case "id":
			return memberFileID
		case "data":
			return memberData
		case "metadata":
			return memberMetadata
		}
	case inData:
		if string(name) == "total_tokens" {
			return memberDataTotal
		}
	case inMetadata:
		if string(name) == "usage" {
			return memberUsage
		}
	case inUsage:
		switch string(name) {
		case "prompt_tokens":
			return memberPrompt
		case "completion_tokens":
			return memberCompletion
		case "total_tokens":
			return memberTotal
		case "total_price":
			return memberPrice
		case "currency":
			return memberCurrency
		}
	}
	return noMember
}

// stringValue takes a string that is the value of a wanted member; nil is one that cannot be kept.
func (d *document) stringValue(text []byte) {
	switch d.member {
	case memberEvent:
		d.name(kindOf(text))
	case memberTaskID, memberConversationID, memberFileID:
		if d.ids.set(d.member, text) {
			d.fresh = true
			d.lacking &^= 1 << d.member
			d.satisfied(1 << d.member)
		}
	case memberCode:
		if d.code.set(text) {
			d.satisfied(1 << memberCode)
		}
	case memberPrice:
		d.price(text)
	case memberCurrency:
		d.currency.set(text)
	}
}

// name notes which event this is and drops what cannot be in it.
//
// Ids are looked for in the first event of each kind only: events of one kind carry the same ids, and there may be
// thousands of them. In a later one nothing behind its name is looked at.
func (d *document) name(k kind) {
	d.named, d.kind = true, k
	var of members
	if k == otherKind || d.seen&k.bit() == 0 {
		of = idMembers
	}
	switch k {
	case kindMessageEnd:
		of |= usageMembers
	case kindWorkflowFinished:
		of |= dataMembers
	case kindError:
		of |= 1 << memberCode
	}
	d.satisfied(^of)
}

// scalarValue takes a number or literal that is the value of a wanted member.
func (d *document) scalarValue(text []byte) {
	switch d.member {
	case memberDataTotal:
		if n, ok := parseCount(text); ok {
			d.total = n
			d.satisfied(dataMembers)
		}
	case memberPrompt:
		d.count(&d.usage.prompt, text)
	case memberCompletion:
		d.count(&d.usage.completion, text)
	case memberTotal:
		d.count(&d.usage.total, text)
	case memberPrice:
		d.price(text)
	}
}

func (d *document) count(into *int64, text []byte) {
	if n, ok := parseCount(text); ok {
		*into = n
	}
}

func (d *document) price(text []byte) {
	if len(text) > maxKept {
		return
	}
	if nano, ok := ParseNano(text); ok {
		d.usage.nano, d.priced = nano, true
	}
}

// parseCount reads a number without sign, fraction and exponent that fits an int64.
func parseCount(text []byte) (n int64, ok bool) {
	for _, c := range text {
		digit := int64(c) - '0'
		if digit < 0 || digit > 9 || n > (math.MaxInt64-digit)/10 {
			return 0, false
		}
		n = n*10 + digit
	}
	return n, len(text) > 0
}
