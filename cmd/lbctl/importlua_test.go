package main

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"difylb/pkg/document"
	"difylb/pkg/lb"
)

func TestImportLua_SeedFile(t *testing.T) {
	b := newBench(t)
	source, err := os.ReadFile(filepath.Join(sourceDir(), "testdata", "seed.lua"))
	if err != nil {
		t.Fatal(err)
	}
	file := b.file("seed.lua", string(source))
	code, out, errs := b.run("import", "lua", file)
	if code != 0 {
		t.Fatalf("exit code %d: %s", code, errs)
	}
	golden(t, "import-seed.yaml", out)
	golden(t, "import-seed.notes", strings.ReplaceAll(errs, b.env["HOME"]+"/", ""))
	for _, token := range []string{"usertoken--", "app-customer", "app-generator", "user-token"} {
		if strings.Contains(errs, token) {
			t.Errorf("the notes show a token: %s", errs)
		}
	}
	if out := b.ok("validate", "-f", b.file("out.yaml", out)); !strings.Contains(out, "2 applications with 5 instances") {
		t.Errorf("validate says %s", out)
	}
	code, js, _ := b.run("import", "lua", file, "-o", "json")
	if code != 0 {
		t.Fatalf("-o json: exit code %d", code)
	}
	fromJSON, err1 := document.Parse([]byte(js))
	fromYAML, err2 := document.Parse([]byte(out))
	if err1 != nil || err2 != nil || len(fromJSON.Applications) != len(fromYAML.Applications) {
		t.Errorf("JSON and YAML differ: %v, %v", err1, err2)
	}
	code, out, _ = b.run("import", "lua", file, "--honor-weights")
	if code != 0 || !strings.Contains(out, "weight: 3") {
		t.Errorf("--honor-weights: exit code %d: %s", code, out)
	}
	b.stdin = string(source)
	if code, piped, _ := b.run("import", "lua", "-"); code != 0 || !strings.Contains(piped, "customer_service") {
		t.Errorf("from standard input: exit code %d", code)
	}
}

func TestImportLua_Shapes(t *testing.T) {
	const apps = `{ shop = { user_tokens = {"shop-user-token-0001"}, instances = {{name = "b", host = "h1", port = "81", token = "app-shop-token-00001"}, {name = "a", host = "h2", token = "app-shop-token-00002"}} } }`
	for name, source := range map[string]string{
		"returned":                "return {applications = " + apps + "}",
		"local config":            "local config = {}\nconfig.applications = " + apps + "\nreturn config",
		"module":                  "local _M = {_VERSION = '0.1'}\n_M.applications = " + apps + "\nfunction _M.get() end\nreturn _M",
		"global config":           "config = {applications = " + apps + "}",
		"global applications":     "applications = " + apps,
		"applications themselves": "return " + apps,
		"nested":                  "return {config = {apps = " + apps + "}}",
		"function":                "local function make() return {applications = " + apps + "} end\nreturn make()",
		"byte order mark":         "\xef\xbb\xbfreturn {applications = " + apps + "}",
	} {
		im, err := importLua(t.Context(), "config.lua", []byte(source), honored{})
		if err != nil {
			t.Errorf("%s: %v", name, err)
			continue
		}
		if fs := im.faults(); len(fs) > 0 {
			t.Errorf("%s: %v", name, fs)
			continue
		}
		doc, err := document.Parse(im.document)
		if err != nil {
			t.Fatal(err)
		}
		a := doc.Applications["shop"]
		if a == nil || len(a.Instances) != 2 || a.Instances[0].Name != "b" || a.Instances[0].Port != 81 || a.Instances[1].Name != "a" {
			t.Errorf("%s: %s", name, im.document)
			continue
		}
		if a.ConsistentHash != (lb.ConsistentHash{VirtualNodes: 150, HashAlgorithm: lb.CRC32}) {
			t.Errorf("%s: hash %+v", name, a.ConsistentHash)
		}
	}
}

func TestImportLua_KeepsThePlacement(t *testing.T) {
	for _, c := range []struct {
		hash  string
		want  lb.ConsistentHash
		notes string
	}{
		{`{virtual_nodes = 150, hash_algorithm = "crc32"}`, lb.ConsistentHash{VirtualNodes: 150, HashAlgorithm: lb.CRC32}, ""},
		{`{virtual_nodes = 150, hash_algorithm = "md5"}`, lb.ConsistentHash{VirtualNodes: 150, HashAlgorithm: lb.MD5}, ""},
		{`{virtual_nodes = 150, hash_algorithm = "MD5"}`, lb.ConsistentHash{VirtualNodes: 150, HashAlgorithm: lb.CRC32}, `"MD5" fell back to crc32`},
		{`{virtual_nodes = 150, hash_algorithm = "sha1"}`, lb.ConsistentHash{VirtualNodes: 150, HashAlgorithm: lb.CRC32}, `"sha1" fell back to crc32`},
		{`{virtual_nodes = 150, hash_algorithm = "xxhash"}`, lb.ConsistentHash{VirtualNodes: 150, HashAlgorithm: lb.CRC32}, `"xxhash" fell back to crc32`},
		{`{}`, lb.ConsistentHash{VirtualNodes: 200, HashAlgorithm: lb.CRC32}, "200 was that balancer's default"},
	} {
		im, err := importLua(t.Context(), "c", []byte(`return {consistent_hash = `+c.hash+`, applications = {a = {instances = {{name = "x", host = "h", token = "app-token-0000001"}}, consistent_hash = {virtual_nodes = 7}}}}`), honored{})
		if err != nil {
			t.Fatal(err)
		}
		doc, err := document.Parse(im.document)
		if err != nil {
			t.Fatal(err)
		}
		var notes strings.Builder
		im.report(&notes)
		if got := doc.Applications["a"].ConsistentHash; got != c.want || !strings.Contains(notes.String(), c.notes) || !strings.Contains(notes.String(), "looked at the common one only") {
			t.Errorf("%s: %+v, %s", c.hash, got, notes.String())
		}
	}
}

func TestImportLua_ProbesOnlyWhatIsThere(t *testing.T) {
	const (
		nginx  = `{name = "a", host = "h1", port = 80, token = "app-token-0000001"}`
		bare   = `{name = "b", host = "h2", token = "app-token-0000002"}`
		direct = `{name = "c", host = "h3", port = 5001, token = "app-token-0000003"}`
		text   = `{name = "d", host = "h4:5001", token = "app-token-0000004"}`
		byURL  = `{name = "e", url = "http://h5:5001/v1", token = "app-token-0000005"}`
		secure = `{name = "f", url = "https://h6/v1", token = "app-token-0000006"}`
	)
	for _, c := range []struct {
		instances, path string
		honor           bool
		want, note      string
	}{
		{nginx, "/health", false, "/v1/info", "/health becomes /v1/info"},
		{bare, "/health", false, "/v1/info", "/health becomes /v1/info"},
		{secure, "/health", false, "/v1/info", "/health becomes /v1/info"},
		{direct + "," + nginx, "/health", false, "/v1/info", "/health becomes /v1/info"},
		{nginx, "/health", true, "/health", "every instance would be unhealthy"},
		{direct + "," + text + "," + byURL, "/health", false, "/health", "every instance is on port 5001"},
		{nginx, "/v1/parameters", false, "/v1/parameters", ""},
		{nginx, "/healthy", false, "/healthy", ""},
	} {
		im, err := importLua(t.Context(), "c", []byte(`return {health_check = {path = "`+c.path+`"}, applications = {a = {user_tokens = {"user-token-0000001"}, instances = {`+c.instances+`}}}}`), honored{healthPath: c.honor})
		if err != nil {
			t.Fatal(err)
		}
		if fs := im.faults(); len(fs) > 0 {
			t.Fatal(fs)
		}
		doc, err := document.Parse(im.document)
		if err != nil {
			t.Fatal(err)
		}
		var notes strings.Builder
		im.report(&notes)
		check := doc.Applications["a"].Check
		if check.Path != c.want || !check.SendToken || !strings.Contains(notes.String(), c.note) || c.note == "" && strings.Contains(notes.String(), "health_check.path") {
			t.Errorf("%s of %s: %+v, %s", c.path, c.instances, check, notes.String())
		}
	}
}

func TestImportLua_ShowsEveryFault(t *testing.T) {
	b := newBench(t)
	b.fails(1, "import "+b.env["HOME"]+"/c.lua: 7 faults|applications.Shop: |instances[0].port: |instances[0].name: |instances[1].token: is missing|instances[1].host: is missing|health_check.interval: |user_tokens[0]", "import", "lua", b.file("c.lua", `
		return { health_check = {interval = "often"}, applications = { Shop = {
			user_tokens = {"with space in it"},
			instances = { {name = "über", host = "h", port = "http", token = "app-token-0000001"}, {name = "x"} },
		}}}`))
	for source, want := range map[string]string{
		`return 1`:                        "holds no applications",
		`return {}`:                       "holds no applications",
		`os.exit()`:                       "os.exit is not available",
		`return {applications = {a = 1}}`: "stands where a mapping belongs",
		`return {applications = {a = {instances = 5}}}`:                                                       "stands where a list belongs",
		`return {applications = {a = {instances = {5}}}}`:                                                     "stands where a mapping belongs",
		`return {applications = {a = {instances = {{name = "x", host = "h", token = "t-000", port = 1/0}}}}}`: "port",
	} {
		b.fails(1, want, "import", "lua", b.file("c.lua", source))
	}
	b.fails(2, "nowhere.lua: no such file", "import", "lua", "nowhere.lua")
}

func TestImportLua_Applies(t *testing.T) {
	r := newRig(t)
	source, err := os.ReadFile(filepath.Join(sourceDir(), "testdata", "seed.lua"))
	if err != nil {
		t.Fatal(err)
	}
	file := r.file("seed.lua", string(source))
	if out := r.ok("import", "lua", file, "--apply", "--dry-run"); !strings.Contains(out, "dry run: nothing was changed") {
		t.Errorf("dry run says %s", out)
	}
	if out := r.ok("import", "lua", file, "--apply"); !strings.Contains(out, "applied as revision") {
		t.Errorf("says %s", out)
	}
	if out := r.ok("import", "lua", file, "--apply"); !strings.Contains(out, "nothing changes") {
		t.Errorf("the second time it says %s", out)
	}
	noSecrets(t, r.bench, "usertoken--customer-service-v1", "app-customer-token-0001", "app-generator-token-01", "user-token-generator-v1")
}

func TestImportLua_Rates(t *testing.T) {
	for in, want := range map[string]float64{"500r/s": 500, "90r/m": 1.5, "7": 7, "0.5r/s": 0.5} {
		if got, ok := ratePerSecond(in); !ok || got != want {
			t.Errorf("%q is %v, %v", in, got, ok)
		}
	}
	for _, in := range []string{"", "r/s", "many", "5r/h", "NaN", "Inf"} {
		if _, ok := ratePerSecond(in); ok {
			t.Errorf("%q is a rate", in)
		}
	}
}

func TestSplitPairs(t *testing.T) {
	got, err := splitPairs(`name=a, url=http://x:1/?a=b,token="with,comma \"q\" =",weight=1`)
	want := []pair{{"name", "a"}, {"url", "http://x:1/?a=b"}, {"token", `with,comma "q" =`}, {"weight", "1"}}
	if err != nil || len(got) != len(want) {
		t.Fatalf("%v, %v", got, err)
	}
	for i := range want {
		if got[i] != want[i] {
			t.Errorf("pair %d is %v", i, got[i])
		}
	}
	for _, in := range []string{"", " ", "name", "name=a,b", "=a", "name=a,", `name="a`, `name="a"b`, ",name=a"} {
		if _, err := splitPairs(in); err == nil {
			t.Errorf("%q is read", in)
		}
	}
}

func FuzzSplitPairs(f *testing.F) {
	f.Add(`name=a,url=http://x,token="a,b\"",weight=1`)
	f.Add(`a=",b=c`)
	f.Fuzz(func(t *testing.T, spec string) {
		pairs, err := splitPairs(spec)
		if err == nil && len(pairs) == 0 {
			t.Error("neither pairs nor an error")
		}
		// A token must not get into a message, whatever is wrong with the rest.
		if _, err := parseInstance("token=secret-canary-001," + spec); err != nil && strings.Contains(err.Error(), "secret-canary") && !strings.Contains(spec, "secret-canary") {
			t.Error(err)
		}
	})
}

func TestTree_NeverShowsATokenInAnError(t *testing.T) {
	in := tree{}
	err := in.set(instanceSchema, "token", "secret canary")
	if err == nil || strings.Contains(err.Error(), "canary") {
		t.Error(err)
	}
	if errors.Is(err, lb.ErrInvalid) {
		t.Error("a usage error is no answer of the server")
	}
}
