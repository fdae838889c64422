package trace

import (
	"time"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Facts are what a span says, by the names of OpenTelemetry's conventions for
// HTTP where there is one. Empty and zero values are left out. They never hold
// a token, nor a user but as a keyed hash.
type Facts struct {
	Name   string // of the span: method and route
	Error  string // class of the error; "" for none
	Fields []attribute.KeyValue
}

// The bounds of texts that clients choose.
const (
	maxText = 256
	maxPath = 2 << 10
)

// Text adds a text, cut where it is long.
func (f *Facts) Text(key, value string) {
	if value != "" {
		f.Fields = append(f.Fields, attribute.String(key, cut(value, maxText)))
	}
}

// Path is Text for longer ones.
func (f *Facts) Path(key, value string) {
	if value != "" {
		f.Fields = append(f.Fields, attribute.String(key, cut(value, maxPath)))
	}
}

// Number adds a number.
func (f *Facts) Number(key string, value int64) {
	if value != 0 {
		f.Fields = append(f.Fields, attribute.Int64(key, value))
	}
}

// Milliseconds adds a time.
func (f *Facts) Milliseconds(key string, d time.Duration) {
	if d != 0 {
		f.Fields = append(f.Fields, attribute.Float64(key, float64(d)/float64(time.Millisecond)))
	}
}

func (f *Facts) set(s trace.Span) {
	if f == nil || !s.IsRecording() {
		return
	}
	if f.Name != "" {
		s.SetName(f.Name)
	}
	s.SetAttributes(f.Fields...)
	if f.Error != "" {
		s.SetAttributes(attribute.String("error.type", f.Error))
		s.SetStatus(codes.Error, "")
	}
}
