package userid

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"mime"
	"mime/multipart"
	"regexp"
	"strings"
	"testing"
	"testing/iotest"
)

const (
	multiType = "multipart/form-data; boundary=bound"
	fileHead  = "--bound\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a.bin\"\r\nContent-Type: application/octet-stream\r\n\r\n"
)

// part returns a delimiter line and a field with the given Content-Disposition.
func part(disposition, value string) string {
	return "--bound\r\nContent-Disposition: " + disposition + "\r\n\r\n" + value + "\r\n"
}

func userPart(value string) string { return part(`form-data; name="user"`, value) }

func TestMultipart_UserID(t *testing.T) {
	const end = "--bound--\r\n"
	tests := []struct {
		name, body, want string // "" is Absent
	}{
		{"field", userPart("alice") + end, "alice"},
		{"no line end after the closing delimiter", userPart("alice") + "--bound--", "alice"},
		{"behind a file", fileHead + "bytes\r\n" + userPart("alice") + end, "alice"},
		{"before a file", userPart("alice") + fileHead + "bytes\r\n" + end, "alice"},
		{"first of two", userPart("a") + userPart("b") + end, "a"},
		{"first not empty", userPart("") + userPart(" \t ") + userPart("b") + end, "b"},
		{"trimmed", userPart(" \t\r\n\v\f\u00a0\u3000alice b\u2003\r\n") + end, "alice b"},
		{"preamble", "This is a preamble\r\n--boun\r\n" + userPart("alice") + end, "alice"},
		{"preamble in LF", "pre\n" + userPart("alice") + end, "alice"},
		{"preamble that looks alike", "x--bound\r\n\r\n--boundx\r\n--bound x\r\n" + userPart("alice") + end, "alice"},
		{"empty line first", "\r\n" + userPart("alice") + end, "alice"},
		{"epilogue", end + userPart("alice"), ""},
		{"no parts", end, ""},
		{"other fields", part(`form-data; name="users"`, "x") + part(`form-data; name="use"`, "x") + part(`form-data; name="User"`, "x") + end, ""},
		{"file named user", part(`form-data; name="user"; filename="x"`, "alice") + end, ""},
		{"file with empty filename", part(`form-data; name="user"; filename=""`, "alice") + end, ""},
		{"file with extended filename", part(`form-data; name="user"; FileName*=utf-8''x`, "alice") + end, ""},
		{"file with split filename", part(`form-data; filename*0="a"; name="user"`, "alice") + end, ""},
		{"filename inside of a value", part(`form-data; name="user"; x="; filename=y"`, "alice") + end, "alice"},
		{"token name", part(`form-data; name=user`, "alice") + end, "alice"},
		{"case and space", "--bound\r\ncontent-DISPOSITION:Form-Data ;\tNAME = user ;\r\n\r\nalice\r\n" + end, "alice"},
		{"escaped name", part(`form-data; name="u\s\er"`, "alice") + end, "alice"},
		{"escaped quote in another parameter", part(`form-data; x="\"; name=\"no"; name="user"`, "alice") + end, "alice"},
		{"extended name only", part(`form-data; name*=utf-8''user`, "alice") + end, ""},
		{"extended name too", part(`form-data; name*=utf-8''x; name=user`, "alice") + end, "alice"},
		{"first name counts", part(`form-data; name=x; name=user`, "alice") + end, ""},
		{"not form-data", part(`attachment; name="user"`, "alice") + end, ""},
		{"no disposition", "--bound\r\nContent-Type: text/plain\r\n\r\nalice\r\n" + end, ""},
		{"first disposition counts", "--bound\r\nContent-Disposition: form-data; name=x\r\nContent-Disposition: form-data; name=user\r\n\r\nalice\r\n" + end, ""},
		{"no header at all", "--bound\r\n\r\nalice\r\n" + end, ""},
		{"name not closed", part(`form-data; name="user`, "alice") + end, "alice"},
		{"other header lines", "--bound\r\nX: y\r\nContent-Disposition: form-data; name=user\r\nContent-Type: text/plain; charset=utf-8\r\n\r\nalice\r\n" + end, "alice"},
		{"folded header", "--bound\r\nContent-Disposition: form-data;\r\n\t name=user\r\n\r\nalice\r\n" + end, "alice"},
		{"folded to a filename", "--bound\r\nContent-Disposition: form-data; name=user;\r\n filename=x\r\n\r\nalice\r\n" + end, ""},
		{"transfer encoding is ignored", "--bound\r\nContent-Disposition: form-data; name=user\r\nContent-Transfer-Encoding: base64\r\n\r\nYWxpY2U=\r\n" + end, "YWxpY2U="},
		{"padding", "--bound \t \r\n" + strings.TrimPrefix(userPart("alice"), "--bound\r\n") + "--bound--  \r\n", "alice"},
		{"padding of the closing delimiter of a value", userPart("alice") + "--bound \t\r\nA: b\r\n\r\n\r\n" + end, "alice"},
		{"much padding is content", userPart("alice\r\n--bound"+strings.Repeat(" ", maxPadding+1)+"\r\nx") + end, "alice\r\n--bound" + strings.Repeat(" ", maxPadding+1) + "\r\nx"},
		{"most padding", userPart("alice") + "--bound" + strings.Repeat("\t", maxPadding) + "\r\n\r\n\r\n" + end, "alice"},
		{"look-alikes in a value", userPart("a\r\n--boundx\r\n--bound -\r\n--bound --\r\n--boun\r\n-bound\r--bound\n--bound\r\n--bound-\r\n--bound \rz") + end,
			"a\r\n--boundx\r\n--bound -\r\n--bound --\r\n--boun\r\n-bound\r--bound\n--bound\r\n--bound-\r\n--bound \rz"},
		{"near miss right before", userPart("a\r\n--boun") + end, "a\r\n--boun"},
		{"near misses in a file", fileHead + "\r\r\n\r\n-\r\n--\r\n--bound\r\r\n--boun\r\n" + userPart("alice") + end, "alice"},
		{"delimiter begins within a failed one", fileHead + "\r\n--bou\r\n" + userPart("alice") + end, "alice"},
		{"CR before the delimiter", userPart("alice\r") + end, "alice"},
		{"doubled CR after the boundary", fileHead + "\r\n--bound\r\r\n" + userPart("alice") + end, "alice"},
		{"part without content", "--bound\r\nA: b\r\n\r\n" + userPart("alice") + end, "alice"},
		{"user without content, no line end of its own", "--bound\r\nContent-Disposition: form-data; name=user\r\n\r\n--bound--", ""},
		{"value that begins like a delimiter", "--bound\r\nContent-Disposition: form-data; name=user\r\n\r\n--boun\r\n" + end, "--boun"},
		{"value that begins with a look-alike", "--bound\r\nContent-Disposition: form-data; name=user\r\n\r\n--boundless\r\n" + end, "--boundless"},
		{"value with delimiter text inside a line", userPart("x--bound--") + end, "x--bound--"},
		{"closing delimiter with more behind", userPart("alice") + "--bound--junk", "alice"},
		{"LF only", strings.ReplaceAll(fileHead+"a\r\nb\r\n"+userPart("alice")+end, "\r\n", "\n"), "alice"},
		{"LF only, near misses", "--bound\nContent-Disposition: form-data; name=user\n\n\n--boun\n\n--boundx\ny\n--bound--", "--boun\n\n--boundx\ny"},
		{"LF only, part without content", "--bound\nA: b\n\n--bound\nContent-Disposition: form-data; name=user\n\nalice\n--bound--", "alice"},
		{"LF boundary in a CRLF body", userPart("a\n--bound\nb") + end, "a\n--bound\nb"},
		{"longest value", userPart(strings.Repeat("x", MaxLength)) + end, strings.Repeat("x", MaxLength)},
		{"longest header", "--bound\r\nX: " + strings.Repeat("x", maxPartHeader-47) + "\r\nContent-Disposition: form-data; name=user\r\n\r\nalice\r\n" + end, ""},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			if tt.name == "longest header" { // sized to the byte here, so that the limit itself is tested
				rest := "\r\nContent-Disposition: form-data; name=user\r\n\r\n"
				tt.body = "--bound\r\nX: " + strings.Repeat("x", maxPartHeader-3-len(rest)) + rest + "alice\r\n" + end
				tt.want = "alice"
				over := strings.Replace(tt.body, "X: x", "X: xx", 1)
				if got := scan(multiType, []byte(over)); !strings.Contains(got.err, "part header of more than 16384 bytes") {
					t.Errorf("one byte more: %+v", got)
				}
			}
			want := absent
			if tt.want != "" {
				want = found(tt.want, Form)
			}
			if got := scan(multiType, []byte(tt.body)); got != want {
				t.Fatalf("%.300q: %.300v, want %.300v", tt.body, got, want)
			}
			checkSplits(t, multiType, []byte(tt.body), want)
		})
	}
}

func TestMultipart_Malformed(t *testing.T) {
	tests := []struct{ name, body, err string }{
		{"no delimiter", "user=alice", "at byte 10: ends before the closing delimiter"},
		{"other boundary", "--other\r\nContent-Disposition: form-data; name=user\r\n\r\nalice\r\n--other--", "ends before the closing delimiter"},
		{"cut off in the value", "--bound\r\nContent-Disposition: form-data; name=user\r\n\r\nalice", "ends before the closing delimiter"},
		{"cut off in the delimiter", userPart("alice") + "--boun", "ends before the closing delimiter"},
		{"cut off behind the boundary", userPart("alice") + "--bound", "ends before the closing delimiter"},
		{"cut off before the last dash", userPart("alice") + "--bound-", "ends before the closing delimiter"},
		{"cut off in a header", "--bound\r\nContent-Disp", "ends before the closing delimiter"},
		{"no closing delimiter", fileHead + "x\r\n", "ends before the closing delimiter"},
		{"header without colon", "--bound\r\nX: y\r\nnonsense\r\n\r\nv\r\n--bound--", "at byte 15: part header line without a name and ':'"},
		{"header without name", "--bound\r\n: y\r\n\r\nv\r\n--bound--", "at byte 9: part header line without a name"},
		{"fold without a line before", "--bound\r\n x\r\n\r\nv\r\n--bound--", "at byte 9: part header line without a name"},
		{"delimiter where a header is due", "--bound\r\n--bound\r\n\r\nv\r\n--bound--", "at byte 9: part header line without a name"},
		{"endless header", "--bound\r\nX: " + strings.Repeat("x", maxPartHeader), fmt.Sprintf("at byte %d: part header of more than 16384 bytes", 9+maxPartHeader)},
		{"many header lines", "--bound\r\n" + strings.Repeat("X: y\r\n", maxPartHeader/6+1), "part header of more than 16384 bytes"},
		{"value too long", userPart(strings.Repeat("x", MaxLength+1)), "user id is too long: value at byte 56 of the body exceeds 8192 bytes"},
		{"value with look-alike too long", userPart(strings.Repeat("x", MaxLength-9) + "\r\n--bound!"), "user id is too long"},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got := scan(multiType, []byte(tt.body))
			if got.verdict != More || got.id != "" || !strings.Contains(got.err, tt.err) {
				t.Errorf("%+v, want error %q", got, tt.err)
			}
			checkSplits(t, multiType, []byte(tt.body), got)
		})
	}
}

func TestMultipart_DecidesEarly(t *testing.T) {
	tests := []struct {
		name, undecided, last string
		want                  Verdict
	}{
		{"found by a delimiter", userPart("alice") + "--bound\r", "\n", Found},
		{"found by the closing delimiter", userPart("alice") + "--bound-", "-", Found},
		{"absent by the closing delimiter", fileHead + "x\r\n--bound-", "-", Absent},
		{"absent in an empty body", "--bound-", "-", Absent},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			s, _ := NewScanner(multiType)
			if v, err := s.Write([]byte(tt.undecided)); v != More || err != nil {
				t.Fatalf("too early: %v, %v", v, err)
			}
			if v, err := s.Write([]byte(tt.last + "\r\n" + userPart("later"))); v != tt.want || err != nil {
				t.Errorf("%v, %v, want %v", v, err, tt.want)
			}
			if s.UserID() == "later" {
				t.Error("looked behind the decision")
			}
		})
	}
}

// TestMultipart_RealClients uses what Go's writer makes, with every kind of file content that may confuse.
func TestMultipart_RealClients(t *testing.T) {
	for _, content := range []string{"", "x", "\r", "\n", "\r\n", "\r\n\r\n", "\r\n--", strings.Repeat("\r\n--", 1000), strings.Repeat("-", 1000)} {
		var body bytes.Buffer
		w := multipart.NewWriter(&body)
		file, _ := w.CreateFormFile("user", `we"ird\name.txt`)
		io.WriteString(file, content)
		w.WriteField("purpose", "x")
		w.WriteField("user", "用户 1")
		w.Close()
		want := found("用户 1", Form)
		if got := scan(w.FormDataContentType(), body.Bytes()); got != want {
			t.Errorf("file %.20q: %+v", content, got)
		}
		checkSplits(t, w.FormDataContentType(), body.Bytes(), want)
	}
}

// FuzzMultipart compares with mime/multipart. On purpose we differ, and the comparison ends, where
//   - mime/multipart reports an error other than the body's early end: a line that begins like a delimiter and goes on
//     otherwise is content for us, a delimiter may end in CRLF or LF wherever it stands;
//   - "--boundary--" is followed by anything but blanks and the body's kind of line end: epilogue for us;
//   - a Content-Disposition cannot be parsed by mime, which then sees no name, or has '*' (we ignore extended names) or
//     a '\' (mime keeps some);
//   - a value is longer than MaxLength, a header longer than 16 KiB, a delimiter padded by more than 64 bytes.
func FuzzMultipart(f *testing.F) {
	const end = "--bound--\r\n"
	for _, s := range []string{
		userPart("a") + end, fileHead + "x\r\n--boun\r\n" + userPart("a") + end, "pre\r\n" + userPart("") + userPart("b") + end,
		part(`form-data; name=user; filename=""`, "x") + end, "--bound \t\r\nContent-Disposition: form-data;\r\n name=user\r\n\r\nx\r\n" + end,
		strings.ReplaceAll(userPart("a")+end, "\r\n", "\n"), "--bound\r\nA: b\r\n\r\n" + userPart("a") + end, userPart("a\r\n--boundx") + end, end,
		userPart("a") + "--bound-x", userPart("\r\n--bound"), "--bound\r\n\r\n\r\n\r\n\r\n" + end,
	} {
		f.Add([]byte(s), uint8(9))
	}
	f.Fuzz(checkAgainstMIME)
}

// TestMultipart_AgreesOnRandomPieces does what FuzzMultipart does with bodies made of the pieces that matter, as bytes
// changed at random rarely yield a second delimiter.
func TestMultipart_AgreesOnRandomPieces(t *testing.T) {
	pieces := []string{
		"\r\n", "\r\n", "\n", "\r", "--", "-", " ", "x", "--bound", "--bound", "\r\n--bound\r\n", "\r\n--bound\r\n", "\r\n--bound--\r\n", "--boun", "\t",
		"Content-Disposition: form-data; name=user\r\n\r\n", "Content-Disposition: form-data; name=user\r\n\r\n", "content-disposition:form-data;name=\"user\"",
		"; filename=f", "A: b\r\n", "A: b\r\n\r\n", "user",
	}
	rng := rand.New(rand.NewPCG(7, 7))
	compared := map[string]int{}
	for range 60_000 {
		body := []byte("--bound\r\n")
		lf := rng.IntN(4) == 0
		for range rng.IntN(16) {
			body = append(body, pieces[rng.IntN(len(pieces))]...)
		}
		if rng.IntN(3) > 0 {
			body = append(body, "\r\n--bound--\r\n"...)
		}
		if lf {
			body = bytes.ReplaceAll(body, []byte("\r\n"), []byte("\n"))
		}
		switch want, err := referenceMultipart(append(body[:len(body):len(body)], "\r\n"...)); {
		case err != nil:
			compared[err.Error()]++
		default:
			compared[want.verdict.String()]++
		}
		checkAgainstMIME(t, body, uint8(rng.Uint32()))
		if t.Failed() {
			return
		}
	}
	for _, kind := range []string{Found.String(), Absent.String(), errCutOff.Error()} {
		if compared[kind] < 2000 {
			t.Errorf("compared too little: %v", compared)
		}
	}
}

func checkAgainstMIME(t *testing.T, body []byte, cut uint8) {
	t.Helper()
	body = append(body, "\r\n"...) // so that mime/multipart need not see the body's end to tell the closing delimiter
	got := scan(multiType, body)
	at := int(cut) % (len(body) + 1)
	if halves := scan(multiType, body[:at], body[at:]); halves != got {
		t.Fatalf("in one piece %+v, cut at %d %+v", got, at, halves)
	}
	want, err := referenceMultipart(body)
	switch {
	case errors.Is(err, errCutOff):
		if got.err == "" {
			t.Errorf("%q: %+v, mime/multipart needs more", body, got)
		}
	case err == nil && got != want:
		t.Errorf("%q: %+v, mime/multipart says %+v", body, got, want)
	}
}

var (
	errCutOff       = errors.New("body is cut off")
	errIncomparable = errors.New("not comparable")
)

// referenceMultipart returns what mime/multipart finds, errCutOff if the body ends too early, or errIncomparable.
func referenceMultipart(body []byte) (outcome, error) {
	// Below our limits, and below the buffer that bounds a line of mime/multipart.
	if len(body) > 4000 || bytes.Contains(body, bytes.Repeat([]byte{' '}, 32)) || bytes.Contains(body, bytes.Repeat([]byte{'\t'}, 32)) {
		return outcome{}, errIncomparable
	}
	if !closesPlainly(body) {
		return outcome{}, errIncomparable
	}
	// It reports io.EOF also for a body that ends within a header: an error of our own tells the two apart.
	r := multipart.NewReader(io.MultiReader(bytes.NewReader(body), iotest.ErrReader(errCutOff)), "bound")
	next := func() (*multipart.Part, error) {
		p, err := r.NextRawPart()
		if err != nil && err != io.EOF && !errors.Is(err, errCutOff) {
			err = errIncomparable
		}
		return p, err
	}
	for {
		p, err := next()
		if err == io.EOF {
			return absent, nil
		}
		if err != nil {
			return outcome{}, err
		}
		disposition := p.Header.Get("Content-Disposition")
		media, params, err := mime.ParseMediaType(disposition)
		if strings.ContainsAny(disposition, `*\`) || disposition != "" && err != nil {
			return outcome{}, errIncomparable
		}
		value, err := io.ReadAll(p)
		if err != nil {
			return outcome{}, err
		}
		_, file := params["filename"]
		if id := strings.TrimSpace(string(value)); media == "form-data" && params["name"] == "user" && !file && id != "" {
			// It ends a part at what may yet prove to be no delimiter, and says so on the next call only.
			if _, err := next(); err != nil && err != io.EOF {
				return outcome{}, errIncomparable
			}
			return found(id, Form), nil
		}
	}
}

var (
	closing     = regexp.MustCompile(`--bound--(?:[ \t]*\r\n)?`)
	firstLF     = regexp.MustCompile(`^(?:[^\r]*\n)?--bound[ \t]*\n`)
	closingInLF = regexp.MustCompile(`--bound--(?:[ \t]*\n)?`)
)

// closesPlainly says whether all that looks like a closing delimiter ends its line, in LF if the first delimiter does.
func closesPlainly(body []byte) bool {
	pattern := closing
	if first := firstLF.Find(body); first != nil {
		if bytes.Contains(first, []byte("--bound--")) {
			return false
		}
		pattern = closingInLF
	}
	for _, match := range pattern.FindAll(body, -1) {
		if match[len(match)-1] != '\n' {
			return false
		}
	}
	return true
}
