package testbed

import (
	"net"
	"net/netip"
	"strings"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// DNS is a name server of one test. It knows every name, and gives those that
// have no addresses of their own all the same. It answers over UDP only.
type DNS struct {
	// Address is where it is asked.
	Address netip.AddrPort

	mu    sync.Mutex
	addrs map[string][]netip.Addr // guarded by mu; "" for all others
	code  dnsmessage.RCode        // guarded by mu
	mute  bool                    // guarded by mu
	asked int                     // guarded by mu
}

// NewDNS starts a name server that answers with those IP addresses.
func NewDNS(t testing.TB, addrs ...string) *DNS {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &DNS{Address: conn.LocalAddr().(*net.UDPAddr).AddrPort(), addrs: make(map[string][]netip.Addr)}
	d.Answer(addrs...)
	done := make(chan struct{})
	go func() { // ends with conn
		defer close(done)
		buf := make([]byte, 1500)
		for {
			n, from, err := conn.ReadFrom(buf)
			if err != nil {
				return
			}
			if answer := d.answer(buf[:n]); answer != nil {
				_, _ = conn.WriteTo(answer, from)
			}
		}
	}()
	t.Cleanup(func() {
		conn.Close()
		<-done
	})
	return d
}

// Answer makes it answer with those IP addresses from now on, for names that
// have none of their own.
func (d *DNS) Answer(addrs ...string) { d.AnswerFor("", addrs...) }

// AnswerFor makes it answer again, for that name with those IP addresses.
func (d *DNS) AnswerFor(name string, addrs ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.addrs[name], d.code, d.mute = nil, dnsmessage.RCodeSuccess, false
	for _, a := range addrs {
		d.addrs[name] = append(d.addrs[name], netip.MustParseAddr(a))
	}
}

// Fail makes it answer SERVFAIL.
func (d *DNS) Fail() { d.refuse(dnsmessage.RCodeServerFailure) }

// Deny makes it say that there is no such name.
func (d *DNS) Deny() { d.refuse(dnsmessage.RCodeNameError) }

func (d *DNS) refuse(code dnsmessage.RCode) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.code, d.mute = code, false
}

// Silence makes it answer nothing at all.
func (d *DNS) Silence() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.mute = true
}

// Asked is how many questions have come so far; a look-up asks two.
func (d *DNS) Asked() int {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.asked
}

func (d *DNS) answer(question []byte) []byte {
	var m dnsmessage.Message
	if m.Unpack(question) != nil || len(m.Questions) == 0 {
		return nil
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.asked++
	if d.mute {
		return nil
	}
	m.Response, m.Additionals, m.RCode = true, nil, d.code
	q := m.Questions[0]
	h := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: dnsmessage.ClassINET, TTL: 1}
	addrs, own := d.addrs[strings.TrimSuffix(q.Name.String(), ".")]
	if !own {
		addrs = d.addrs[""]
	}
	for _, a := range addrs {
		switch {
		case d.code != dnsmessage.RCodeSuccess:
		case a.Is4() && q.Type == dnsmessage.TypeA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AResource{A: a.As4()}})
		case a.Is6() && q.Type == dnsmessage.TypeAAAA:
			m.Answers = append(m.Answers, dnsmessage.Resource{Header: h, Body: &dnsmessage.AAAAResource{AAAA: a.As16()}})
		}
	}
	out, err := m.Pack()
	if err != nil {
		return nil
	}
	return out
}
