package admin

import (
	"encoding/json"
	"reflect"
	"regexp"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"difylb/pkg/cluster"
	"difylb/pkg/lb"
)

// The bodies of declarations, for the description only: what is read is
// pkg/document's to say, and these are made of the same types.
type (
	appBody      lb.Application
	instanceBody lb.Instance
	documentBody lb.Document
)

// schema is a JSON Schema (2020-12, as OpenAPI 3.1 has it).
type schema map[string]any

// describe writes the OpenAPI 3.1 document of the endpoints.
func describe(version string) []byte {
	d := &describer{schemas: make(map[string]schema)}
	d.declarations()
	paths := make(map[string]map[string]any)
	for i := range endpoints {
		e := &endpoints[i]
		if paths[e.path] == nil {
			paths[e.path] = make(map[string]any)
		}
		paths[e.path][strings.ToLower(e.method)] = d.operation(e)
	}
	if version == "" {
		version = "0"
	}
	data, err := json.MarshalIndent(map[string]any{
		"openapi": "3.1.0",
		"info": map[string]any{
			"title": "difylb", "version": version, "license": map[string]any{"name": "MIT", "identifier": "MIT"},
			"description": "The REST API of lb-admin, the control plane of difylb. Errors are RFC 9457 problem documents. " +
				"Objects carry an ETag; If-Match makes a write conditional. Secrets are write-only.",
		},
		"paths": paths,
		"components": map[string]any{
			"schemas":         d.schemas,
			"securitySchemes": map[string]any{"token": map[string]any{"type": "http", "scheme": "bearer"}},
		},
	}, "", " ")
	if err != nil {
		panic("admin: the description does not encode: " + err.Error())
	}
	return append(data, '\n')
}

type describer struct {
	schemas map[string]schema
}

var pathParam = regexp.MustCompile(`\{(\w+)\}`)

// pathParams says what each stands for.
var pathParams = map[string]string{
	"app":      "the name of the application",
	"id":       "the id of the token, as the list tells it",
	"name":     "the name of the instance",
	"node":     "the id of the node, as the list tells it",
	"revision": "the revision of the change, as the list tells it",
}

func (d *describer) operation(e *endpoint) map[string]any {
	op := map[string]any{"summary": e.summary, "operationId": operationID(e), "responses": d.responses(e)}
	var params []map[string]any
	for _, m := range pathParam.FindAllStringSubmatch(e.path, -1) {
		s := schema{"type": "string"}
		if m[1] == "revision" {
			s = schema{"type": "integer", "minimum": 1}
		}
		params = append(params, map[string]any{"name": m[1], "in": "path", "required": true, "description": pathParams[m[1]], "schema": s})
	}
	for _, p := range e.query {
		s := schema{"type": p.kind}
		if p.kind == "duration" {
			s = d.ref("Duration")
		}
		params = append(params, map[string]any{"name": p.name, "in": "query", "description": p.about, "schema": s})
	}
	if e.conditional {
		params = append(params, header("If-Match", "the ETag that the object must have, or *"))
		if e.method == "PUT" {
			params = append(params, header("If-None-Match", "*: only where the object does not exist"))
		}
	}
	if params != nil {
		op["parameters"] = params
	}
	if e.body != nil {
		op["requestBody"] = map[string]any{"required": !e.optionalBody, "content": d.bodyContent(e)}
	}
	switch {
	case e.role == "":
		op["security"] = []any{}
	case e.near:
		op["security"] = []any{map[string]any{"token": []any{}}, map[string]any{}}
		op["x-open-to"] = "loopback and private addresses"
	default:
		op["security"] = []any{map[string]any{"token": []any{}}}
	}
	if e.role != "" {
		op["x-role"] = e.role
	}
	return op
}

func header(name, about string) map[string]any {
	return map[string]any{"name": name, "in": "header", "description": about, "schema": schema{"type": "string"}}
}

// operationID is the method and the words of the path, unique as they are.
func operationID(e *endpoint) string {
	id := strings.ToLower(e.method)
	path, inBase := strings.CutPrefix(e.path, Base)
	if !inBase {
		id += "Root"
	}
	for _, word := range strings.FieldsFunc(path, func(r rune) bool { return strings.ContainsRune("/{}._", r) }) {
		id += strings.ToUpper(word[:1]) + word[1:]
	}
	return id
}

func (d *describer) bodyContent(e *endpoint) map[string]any {
	s := d.of(reflect.TypeOf(e.body))
	if e.bodyKind == mergePatch {
		// A patch may leave out anything and set null to remove.
		return map[string]any{mergePatch: map[string]any{"schema": schema{"type": "object"}}, "application/json": map[string]any{"schema": schema{"type": "object"}}}
	}
	content := map[string]any{"application/json": map[string]any{"schema": s}}
	switch e.body.(type) {
	case appBody, instanceBody, documentBody:
		content["application/yaml"] = map[string]any{"schema": s}
	}
	return content
}

func (d *describer) responses(e *endpoint) map[string]any {
	status := e.status
	if status == 0 {
		status = 200
	}
	ok := map[string]any{"description": "done"}
	switch {
	case e.answerKind != "":
		ok["content"] = map[string]any{e.answerKind: map[string]any{"schema": schema{"type": "string"}}}
	case e.answer != nil:
		ok["content"] = map[string]any{"application/json": map[string]any{"schema": d.of(reflect.TypeOf(e.answer))}}
	}
	out := map[string]any{
		strconv.Itoa(status): ok,
		"default":            map[string]any{"description": "an RFC 9457 problem", "content": map[string]any{"application/problem+json": map[string]any{"schema": d.of(reflect.TypeFor[Problem]())}}},
	}
	if e.created {
		out["201"] = ok
	}
	if e.plans {
		// A dry run has an answer of its own.
		either := d.of(reflect.TypeFor[ApplyResult]())
		if e.answer != nil {
			either = schema{"anyOf": []any{d.of(reflect.TypeOf(e.answer)), either}}
		}
		out["200"] = map[string]any{"description": "done, or what would be in a dry run", "content": map[string]any{"application/json": map[string]any{"schema": either}}}
	}
	return out
}

func (d *describer) ref(name string) schema { return schema{"$ref": "#/components/schemas/" + name} }

// declarations sets the schemas that the types alone do not tell.
func (d *describer) declarations() {
	d.schemas["Duration"] = schema{"description": "a Go duration such as 30s; a plain number is seconds", "type": []string{"string", "number"}}
	d.schemas["Size"] = schema{"description": "bytes, or with the suffix k, m or g (powers of 1024)", "type": []string{"string", "integer"}}
	d.schemas["UserTokenDeclaration"] = schema{"anyOf": []any{
		schema{"type": "string", "minLength": 1, "maxLength": lb.MaxTokenBytes},
		schema{"type": "object", "additionalProperties": false, "properties": map[string]any{
			"token":      schema{"type": "string", "maxLength": lb.MaxTokenBytes, "description": "the token, visible ASCII"},
			"id":         schema{"type": "string", "description": "instead of token: a token that is stored, by its id"},
			"sha256":     schema{"type": "string", "pattern": "^[0-9a-f]{64}$", "description": "instead of token: its hash, as an export with secrets writes it"},
			"label":      schema{"type": "string", "description": "the operator's name for it; up to 63 letters, digits, spaces and _.:@/-; it stands in the access log and in usage statistics"},
			"disabled":   schema{"type": "boolean", "description": "answer 401 to it, as if it did not exist"},
			"token_hint": schema{"type": "string", "readOnly": true, "description": "its last four characters"},
			"created":    schema{"type": "string", "readOnly": true, "description": "when it was added"},
		}},
	}}
}

var enums = map[reflect.Type][]string{
	reflect.TypeFor[lb.HashAlgorithm](): {string(lb.CRC32), string(lb.MD5), string(lb.SHA1), string(lb.XXHash)},
	reflect.TypeFor[lb.MissingUser]():   {string(lb.MissingUserAuto), string(lb.MissingUserReject), string(lb.MissingUserSpread)},
	reflect.TypeFor[lb.State]():         {string(lb.Active), string(lb.Draining), string(lb.Disabled)},
	reflect.TypeFor[lb.CheckType]():     {string(lb.CheckHTTP), string(lb.CheckTCP), string(lb.CheckNone)},
	reflect.TypeFor[AccessRole]():       {string(RoleViewer), string(RoleOperator), string(RoleAdmin)},
	reflect.TypeFor[lb.Role]():          {string(lb.RoleAdmin), string(lb.RoleProxy)},
	reflect.TypeFor[cluster.NodeState](): {
		string(cluster.NodeOK), string(cluster.NodeBehind), string(cluster.NodeRingDiffers), string(cluster.NodeRefused),
		string(cluster.NodeHeldBack), string(cluster.NodeDisconnected),
	},
}

// of is the schema of a Go type as encoding/json writes it.
func (d *describer) of(t reflect.Type) schema {
	switch t {
	case reflect.TypeFor[lb.Duration]():
		return d.ref("Duration")
	case reflect.TypeFor[lb.Size]():
		return d.ref("Size")
	case reflect.TypeFor[time.Time]():
		return schema{"type": "string", "format": "date-time"}
	case reflect.TypeFor[json.RawMessage]():
		return schema{}
	case reflect.TypeFor[lb.UserToken]():
		return d.ref("UserTokenDeclaration")
	case reflect.TypeFor[lb.Instance]():
		t = reflect.TypeFor[instanceBody]()
	case reflect.TypeFor[lb.Application]():
		t = reflect.TypeFor[appBody]()
	}
	if values, ok := enums[t]; ok {
		return schema{"type": "string", "enum": values}
	}
	switch t.Kind() {
	case reflect.Pointer:
		return d.of(t.Elem())
	case reflect.Struct:
		return d.structure(t)
	case reflect.Slice:
		return schema{"type": "array", "items": d.of(t.Elem())}
	case reflect.Map:
		s := schema{"type": "object"}
		if t.Elem().Kind() != reflect.Interface {
			s["additionalProperties"] = d.of(t.Elem())
		}
		return s
	case reflect.String:
		return schema{"type": "string"}
	case reflect.Bool:
		return schema{"type": "boolean"}
	case reflect.Float64:
		return schema{"type": "number"}
	default:
		return schema{"type": "integer"}
	}
}

// componentNames gives names to types whose own would say little.
var componentNames = map[reflect.Type]string{
	reflect.TypeFor[appBody]():      "ApplicationDeclaration",
	reflect.TypeFor[instanceBody](): "InstanceDeclaration",
	reflect.TypeFor[documentBody](): "Document",
	reflect.TypeFor[tokenBody]():    "UserTokenRequest",
}

func (d *describer) structure(t reflect.Type) schema {
	name := componentNames[t]
	if name == "" {
		name = t.Name()
		if i := strings.IndexByte(name, '['); i >= 0 { // List[…/admin.Application]
			name = name[strings.LastIndexByte(name, '.')+1:len(name)-1] + name[:i]
		}
	}
	if _, done := d.schemas[name]; done || name == "" {
		return d.ref(name)
	}
	d.schemas[name] = nil // so that a type within itself ends here
	props := make(map[string]any)
	required := d.fields(t, props)
	s := schema{"type": "object", "properties": props}
	switch t {
	case reflect.TypeFor[appBody](), reflect.TypeFor[instanceBody](), reflect.TypeFor[documentBody](), reflect.TypeFor[tokenBody]():
		s["additionalProperties"] = false // and everything has a default
		observed := []string{"ring_share", "probe", "last_probe", "ejected_by", "ejected_since"}
		for _, key := range append([]string{"token_hint", "revision"}, observed...) {
			if slices.Contains(observed, key) && t != reflect.TypeFor[instanceBody]() {
				continue
			}
			if t != reflect.TypeFor[tokenBody]() && props[key] == nil {
				props[key] = schema{"description": "passed over", "readOnly": true}
			}
		}
		required = nil
		if t == reflect.TypeFor[instanceBody]() {
			required = []string{"name"}
		}
	}
	if isDeclaredPart(t) {
		required = nil
	}
	if t == reflect.TypeFor[Instance]() {
		delete(props, "token")
		required = without(required, "token")
	}
	if len(required) > 0 {
		sort.Strings(required)
		s["required"] = required
	}
	d.schemas[name] = s
	return d.ref(name)
}

// isDeclaredPart: parts of declarations may be left out for their defaults.
func isDeclaredPart(t reflect.Type) bool {
	return t.PkgPath() == reflect.TypeFor[lb.Rate]().PkgPath() && t != reflect.TypeFor[lb.Fault]()
}

func without(list []string, s string) []string {
	var out []string
	for _, v := range list {
		if v != s {
			out = append(out, v)
		}
	}
	return out
}

// fields collects what encoding/json would write: an embedded struct's fields
// unless the outer has one of that name.
func (d *describer) fields(t reflect.Type, props map[string]any) (required []string) {
	for i := range t.NumField() {
		f := t.Field(i)
		if f.Anonymous && f.Tag.Get("json") == "" {
			inner := make(map[string]any)
			for _, name := range d.fields(f.Type, inner) {
				required = append(without(required, name), name)
			}
			for k, v := range inner {
				props[k] = v
			}
		}
	}
	for i := range t.NumField() {
		f := t.Field(i)
		name, opts, _ := strings.Cut(f.Tag.Get("json"), ",")
		if name == "" || name == "-" || !f.IsExported() {
			continue
		}
		s := d.of(f.Type)
		if f.Type.Kind() == reflect.Pointer && !strings.Contains(opts, "omitempty") {
			s = schema{"anyOf": []any{s, schema{"type": "null"}}}
		}
		if about := meanings[meaningOf(t, name)]; about != "" {
			s["description"] = about
		}
		props[name] = s
		required = without(required, name)
		if !strings.Contains(opts, "omitempty") {
			required = append(required, name)
		}
	}
	return required
}
