package fault

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"

	"difylb/test/testbed"
)

// Clients that take their time, at proxies that have little memory.
func TestFault_Memory(t *testing.T) {
	t.Parallel()
	if !*long {
		t.Skip("part of the long form only")
	}
	const limit = 40 << 20
	c := newCluster(t, shape{admins: 1, proxies: 2, proxyEnv: []string{fmt.Sprintf("GOMEMLIMIT=%d", limit)}})
	c.play(t,
		fault{
			name: "600 clients at one proxy: 400 read nothing of long answers, 200 send half of an upload and no more", promise: "nothing of others fails; the proxy stays within its memory and does not spin", within: 40 * time.Second,
			run: func(s *story) {
				p := s.proxies[0]
				before := testbed.CPUTime(s.t, p.Pid())
				from := time.Now()
				var crowd []net.Conn
				for i := range 600 {
					conn, err := net.DialTimeout("tcp", strings.TrimPrefix(p.front, "http://"), 5*time.Second)
					if err != nil {
						s.t.Fatalf("client %d: %s", i, err)
					}
					crowd = append(crowd, conn)
					_ = conn.(*net.TCPConn).SetReadBuffer(4 << 10)
					_ = conn.SetDeadline(time.Now().Add(30 * time.Second))
					path, contentType, body := "", "", ""
					if i%3 == 0 {
						path, contentType, body = "/v1/files/upload", "multipart/form-data; boundary=x", "--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n"+strings.Repeat("half of it\n", 40<<10)
					} else {
						path, contentType, body = "/v1/chat-messages", "application/json",
							fmt.Sprintf(`{"query":"hello","user":"slow-%d","response_mode":"streaming","inputs":{"_standin":{"tokens":20000,"gap_ms":0,"first_ms":1}}}`, i)
					}
					length := len(body)
					if i%3 == 0 {
						length *= 2
					}
					if _, err := fmt.Fprintf(conn, "%s %s HTTP/1.1\r\nHost: lb\r\nAuthorization: Bearer %s\r\nContent-Type: %s\r\nContent-Length: %d\r\n\r\n", http.MethodPost, path, s.token, contentType, length); err != nil {
						s.t.Fatal(err)
					}
					if _, err := io.WriteString(conn, body); err != nil {
						s.t.Fatalf("client %d: %s", i, err)
					}
				}
				s.load.rest(s.t, 15*time.Second)
				now, peak := testbed.ResidentBytes(s.t, p.Pid())
				used := (testbed.CPUTime(s.t, p.Pid()) - before).Seconds() / time.Since(from).Seconds()
				open, err := testbed.Metric(p.base, "difylb_client_connections")
				if err != nil || open < 600 {
					s.t.Errorf("%v connections are open, want 600 and more: %v", open, err)
				}
				s.note("%d MiB at most, %d MiB in the end; %.0f %% of a core", peak>>20, now>>20, 100*used)
				// The program itself, and what the kernel maps for it, count beside the limit.
				if most := int64(limit + 40<<20); peak > most {
					s.t.Errorf("it took %d MiB, want %d MiB at most", peak>>20, most>>20)
				}
				if used > 0.9 {
					s.t.Errorf("it used %.0f %% of a core", 100*used)
				}
				for _, in := range s.instances { // the stand-ins have 400 streams to end at once, on the same two cores, and may miss a probe
					s.absent(in)
				}
				for _, conn := range crowd {
					conn.Close()
				}
				s.mend()
			},
		},
	)
}
