package certs

import (
	"crypto/tls"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rs/zerolog"

	"difylb/test/testbed"
)

// desk is a directory with an authority's file, and a certificate with its key.
type desk struct {
	t             *testing.T
	ca            *testbed.CA
	cas, crt, key string
}

func newDesk(t *testing.T) *desk {
	dir := t.TempDir()
	d := &desk{t: t, ca: testbed.NewCA(t, "one"), cas: filepath.Join(dir, "ca.pem"), crt: filepath.Join(dir, "crt.pem"), key: filepath.Join(dir, "key.pem")}
	testbed.WriteFile(t, d.cas, []byte(d.ca.PEM))
	d.issue("first.example", time.Hour)
	return d
}

func (d *desk) issue(name string, life time.Duration) {
	d.t.Helper()
	testbed.WritePair(d.t, d.ca.IssueFor(life, name), d.crt, d.key)
}

// age makes files look as if they were written at another time: some file
// systems tell seconds only.
func (d *desk) age(by time.Duration, files ...string) {
	d.t.Helper()
	for _, f := range files {
		at := time.Now().Add(by)
		if err := os.Chtimes(f, at, at); err != nil {
			d.t.Fatal(err)
		}
	}
}

func TestPair_IsReadAgain(t *testing.T) {
	d := newDesk(t)
	var log testLog
	synctest.Test(t, func(t *testing.T) {
		p, err := LoadPair(d.crt, d.key, zerolog.New(&log))
		if err != nil {
			t.Fatal(err)
		}
		is := func(what, want string) {
			t.Helper()
			if got := p.Current().Leaf.DNSNames[0]; got != want {
				t.Errorf("%s: the certificate is for %s, want %s", what, got, want)
			}
		}
		is("at first", "first.example")
		if left := p.Expires().Sub(p.Current().Leaf.NotAfter); left != 0 {
			t.Errorf("it runs out %s beside its end", left)
		}
		d.issue("second.example", time.Hour)
		d.age(time.Minute, d.crt, d.key)
		is("just written", "first.example")
		time.Sleep(checkEvery)
		is("a second later", "second.example")
		// Two files are never written at once.
		good, err := os.ReadFile(d.crt)
		if err != nil {
			t.Fatal(err)
		}
		d.issue("third.example", time.Hour)
		third, err := os.ReadFile(d.crt)
		if err != nil {
			t.Fatal(err)
		}
		testbed.WriteFile(t, d.crt, good)
		d.age(2*time.Minute, d.crt, d.key)
		for range 5 {
			time.Sleep(checkEvery)
			is("a key of another certificate", "second.example")
		}
		testbed.WriteFile(t, d.crt, third)
		d.age(3*time.Minute, d.crt)
		time.Sleep(checkEvery)
		is("the certificate has followed", "third.example")
		if err := os.Remove(d.key); err != nil {
			t.Fatal(err)
		}
		time.Sleep(checkEvery)
		is("the key is gone", "third.example")
	})
	if n := strings.Count(log.String(), "run out"); n != 0 {
		t.Errorf("a certificate is said to have run out:\n%s", log.String())
	}
	if n := strings.Count(log.String(), "not usable"); n != 1 {
		t.Errorf("files that do not fit are told of %d times:\n%s", n, log.String())
	}
	if n := strings.Count(log.String(), "reloaded"); n != 2 {
		t.Errorf("new files are told of %d times:\n%s", n, log.String())
	}
}

// testLog may be written to by several.
type testLog struct {
	mu   sync.Mutex
	text strings.Builder
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.Write(p)
}

func (l *testLog) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.text.String()
}

func TestPair_TellsOnceThatItHasRunOut(t *testing.T) {
	d := newDesk(t)
	var log testLog
	synctest.Test(t, func(t *testing.T) {
		d.issue("brief.example", time.Minute)
		p, err := LoadPair(d.crt, d.key, zerolog.New(&log))
		if err != nil {
			t.Fatal(err)
		}
		for range 5 {
			p.Current()
		}
		if strings.Contains(log.String(), "run out") {
			t.Errorf("it lives for a minute:\n%s", log.String())
		}
		time.Sleep(time.Minute + time.Second)
		for range 5 {
			p.Current()
		}
		if n := strings.Count(log.String(), "run out"); n != 1 {
			t.Errorf("told of %d times:\n%s", n, log.String())
		}
	})
}

func TestLoad_SaysWhatIsWrong(t *testing.T) {
	d := newDesk(t)
	other := newDesk(t)
	none := filepath.Join(t.TempDir(), "none.pem")
	for _, c := range []struct{ crt, key, want string }{
		{none, d.key, none}, {d.crt, none, none}, {d.crt, other.key, "private key does not match"}, {d.key, d.key, d.key},
	} {
		if _, err := LoadPair(c.crt, c.key, zerolog.Nop()); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s, %s: %v", c.crt, c.key, err)
		}
	}
	for file, want := range map[string]string{none: none, d.key: "holds no PEM certificate"} {
		if _, err := LoadPool(file, zerolog.Nop()); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", file, err)
		}
	}
}

// Both ends take new files up while they run: certificates, keys and authorities.
func TestServerAndClient_FollowTheirFiles(t *testing.T) {
	front, visitor := newDesk(t), newDesk(t)
	pair := func(d *desk) *Pair {
		p, err := LoadPair(d.crt, d.key, zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	pool := func(d *desk) *Pool {
		p, err := LoadPool(d.cas, zerolog.Nop())
		if err != nil {
			t.Fatal(err)
		}
		return p
	}
	server := Server(pair(front), pool(visitor))
	client := &Client{CAs: pool(front), Own: pair(visitor)}
	var none *Client
	if none.Settings() != nil || none.Shown() != nil || client.Shown() != client.Own {
		t.Error("no settings are settings")
	}
	meet := func(config *tls.Config) error {
		config.ServerName = "first.example"
		a, b := net.Pipe()
		served := make(chan error, 1)
		go func() {
			c := tls.Server(a, server)
			_ = c.SetDeadline(time.Now().Add(10 * time.Second))
			_, err := io.WriteString(c, "x") // says that the client is believed
			c.Close()
			served <- err
		}()
		c := tls.Client(b, config)
		_ = c.SetDeadline(time.Now().Add(10 * time.Second))
		_, err := io.ReadFull(c, make([]byte, 1))
		b.Close()
		return errors.Join(err, <-served)
	}
	await := func(what, want string, settings func() *tls.Config) {
		t.Helper()
		testbed.Eventually(t, 10*time.Second, what, func() error {
			err := meet(settings())
			if want == "" {
				return err
			}
			if err == nil || !strings.Contains(err.Error(), want) {
				return fmt.Errorf("want %q, it is %v", want, err)
			}
			return nil
		})
	}
	await("both are believed", "", client.Settings())
	await("a client without a certificate", "certificate required", (&Client{CAs: client.CAs}).Config)
	await("a client with the system's authorities", "unknown authority", (&Client{Own: client.Own}).Config)

	front.issue("first.example", -time.Minute)
	front.age(time.Minute, front.crt, front.key)
	await("the server's certificate has run out", "expired", client.Config)
	front.issue("first.example", time.Hour)
	front.age(2*time.Minute, front.crt, front.key)
	await("and is renewed", "", client.Config)

	visitor.issue("visitor", -time.Minute)
	visitor.age(time.Minute, visitor.crt, visitor.key)
	await("the client's certificate has run out", "expired certificate", client.Config)
	visitor.issue("visitor", time.Hour)
	visitor.age(2*time.Minute, visitor.crt, visitor.key)
	await("and is renewed", "", client.Config)

	// Authorities change by way of both.
	old := front.ca
	front.ca = testbed.NewCA(t, "two")
	testbed.WriteFile(t, front.cas, []byte(old.PEM+front.ca.PEM))
	await("two authorities", "", client.Config)
	front.issue("first.example", time.Hour)
	front.age(3*time.Minute, front.crt, front.key)
	testbed.WriteFile(t, front.cas, []byte(front.ca.PEM))
	front.age(3*time.Minute, front.cas)
	await("the new one", "", client.Config)
	testbed.WriteFile(t, front.cas, []byte(old.PEM))
	front.age(4*time.Minute, front.cas)
	await("only the old one", "unknown authority", client.Config)
	testbed.WriteFile(t, visitor.cas, []byte(front.ca.PEM))
	visitor.age(time.Minute, visitor.cas)
	testbed.WriteFile(t, front.cas, []byte(front.ca.PEM))
	front.age(5*time.Minute, front.cas)
	await("a client of another authority than the server believes", "certificate required", client.Config)
}
