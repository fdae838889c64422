package testbed

import (
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"sync"
	"testing"
)

// Ports are taken from below the range that kernels use for outgoing
// connections, so that a process can be started again on the port it had.
const (
	firstPort = 15000
	lastPort  = 32000
)

var ports struct {
	sync.Mutex
	next int // 0: not chosen yet
}

// FreePorts returns n consecutive ports that nobody listens on, none of them twice.
func FreePorts(t testing.TB, n int) int {
	t.Helper()
	ports.Lock()
	defer ports.Unlock()
	if ports.next == 0 {
		ports.next = firstPort + rand.IntN(lastPort-firstPort)
	}
	for range lastPort - firstPort {
		if ports.next+n > lastPort {
			ports.next = firstPort
		}
		first := ports.next
		if taken := firstTaken(first, n); taken >= 0 {
			ports.next = taken + 1
			continue
		}
		ports.next += n
		return first
	}
	t.Fatal("no free port")
	return 0
}

func firstTaken(first, n int) int {
	for port := first; port < first+n; port++ {
		if !PortFree(port) {
			return port
		}
	}
	return -1
}

// PortFree reports whether nobody listens on a port, on loopback or on all addresses.
func PortFree(port int) bool {
	for _, host := range []string{"127.0.0.1", ""} {
		ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			return false
		}
		ln.Close()
	}
	return true
}

// FreeAddress returns host:port of one of FreePorts.
func FreeAddress(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", FreePorts(t, 1))
}
