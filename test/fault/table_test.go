package fault

import (
	"cmp"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"difylb/test/testbed"
)

// row is what came of a case.
type row struct {
	section, place int // where it stands in the table
	fault, promise string
	sent           int
	failed         int // answered otherwise than asked, or not at all
	cut            int // streams that ended before their end
	moved          int // answered by another than the owner, for a reason
	misplaced      int // the same without one
	whole          time.Duration
	remark         string
}

// sections of the table, by the test that they come from.
var sections = []struct{ test, title string }{
	{"TestFault_Store", "The store: three members of etcd, two lb-admins, two lb-proxies"},
	{"TestFault_Forgetful", "A store of one member that fills up, forgets and shuts its door"},
	{"TestFault_Users", "A store that knows users, whose tokens live for 3 s"},
	{"TestFault_Control", "The lb-admins, on three members of etcd"},
	{"TestFault_Upgrade", "Everything is restarted in turn"},
	{"TestFault_Proxies", "The proxies, with one lb-admin that brings its own etcd"},
	{"TestFault_Memory", "Proxies with GOMEMLIMIT=40MiB"},
	{"TestFault_Instances", "The instances"},
	{"TestFault_Names", "Instances that are declared by names"},
	{"TestFault_Certificates", "Certificates, where every wire speaks TLS"},
	{"TestFault_Network", "A network that loses packets"},
	{"TestFault_Disks", "Disks that fill up"},
	{"TestFault_Counters", "The counters"},
}

// sectionOf is the place of a test in sections.
func sectionOf(test string) int {
	return slices.IndexFunc(sections, func(s struct{ test, title string }) bool { return s.test == test })
}

// results collects the rows of all tests.
var results resultList

type resultList struct {
	mu   sync.Mutex
	list []row // guarded by mu
}

func (l *resultList) add(r row) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.list = append(l.list, r)
}

// rows are in the order in which sections and cases are declared.
func (l *resultList) rows() []row {
	l.mu.Lock()
	defer l.mu.Unlock()
	return slices.SortedFunc(slices.Values(l.list), func(a, b row) int {
		return cmp.Or(cmp.Compare(a.section, b.section), cmp.Compare(a.place, b.place))
	})
}

// table is the Markdown of what was found.
func table(rows []row) string {
	var b strings.Builder
	b.WriteString("| what goes wrong | promised | sent | failed | cut | whole after | seen |\n|---|---|---|---|---|---|---|\n")
	section := -1
	for _, r := range rows {
		if r.section != section {
			section = r.section
			fmt.Fprintf(&b, "| **%s** | | | | | | |\n", sections[section].title)
		}
		fmt.Fprintf(&b, "| %s | %s | %d | %d | %d | %.1f s | %s |\n", r.fault, r.promise, r.sent, r.failed, r.cut, r.whole.Seconds(), r.remark)
	}
	return b.String()
}

// The table stands between these lines of the page.
const (
	tableBegins = "<!-- table: written by make fault UPDATE=-update -->\n"
	tableEnds   = "<!-- end of table -->\n"
)

// updatePage puts the table into the page, if no section is missing.
func updatePage(rows []row) error {
	for i, s := range sections {
		if !slices.ContainsFunc(rows, func(r row) bool { return r.section == i }) {
			return fmt.Errorf("the table stays as it is: %s did not run, and its section would be lost", s.test)
		}
	}
	path := filepath.Join(testbed.Repository(), "docs", "reliability.md")
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	head, rest, ok := strings.Cut(string(data), tableBegins)
	_, tail, ok2 := strings.Cut(rest, tableEnds)
	if !ok || !ok2 {
		return fmt.Errorf("%s has no place for the table", path)
	}
	return os.WriteFile(path, []byte(head+tableBegins+"\n"+table(rows)+"\n"+tableEnds+tail), 0o644)
}
