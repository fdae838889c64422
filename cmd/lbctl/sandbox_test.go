package main

import (
	"context"
	"strings"
	"testing"
	"time"

	lua "github.com/yuin/gopher-lua"
)

func TestSandbox_StopsWhatIsHostile(t *testing.T) {
	for name, c := range map[string]struct{ source, want string }{
		"endless loop":            {`while true do end`, "did not end within"},
		"endless loop in pcall":   {`while true do pcall(function() while true do end end) end`, "did not end within"},
		"endless recursion":       {`local function f() return 1 + f() end f()`, "stack overflow"},
		"endless tail calls":      {`local function f() return f() end f()`, "stack overflow"},
		"endless sort":            {`table.sort({3,2,1}, function() while true do end end)`, "did not end within"},
		"text bomb":               {`local s = string.rep("x", 1e9)`, "text of more than"},
		"text bomb, method":       {`local s = ("x"):rep(1e9)`, "text of more than"},
		"text bomb, overflow":     {`local s = ("xxxx"):rep(2^62)`, "text of more than"},
		"text bomb, doubling":     {`local s = "x" while true do s = s .. s end`, "text of more than"},
		"text bomb, wide concat":  {`local s = ("x"):rep(100000) s = ` + strings.Repeat("s..", 60) + `s`, "text of more than"},
		"text bomb, in pcall":     {`local s = "xx" while true do pcall(function() s = s .. s end) end`, "text of more than"},
		"text bomb, format":       {`local s = ("x"):rep(900000) s = string.format("%s%s", s, s)`, "text of more than"},
		"text bomb, width":        {`local s = string.format("%999999d", 1)`, "at most two digits"},
		"text bomb, concat":       {`local t = {} for i = 1, 100 do t[i] = ("x"):rep(100000) end local s = table.concat(t)`, "text of more than"},
		"many texts":              {`local t = {} for i = 1, 1000 do t[i] = ("x"):rep(1000000) end`, "MiB of texts"},
		"many texts, upper":       {`local s = ("x"):rep(1000000) for i = 1, 1000 do s:upper() end`, "MiB of texts"},
		"table bomb":              {`local t = {} local i = 0 while true do i = i + 1 t[i] = {i} end`, "MiB of memory"},
		"table bomb, sparse":      {`local all = {} for i = 1, 1e6 do local t = {} t[65000] = 1 all[i] = t end`, "MiB of memory"},
		"table bomb, unpack":      {`local t = {} for i = 1, 60000 do t[i] = i end local x = {unpack(t)}`, "overflow"},
		"table bomb, byte":        {`local x = {string.byte(("x"):rep(1000000), 1, -1)}`, "overflow"},
		"pattern bomb":            {`string.find(("a"):rep(1000), ("a?"):rep(1000) .. ("a"):rep(1000))`, "string.find is not available"},
		"pattern bomb, method":    {`(("a"):rep(100)):gsub("a*a*b", "")`, "string.gsub is not available"},
		"deep, not":               {`return ` + strings.Repeat("not ", 100000) + `true`, "nested deeper"},
		"deep, minus":             {`return ` + strings.Repeat("- ", 100000) + `1`, "nested deeper"},
		"deep, tables":            {`return ` + strings.Repeat("{", 5000) + strings.Repeat("}", 5000), "nested deeper|not Lua"},
		"deep, functions":         {strings.Repeat("do ", 5000) + strings.Repeat("end ", 5000), "nested deeper|not Lua"},
		"file read":               {`local f = io.open("/etc/passwd")`, "io.open is not available: a configuration is read in a sandbox"},
		"process":                 {`os.execute("true")`, "os.execute is not available"},
		"environment":             {`local x = os.getenv("HOME")`, "os.getenv is not available"},
		"exit":                    {`os.exit(0)`, "os.exit is not available"},
		"require":                 {`local cjson = require "cjson"`, "require is not available"},
		"loadstring":              {`loadstring("return 1")()`, "loadstring is not available"},
		"dofile":                  {`dofile("/etc/passwd")`, "dofile is not available"},
		"package":                 {`local x = package.path`, "package.path is not available"},
		"debug":                   {`debug.getregistry()`, "debug.getregistry is not available"},
		"write to a library":      {`os.getenv = 1`, "os.getenv is not available"},
		"globals":                 {`_G.x = 1`, "non-table object(nil)"},
		"environment of function": {`getfenv(1)`, "getfenv is not available"},
		"metatable of texts":      {`getmetatable("").__index = nil`, "getmetatable is not available"},
		"coroutine":               {`coroutine.wrap(function() end)()`, "coroutine.wrap is not available"},
		"compiled":                {"\x1bLua\x51\x00", "compiled Lua"},
		"no Lua":                  {`this is not lua`, "not Lua"},
		"error":                   {`error({})`, ""},
		"error text":              {`error("the port is missing")`, "the port is missing"},
		"concat nil":              {`local x = "a" .. nil`, "attempt to concatenate a nil value"},
		"concat table":            {`local x = {} .. "a"`, "attempt to concatenate a table value"},
		"too large":               {strings.Repeat("-", maxLuaFileBytes+1), "larger than"},
	} {
		t.Run(name, func(t *testing.T) {
			begin := time.Now()
			limit := time.Minute // far more than it takes: another bound stops it
			if strings.Contains(c.want, "within") {
				limit = 300 * time.Millisecond
			}
			ctx, cancel := context.WithTimeout(t.Context(), limit)
			defer cancel()
			conf, err := runLua(ctx, "config.lua", []byte(c.source))
			if err == nil {
				conf.close()
				t.Fatal("no error")
			}
			found := false
			for _, w := range strings.Split(c.want, "|") {
				found = found || strings.Contains(err.Error(), w)
			}
			if !found {
				t.Errorf("%q does not speak of %q", err, c.want)
			}
			if strings.Contains(err.Error(), "stack traceback") || len(err.Error()) > 1000 {
				t.Errorf("shows a trace: %.2000s", err)
			}
			// What ends late was not stopped between two instructions.
			if took := time.Since(begin); took > limit+10*time.Second {
				t.Errorf("took %s", took)
			}
		})
	}
}

func TestSandbox_ResultIsBounded(t *testing.T) {
	for name, source := range map[string]string{
		"itself":  `local t = {} t.t = t return t`,
		"shared":  `local t = {1} for i = 1, 14 do t = {t, t, t, t} end return t`,
		"too big": `local t = {} for i = 1, 4 do local u = {} for j = 1, 60000 do u[j] = j end t[i] = u end return t`,
	} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		conf, err := runLua(ctx, "config.lua", []byte(source))
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if _, err := readLua(conf.result); err == nil {
			t.Errorf("%s: is read", name)
		}
		conf.close()
	}
}

func TestSandbox_RunsWhatConfigurationsUse(t *testing.T) {
	for source, want := range map[string]string{
		`return "a" .. 1 .. "b" .. 2.5`: "a1b2.5",
		`local function two() return 1, 2 end local function g() return two() end local a, b = g() return a + b`: "3",
		"return " + strings.Repeat("(", 100000) + "1" + strings.Repeat(")", 100000):                              "1",
		`local function two() return 1, 2 end return "x" .. two()`:                                               "x1",
		`local function f(...) return "n" .. ... end return f(7, 8)`:                                             "n7",
		`return (("ab"):rep(2) .. "c"):upper()`:                                                                  "ABABC",
		`return string.format("%s-%03d-%.1f-%5s|%%|%x", "a", 7, 1.25, "x", 255)`:                                 "a-007-1.2-    x|%|ff",
		`return table.concat({1, 2, "x"}, ", ")`:                                                                 "1, 2, x",
		`local t = {} for i = 1, 3 do table.insert(t, "d" .. i) end return t[3]`:                                 "d3",
		`local n = 0 for k, v in pairs({a = 1, b = 2}) do n = n + v end return n`:                                "3",
		`local ok, e = pcall(error, "x", 0) return tostring(ok) .. e`:                                            "falsex",
		`return math.floor(7 / 2) .. ""`:                                                                         "3",
		`ngx.log(ngx.ERR, "x") print("y") return tostring(ngx.null)`:                                             "nil",
		`goto done do return "no" end ::done:: return "yes"`:                                                     "yes",
		`local x = 1 repeat x = x * 2 until x > 100 return x`:                                                    "128",
		`local s = "" for w = 1, 3 do s = s .. w end if s == "123" then return s end`:                            "123",
	} {
		conf, err := runLua(t.Context(), "config.lua", []byte(source))
		if err != nil {
			t.Errorf("%s: %v", source, err)
			continue
		}
		if got := conf.result.String(); got != want {
			t.Errorf("%s: %q, want %q", source, got, want)
		}
		conf.close()
	}
}

func TestSandbox_HasALimitOfItsOwn(t *testing.T) {
	begin := time.Now()
	_, err := runLua(t.Context(), "config.lua", []byte(`while true do end`))
	if err == nil || !strings.Contains(err.Error(), "did not end within 2s") || time.Since(begin) < sandboxTime {
		t.Errorf("%v after %s", err, time.Since(begin))
	}
}

func TestSandbox_EndsWithItsCaller(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := runLua(ctx, "config.lua", []byte(`while true do end`)); err == nil {
		t.Error("goes on")
	}
}

// No source may panic, hang, or reach what the sandbox keeps out.
func FuzzSandbox(f *testing.F) {
	f.Add(`return {applications = {a = {instances = {{name = "x", host = "h"}}}}}`)
	f.Add(`local s = "x" while true do s = s .. s end`)
	f.Add(`local t = {} t[60000] = 1 return t`)
	f.Add(`return string.format("%d %s", 1, "x"), ...`)
	f.Add("return [[a]] --[==[ b ]==]")
	f.Fuzz(func(t *testing.T, source string) {
		if len(source) > 4096 {
			return
		}
		ctx, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
		defer cancel()
		im, err := importLua(ctx, "config.lua", []byte(source), honored{})
		if err != nil {
			return
		}
		im.faults()
	})
}

func TestLuaText_OfNumbers(t *testing.T) {
	for _, c := range []struct {
		in   float64
		want string
	}{{1, "1"}, {-3, "-3"}, {2.5, "2.5"}, {1e300, "1e+300"}, {4294967296, "4294967296"}} {
		v, err := readLua(lua.LNumber(c.in))
		if err != nil || v.text != c.want {
			t.Errorf("%g is %q, %v", c.in, v.text, err)
		}
	}
}
