package e2e

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

// freePorts returns n consecutive ports that nobody listens on, none of them twice.
func freePorts(t testing.TB, n int) int {
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
		if !portFree(port) {
			return port
		}
	}
	return -1
}

func portFree(port int) bool {
	for _, host := range []string{"127.0.0.1", ""} {
		ln, err := net.Listen("tcp", net.JoinHostPort(host, strconv.Itoa(port)))
		if err != nil {
			return false
		}
		ln.Close()
	}
	return true
}

func freeAddress(t testing.TB) string {
	t.Helper()
	return fmt.Sprintf("127.0.0.1:%d", freePorts(t, 1))
}
