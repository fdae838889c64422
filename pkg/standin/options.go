package standin

import "time"

// Mode is the kind of a Dify app. It decides which endpoints an app key may
// use and which events a stream is made of.
type Mode string

// The modes of Dify.
const (
	Chat         Mode = "chat"
	AgentChat    Mode = "agent-chat"
	AdvancedChat Mode = "advanced-chat" // chatflow
	Agent        Mode = "agent"         // "New Agent": streaming only
	Workflow     Mode = "workflow"
	Completion   Mode = "completion"
)

// chatFamily reports whether apps of this mode hold conversations.
func (m Mode) chatFamily() bool {
	return m == Chat || m == AgentChat || m == AdvancedChat || m == Agent
}

// graph reports whether apps of this mode run a workflow graph.
func (m Mode) graph() bool { return m == Workflow || m == AdvancedChat }

// Front says what stands between the client and the API process.
type Front int

const (
	// Direct is the API container itself (gunicorn, port 5001): /health answers
	// JSON, idle connections are closed after 2 s.
	Direct Front = iota
	// Nginx is the stock deployment on port 80: only /v1 and /files reach the
	// API, errors of nginx itself are HTML, bodies end at 100 MB, idle
	// connections live 65 s.
	Nginx
)

// App is one app of the instance, reached by its key.
type App struct {
	// Key is the token clients present ("app-…").
	Key string
	// Mode defaults to Chat.
	Mode Mode
	// Name defaults to Options.Name.
	Name string
	// ID tells apps apart within a World. Empty: derived from Key. Two keys with
	// one ID are two keys of the same app: its conversations are reached by both.
	ID string
	// MaxActive is the app's cap of concurrent requests, counted in the World;
	// beyond it 429 too_many_requests. 0: none.
	MaxActive int
	// Unpublished makes /parameters and runs answer 400, as an app that was never published.
	Unpublished bool
	// Disabled makes everything answer 403, as an app whose API is switched off.
	Disabled bool
}

// Options of a Server. The zero value serves, but knows no key.
type Options struct {
	// Name is told in every answer ("[name] …") and in /info. Default "standin".
	Name string
	Apps []App
	// DatasetKeys are the keys of the knowledge API ("dataset-…").
	DatasetKeys []string
	// World holds the database, Redis and storage. Servers with the same World are
	// replicas: an id made by one is valid on the others. Nil: a World of its own.
	World *World
	// Version is told in X-Version, /health and /v1/. Default "1.16.1".
	Version string
	// Slots is the number of connections served at a time, idle ones included;
	// further ones connect and wait. 0: 10, as shipped by Dify. Negative: no limit.
	Slots int
	// IdleTimeout closes a connection without a request. 0: 2 s (Direct) or 65 s (Nginx).
	// Direct applies it to the head of the first request as well, as gunicorn does.
	IdleTimeout time.Duration
	Front       Front
	// BodyLimitBytes of the Nginx front. 0: 100 MiB.
	BodyLimitBytes int64

	// FirstToken is the time to the first text delta, TokenGap the time between two,
	// Tokens their number. 0: 30 ms, 20 ms, 20. Negative durations mean none at all.
	FirstToken time.Duration
	TokenGap   time.Duration
	Tokens     int
	// PingInterval of streams. 0: 10 s.
	PingInterval time.Duration
	// StreamIdle ends a chatflow or workflow stream that had no event for so long. 0: 300 s.
	StreamIdle time.Duration
	// SpacedJSON writes JSON as older releases do: spaces after ":" and ",", and
	// everything beyond ASCII escaped. Default is the newer compact form.
	SpacedJSON bool
	// SilentUnknownConversation has the chatflow fault of Dify 1.13 to mid 2026: a
	// streaming call with an unknown conversation gets 200 and pings, not 404
	// (langgenius/dify#37197).
	SilentUnknownConversation bool
	// FilesURL is put in front of signed file links. Empty: links are relative.
	FilesURL string

	// Control opens /_standin and records requests; see the package comment.
	Control bool
	// Log, if set, is told what a person at a terminal may want to know. It is called
	// concurrently and never given a token.
	Log func(format string, args ...any)
}

func (o Options) withDefaults() Options {
	if o.Name == "" {
		o.Name = "standin"
	}
	if o.Version == "" {
		o.Version = "1.16.1"
	}
	if o.World == nil {
		o.World = NewWorld()
	}
	if o.Slots == 0 {
		o.Slots = 10
	}
	if o.IdleTimeout == 0 {
		o.IdleTimeout = 2 * time.Second
		if o.Front == Nginx {
			o.IdleTimeout = 65 * time.Second
		}
	}
	if o.BodyLimitBytes == 0 {
		o.BodyLimitBytes = 100 << 20
	}
	o.FirstToken = defaultDuration(o.FirstToken, 30*time.Millisecond)
	o.TokenGap = defaultDuration(o.TokenGap, 20*time.Millisecond)
	o.PingInterval = max(defaultDuration(o.PingInterval, 10*time.Second), time.Millisecond)
	o.StreamIdle = defaultDuration(o.StreamIdle, 300*time.Second)
	if o.Tokens <= 0 {
		o.Tokens = 20
	}
	if o.Log == nil {
		o.Log = func(string, ...any) {}
	}
	apps := make([]App, len(o.Apps))
	for i, a := range o.Apps {
		if a.Mode == "" {
			a.Mode = Chat
		}
		if a.Name == "" {
			a.Name = o.Name
		}
		if a.ID == "" {
			a.ID = derivedID("app", a.Key)
		}
		apps[i] = a
	}
	o.Apps = apps
	return o
}

// defaultDuration maps 0 to def and anything negative to none.
func defaultDuration(d, def time.Duration) time.Duration {
	switch {
	case d == 0:
		return def
	case d < 0:
		return 0
	}
	return d
}
