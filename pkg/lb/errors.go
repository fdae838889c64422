package lb

import (
	"errors"
	"fmt"
	"strings"
)

// The kinds of error that cross package borders. Test with errors.Is; each
// edge (REST, gRPC, command line) maps them once.
var (
	// ErrNotFound: the named object does not exist.
	ErrNotFound = errors.New("not found")
	// ErrInvalid: the input is at fault; nothing was changed.
	ErrInvalid = errors.New("invalid")
	// ErrExists: an object of that name exists already.
	ErrExists = errors.New("already exists")
	// ErrConflict: the object is not at the revision that the caller named.
	ErrConflict = errors.New("changed meanwhile")
	// ErrUnavailable: the store, or who should answer, can't be reached now.
	// The operation may or may not have been carried out.
	ErrUnavailable = errors.New("unavailable")
)

// Error is an error of a kind, with a message meant for the person who asked.
type Error struct {
	Kind    error // one of the Err… values
	Message string
}

func (e *Error) Error() string { return e.Message }
func (e *Error) Unwrap() error { return e.Kind }

// Errorf makes an Error. The message should name the object and what would be right.
func Errorf(kind error, format string, args ...any) error {
	return &Error{Kind: kind, Message: fmt.Sprintf(format, args...)}
}

// Fault is one thing that is wrong with a declaration.
type Fault struct {
	// Path names the field, as in applications.shop.instances[2].port.
	// Empty for a fault of the whole.
	Path string `json:"path"`
	// Message says what is wrong, with the value, and what would be right.
	// It never holds a secret.
	Message string `json:"message"`
	// Line is the line of the document, from 1; 0 when it is not known.
	Line int `json:"line,omitempty"`
}

func (f Fault) String() string {
	if f.Path == "" {
		return f.Message
	}
	return f.Path + ": " + f.Message
}

// Faults is every fault of one declaration, in the order of the document. As
// an error its kind is ErrInvalid.
type Faults []Fault

// Add appends a fault. The path may be given in pieces, as Path joins them.
func (fs *Faults) Add(path, format string, args ...any) {
	*fs = append(*fs, Fault{Path: path, Message: fmt.Sprintf(format, args...)})
}

// Err returns the faults as an error, nil when there are none.
func (fs Faults) Err() error {
	if len(fs) == 0 {
		return nil
	}
	return fs
}

func (fs Faults) Error() string {
	lines := make([]string, len(fs))
	for i, f := range fs {
		lines[i] = f.String()
	}
	return strings.Join(lines, "; ")
}

// Unwrap makes errors.Is(fs, ErrInvalid) true.
func (fs Faults) Unwrap() error { return ErrInvalid }

// JoinPath appends a key to a fault's path.
func JoinPath(path, key string) string {
	if path == "" {
		return key
	}
	return path + "." + key
}
