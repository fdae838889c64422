package standin

import (
	"bytes"
	"errors"
	"io"
	"mime"
	"mime/multipart"
	"net/http"
	"net/url"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// file is an uploaded file. It can be named in messages by the user who sent it, and
// seen by preview once a message has used it.
type file struct {
	id, name, mime string
	appID          string
	user           *endUser
	size           int64
	created        time.Time

	// guarded by World.mu
	used    bool
	content []byte // nil once forgotten
}

func (f *file) extension() string {
	return strings.TrimPrefix(strings.ToLower(filepath.Ext(f.name)), ".")
}

func (f *file) kind() string { return fileKind(f.mime) }

func fileKind(mediaType string) string {
	kind, _, _ := strings.Cut(mediaType, "/")
	switch kind {
	case "image", "audio", "video":
		return kind
	}
	return "document"
}

// uploadLimit is the size limit of a kind of file as Dify ships it.
func uploadLimit(kind string) int64 {
	switch kind {
	case "image":
		return 10 << 20
	case "audio":
		return 50 << 20
	case "video":
		return 100 << 20
	}
	return 15 << 20
}

// upload is a form as it was read: its plain fields and its one file.
type upload struct {
	fields   map[string]string
	files    int
	field    string // name of the file's field
	name     string
	mime     string
	size     int64
	content  []byte
	tooLarge bool
}

const maxFieldBytes = 1 << 20

// readForm reads the whole form: the user may come after the file. What does not
// look like a form is an empty one.
func (c *call) readForm() error {
	c.upload = &upload{fields: make(map[string]string)}
	mediaType, params, _ := mime.ParseMediaType(c.r.Header.Get("Content-Type"))
	switch {
	case mediaType == "application/x-www-form-urlencoded":
		raw, err := io.ReadAll(io.LimitReader(c.r.Body, maxFieldBytes))
		if err != nil {
			return bodyError(err)
		}
		values, err := url.ParseQuery(string(raw))
		if err != nil {
			return bodyError(err)
		}
		for k := range values {
			c.upload.fields[k] = values.Get(k)
		}
	case mediaType == "multipart/form-data" && params["boundary"] != "":
		return c.upload.readMultipart(multipart.NewReader(c.r.Body, params["boundary"]))
	}
	return nil
}

func (u *upload) readMultipart(mr *multipart.Reader) error {
	for {
		part, err := mr.NextPart()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return bodyError(err)
		}
		if err := u.readPart(part); err != nil {
			return bodyError(err)
		}
	}
}

func (u *upload) readPart(part *multipart.Part) error {
	_, disposition, _ := mime.ParseMediaType(part.Header.Get("Content-Disposition"))
	name, isFile := disposition["filename"]
	if !isFile {
		value, err := io.ReadAll(io.LimitReader(part, maxFieldBytes))
		u.fields[part.FormName()] = string(value)
		return err
	}
	u.files++
	if u.files > 1 {
		_, err := io.Copy(io.Discard, part)
		return err
	}
	u.field, u.name = part.FormName(), filepath.Base(name)
	if name == "" {
		u.name = ""
	}
	u.mime, _, _ = mime.ParseMediaType(part.Header.Get("Content-Type"))
	var content bytes.Buffer
	kept, err := io.Copy(&content, io.LimitReader(part, uploadLimit(fileKind(u.mime))))
	if err != nil {
		return err
	}
	rest, err := io.Copy(io.Discard, part)
	u.size, u.tooLarge, u.content = kept+rest, rest > 0, content.Bytes()
	return err
}

// check applies the rules of an upload; field is the name its file must have.
func (u *upload) check(field string) error {
	fault := func(status int, code, message string) error {
		return &apiError{status: status, code: code, message: message}
	}
	switch {
	case u.files == 0 || u.field != field:
		return fault(400, "no_file_uploaded", "Please upload your file.")
	case u.files > 1:
		return fault(400, "too_many_files", "Only one file is allowed.")
	case u.name == "":
		return fault(400, "filename_not_exists_error", "The specified filename does not exist.")
	case u.mime == "":
		return fault(415, "unsupported_file_type", "File type not allowed.")
	case u.tooLarge:
		return errFileTooLarge
	}
	return nil
}

func (s *Server) serveUpload(c *call) error {
	if err := c.upload.check("file"); err != nil {
		return err
	}
	f := &file{id: newID(), name: c.upload.name, mime: c.upload.mime, appID: c.app.ID, user: c.user, size: c.upload.size, created: time.Now(), content: c.upload.content}
	w := s.opts.World
	w.addFile(f)
	link := s.opts.FilesURL + w.signedFilePath(f.id, f.created)
	return c.json(http.StatusCreated, object{
		{"id", f.id}, {"name", f.name}, {"size", f.size}, {"extension", f.extension()}, {"mime_type", f.mime}, {"created_by", f.user.id}, {"created_at", f.created.Unix()},
		{"preview_url", nil}, {"source_url", link}, {"original_url", nil}, {"reference", f.id}, {"user_id", nil}, {"tenant_id", derivedID("tenant", w.id)}, {"conversation_id", nil}, {"file_key", nil},
	})
}

// addFile stores a file and forgets the contents of the oldest ones beyond the limit.
func (w *World) addFile(f *file) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.files.put(f.id, f)
	w.contentBytes += int64(len(f.content))
	w.contentOrder = append(w.contentOrder, f)
	for w.contentBytes > keepContentBytes && len(w.contentOrder) > 1 || len(w.contentOrder) > keepThings {
		oldest := w.contentOrder[0]
		w.contentOrder = w.contentOrder[1:]
		w.contentBytes -= int64(len(oldest.content))
		oldest.content = nil
	}
}

func (s *Server) servePreview(c *call) error {
	w := s.opts.World
	w.mu.Lock()
	f, ok := w.files.get(c.param("file"))
	var content []byte
	used := false
	if ok {
		content, used = f.content, f.used
	}
	w.mu.Unlock()
	switch {
	case !ok || !used || content == nil && f.size > 0:
		return errFile
	case f.appID != c.app.ID:
		return errFileAccess
	}
	c.w.Header().Set("Cache-Control", "public, max-age=3600")
	writeFile(c.w, f, content, c.r.URL.Query().Get("as_attachment") == "true")
	return nil
}

func writeFile(w http.ResponseWriter, f *file, content []byte, attachment bool) {
	h := w.Header()
	h.Set("Content-Type", f.mime)
	if k := f.kind(); k == "audio" || k == "video" {
		h.Set("Accept-Ranges", "bytes")
	}
	if attachment {
		h.Set("Content-Type", "application/octet-stream")
		h.Set("Content-Disposition", "attachment; filename*=UTF-8''"+url.PathEscape(f.name))
	}
	h.Set("Content-Length", strconv.Itoa(len(content)))
	w.WriteHeader(http.StatusOK)
	w.Write(content)
}

// signedLinkLife is how long a signed link is good.
const signedLinkLife = 300 * time.Second

// serveSignedFile serves a link made by this World. There is no key: the signature is all.
func (s *Server) serveSignedFile(x *exchange) {
	id, tail, _ := strings.Cut(strings.TrimPrefix(x.r.URL.Path, "/files/"), "/")
	if tail != "file-preview" && tail != "image-preview" {
		s.writeError(x, errNoPath)
		return
	}
	q := x.r.URL.Query()
	w := s.opts.World
	at, _ := strconv.ParseInt(q.Get("timestamp"), 10, 64)
	if q.Get("sign") != w.sign(id, q.Get("timestamp"), q.Get("nonce")) || time.Since(time.Unix(at, 0)) > signedLinkLife {
		s.writeError(x, notFound("File not found or signature is invalid"))
		return
	}
	w.mu.Lock()
	f, ok := w.files.get(id)
	var content []byte
	if ok {
		content = f.content
	}
	w.mu.Unlock()
	if content == nil {
		s.writeError(x, notFound("File not found or signature is invalid"))
		return
	}
	writeFile(x, f, content, q.Get("as_attachment") == "true")
}
