package h1

// Chunked decodes a chunked body (RFC 9112 section 7.1) from pieces of any
// size, without copying data. The zero Chunked is ready, with the default
// Limits. It belongs to one goroutine at a time.
type Chunked struct {
	// Extras is set when bytes were consumed that are not to be passed on: an
	// extension, a trailer, leading zeros of a size. While it is false, what was
	// consumed is byte for byte what could be sent, and a relay may pass it on
	// unparsed. The caller may clear it at any time.
	Extras bool

	state    chunkState
	digits   uint8 // of the size so far
	left     int64 // data bytes of the chunk that have not come yet; of a size line, the size so far
	extLine  int   // bytes of extensions on this line
	extTotal int   // and in this message
	lim      *Limits
	trailer  *trailer // nil unless one has come
	err      *Error
}

// trailer is a trailer section and what its Spans point into.
type trailer struct {
	Section
	bytes []byte
}

type chunkState uint8

const (
	chunkSize chunkState = iota
	chunkExt
	chunkQuoted  // in a quoted string of an extension
	chunkEscaped // behind a '\\' in there
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	chunkTrailer
	chunkDone
	chunkFailed
)

// maxChunkDigits leaves no room for an overflow: 15 digits are 60 bits.
const maxChunkDigits = 15

// Errors of chunked bodies.
var (
	errChunkSize     = &Error{400, "a chunk size is malformed", "RFC 9112 section 7.1"}
	errChunkTooLarge = &Error{400, "a chunk size is too large", "RFC 9112 section 7.1"}
	errChunkExt      = &Error{400, "a chunk extension holds a control byte", "RFC 9112 section 7.1.1"}
	errChunkExtLine  = &Error{400, "a chunk has too long an extension", "RFC 9112 section 7.1.1"}
	errChunkExtTotal = &Error{400, "the body has too many chunk extensions", "RFC 9112 section 7.1.1"}
	errChunkEnd      = &Error{400, "CRLF is missing behind the data of a chunk", "RFC 9112 section 7.1"}
	errTrailers      = &Error{400, "a trailer field is not allowed as a trailer", "RFC 9110 section 6.5.1"}
)

// Reset makes d ready for the next body. lim may be nil, and is kept until the
// next Reset.
func (d *Chunked) Reset(lim *Limits) {
	d.Extras = false
	d.state, d.digits, d.left, d.extLine, d.extTotal = chunkSize, 0, 0, 0, 0
	d.lim = lim.orDefaults()
	if d.trailer != nil {
		d.trailer.reset(0)
		d.trailer.bytes = d.trailer.bytes[:0]
	}
	d.err = nil
}

// Done reports whether the body and its trailer section are complete.
func (d *Chunked) Done() bool { return d.state == chunkDone }

// Trailer returns the fields of the trailer section, with Spans into
// TrailerBytes; valid once Done reports true, until Reset. Fields that may not
// be trailers have been refused.
func (d *Chunked) Trailer() []Field {
	if d.trailer == nil {
		return nil
	}
	return d.trailer.Fields
}

// TrailerBytes returns what the Spans of Trailer point into; valid until Reset.
func (d *Chunked) TrailerBytes() []byte {
	if d.trailer == nil {
		return nil
	}
	return d.trailer.bytes
}

// Next consumes bytes of the body from the beginning of p and returns the
// first data among them, a part of p, and how many bytes of p it has consumed. It
// stops at the end of that data's chunk, at the end of p, or at the end of the
// body, whichever comes first; it consumes something unless p is empty or the
// body is Done. Call it until p is used up or Done reports true: what is left of p then belongs
// to the next message. An error is an *Error, and stays; data that came before it has been returned.
func (d *Chunked) Next(p []byte) (data []byte, n int, err error) {
	for i := 0; ; {
		if i == len(p) {
			return nil, i, nil
		}
		switch d.state {
		case chunkSize:
			left, digits := d.left, d.digits
			for i < len(p) && digits <= maxChunkDigits {
				v := hexValue[p[i]]
				if v == notHex {
					break
				}
				left = left<<4 | int64(v)
				digits++
				i++
			}
			d.left, d.digits = left, digits
			if digits > maxChunkDigits {
				return d.fail(i, errChunkTooLarge)
			}
			if i == len(p) {
				return nil, i, nil
			}
			if p[i] == '\r' && digits > 0 {
				d.state = chunkSizeLF
			} else if err := d.afterSize(p[i]); err != nil {
				return d.fail(i, err)
			}
			i++
		case chunkExt, chunkQuoted, chunkEscaped:
			var err *Error
			if i, err = d.extension(p, i); err != nil {
				return d.fail(i, err)
			}
		case chunkSizeLF:
			if p[i] != '\n' {
				return d.fail(i, errBareCR)
			}
			i++
			d.endSize()
		case chunkData:
			end := i + int(min(int64(len(p)-i), d.left))
			data = p[i:end:end]
			if d.left -= int64(end - i); d.left == 0 {
				d.state = chunkDataCR
				if len(p)-end >= 2 && p[end] == '\r' && p[end+1] == '\n' {
					d.state = chunkSize
					end += 2
				}
			}
			return data, end, nil
		case chunkDataCR:
			if p[i] != '\r' {
				return d.fail(i, errChunkEnd)
			}
			i++
			d.state = chunkDataLF
		case chunkDataLF:
			if p[i] != '\n' {
				return d.fail(i, errChunkEnd)
			}
			i++
			d.state = chunkSize
		case chunkTrailer:
			if len(d.TrailerBytes()) == 0 && len(p)-i >= 2 && p[i] == '\r' && p[i+1] == '\n' {
				d.state = chunkDone
				return nil, i + 2, nil
			}
			n, err := d.trailers(p[i:])
			if err != nil {
				return d.fail(i, err)
			}
			i += n
		case chunkDone:
			return nil, i, nil
		default:
			return nil, i, d.err
		}
	}
}

func (d *Chunked) fail(n int, err *Error) ([]byte, int, error) {
	d.state, d.err = chunkFailed, err
	return nil, n, err
}

// afterSize takes the byte behind the digits of a size, if it is not the CR of a plain size line.
func (d *Chunked) afterSize(c byte) *Error {
	switch {
	case d.digits == 0:
		return errChunkSize
	case c == '\n':
		return errBareLF
	case c != ';': // also a space, which RFC 9112 section 7.1.1 has a recipient take before an extension, and net/http does not
		return errChunkSize
	}
	d.state = chunkExt
	d.Extras = true
	d.extLine = 1
	if d.extTotal++; d.extTotal > d.limits().ChunkExtTotal {
		return errChunkExtTotal
	}
	return nil
}

// extension goes through the bytes behind a size, which mean nothing to us and
// go no further (RFC 9112 section 7.1.1), up to the CR that ends the line.
func (d *Chunked) extension(p []byte, i int) (int, *Error) {
	lim := d.limits()
	for ; i < len(p); i++ {
		c := p[i]
		switch {
		case c == '\r' && d.state == chunkExt:
			d.state = chunkSizeLF
			return i + 1, nil
		case c == '\n':
			return i, errBareLF
		case isControl(c): // in quotes a CR, too: others might look for the line's end behind the quote
			return i, errChunkExt
		case d.state == chunkEscaped:
			d.state = chunkQuoted
		case c == '"' && d.state == chunkExt:
			d.state = chunkQuoted
		case c == '"':
			d.state = chunkExt
		case c == '\\' && d.state == chunkQuoted:
			d.state = chunkEscaped
		}
		d.extLine++
		d.extTotal++
		if d.extLine > lim.ChunkExtLine {
			return i, errChunkExtLine
		}
		if d.extTotal > lim.ChunkExtTotal {
			return i, errChunkExtTotal
		}
	}
	return i, nil
}

// endSize comes behind the LF of a size line.
func (d *Chunked) endSize() {
	if d.digits > 1 && d.left>>(4*(d.digits-1)) == 0 {
		d.Extras = true
	}
	d.digits = 0
	d.state = chunkData
	if d.left == 0 {
		d.state = chunkTrailer
	}
}

// trailers gathers the trailer section, which may come in pieces, and returns
// how much of p belongs to it.
func (d *Chunked) trailers(p []byte) (n int, err *Error) {
	if d.trailer == nil {
		d.trailer = &trailer{}
	}
	t, lim := d.trailer, d.limits()
	before := len(t.bytes)
	t.bytes = append(t.bytes, p[:min(len(p), lim.Trailers-before)]...)
	size, perr := t.parse(t.bytes, lim.Trailers, lim.Fields)
	switch perr := perr.(type) {
	case nil:
	case *Error:
		return 0, perr
	default:
		return len(t.bytes) - before, nil
	}
	if t.seen&notInTrailers != 0 {
		return 0, errTrailers
	}
	d.Extras = d.Extras || len(t.Fields) > 0
	t.bytes = t.bytes[:size]
	d.state = chunkDone
	return size - before, nil
}

func (d *Chunked) limits() *Limits {
	if d.lim == nil { // a zero Chunked that was never Reset
		d.lim = &defaults
	}
	return d.lim
}
