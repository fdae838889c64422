package testbed

import (
	"net"
	"net/netip"
	"sync"
	"testing"

	"golang.org/x/net/dns/dnsmessage"
)

// DNS is a name server of one test. It knows every name, and gives all of them
// the same addresses. It answers over UDP only.
type DNS struct {
	// Address is where it is asked.
	Address netip.AddrPort

	mu    sync.Mutex
	addrs []netip.Addr // guarded by mu
	code  dnsmessage.RCode
	mute  bool
	asked int
}

// NewDNS starts a name server that answers with those IP addresses.
func NewDNS(t testing.TB, addrs ...string) *DNS {
	t.Helper()
	conn, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	d := &DNS{Address: conn.LocalAddr().(*net.UDPAddr).AddrPort()}
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

// Answer makes it answer with those IP addresses from now on.
func (d *DNS) Answer(addrs ...string) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.addrs, d.code, d.mute = nil, dnsmessage.RCodeSuccess, false
	for _, a := range addrs {
		d.addrs = append(d.addrs, netip.MustParseAddr(a))
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
	for _, a := range d.addrs {
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
