package e2e

import (
	"encoding/json"
	"fmt"
	"maps"
	"testing"
)

// application is a declaration in the test's own words.
type application struct {
	name      string
	token     string // the user token
	algorithm string // empty: crc32
	nodes     int    // virtual nodes; 0: 150
	fields    map[string]any
	instances []instance
}

// instance is one of its instances.
type instance struct {
	name   string
	addr   string // host:port
	token  string
	weight int // 0: 1
	fields map[string]any
}

func (a application) hash() string {
	if a.algorithm == "" {
		return "crc32"
	}
	return a.algorithm
}

func (a application) virtualNodes() int {
	if a.nodes == 0 {
		return 150
	}
	return a.nodes
}

func (in instance) weighs() int {
	if in.weight == 0 {
		return 1
	}
	return in.weight
}

func (in instance) declaration() map[string]any {
	m := map[string]any{"name": in.name, "url": "http://" + in.addr, "token": in.token, "weight": in.weighs()}
	maps.Copy(m, in.fields)
	return m
}

func (a application) declaration() map[string]any {
	var list []any
	for _, in := range a.instances {
		list = append(list, in.declaration())
	}
	m := map[string]any{
		"user_tokens":     []any{a.token},
		"consistent_hash": map[string]any{"virtual_nodes": a.virtualNodes(), "hash_algorithm": a.hash()},
		"instances":       list,
	}
	maps.Copy(m, a.fields)
	return m
}

// document is what apply takes.
func document(t testing.TB, apps ...application) []byte {
	t.Helper()
	all := make(map[string]any)
	for _, a := range apps {
		all[a.name] = a.declaration()
	}
	data, err := json.MarshalIndent(map[string]any{"applications": all}, "", "  ")
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// unprobed are the fields of an application whose health only traffic shows.
func unprobed() map[string]any {
	return map[string]any{"health_check": map[string]any{"type": "none"}}
}

// probed are those of one that is probed often and believed quickly.
func probed() map[string]any {
	return map[string]any{"health_check": map[string]any{"interval": "500ms", "timeout": "400ms", "healthy_threshold": 2, "unhealthy_threshold": 2}}
}

func users(prefix string, n int) []string {
	out := make([]string, n)
	for i := range out {
		out[i] = fmt.Sprintf("%s-%d", prefix, i)
	}
	return out
}
