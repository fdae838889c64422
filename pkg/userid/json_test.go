package userid

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"runtime"
	"strings"
	"testing"
)

const jsonType = "application/json"

func TestJSON_UserID(t *testing.T) {
	tests := []struct {
		body, want string // "" is Absent
	}{
		{`{"user":"alice"}`, "alice"},
		{`{"inputs":{},"query":"hi","response_mode":"streaming","user":"alice"}`, "alice"},
		{" \t\r\n{ \"user\" :\n\"alice\" } \n", "alice"},
		{"\ufeff{\"user\":\"alice\"}", "alice"},
		{`{"user":"alice","user":"bob"}`, "bob"},
		{`{"user":"alice","user":""}`, ""},
		{`{"user":"alice","user":null}`, ""},
		{`{"user":"alice","user":{"user":"x"}}`, ""},
		{`{"user":"alice","user":[]}`, ""},
		{`{"user":{},"user":7}`, "7"},
		{`{"user":7,"users":1,"use":2}`, "7"},
		{`{"user":0}`, "0"},
		{`{"user":-0.50e+07}`, "-0.50e+07"},
		{`{"user":12345678901234567890123 }`, "12345678901234567890123"},
		{`{"user":1E5,"a":2}`, "1E5"},
		{`{"user":true}`, "true"},
		{`{"user":false,"a":1}`, "false"},
		{`{"user":null}`, ""},
		{`{"user":""}`, ""},
		{`{"user":[1,"x"]}`, ""},
		{`{"user":{"user":"x"}}`, ""},
		{`{"inputs":{"user":"x"}}`, ""},
		{`{"inputs":[{"user":"x"}],"a":"user"}`, ""},
		{`{"a":{"user":"x"},"user":"y","b":{"user":"z"}}`, "y"},
		{`{"\u0075s\u0065r":"alice"}`, "alice"},
		{`{"use\u0072":"alice"}`, "alice"},
		{`{"user\u0000":"alice"}`, ""},
		{`{"\u0175ser":"alice"}`, ""},
		{`{"user\n":"alice"}`, ""},
		{`{"\user":1}`[:1] + `"USER":"alice"}`, ""},
		{`{"User":"alice"}`, ""},
		{`{"":"alice"}`, ""},
		{`{"user":"a\"b\\c\/d\b\f\n\r\t"}`, "a\"b\\c/d\b\f\n\r\t"},
		{`{"user":"\u4f60\u597d"}`, "你好"},
		{`{"user":"\ud83d\ude00"}`, "😀"},
		{`{"user":"\uD83D"}`, "\ufffd"},
		{`{"user":"\ude00x"}`, "\ufffdx"},
		{`{"user":"\ud83dx"}`, "\ufffdx"},
		{`{"user":"\ud83d\n"}`, "\ufffd\n"},
		{`{"user":"\ud83d\u0041"}`, "\ufffdA"},
		{`{"user":"\ud83d\ud83d\ude00"}`, "\ufffd😀"},
		{`{"user":"\ud83d\ude00\ude00"}`, "😀\ufffd"},
		{`{"user":"\ud83d","user":"b"}`, "b"},
		{"{\"user\":\"\xff\xc3(\"}", "\xff\xc3("},
		{"{\"user\":\" padded \"}", " padded "},
		{"{\"user\":\"\x7f\"}", "\x7f"},
		{`[]`, ""}, {`{}`, ""}, {`[{"user":"x"}]`, ""}, {`"user"`, ""}, {`1`, ""}, {`-1.5e-3`, ""}, {`null`, ""}, {` true `, ""}, {`0 `, ""},
		{`[1,2.5,-3e1,"a",null,true,false,{},[],{"a":{}}]`, ""},
		{`{"user":"` + strings.Repeat("x", MaxLength) + `"}`, strings.Repeat("x", MaxLength)},
	}
	for _, tt := range tests {
		want := absent
		if tt.want != "" {
			want = found(tt.want, JSON)
		}
		if got := scan(jsonType, []byte(tt.body)); got != want {
			t.Errorf("%.200s: %.300v, want %.300v", tt.body, got, want)
			continue
		}
		checkSplits(t, jsonType, []byte(tt.body), want)
	}
}

func TestJSON_Malformed(t *testing.T) {
	tests := []struct {
		body   string
		offset int
	}{
		{" ", 1}, {"\ufeff", 3}, {"\xef", 1}, {"\xef\xbb{}", 2}, {" \ufeff{}", 1}, {"\ufeff\ufeff1", 3},
		{"{", 1}, {"}", 0}, {"{]", 1}, {"[}", 1}, {"{}}", 2}, {"{} x", 3}, {"[1,]", 3}, {"[,1]", 1}, {"{,}", 1},
		{`{"a"}`, 4}, {`{"a":}`, 5}, {`{"a":1,}`, 7}, {`{"a":1 "b":2}`, 7}, {`{a:1}`, 1}, {`{'a':1}`, 1}, {`{1:1}`, 1},
		{`{"user":"x"`, 11}, {`{"user":"x`, 10}, {`{"user":"x"}{`, 12}, {`{"user":"x"}{}`, 12},
		{`"a`, 2}, {"\"a\nb\"", 2}, {"\"a\x00\"", 2}, {`"\x"`, 2}, {`"\u12g4"`, 5}, {`"\u12"`, 5}, {`"\`, 2}, {`"\u`, 3},
		{`01`, 1}, {`-`, 1}, {`-a`, 1}, {`+1`, 0}, {`.5`, 0}, {`1.`, 2}, {`1.e3`, 2}, {`1e`, 2}, {`1e+`, 3}, {`1e+a`, 3}, {`1 2`, 2}, {`0x1`, 1}, {`[1 2]`, 3},
		{`tru`, 3}, {`trUe`, 2}, {`nul1`, 3}, {`truee`, 4}, {`True`, 0}, {`NaN`, 0}, {`Infinity`, 0}, {`undefined`, 0}, {`{"user":tru}`, 11},
		{"[1]\x00", 3}, {"/**/1", 0}, {"\v1", 0}, {"[\u00a01]", 1}, {`{"user":0x}`, 9}, {`{"user":}`, 8}, {`{"user":/}`, 8},
	}
	for _, tt := range tests {
		got := scan(jsonType, []byte(tt.body))
		if got.verdict != More || got.id != "" || !strings.HasPrefix(got.err, fmt.Sprintf("malformed JSON body at byte %d: ", tt.offset)) {
			t.Errorf("%q: %+v, want an error at byte %d", tt.body, got, tt.offset)
			continue
		}
		checkSplits(t, jsonType, []byte(tt.body), got)
	}
}

func TestJSON_TooLong(t *testing.T) {
	long := strings.Repeat("x", MaxLength-3)
	digits := strings.Repeat("7", MaxLength-3)
	for _, tail := range []string{`xxxx"}`, `\n\n\n\n"}`, `\u4f60\u4f60"}`, `\ud83d\ude00"}`, `x\ud83dx"}`, `x\ud83d"}`} {
		body := []byte(`{"user":"` + long + tail)
		got := scan(jsonType, body)
		if got.verdict != More || !strings.Contains(got.err, "value at byte 8 of the body exceeds 8192 bytes") {
			t.Errorf("%s: %.300v", tail, got)
		}
		checkSplits(t, jsonType, body, got)
	}
	for tail, ok := range map[string]bool{"777": true, ".77": true, "7777": false, ".777": false, "e+77": false, "7.7e7": false} {
		got := scan(jsonType, []byte(`{"user":`+digits+tail+"}"))
		if (got.verdict == Found) != ok {
			t.Errorf("number ...%s: %.300v", tail, got)
		}
	}
	// Length counts for the user's value only.
	if got := scan(jsonType, []byte(`{"a":"`+long+long+`","b":`+digits+digits+`,"user":1}`)); got != found("1", JSON) {
		t.Errorf("long values of other keys: %+v", got)
	}
}

func TestJSON_Depth(t *testing.T) {
	nested := func(depth int, object bool) io.Reader {
		open, closing := "[", "]"
		if object {
			open, closing = `{"user":`, "}"
		}
		return io.MultiReader(
			strings.NewReader(`{"a":`), strings.NewReader(strings.Repeat(open, depth)), strings.NewReader("1"),
			strings.NewReader(strings.Repeat(closing, depth)), strings.NewReader(`,"user":"deep"}`))
	}
	for _, depth := range []int{1, 62, 63, 64, 65, 127, 128, 129, 1000, 100_000, MaxDepth - 1} {
		for _, object := range []bool{false, true} {
			if got := scanReader(t, jsonType, nested(depth, object)); got != found("deep", JSON) {
				t.Errorf("depth %d, objects %v: %+v", depth, object, got)
			}
		}
	}
	for _, depth := range []int{MaxDepth, 10_000_000} {
		got := scanReader(t, jsonType, nested(depth, false))
		if want := fmt.Sprintf("malformed JSON body at byte %d: nested deeper than 1048576 levels", 5+MaxDepth-1); got.err != want {
			t.Errorf("depth %d: %+v", depth, got)
		}
	}
}

// TestJSON_DepthKeepsKinds closes a mix of arrays and objects in the right and in a wrong order across word borders.
func TestJSON_DepthKeepsKinds(t *testing.T) {
	const depth = 500
	var open, closing []byte
	for i := range depth {
		if i*i%7 < 3 {
			open, closing = append(open, `{"k":`...), append(closing, '}')
		} else {
			open, closing = append(open, '['), append(closing, ']')
		}
	}
	for i, j := 0, depth-1; i < j; i, j = i+1, j-1 {
		closing[i], closing[j] = closing[j], closing[i]
	}
	body := append(append(bytes.Clone(open), '0'), closing...)
	if got := scan(jsonType, body); got != absent {
		t.Errorf("right order: %+v", got)
	}
	for i := range closing {
		wrong := bytes.Clone(body)
		wrong[len(open)+1+i] ^= '}' ^ ']'
		if got := scan(jsonType, wrong); !strings.Contains(got.err, fmt.Sprintf("at byte %d:", len(open)+1+i)) {
			t.Errorf("bracket %d wrong: %+v", i, got)
		}
	}
}

// scanReader streams r in pieces of 64 KiB.
func scanReader(t *testing.T, contentType string, r io.Reader) outcome {
	t.Helper()
	s, err := NewScanner(contentType)
	if err != nil || s == nil {
		t.Fatalf("NewScanner(%q) = %v, %v", contentType, s, err)
	}
	buf := make([]byte, 64<<10)
	for {
		n, err := r.Read(buf)
		if v, werr := s.Write(buf[:n]); v != More || werr != nil || err == io.EOF {
			return push(s)
		}
	}
}

// pattern is an endless body part.
type pattern struct {
	text []byte
	at   int
}

func (p *pattern) Read(b []byte) (int, error) {
	for n := 0; n < len(b); {
		k := copy(b[n:], p.text[p.at:])
		n += k
		p.at = (p.at + k) % len(p.text)
	}
	return len(b), nil
}

func repeated(text string, n int64) io.Reader {
	return io.LimitReader(&pattern{text: []byte(text)}, n)
}

func TestScanner_MemoryIsConstant(t *testing.T) {
	const size = 200 << 20
	tests := []struct {
		name, contentType, before, filler, after string
		want                                     outcome
	}{
		{"json string", jsonType, `{"query":"`, `long text \n with escapes, `, `","user":"u"}`, found("u", JSON)},
		{"json members", jsonType, `{`, `"a":[1,2],`, `"user":"u"}`, found("u", JSON)},
		{"multipart", "multipart/form-data; boundary=bound", fileHead, "line\r\n--boun\r\n", "\r\n" + userPart("u") + "--bound--", found("u", Form)},
		{"urlencoded", "application/x-www-form-urlencoded", "a=", "value%20+", "&user=u", found("u", Form)},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			n := int64(size / len(tt.filler) * len(tt.filler))
			body := io.MultiReader(strings.NewReader(tt.before), repeated(tt.filler, n), strings.NewReader(tt.after))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			got := scanReader(t, tt.contentType, body)
			runtime.ReadMemStats(&after)
			if got != tt.want {
				t.Errorf("%+v, want %+v", got, tt.want)
			}
			if grown := after.TotalAlloc - before.TotalAlloc; grown > 256<<10 {
				t.Errorf("allocated %d bytes for a body of %d", grown, size)
			}
		})
	}
}

// FuzzJSON compares with encoding/json: the same bodies are valid and the same user is found, once our bytes that are
// not UTF-8 have been replaced as encoding/json replaces them. On purpose we differ in that we pass over a byte order
// mark, take an empty body for Absent, bound ids by MaxLength, and allow deeper nesting than its 10,000 levels.
func FuzzJSON(f *testing.F) {
	for _, s := range []string{
		`{"user":"a"}`, `{"user":"a","user":1.5e3}`, `{"\u0075ser":"\ud83d\ude00\ud83d"}`, `[{"user":1}]`, `{"user":{"user":2}}`,
		`{"a":"b","user":true} `, "{\"user\":\"\xff\"}", "\ufeff{}", `{"user":-0.1E-2}`, ` "x\/" `, `{"user":nul`, `{"a":[{},[]],"user":"\\"}`, "",
	} {
		f.Add([]byte(s), uint8(3))
	}
	f.Fuzz(checkAgainstJSON)
}

// TestJSON_AgreesOnRandomPieces does what FuzzJSON does with bodies made of tokens, valid and with one piece too many,
// too few or changed.
func TestJSON_AgreesOnRandomPieces(t *testing.T) {
	rng := rand.New(rand.NewPCG(3, 3))
	pick := func(s ...string) string { return s[rng.IntN(len(s))] }
	var value func(depth int) []string
	value = func(depth int) []string {
		kind := rng.IntN(8)
		if depth > 4 {
			kind = 2 + rng.IntN(6)
		}
		var out []string
		switch kind {
		case 0, 1:
			open, closing := "[", "]"
			if kind == 1 || depth == 0 {
				open, closing = "{", "}"
			}
			out = append(out, open)
			for i := range rng.IntN(5) {
				if i > 0 {
					out = append(out, ",")
				}
				if open == "{" {
					out = append(out, pick(`"user"`, `"user"`, `"us\u0065r"`, `"users"`, `"use"`, `""`, `"a\"user"`), ":")
				}
				out = append(out, value(depth+1)...)
			}
			return append(out, closing)
		case 2:
			return []string{pick("0", "-1", "10", "1.5", "-0.0e1", "2E+3", "9e-9")}
		case 3:
			return []string{pick("true", "false", "null")}
		}
		return []string{`"`, pick("", "text", `\n`, `\ud83d`, `\ude00`, "\xc3", "long enough for words"), pick("", `\ude00`, `\\`, "é"), `"`}
	}
	valid := 0
	for range 30_000 {
		tokens := value(0)
		switch at := rng.IntN(len(tokens)); rng.IntN(6) {
		case 0:
			tokens[at] = pick("", " ", ",", "]", "}", `"`, "0", "e", "{", ":", "true")
		case 1:
			tokens[at] += pick(" ", "\n", ",", "]", "}", `"`, "1", "\\")
		}
		body := []byte(strings.Join(tokens, pick("", " ")))
		if json.Valid(body) {
			valid++
		}
		checkAgainstJSON(t, body, uint8(rng.Uint32()))
		if t.Failed() {
			return
		}
	}
	if valid < 10_000 || valid > 29_000 {
		t.Errorf("%d of 30000 bodies are valid", valid)
	}
}

func checkAgainstJSON(t *testing.T, body []byte, cut uint8) {
	t.Helper()
	got := scan(jsonType, body)
	at := int(cut) % (len(body) + 1)
	if halves := scan(jsonType, body[:at], body[at:]); halves != got {
		t.Fatalf("in one piece %+v, cut at %d %+v", got, at, halves)
	}
	if strings.Contains(got.err, ErrTooLong.Error()) || bytes.Count(body, []byte("["))+bytes.Count(body, []byte("{")) > 9000 || len(body) == 0 {
		return
	}
	body = bytes.TrimPrefix(body, []byte("\ufeff"))
	if valid := json.Valid(body); valid != (got.err == "") {
		t.Fatalf("json.Valid says %v, we %+v", valid, got)
	}
	if got.err != "" {
		return
	}
	want := lastUser(t, body)
	if id := string([]rune(got.id)); id != want || (got.verdict == Found) != (want != "") {
		t.Fatalf("%+v, encoding/json finds %q", got, want)
	}
}

// lastUser walks over a valid body's tokens; "" is absent.
func lastUser(t *testing.T, body []byte) string {
	dec := json.NewDecoder(bytes.NewReader(body))
	if tok, err := dec.Token(); err != nil || tok != json.Delim('{') {
		return ""
	}
	user := ""
	for dec.More() {
		key, err := dec.Token()
		if err != nil {
			t.Fatal(err)
		}
		var value json.RawMessage
		if err := dec.Decode(&value); err != nil {
			t.Fatal(err)
		}
		if key != "user" {
			continue
		}
		switch value[0] {
		case '{', '[', 'n':
			user = ""
		case '"':
			if err := json.Unmarshal(value, &user); err != nil {
				t.Fatal(err)
			}
		default:
			user = string(value)
		}
	}
	return user
}

func TestPlainPrefix_EveryByteInEveryLane(t *testing.T) {
	for _, filler := range []byte{' ', '#', '!', '[', ']', 0x7f, 0x80, 0xa0, 0xff} {
		for c := range 256 {
			for lane := range 20 {
				p := bytes.Repeat([]byte{filler}, 20)
				p[lane] = byte(c)
				want := len(p)
				if c < ' ' || c == '"' || c == '\\' {
					want = lane
				}
				if got := plainPrefix(p); got != want {
					t.Fatalf("%#x at %d among %#x: %d, want %d", c, lane, filler, got, want)
				}
			}
		}
	}
}

func FuzzPlainPrefix(f *testing.F) {
	f.Add([]byte(`hello, world, this is "text"`))
	f.Add([]byte("\x80\x1f\xa0 \x7f\x00\"\\"))
	f.Fuzz(func(t *testing.T, p []byte) {
		want := 0
		for want < len(p) && p[want] >= 0x20 && p[want] != '"' && p[want] != '\\' {
			want++
		}
		if got := plainPrefix(p); got != want {
			t.Errorf("plainPrefix(%q) = %d, want %d", p, got, want)
		}
	})
}
