package proxy

import (
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/rs/zerolog"

	"difylb/pkg/lb"
	"difylb/pkg/route"
	"difylb/pkg/userid"
)

// typicalCall is a call as most are: routed, with a user, answered.
func typicalCall(t testing.TB, edit func(*Options)) *call {
	t.Helper()
	app := lb.NewApplication("customer_service")
	in := lb.Instance{Name: "dify1", Host: "10.0.0.1", Port: 80, Token: "app-1"}
	in.SetDefaults()
	app.Instances = []lb.Instance{in}
	app.UserTokens = []lb.UserToken{lb.NewUserToken("user-token-0001", "web", false)}
	table, err := route.Build(&lb.Snapshot{ConfigRevision: 4711, Applications: []*lb.Application{app}}, nil)
	if err != nil {
		t.Fatal(err)
	}
	opts := Options{UserHashKey: func() lb.Secret { return "0123456789abcdef0123456789abcdef" }}
	if edit != nil {
		edit(&opts)
	}
	a, p := table.App("customer_service"), New(opts)
	t.Cleanup(p.Close)
	return &call{
		p: p, v: &view{table: table}, app: &appView{app: a}, token: &a.Decl.UserTokens[0],
		id: "0b4ee2a6b3f04ff1a8f5f1c5c1d2e3f4", method: "POST", path: "/v1/chat-messages",
		client: netip.MustParseAddr("172.20.62.17"), start: time.Now().Add(-1234 * time.Millisecond), firstByte: 56789 * time.Microsecond,
		status: 200, bytesIn: 117, bytesOut: 4242, user: "user-0001-of-many", source: userid.JSON, instance: "dify1", attempts: 1, events: 17,
	}
}

func BenchmarkAccessLog_Line(b *testing.B) {
	l, c, now := newAccessLog(io.Discard, zerolog.Nop()), typicalCall(b, nil), time.Now()
	for format, line := range map[string]func([]byte, *call, time.Time) []byte{FormatJSON: l.appendAccessLine, FormatSeed: l.appendSeedLine} {
		b.Run(format, func(b *testing.B) {
			var space [1024]byte
			b.ReportAllocs()
			for b.Loop() {
				line(space[:0], c, now)
			}
		})
	}
}

func BenchmarkAccessLog_Write(b *testing.B) {
	l, c, now := newAccessLog(io.Discard, zerolog.Nop()), typicalCall(b, nil), time.Now()
	b.ReportAllocs()
	for b.Loop() {
		l.write(c, now)
		if s := &l.shards[0]; len(s.buf) > l.shardBound()/2 {
			s.buf = s.buf[:0]
		}
	}
}
