package document

import (
	"encoding"
	"fmt"
	"reflect"
	"sort"
	"strconv"
	"strings"

	"difylb/pkg/lb"
)

// decoder fills Go values from a document and collects what does not fit.
// Struct fields are found by their json tags.
type decoder struct {
	lenient bool // pass over unknown keys
	faults  lb.Faults
}

// defaulter is a type whose decoding starts from defaults.
type defaulter interface{ SetDefaults() }

// readOnly are keys that answers of the API carry and that declarations may
// therefore hold; they are passed over.
var readOnly = map[string]bool{"token_hint": true, "revision": true, "created": true, "id": true, "ring_share": true, "probe": true, "last_probe": true, "ejected_by": true, "ejected_since": true}

func (d *decoder) fault(v *value, path, format string, args ...any) {
	d.faults = append(d.faults, lb.Fault{Path: path, Message: fmt.Sprintf(format, args...), Line: v.line})
}

// sort brings the faults into the order of the document; paths alone would
// put instances[10] before instances[2].
func (d *decoder) sort() {
	sort.SliceStable(d.faults, func(i, j int) bool { return d.faults[i].Line < d.faults[j].Line })
}

func (d *decoder) decode(v *value, into any, path string) {
	d.value(v, reflect.ValueOf(into).Elem(), path)
}

func (d *decoder) value(v *value, into reflect.Value, path string) {
	switch target := into.Addr().Interface().(type) {
	case *lb.UserToken:
		d.userToken(v, target, path)
		return
	case *lb.Secret:
		d.secret(v, target, path)
		return
	case encoding.TextUnmarshaler:
		if !d.scalar(v, path) {
			return
		}
		if err := target.UnmarshalText([]byte(v.text)); err != nil {
			d.fault(v, path, "%s", err)
		}
		return
	case defaulter:
		target.SetDefaults()
	}
	switch into.Kind() {
	case reflect.Pointer:
		if v.kind == kindNull {
			return
		}
		if into.IsNil() {
			into.Set(reflect.New(into.Type().Elem()))
		}
		d.value(v, into.Elem(), path)
	case reflect.Struct:
		d.structure(v, into, path)
	case reflect.Map:
		d.mapping(v, into, path)
	case reflect.Slice:
		d.list(v, into, path)
	case reflect.String:
		if v.kind == kindNumber || v.kind == kindString {
			into.SetString(v.text)
		} else if v.kind != kindNull {
			d.wrong(v, path, kindString)
		}
	case reflect.Bool:
		if v.kind != kindBool && v.kind != kindNull {
			d.wrong(v, path, kindBool)
		} else if v.kind == kindBool {
			into.SetBool(v.text == "true")
		}
	case reflect.Int:
		n, err := strconv.ParseInt(v.text, 10, 64)
		if v.kind == kindNull {
			return
		}
		if v.kind != kindNumber || err != nil {
			d.fault(v, path, "%s is not a whole number", v.show())
			return
		}
		into.SetInt(n)
	case reflect.Float64:
		f, err := strconv.ParseFloat(v.text, 64)
		if v.kind == kindNull {
			return
		}
		if v.kind != kindNumber || err != nil {
			d.wrong(v, path, kindNumber)
			return
		}
		into.SetFloat(f)
	default:
		panic("document: no rule for " + into.Type().String())
	}
}

func (d *decoder) structure(v *value, into reflect.Value, path string) {
	if v.kind == kindNull {
		return
	}
	if v.kind != kindMap {
		d.wrong(v, path, kindMap)
		return
	}
	fields := make(map[string]int)
	var names []string
	for i := range into.NumField() {
		name, _, _ := strings.Cut(into.Type().Field(i).Tag.Get("json"), ",")
		if name != "" && name != "-" {
			fields[name] = i
			names = append(names, name)
		}
	}
	seen := make(map[string]int)
	for _, k := range v.keys {
		at := lb.JoinPath(path, k.name)
		if d.twice(k, seen, at) {
			continue
		}
		i, known := fields[k.name]
		switch {
		case known:
			d.value(k.val, into.Field(i), at)
		case !d.lenient && !readOnly[k.name]:
			d.faults = append(d.faults, lb.Fault{Path: at, Line: k.line, Message: "there is no such key" + hint(k.name, names)})
		}
	}
}

func hint(word string, names []string) string {
	if s := lb.DidYouMean(word, names); s != "" {
		return s
	}
	return "; there are " + strings.Join(names, ", ")
}

// twice reports, and complains about, a key that stood before.
func (d *decoder) twice(k key, seen map[string]int, path string) bool {
	first, ok := seen[k.name]
	if !ok {
		seen[k.name] = k.line
		return false
	}
	msg := "stands twice"
	if first > 0 && first != k.line {
		msg = fmt.Sprintf("stands twice, first in line %d", first)
	}
	d.faults = append(d.faults, lb.Fault{Path: path, Line: k.line, Message: msg})
	return true
}

func (d *decoder) mapping(v *value, into reflect.Value, path string) {
	if v.kind == kindNull {
		return
	}
	if v.kind != kindMap {
		d.wrong(v, path, kindMap)
		return
	}
	into.Set(reflect.MakeMapWithSize(into.Type(), len(v.keys)))
	seen := make(map[string]int)
	for _, k := range v.keys {
		at := lb.JoinPath(path, k.name)
		if d.twice(k, seen, at) {
			continue
		}
		elem := reflect.New(into.Type().Elem()).Elem()
		d.value(k.val, elem, at)
		into.SetMapIndex(reflect.ValueOf(k.name).Convert(into.Type().Key()), elem)
	}
}

// list leaves a list that is absent nil, and makes an empty one that is
// there: an update tells "leave it" from "make it empty" by that.
func (d *decoder) list(v *value, into reflect.Value, path string) {
	if v.kind == kindNull {
		return
	}
	if v.kind != kindList {
		d.wrong(v, path, kindList)
		return
	}
	out := reflect.MakeSlice(into.Type(), len(v.items), len(v.items))
	for i, item := range v.items {
		d.value(item, out.Index(i), fmt.Sprintf("%s[%d]", path, i))
	}
	into.Set(out)
}

// wrong names the kind and not the value: a token that slipped into the wrong
// place must not be shown.
func (d *decoder) wrong(v *value, path string, want kind) {
	d.fault(v, path, "%s stands where %s belongs", v.kind, want)
}

// scalar reports whether v is one; null leaves the default and is none.
func (d *decoder) scalar(v *value, path string) bool {
	switch v.kind {
	case kindNull:
		return false
	case kindList, kindMap:
		d.wrong(v, path, kindString)
		return false
	}
	return true
}

// show describes a value in a fault.
func (v *value) show() string {
	switch v.kind {
	case kindNull, kindList, kindMap:
		return v.kind.String()
	}
	s := v.text
	if len(s) > 60 {
		s = s[:60] + "…"
	}
	return strconv.Quote(s)
}

// secret never shows the value, however wrong it is.
func (d *decoder) secret(v *value, into *lb.Secret, path string) {
	switch v.kind {
	case kindString, kindNumber:
		*into = lb.Secret(v.text)
	case kindNull:
	default:
		d.fault(v, path, "%s stands where a token belongs", v.kind)
	}
}

// userToken reads one of: a token; {token, label, disabled}; {sha256, …} from
// an export with secrets; {id, …}, the name of a token that is stored.
func (d *decoder) userToken(v *value, into *lb.UserToken, path string) {
	if v.kind == kindString || v.kind == kindNumber {
		d.keepToken(v, lb.Secret(v.text), into, path)
		return
	}
	if v.kind != kindMap {
		d.fault(v, path, "%s stands where a token or {token: …, label: …} belongs", v.kind)
		return
	}
	var form struct {
		Token    lb.Secret `json:"token"`
		SHA256   string    `json:"sha256"`
		ID       string    `json:"id"`
		Label    string    `json:"label"`
		Disabled bool      `json:"disabled"`
		Hint     string    `json:"token_hint"`
	}
	before := len(d.faults)
	d.structure(v, reflect.ValueOf(&form).Elem(), path)
	switch {
	case form.Token != "":
		d.keepToken(v, form.Token, into, path+".token")
	case form.SHA256 != "":
		h, err := lb.ParseTokenHash(form.SHA256)
		if err != nil {
			d.fault(v, path+".sha256", "%s", err)
		}
		into.SHA256, into.Hint = h, form.Hint
	case form.ID != "":
		into.Ref, into.Hint = form.ID, form.Hint
	case len(d.faults) == before:
		d.fault(v, path, "names no token; give token, or the id of a stored one")
	}
	into.Label, into.Disabled = form.Label, form.Disabled
}

func (d *decoder) keepToken(v *value, token lb.Secret, into *lb.UserToken, path string) {
	if err := lb.CheckToken(token); err != nil {
		d.fault(v, path, "%s", err)
	}
	into.SHA256, into.Hint = token.Hash(), token.Hint()
}
