//go:build linux

package instance

import (
	"fmt"
	"strconv"
	"strings"
	"time"
)

// EventSize is the length of every event of a stream in bytes, with the empty
// line at its end. All are of one size so that who counts them needs to look
// for nothing.
const EventSize = 200

const (
	eventStart = `data: {"event":"message","task_id":"0f8fad5b-d9cb-469f-a165-70867728950e","at":"`
	stampSize  = 19 // digits of the Unix time in nanoseconds until the year 2286
	eventRest  = `","answer":"`
	eventEnd   = "\"}\n\n"
)

var eventTemplate = eventStart + strings.Repeat("0", stampSize) + eventRest +
	strings.Repeat("x", EventSize-len(eventStart)-stampSize-len(eventRest)-len(eventEnd)) + eventEnd

// Every task has an id of its own, as Dify's have: who remembers tasks has to
// remember as many as in real life.
const (
	taskAt     = len(`{"event":"message","task_id":"0f8fad5b-d9cb-469f-a165-`)
	taskDigits = 12
)

// stampTask writes the number of a task, given the bytes from where it goes.
func stampTask(b []byte, n int64) { digits(b[:taskDigits], n) }

func digits(b []byte, n int64) {
	for i := len(b) - 1; i >= 0; i-- {
		b[i] = byte('0' + n%10)
		n /= 10
	}
}

// stampEvent writes the time of sending into an event.
func stampEvent(event []byte, at int64) {
	digits(event[len(eventStart):len(eventStart)+stampSize], at)
}

// EventTime returns when an event was sent, and an error where the bytes are
// no event of ours, whole and unchanged at its ends.
func EventTime(event []byte) (time.Time, error) {
	if len(event) != EventSize || string(event[:len("data: ")+taskAt]) != eventStart[:len("data: ")+taskAt] || string(event[EventSize-len(eventEnd):]) != eventEnd {
		return time.Time{}, fmt.Errorf("not an event: %q", event)
	}
	ns, err := strconv.ParseInt(string(event[len(eventStart):len(eventStart)+stampSize]), 10, 64)
	if err != nil {
		return time.Time{}, fmt.Errorf("time of an event: %w", err)
	}
	return time.Unix(0, ns), nil
}
