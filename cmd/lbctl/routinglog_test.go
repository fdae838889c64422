package main

import (
	"bytes"
	"encoding/json"
	"strings"
	"testing"
	"unicode/utf8"
)

func TestParseRouted_FindsTheObject(t *testing.T) {
	want := routed{"customer_service", "alice", "dify1"}
	plain := `{"app_type":"customer_service","user_id":"alice","backend_instance":"dify1"}`
	for _, c := range []struct {
		name, line string
		want       routed
	}{
		{"alone", plain, want},
		{"with other fields", `{"time":1.5,"app_type":"customer_service","x":[{"app_type":"no"},"]"],"user_id":"alice","ok":true,"backend_instance":"dify1","none":null}`, want},
		{"as lb-proxy writes it", `{"time":"2026-05-06T07:08:10.244Z","remote_addr":"172.20.62.17","request_method":"POST","uri":"/v1/chat-messages","status":200,"body_bytes_sent":4242,"request_time":1.235,"upstream_header_time":0.057,"app_type":"customer_service","user_id":"alice","hash_key":"customer_service:alice","backend_instance":"dify1","request_id":"x","reason":"ok","weight":10}`, want},
		{"spaced", ` { "app_type" : "customer_service" , "user_id":"alice","backend_instance":"dify1" } `, want},
		{"behind what nginx writes", `2024/05/06 12:00:00 [info] 7#7: *42 [lua] balancer.lua:99: ` + plain + ` while logging request, client: 10.0.0.9, server: {none}`, want},
		{"behind another object", `{"level":"info"} ` + plain, want},
		{"behind a brace that begins nothing", `user {x} said ` + plain, want},
		{"inside another object", `{"stream":"stdout","log":` + plain + `}`, want},
		{"as text of another object", `{"log":"{\"app_type\":\"customer_service\",\"user_id\":\"alice\",\"backend_instance\":\"dify1\"}\n","stream":"stdout"}`, want},
		{"a number for a user", `{"app_type":"a","user_id":10017,"backend_instance":"b"}`, routed{"a", "10017", "b"}},
		{"escapes of JSON", `{"app_type":"a","user_id":"\u4f60\ud83d\ude00\/\n","backend_instance":"b"}`, routed{"a", "你😀/\n", "b"}},
		{"escapes of nginx", `{"app_type":"a","user_id":"\xE4\xBD\xA0\x22\x5C","backend_instance":"b"}`, routed{"a", `你"\`, "b"}},
		{"bytes that are no UTF-8", "{\"app_type\":\"a\",\"user_id\":\"\xff\xfe\",\"backend_instance\":\"b\"}", routed{"a", "\xff\xfe", "b"}},
		{"nobody", `{"app_type":"a","user_id":"-","backend_instance":null}`, routed{"a", "", ""}},
		{"a repeated key", `{"app_type":"x","app_type":"a","user_id":"u","backend_instance":"b"}`, routed{"a", "u", "b"}},
	} {
		if got, err := parseRouted([]byte(c.line)); err != nil || got != c.want {
			t.Errorf("%s: %+v, %v; want %+v", c.name, got, err, c.want)
		}
	}
}

func TestParseRouted_SaysWhatIsWrong(t *testing.T) {
	for line, want := range map[string]error{
		``: errNoObject,
		`10.0.0.1 - - [06/May/2024] "GET / HTTP/1.1" 200`:                                            errNoObject,
		`{"app_type":"a","user_id":"u","backend_inst`:                                                errBroken,
		`{"app_type":"a","user_id":"u" "backend_instance":"b"}`:                                      errBroken,
		`{"app_type":"a","user_id":"u\q","backend_instance":"b"}`:                                    errBroken,
		`{"user_id":"u","backend_instance":"b"}`:                                                     errNoAppType,
		`{"app_type":"a","backend_instance":"b"}`:                                                    errNoUserID,
		`{"app_type":"a","user_id":"0011223344556677","user_id_hashed":true,"backend_instance":"b"}`: errHashed,
		`{"app_type":"a","user_id":"u"}`:                                                             errNoBackend,
		`{} ` + `{"app_type":"a","user_id":`:                                                         errNoAppType,
		strings.Repeat("{", 1000) + `"app_type":"a","user_id":"u","backend_instance":"b"}`:           errBroken,
	} {
		if got, err := parseRouted([]byte(line)); err != want {
			t.Errorf("%.60q: %+v, %v; want %v", line, got, err, want)
		}
	}
}

// FuzzParseRouted compares with encoding/json wherever that has an opinion: on
// objects of valid UTF-8.
func FuzzParseRouted(f *testing.F) {
	for _, s := range []string{
		`{"app_type":"a","user_id":"u","backend_instance":"b"}`,
		`x {"app_type":"a","user_id":"\ud83d\ude00\x22","backend_instance":"b"} y`,
		`{"log":"{\"app_type\":\"a\",\"user_id\":1,\"backend_instance\":\"b\"}"}`,
		`{"a":[{}],"app_type":true,"user_id":1e5,"backend_instance":"-"}`,
		"{\"app_type\":\"\xff\",\"user_id\":null,\"backend_instance\":{}}",
		strings.Repeat(`{"x":`, 40),
	} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, line []byte) {
		got, err := parseRouted(line)
		if err == nil && len(got.app)+len(got.user)+len(got.instance) > 3*len(line) {
			t.Fatalf("%q gives more than was there: %+v", line, got)
		}
		if !utf8.Valid(line) || !json.Valid(line) || len(line) == 0 || line[0] != '{' {
			return
		}
		dec := json.NewDecoder(bytes.NewReader(line))
		dec.UseNumber()
		var object map[string]any
		if dec.Decode(&object) != nil {
			return
		}
		text := func(key string) (string, bool) {
			v, ok := object[key]
			switch v := v.(type) {
			case string:
				if v == "-" {
					v = ""
				}
				return v, ok
			case json.Number:
				return v.String(), ok
			case bool:
				return map[bool]string{true: "true", false: "false"}[v], ok
			}
			return "", ok
		}
		app, hasApp := text("app_type")
		user, hasUser := text("user_id")
		instance, hasInstance := text("backend_instance")
		if !hasApp || !hasUser || !hasInstance {
			return
		}
		if want := (routed{app, user, instance}); err != nil || got != want {
			t.Errorf("%q: %+v, %v; encoding/json says %+v", line, got, err, want)
		}
	})
}
