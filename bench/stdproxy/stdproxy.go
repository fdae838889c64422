// Package stdproxy is the proxy that anybody would write in Go in an
// afternoon: the standard library's ReverseProxy with a transport tuned for
// many kept connections. The benchmark measures it beside the others, because
// what it costs is what an own engine has to be worth. It refuses everything
// that a product needs: configuration, health, limits, statistics, a log.
package stdproxy

import (
	"hash/crc32"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
	"time"
)

// New returns a handler that sends each user, named by X-User-ID, always to the
// same of the instances, with token as Authorization. It is safe for
// concurrent use.
func New(instances []*url.URL, token string) http.Handler {
	authorization := "Bearer " + token
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			user := r.In.Header.Get("X-User-ID")
			r.SetURL(instances[crc32.ChecksumIEEE([]byte(user))%uint32(len(instances))])
			r.Out.Header.Set("Authorization", authorization)
			r.SetXForwarded()
		},
		Transport: &http.Transport{
			MaxIdleConnsPerHost: 4096,
			IdleConnTimeout:     time.Minute,
			DisableCompression:  true,
			WriteBufferSize:     4 << 10,
			ReadBufferSize:      4 << 10,
		},
		FlushInterval: -1, // events must not wait
		BufferPool:    &buffers{},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		// Otherwise the server closes the request's body at the first byte of
		// the answer, and where that comes very fast the transport may still
		// be about to look for the body's end: it then breaks off the answer.
		_ = http.NewResponseController(w).EnableFullDuplex()
		proxy.ServeHTTP(w, r)
	})
}

// buffers keeps the copy buffers of ended requests.
type buffers struct{ pool sync.Pool }

func (b *buffers) Get() []byte {
	if p, ok := b.pool.Get().(*[]byte); ok {
		return *p
	}
	return make([]byte, 32<<10)
}

func (b *buffers) Put(p []byte) { b.pool.Put(&p) }
