package admin

import (
	_ "embed"
	"encoding/json"
	"path"
	"reflect"
	"strings"
)

// meaningsJSON is what the comments of the sources say of the fields of the
// API, by package, type and key. It is made of them by make generate, because a
// program does not hold its comments.
//
//go:embed meanings.json
var meaningsJSON []byte

var meanings = func() map[string]string {
	m := make(map[string]string)
	if err := json.Unmarshal(meaningsJSON, &m); err != nil {
		panic("admin: meanings.json: " + err.Error())
	}
	return m
}()

// meaningOf returns the key of a field's meaning.
func meaningOf(t reflect.Type, field string) string {
	name, _, _ := strings.Cut(t.Name(), "[") // List[…]
	return path.Base(t.PkgPath()) + "." + name + "." + field
}
