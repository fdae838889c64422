// Package standin is an honest stand-in for the Service API (/v1) of a Dify
// instance, for people who have no Dify at hand and for tests: same paths, same
// place of the end user, same bodies, stream framing and error envelope, same
// answers for ids of another instance, and the same habits under load. Nothing
// is inferred by a model: answers are made of the question and filler words. It
// knows nothing of the balancer in front of it.
//
// # Slots
//
// A Dify API container serves 10 connections at a time (gunicorn with gevent).
// A connection holds its slot from the moment it is accepted until it is
// closed, kept alive and idle included. Beyond that TCP still connects, by way
// of the kernel's backlog, and then nothing is answered, /health included, until a
// slot is free. The server behaves so below net/http; see Options.Slots.
//
// # Runs
//
// A run (the making of one answer) is a schedule fixed when it starts: which
// event is due at which time. A stream, a blocking call and a stream opened
// again later by GET /v1/workflow/{id}/events are three readers of one schedule,
// so chatflow and workflow runs go on when the client has gone, as those of
// Dify's workers do, and no goroutine stands behind a run.
//
// # Selectors
//
// A request may choose how it is answered: by an object "_standin" in `inputs`,
//
//	{"inputs": {"_standin": {"tokens": 15, "gap_ms": 30, "error": "provider_quota_exceeded"}}}
//
// or by words after "#standin" in `query`: "hello #standin tokens=15 gap_ms=30".
//
//	tokens       number of text deltas of the answer
//	token_bytes  size of each delta, padded with filler
//	first_ms     time to the first delta
//	gap_ms       time between two deltas
//	ping_ms      interval of ping events of this stream
//	delay_ms     time before anything is answered, headers included
//	answer       the text to answer with, instead of echo and filler
//	reject       code of an error answered before any run starts (its HTTP status follows from the code)
//	error        code of a failure of the model: an `error` event inside a stream, an
//	             HTTP error of a blocking call, status "failed" of a workflow
//	error_after  number of deltas before that failure (0: none)
//	fail         true: the workflow or chatflow ends with status "failed"
//	pause        true: the workflow or chatflow asks a human and pauses
//	ping_only    true: the stream sends nothing but pings
//	reset_after  number of events after which the connection is reset
//	cut_after    number of events after which the connection is closed in the middle of the body
//
// Unknown names are ignored, numbers are held to sane bounds.
//
// # Control
//
// With Options.Control a process outside can read and steer the server, at any
// time, slots full or not:
//
//	GET  /_standin/counts    Counts as JSON
//	GET  /_standin/requests  the last 100 requests: []Request
//	GET  /_standin/faults    the faults in force: []Fault
//	POST /_standin/faults    {"clear": true, "add": [Fault, ...]}, both optional
//	GET  /v1/_standin/upgrade  with "Connection: Upgrade", "Upgrade: echo": 101, then every byte comes back
//
// Control connections carry one request each. The upgrade is an ordinary
// connection: it needs a valid token and takes a slot.
package standin
