// Package dashboard is the web page of lb-admin: fixed files inside the
// binary, and the handler that serves them. The page talks to the REST API from
// the browser, with the access token that its reader gives it; this package
// knows neither the API nor the cluster, and nothing it serves is secret. What
// is in assets is built out of ui by `make dashboard`; Go alone builds the
// binary.
package dashboard

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"fmt"
	"io/fs"
	"net/http"
	"path"
	"regexp"
	"strings"
	"time"
)

//go:embed assets
var assets embed.FS

// Policy is the Content-Security-Policy of every answer. Scripts, styles and
// calls come from the server that served the page and from nowhere else, and
// nothing inline runs, so text that found its way into the page as markup
// would still do nothing.
const Policy = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; " +
	"base-uri 'none'; form-action 'none'; frame-ancestors 'none'"

// types are the media types of what is embedded. The tables of the machine
// that mime.TypeByExtension reads may say otherwise, and browsers refuse a
// module of another type.
var types = map[string]string{
	".html": "text/html; charset=utf-8",
	".css":  "text/css; charset=utf-8",
	".js":   "text/javascript; charset=utf-8",
	".svg":  "image/svg+xml",
	".txt":  "text/plain; charset=utf-8",
}

// hashed are the names that change with what the file holds.
var hashed = regexp.MustCompile(`-[0-9A-Z]{8}\.(js|css)$`)

type file struct {
	data   []byte
	packed []byte // data as gzip; nil: that would not be smaller
	kind   string
	cache  string
	tag    string
}

// Handler serves the page at / and its parts below /assets/, to GET and HEAD;
// everything else is not found. Browsers ask for the page again each time, and
// are told by the entity tag that nothing changed; script and style have names
// that change with them, so page and parts are always of one version. Whoever
// takes gzip gets that. It is safe for concurrent use.
func Handler() http.Handler {
	files := load()
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		h := w.Header()
		h.Set("Content-Security-Policy", Policy)
		h.Set("X-Content-Type-Options", "nosniff")
		h.Set("Referrer-Policy", "no-referrer")
		h.Set("Cross-Origin-Opener-Policy", "same-origin")
		if r.Method != http.MethodGet && r.Method != http.MethodHead {
			h.Set("Allow", "GET, HEAD")
			problem(w, http.StatusMethodNotAllowed, "method", "the dashboard takes GET and HEAD only")
			return
		}
		f, ok := files[r.URL.Path]
		if !ok {
			problem(w, http.StatusNotFound, "not-found", "there is no such page; the dashboard is at /, the API below /api/v1")
			return
		}
		h.Set("Content-Type", f.kind)
		h.Set("Cache-Control", f.cache)
		data, tag := f.data, f.tag
		if f.packed != nil {
			h.Set("Vary", "Accept-Encoding")
			if takesGzip(r.Header) {
				// A range of the packed bytes would be of no use to anybody.
				r.Header.Del("Range")
				h.Set("Content-Encoding", "gzip")
				data, tag = f.packed, f.tag+"-gzip"
			}
		}
		h.Set("ETag", `"`+tag+`"`)
		http.ServeContent(w, r, "", time.Time{}, bytes.NewReader(data))
	})
}

// takesGzip is a simple reading of RFC 9110, section 12.5.3: gzip is named and
// not refused.
func takesGzip(h http.Header) bool {
	for _, line := range h.Values("Accept-Encoding") {
		for coding := range strings.SplitSeq(line, ",") {
			name, weight, _ := strings.Cut(coding, ";")
			if strings.EqualFold(strings.TrimSpace(name), "gzip") {
				weight = strings.TrimLeft(strings.TrimSpace(weight), "qQ= ")
				return weight == "" || strings.Trim(weight, "0.") != ""
			}
		}
	}
	return false
}

// load reads the embedded files by the path at which they are served. What is
// wrong with them is a broken build and panics.
func load() map[string]file {
	files := make(map[string]file)
	err := fs.WalkDir(assets, "assets", func(name string, d fs.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		kind, ok := types[path.Ext(name)]
		if !ok {
			return fmt.Errorf("%s has no known media type", name)
		}
		data, err := assets.ReadFile(name)
		if err != nil {
			return err
		}
		at := "/" + name
		if name == "assets/index.html" {
			at = "/"
		}
		sum := sha256.Sum256(data)
		f := file{data: data, packed: pack(data), kind: kind, cache: "no-cache", tag: hex.EncodeToString(sum[:12])}
		if hashed.MatchString(name) {
			f.cache = "public, max-age=31536000, immutable"
		}
		files[at] = f
		return nil
	})
	if err != nil {
		panic("dashboard: " + err.Error())
	}
	return files
}

func pack(data []byte) []byte {
	var out bytes.Buffer
	w, err := gzip.NewWriterLevel(&out, gzip.BestCompression)
	if err == nil {
		_, err = w.Write(data)
	}
	if err == nil {
		err = w.Close()
	}
	if err != nil {
		panic(err) // a buffer takes everything
	}
	if out.Len() >= len(data) {
		return nil
	}
	return out.Bytes()
}

// problem answers in the form of the REST API (RFC 9457), because whoever
// asks for a path that is not there is more likely a program than a reader.
func problem(w http.ResponseWriter, status int, kind, detail string) {
	h := w.Header()
	h.Set("Content-Type", "application/problem+json")
	h.Set("Cache-Control", "no-store")
	w.WriteHeader(status)
	// An error is the client's going away.
	_, _ = fmt.Fprintf(w, `{"type":"urn:difylb:problem:%s","title":%q,"status":%d,"detail":%q}`+"\n",
		kind, http.StatusText(status), status, detail)
}
