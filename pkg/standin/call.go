package standin

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"mime"
	"net/http"
	"strings"
)

// call is one request on its way through an endpoint: what was found out about it so far.
type call struct {
	s      *Server
	w      http.ResponseWriter
	r      *http.Request
	params map[string]string

	app    App
	user   *endUser       // nil where the endpoint knows no user
	body   map[string]any // of JSON endpoints
	upload *upload        // of form endpoints

	inputs map[string]any
	query  string
	sel    selectors
}

func (c *call) param(name string) string { return c.params[name] }

func (c *call) json(status int, v any) error {
	c.s.writeJSON(c.w, status, v)
	return nil
}

// locked answers with what f makes of the World. f runs under its lock; the answer is
// written after it.
func (c *call) locked(status int, f func(*World) (object, error)) error {
	w := c.s.opts.World
	w.mu.Lock()
	o, err := f(w)
	w.mu.Unlock()
	if err != nil {
		return err
	}
	return c.json(status, o)
}

// success is the answer of calls that have nothing to tell.
func (c *call) success() error { return c.json(200, object{{"result", "success"}}) }

func (c *call) noContent() error {
	c.w.Header().Set("Content-Type", "application/json")
	c.w.WriteHeader(http.StatusNoContent)
	return nil
}

// maxJSONBytes bounds the memory one JSON body may take.
const maxJSONBytes = 100 << 20

// readJSON parses the body as strictly as the framework of the API: without the
// content type 415, without an object 400.
func (c *call) readJSON() error {
	mediaType, _, _ := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	if mediaType != "application/json" && !(strings.HasPrefix(mediaType, "application/") && strings.HasSuffix(mediaType, "+json")) {
		return &apiError{status: 415, code: "unsupported_media_type", message: "Did not attempt to load JSON data because the request Content-Type was not 'application/json'."}
	}
	raw, err := io.ReadAll(io.LimitReader(c.r.Body, maxJSONBytes+1))
	if err != nil {
		return bodyError(err)
	}
	if len(raw) > maxJSONBytes {
		return &apiError{status: 413, code: "request_entity_too_large", message: "The data value transmitted exceeds the capacity limit."}
	}
	dec := json.NewDecoder(bytes.NewReader(raw))
	dec.UseNumber()
	var v any
	if err := dec.Decode(&v); err != nil {
		return badRequest("Invalid JSON payload received or JSON payload is empty.")
	}
	if _, err := dec.Token(); err != io.EOF {
		return badRequest("Invalid JSON payload received or JSON payload is empty.")
	}
	body, ok := v.(map[string]any)
	if !ok {
		return invalidParam("Input should be a valid dictionary")
	}
	c.body = body
	return nil
}

// bodyError tells a body that was too long for nginx from one that broke off.
func bodyError(err error) error {
	var tooLarge *http.MaxBytesError
	if errors.As(err, &tooLarge) {
		return err
	}
	return badRequest("The browser (or proxy) sent a request that this server could not understand.")
}

// bodyUser turns the value of "user" into a string, as the API does: a number
// counts by its digits, and what Python holds for false counts as absent.
func bodyUser(v any) string {
	switch v := v.(type) {
	case string:
		return v
	case json.Number:
		if f, err := v.Float64(); err == nil && f == 0 {
			return ""
		}
		return v.String()
	case bool:
		if v {
			return "True"
		}
	case nil:
	default:
		if text := string(encodeJSON(v, true)); text != "{}" && text != "[]" {
			return text
		}
	}
	return ""
}

// str returns a string of the body: "" if absent or null, an error if it is anything else.
func (c *call) str(name string) (string, error) {
	switch v := c.body[name].(type) {
	case nil:
		return "", nil
	case string:
		return v, nil
	}
	return "", paramError(name, "Input should be a valid string")
}

// dict returns an object of the body; it must be there.
func (c *call) dict(name string) (map[string]any, error) {
	v, ok := c.body[name]
	if !ok {
		return nil, paramError(name, "Field required")
	}
	m, ok := v.(map[string]any)
	if !ok {
		return nil, paramError(name, "Input should be a valid dictionary")
	}
	return m, nil
}

func paramError(name, what string) *apiError {
	e := invalidParam("%s: %s", name, what)
	e.params = name
	return e
}
