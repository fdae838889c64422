// Package arch holds the tests of the project's shape: which package may
// import which, and that each says what it is for.
package arch

import (
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// allowed is the map of the house: what each package may import of ours,
// beside pkg/lb, which nearly all speak. Arrows point down only.
var allowed = map[string][]string{
	// Mains.
	"cmd/lb-admin": {"pkg/controlplane", "pkg/daemon", "pkg/store"},
	"cmd/lb-proxy": {"pkg/dataplane", "pkg/daemon", "pkg/store"},
	"cmd/lbctl":    {"pkg/admin", "pkg/cluster", "pkg/controlplane", "pkg/daemon", "pkg/dataplane", "pkg/document", "pkg/route", "pkg/standin", "pkg/store"},
	// Planes: the wiring diagrams.
	"pkg/controlplane": {"pkg/admin", "pkg/certs", "pkg/cluster", "pkg/daemon", "pkg/dashboard", "pkg/health", "pkg/names", "pkg/route", "pkg/store", "pkg/store/embedded"},
	"pkg/dataplane":    {"pkg/certs", "pkg/cluster", "pkg/daemon", "pkg/document", "pkg/names", "pkg/proxy", "pkg/route", "pkg/stats", "pkg/store", "pkg/trace"},
	// Edges: one protocol each.
	"pkg/proxy":             {"pkg/certs", "pkg/dify", "pkg/h1", "pkg/health", "pkg/limit", "pkg/names", "pkg/ring", "pkg/route", "pkg/stats", "pkg/trace", "pkg/userid"},
	"pkg/admin":             {"pkg/cluster", "pkg/document", "pkg/route", "pkg/sketch", "pkg/store"},
	"pkg/cluster":           {"pkg/limit", "pkg/sketch", "pkg/stats", "proto"},
	"pkg/store":             {"pkg/document", "pkg/store/etcdlog"},
	"pkg/store/embedded":    {"pkg/store/etcdlog"},
	"pkg/store/etcdlog":     {},
	"pkg/store/storetest":   {"pkg/store", "pkg/store/embedded"},
	"pkg/store/clustertest": {"pkg/store"},
	// Logic: decides; no etcd, and no sockets but the prober's.
	"pkg/route":    {"pkg/ring"},
	"pkg/health":   {},
	"pkg/userid":   {},
	"pkg/limit":    {},
	"pkg/dify":     {},
	"pkg/document": {},
	// Leaves.
	"pkg/lb":        {},
	"pkg/h1":        {},
	"pkg/ring":      {},
	"pkg/sketch":    {},
	"pkg/stats":     {"pkg/sketch"},
	"pkg/daemon":    {"pkg/certs", "pkg/names"},
	"pkg/certs":     {},
	"pkg/names":     {},
	"pkg/dashboard": {},
	"pkg/standin":   {},
	"pkg/trace":     {},
	"proto":         {},
	"test/etcd":     {},
	"test/testbed":  {},
}

// pure packages must not even see the domain types: they are useful, and
// tested, without them.
var pure = []string{"pkg/ring", "pkg/sketch", "pkg/health", "pkg/userid", "pkg/limit", "pkg/dify", "pkg/h1", "pkg/standin", "pkg/trace", "pkg/dashboard", "pkg/names", "pkg/certs", "proto", "pkg/store/etcdlog"}

// forbidden names imports that decide about the size and the trust of a binary.
var forbidden = map[string][]string{
	"cmd/lb-proxy": {"go.etcd.io/etcd/server/v3", "difylb/pkg/store/embedded", "difylb/pkg/admin", "difylb/pkg/standin"},
	"cmd/lb-admin": {"difylb/pkg/proxy", "difylb/pkg/standin"},
	"pkg/lb":       {"go.etcd.io", "google.golang.org", "github.com"},
}

type goPackage struct {
	ImportPath, Doc string
	Dir             string
	Imports, Deps   []string
	GoFiles         []string
}

func packages(t *testing.T) map[string]goPackage {
	t.Helper()
	cmd := exec.Command("go", "list", "-json=ImportPath,Doc,Dir,Imports,Deps,GoFiles", "difylb/...")
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	all := make(map[string]goPackage)
	for dec := json.NewDecoder(strings.NewReader(string(out))); ; {
		var p goPackage
		if err := dec.Decode(&p); errors.Is(err, io.EOF) {
			return all
		} else if err != nil {
			t.Fatal(err)
		}
		all[strings.TrimPrefix(p.ImportPath, "difylb/")] = p
	}
}

func TestImports_PointDownOnly(t *testing.T) {
	for name, p := range packages(t) {
		if len(p.GoFiles) == 0 { // tests only
			continue
		}
		if strings.HasPrefix(name, "bench/") { // tools that measure from outside
			continue
		}
		may, known := allowed[name]
		if !known {
			t.Errorf("%s is not on the map: add it to test/arch and to docs/design/architecture.md", name)
			continue
		}
		set := map[string]bool{"pkg/lb": true}
		for _, a := range may {
			set[a] = true
		}
		for _, a := range pure {
			if a == name {
				delete(set, "pkg/lb")
			}
		}
		for _, imp := range p.Imports {
			if ours, ok := strings.CutPrefix(imp, "difylb/"); ok && !set[ours] {
				t.Errorf("%s imports %s, which the map does not allow", name, ours)
			}
		}
	}
}

func TestImports_KeepBinariesApart(t *testing.T) {
	all := packages(t)
	for name, bad := range forbidden {
		for _, dep := range all[name].Deps {
			for _, b := range bad {
				if dep == b || strings.HasPrefix(dep, b+"/") || (strings.Count(b, "/") == 0 && strings.HasPrefix(dep, b)) {
					t.Errorf("%s depends on %s", name, dep)
				}
			}
		}
	}
}

func TestPackages_SayWhatTheyAreFor(t *testing.T) {
	for name, p := range packages(t) {
		if len(p.GoFiles) > 0 && len(p.Doc) < 30 && name != "test/etcd" {
			t.Errorf("%s has no package comment that says what it is for", name)
		}
	}
}

// Ages and deadlines are measured by the monotonic clock, which time.Time
// carries along. These lose it, and are only of use to who wants to.
func TestTimes_KeepTheirMonotonicClock(t *testing.T) {
	for name, p := range packages(t) {
		if !strings.HasPrefix(name, "pkg/") && !strings.HasPrefix(name, "cmd/") || name == "pkg/standin" {
			continue
		}
		for _, file := range p.GoFiles {
			text, err := os.ReadFile(filepath.Join(p.Dir, file))
			if err != nil {
				t.Fatal(err)
			}
			for _, word := range []string{".UnixNano()", ".UnixMicro()", ".Round(0)", "time.Unix(0,"} {
				if strings.Contains(string(text), word) {
					t.Errorf("%s/%s: %s: an age measured with it jumps with the wall clock; keep the time.Time, or time.Since a fixed one", name, file, word)
				}
			}
		}
	}
}
